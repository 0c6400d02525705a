"""Curves of runs as SVG to stand within a page: they scale with it, and take their colours from its style."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sctd_jax.plot import Curve, curve, smooth, y_range
from sctd_jax.reporting.runs import Run

# Colours that are told apart with any colour vision (Okabe and Ito, 2008), and a line style more for each seven runs.
COLORS, DASHES = 7, ("-", "--", ":", "-.")
MOST_RUNS = COLORS * len(DASHES)
# Stand-ins that the page's own colours take the place of.
_INK, _LINES, _RUN = "#010203", "#010204", "#0102{:02x}"
_SIZE = 4.7, 3.0  # inches of 72 pixels: a phone's width, so that words have their size there
_POINTS = 400  # most points of a curve: there are no more pixels
_THIN = {"alpha": 0.45, "linewidth": 1}
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10, "lines.linewidth": 1.8, "lines.markersize": 3.5,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK,
    "xtick.color": _LINES, "ytick.color": _LINES, "axes.edgecolor": _LINES,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": _LINES, "grid.alpha": 0.35,
}  # fmt: skip


class Panel(NamedTuple):
    """A picture with its words."""

    title: str
    note: str
    svg: str


def pretraining(runs: Sequence[Run]) -> list[Panel]:
    """Loss, distance from word frequencies, drift, loss over time and speed; those that at least one run has."""
    below = _panel(
        runs, "Below word frequencies", "nats", _of("eval/below_unigram"),
        note="How far the held-out loss is below that of word frequencies alone. Where it is below 0, a run has "
             "learned nothing from context.", zero=True,
    )  # fmt: skip
    drift = _panel(
        runs, "Drift of [CLS]", "1 − cosine", _drift("eval/cosine_global"), _drift("eval/cosine_local"),
        note="What dropping tokens changes in a sentence's vector: 1 − cosine of the full and the drop pass, after the "
             "last layer (thin: the last but one). 0 is no change.",
    )  # fmt: skip
    speed = _panel(
        runs, "Throughput", "tokens a second", lambda run: smooth(_of("train/tokens_per_second")(run)), zero=True,
        note="Steps alone: evaluations, saving and compilation are left out.",
    )  # fmt: skip
    mfu = _panel(
        runs, "MFU", "% of the peak", lambda run: smooth([(s, t, 100 * v) for s, t, v in _of("train/mfu")(run)]),
        note="FLOPs by formula over what the chip is sold for.", zero=True,
    )  # fmt: skip
    panels = (_losses(runs, by_time=False), below, drift, _losses(runs, by_time=True), speed, mfu)
    return [panel for panel in panels if panel]


def fine_tuning(runs: Sequence[Run]) -> list[Panel]:
    """Training loss and score of fine-tunings on one task."""
    loss = _panel(runs, "Training loss", "loss", lambda run: smooth(_of("train/loss")(run)), note="Running mean.")
    note = "The mean of its metrics where a task has several."
    return [panel for panel in (loss, _panel(runs, "Score on dev", "score", _of("eval/score"), note=note)) if panel]


def swatch(number: int) -> str:
    """A piece of a run's line, for the words beside its name."""
    dash = {"-": "", "--": "7 3", ":": "2 3", "-.": "7 3 2 3"}[_dash(number)]
    return (
        '<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25" fill="none" stroke-width="3.5" '
        f'stroke-dasharray="{dash}" style="stroke: var(--run-{number % COLORS})"/></svg>'
    )


