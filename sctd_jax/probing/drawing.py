"""What the probes found, as pictures: bytes of a PNG each."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

_DOTS = {"marker": "o", "markersize": 4}


def layers(result: Mapping[str, Any]) -> bytes:
    """Score by layer: a colour for each model, solid for [CLS], dashed for the mean, dotted for the majority."""

    def draw(axes: Sequence[Axes]) -> None:
        (axis,) = axes
        for number, model in enumerate(result["models"]):
            for pooling, style, label in (("cls", "-", "[CLS]"), ("mean", "--", "mean")):
                scores, look = model[pooling]["score"], {"linestyle": style, "label": f"{model['model']}: {label}"}
                axis.plot(range(len(scores)), scores, color=_color(number), **look, **_DOTS)
        axis.axhline(result["majority"], linestyle=":", color="black", label="majority")
        _label(axis, "layer (0: embeddings)", f"{result['settings']['task']}, dev: {' + '.join(result['metrics'])}")

    return _picture(1, draw)


def drift(result: Mapping[str, Any]) -> bytes:
    """Cosine of full and drop pass, over the steps and, where it was measured, by layer."""
    models = list(enumerate(result["models"]))
    by_layer = [(number, model) for number, model in models if model["layers"]]

    def draw(axes: Sequence[Axes]) -> None:
        for number, model in models:
            for name, style in (("global", "-"), ("local", "--")):
                label = f"{model['model']}: [CLS] after the last layer{' but one' if name == 'local' else ''}"
                points = model[name]["step"], model[name]["cosine"]
                axes[0].plot(*points, linestyle=style, color=_color(number), label=label, **_DOTS)
        _label(axes[0], "step", "cosine of the full and the drop pass")
        for number, model in by_layer:
            found = model["layers"]
            for pooling, style, label in (("cls", "-", "[CLS]"), ("mean", "--", "mean")):
                name = f"{model['model']}, step {found['step']}: {label}"
                points = found["layer"], found[pooling]["cosine"]
                axes[1].plot(*points, linestyle=style, color=_color(number), label=name, **_DOTS)
        if by_layer:
            _label(axes[1], "layer, from the first that drops", "cosine of the full and the drop pass")

    return _picture(1 + bool(by_layer), draw)


def perplexity(result: Mapping[str, Any]) -> bytes:
    """Bars; or curves over the steps, where models without steps are level lines."""
    over_steps = result["settings"]["every_checkpoint"]

    def draw(axes: Sequence[Axes]) -> None:
        kinds = (("pppl", "PPPL (only for the same tokenizer)"), ("bits_per_character", "bits per character"))
        for axis, (name, label) in zip(axes, kinds, strict=True):
            for number, model in enumerate(result["models"]):
                values = [point[name] for point in model["points"]]
                if not over_steps:
                    axis.bar(number, values[0], color=_color(number), label=model["model"])
                elif model["points"][0]["step"] is None:
                    axis.axhline(values[0], color=_color(number), linestyle=":", label=model["model"])
                else:
                    steps = [point["step"] for point in model["points"]]
                    axis.plot(steps, values, color=_color(number), label=model["model"], **_DOTS)
            _label(axis, "step" if over_steps else "", label)
            if not over_steps:
                axis.set_xticks([])

    return _picture(2, draw)


def _color(number: int) -> str:
    return f"C{number % 10}"


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _picture(panels: int, draw: Callable[[Sequence[Axes]], None]) -> bytes:
    figure, axes = plt.subplots(1, panels, figsize=(6.5 * panels, 4.2), layout="constrained", squeeze=False)
    try:
        draw(axes[0])
        content = io.BytesIO()
        figure.savefig(content, dpi=120, format="png")
    finally:
        plt.close(figure)
    return content.getvalue()
