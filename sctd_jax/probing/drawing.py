"""Results of the probes as pictures: bytes of a PNG each."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sctd_jax.plot import look, save

_MOST_TICKS = 13


def layers(result: Mapping[str, Any]) -> bytes:
    """Score by layer: a colour for each model, solid for [CLS], dashed for the mean, dotted for the majority."""
    states = max(len(model["cls"]["score"]) for model in result["models"])
    figure, (axis,) = _panels(1)
    for number, model in enumerate(result["models"]):
        for pooling, style in (("cls", "-"), ("mean", "--")):
            scores = model[pooling]["score"]
            axis.plot(range(-1, len(scores) - 1), scores, linestyle=style, **look(number))
    axis.axhline(result["majority"], linestyle=":", color="black")
    _label(
        axis,
        "after layer (emb: the embeddings)",
        f"{result['settings']['task']}, dev: {' + '.join(result['metrics'])}",
    )
    ticks = range(-1, states - 1, math.ceil(states / _MOST_TICKS))
    axis.set_xticks(ticks, ["emb" if tick < 0 else str(tick) for tick in ticks])
    return _png(figure, _entries(result["models"]) | _styles({"[CLS]": "-", "mean": "--", "majority": ":"}))


def drift(result: Mapping[str, Any]) -> bytes:
    """Cosine of full and drop pass, over the steps and, where it was measured, by layer."""
    models = list(enumerate(result["models"]))
    by_layer = [(number, model["layers"]) for number, model in models if model["layers"]]
    ends = {"left: [CLS] after the last layer": "-", "left: [CLS] after the last layer but one": "--"}
    poolings = {"right: [CLS]": "-", "right: mean": "--"} if by_layer else {}
    figure, axes = _panels(1 + bool(by_layer))
    for number, model in models:
        for name, style in (("global", "-"), ("local", "--")):
            points = model[name]["step"], model[name]["cosine"]
            axes[0].plot(*points, linestyle=style, **look(number))
    _label(axes[0], "step", "cosine of the full and the drop pass")
    for number, found in by_layer:
        for pooling, style in (("cls", "-"), ("mean", "--")):
            axes[1].plot(found["layer"], found[pooling]["cosine"], linestyle=style, **look(number))
    if by_layer:
        steps = sorted({found["step"] for _, found in by_layer})
        at = f"step {steps[0]:,}" if len(steps) == 1 else "each run's newest checkpoint"
        _label(axes[1], f"after layer, from the first that drops; at {at}", "cosine of the full and the drop pass")
    return _png(figure, _entries(result["models"]) | _styles(ends | poolings))


def perplexity(result: Mapping[str, Any]) -> bytes:
    """A point for each model with its number; or curves over the steps, where models without steps are level lines."""
    over_steps = result["settings"]["every_checkpoint"]
    figure, axes = _panels(2)
    kinds = (("pppl", "PPPL (only for the same tokenizer)"), ("bits_per_character", "bits per character"))
    for axis, (name, label) in zip(axes, kinds, strict=True):
        for number, model in enumerate(result["models"]):
            values, steps = ([point[key] for point in model["points"]] for key in (name, "step"))
            if not over_steps:
                axis.plot([number], values, **look(number))
                axis.annotate(f"{values[0]:.4g}", (number, values[0]), (0, 5), textcoords="offset points",
                              ha="center", fontsize=8)  # fmt: skip
            elif steps[0] is None:
                axis.axhline(values[0], color=look(number)["color"], linestyle=":")
            else:
                axis.plot(steps, values, **look(number))
        _label(axis, "step" if over_steps else "", label)
        axis.margins(y=0.12)
        if not over_steps:
            axis.set_xticks([])
    return _png(figure, _entries(result["models"]))


def _entries(models: Sequence[Mapping[str, Any]]) -> dict[str, Artist]:
    return {model["model"]: Line2D([], [], **look(number)) for number, model in enumerate(models)}


def _styles(named: Mapping[str, str]) -> dict[str, Artist]:
    return {name: Line2D([], [], color="black", linestyle=style) for name, style in named.items()}


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(6.5 * count, 4.2), layout="constrained", squeeze=False)
    return figure, axes[0]


def _png(figure: Figure, entries: Mapping[str, Artist]) -> bytes:
    content = io.BytesIO()
    save(figure, entries, content, "png")
    return content.getvalue()