def _dash(number: int) -> str:
    return DASHES[number // COLORS % len(DASHES)]


def _look(run: Run) -> dict[str, Any]:
    return {"color": _RUN.format(0x10 + run.number % COLORS), "linestyle": _dash(run.number)}


def _of(name: str) -> Callable[[Run], Curve]:
    return lambda run: curve(run.metrics, name)


def _drift(name: str) -> Callable[[Run], Curve]:
    return lambda run: [(step, seconds, 1 - value) for step, seconds, value in curve(run.metrics, name)]


def _losses(runs: Sequence[Run], by_time: bool) -> Panel | None:
    held_out = {run.number: curve(run.metrics, "eval/loss") for run in runs}
    training = {} if by_time else {run.number: smooth(curve(run.metrics, "train/loss")) for run in runs}
    drawn = [points for points in (*held_out.values(), *training.values()) if points]
    if not drawn:
        return None
    longest = max(points[-1][1] for points in drawn)
    unit, scale = ("hours", 3600) if longest > 2 * 3600 else ("minutes", 60)
    with plt.rc_context(_STYLE):
        figure, axis = _axes("held-out loss, nats" if by_time else "loss, nats", unit if by_time else "step")
        for run in runs:
            if thin := training.get(run.number):
                _line(axis, run, thin, **_THIN)
            if points := held_out[run.number]:
                at = [seconds / scale for _, seconds, _ in points] if by_time else None
                _line(axis, run, points, at, **_marks(points))
        frequencies = {round(value, 3) for run in runs for *_, value in _of("eval/unigram_loss")(run)}
        low, high = y_range(list(held_out.values()), list(training.values()))
        lines = [value for value in sorted(frequencies) if low < value < high]
        for value in lines:
            axis.axhline(value, color=_INK, linestyle=":", linewidth=1)
        axis.set_ylim(low, high)
        values = [value for points in drawn for *_, value in points]
        above = sum(value > high for value in values)
    hidden = f" {above:,} of {len(values):,} losses, high at the beginning, are above the picture." if above else ""
    if by_time:
        note = "Time includes evaluation and saving; compare it between runs on the same idle machine only."
        return Panel("Held-out loss over time", note + hidden, _svg(figure, f"Held-out loss over {unit}"))
    dotted = f" Dotted: word frequencies alone ({', '.join(f'{value:.3f}' for value in lines)})." if lines else ""
    note = f"On held-out text, by the full model; thin: in training, running mean.{dotted}{hidden}"
    return Panel("Loss", note, _svg(figure, "Loss over steps"))


def _panel(
    runs: Sequence[Run], title: str, unit: str, *curves: Callable[[Run], Curve], note: str, zero: bool = False
) -> Panel | None:
    """Curves of each run over steps, the first bold; `zero` has the axis begin at 0 at least."""
    found: Mapping[int, list[Curve]] = {run.number: [of(run) for of in curves] for run in runs}
    if not any(points for of_run in found.values() for points in of_run):
        return None
    with plt.rc_context(_STYLE):
        figure, axis = _axes(unit, "step")
        for run in runs:
            for number, points in enumerate(found[run.number]):
                if points:
                    _line(axis, run, points, **(_THIN if number else _marks(points)))
        if zero:
            low, high = axis.get_ylim()
            axis.set_ylim(min(low, 0), max(high, 0))
            axis.axhline(0, color=_INK, linewidth=0.8)
    return Panel(title, note, _svg(figure, f"{title} over steps"))


def _marks(points: Curve) -> dict[str, Any]:
    return {"marker": "o"} if len(points) <= 40 else {}


def _line(axis: Axes, run: Run, points: Curve, at: Sequence[float] | None = None, **style) -> None:
    at = [step for step, *_ in points] if at is None else at
    stride = -(-len(points) // _POINTS)
    kept = sorted({*range(0, len(points), stride), len(points) - 1})
    axis.plot([at[i] for i in kept], [points[i][2] for i in kept], **(_look(run) | style))


def _axes(y: str, x: str) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=_SIZE, layout="constrained")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=x == "step"))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(lambda value, _: f"{value:,.10g}")
    return figure, axis


def _svg(figure: Figure, label: str) -> str:
    """The figure's drawing alone, without fixed size, addresses, names of fonts and what nothing refers to."""
    file = io.BytesIO()
    try:
        with plt.rc_context(_STYLE | {"svg.hashsalt": label}):
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    finally:
        plt.close(figure)
    text = file.getvalue().decode()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.S)
    head = f'<svg viewBox="0 0 {72 * _SIZE[0]:g} {72 * _SIZE[1]:g}" role="img" aria-label="{label}"'
    text = head + text[text.index(">", text.index("<svg")) :]
    text = text.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r'font-family: [^;"]*;? ?', "", text)
    text = re.sub(r' d="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    colors = {_INK: "ink", _LINES: "lines"} | {_RUN.format(0x10 + i): f"run-{i}" for i in range(COLORS)}
    for color, name in colors.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r">\s+<", "><", text)
