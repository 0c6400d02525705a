"""Picture (PNG) of the loss over steps and over time; for fine-tunings, of their loss and their score on dev.

python -m sctd_jax.plot runs/a runs/b [--out loss.png] [--ymax 6.5]
"""

import argparse
import io
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

os.environ["MPLBACKEND"] = "agg"  # whatever it was: a picture is a file
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from etils import epath
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sctd_jax import storage
from sctd_jax.arguments import CommandParser, any_path, picture
from sctd_jax.errors import UserError, printable, run_command, say, writing
from sctd_jax.fields import read_float
from sctd_jax.train.metrics import METRICS_FILE, read_metrics

mpl.rcdefaults()  # whatever a matplotlibrc says (text by a LaTeX that is not there, a million dots an inch)

_MARKERS = "osD^v<>PX*"
_LATE = 0.25  # share of a curve's steps at its start that may lie above the picture
_OUTLIERS = 0.01  # share of the training losses that may lie above it later
_SMOOTHED = 50  # about as many running means of the training loss do not overlap
_LEGEND_COLUMNS, _LONGEST_LABEL = 130, 60  # characters

Curve = list[tuple[int, float, float]]  # (step, seconds of training, value)


def curve(lines: list[dict[str, Any]], name: str) -> Curve:
    """The points of one metric; a step that was repeated after a kill counts once.

    Seconds add up over restarts; the pause between two runs is left out.
    """
    points = {line["step"]: (line["seconds"], line[name]) for line in lines if line.get(name) is not None}
    return [(step, *points[step]) for step in sorted(points)]


def names(paths: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell it from the others; no folder may be named twice."""
    folders = [os.path.realpath(path) for path in paths]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise UserError(f"{paths[number]} is named twice (as {paths[folders.index(folder)]})")
    parts = [Path(path).parts for path in paths]

    def short(mine: tuple[str, ...]) -> Path:
        counts = range(1, len(mine) + 1)
        return Path(*next((mine[-n:] for n in counts if sum(other[-n:] == mine[-n:] for other in parts) == 1), mine))

    return [str(short(mine)) for mine in parts]


def look(number: int) -> dict[str, Any]:
    """Colour and marker of model `number`; no two of a hundred are alike."""
    return {"color": f"C{number % 10}", "marker": _MARKERS[number // 10 % 10], "markersize": 4}


def save(figure: Figure, entries: Mapping[str, Artist], file: Path | IO[bytes], kind: str | None = None) -> None:
    """Write a figure with its legend and close it; without `kind` the file's suffix says the format."""
    try:
        put_legend(figure, entries)
        figure.savefig(file, dpi=120, format=kind)
    finally:
        plt.close(figure)


def put_legend(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """A legend below the axes, where it hides nothing; the figure grows by it. Labels appear as they are."""
    labels = [textwrap.fill(printable(label), _LONGEST_LABEL) for label in entries]
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = min(len(labels), max(_LEGEND_COLUMNS * figure.get_figwidth() / 11 // (longest + 8), 1))
    height = math.ceil(len(labels) / columns) * max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.19 * height)
    # The texts are set afterwards: matplotlib leaves out labels that begin with '_' and reads $ as mathematics.
    numbers = [str(number) for number in range(len(labels))]
    legend = figure.legend(entries.values(), numbers, loc="outside lower center", ncols=int(columns), fontsize=8)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def smooth(points: Curve) -> Curve:
    """Running means over so many neighbours that about `_SMOOTHED` of them do not overlap; a short curve as it is."""
    half = len(points) // (2 * _SMOOTHED)
    values = [value for *_, value in points]
    means = (float(np.mean(values[max(i - half, 0) : i + half + 1])) for i in range(len(values)))
    return [(step, seconds, mean) for (step, seconds, _), mean in zip(points, means, strict=True)]


def y_range(held_out: Sequence[Curve], training: Sequence[Curve]) -> tuple[float, float]:
    """Lowest and highest loss in the picture; a curve's first quarter and training's outliers may lie above it.

    A first loss of ln V would leave no room to see differences of a few hundredths at the end.
    """
    low = min(value for points in (*held_out, *training) for *_, value in points)
    high = max(
        np.quantile([value for step, _, value in points if step >= _LATE * points[-1][0]], 1 - outliers)
        for curves, outliers in ((held_out, 0.0), (training, _OUTLIERS))
        for points in curves
        if points
    )
    margin = 0.05 * (high - low) or 0.01
    return float(low - margin), float(high + margin)


def draw(workdirs: Sequence[str], out: Path, ymax: float | None = None) -> list[str]:
    """Write the picture of pretraining runs, or of fine-tunings; returns lines that say what lies above it.

    `ymax` is where the loss axis ends; inf shows all; None ends it as `y_range` says.
    """
    runs = {
        name: _read(storage.as_path(path, any_name=True)) for name, path in zip(names(workdirs), workdirs, strict=True)
    }
    tuned = [name for name, lines in runs.items() if not any("eval/loss" in line for line in lines)]
    if tuned and len(tuned) < len(runs):
        raise UserError(f"{', '.join(tuned)}: fine-tuned, the others pretrained: their losses are of different kinds")
    held_out = {name: curve(lines, "eval/loss") for name, lines in runs.items()}
    training = {name: smooth(curve(lines, "train/loss")) for name, lines in runs.items()}
    losses = [value for points in (*held_out.values(), *training.values()) for *_, value in points]
    if not losses:
        raise UserError(f"{', '.join(runs)}: no losses in its metrics yet")
    if ymax is not None and ymax <= min(losses):
        raise UserError(f"--ymax {ymax:g} lies below all losses; the lowest is {min(losses):.3f}")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), sharex=bool(tuned), sharey=not tuned, layout="constrained"
    )
    entries: dict[str, Artist] = {}
    for number, (name, lines) in enumerate(runs.items()):
        style = look(number)
        entries[name] = Line2D([], [], **style)
        plain = {**style, "marker": None, **({} if tuned else {"alpha": 0.35, "zorder": 1})}
        for points, used in ((training[name], plain), (held_out[name], style)):
            if not points:
                continue
            steps, seconds, values = zip(*points, strict=True)
            left.plot(steps, values, **used)
            if not tuned:
                right.plot([second / 60 for second in seconds], values, **used)
        if tuned and (points := curve(lines, "eval/score")):
            right.plot([step for step, *_ in points], [value for *_, value in points], **style)
    if tuned:
        metrics = "; ".join(sorted({_metrics(lines) for lines in runs.values()} - {""}))
        left.set(xlabel="step", ylabel="training loss of the task, running mean")
        right.set(xlabel="step", ylabel=textwrap.fill(f"score on dev ({metrics})", 45))
    else:
        entries["held out, full model"] = Line2D([], [], color="black", marker="o", markersize=4)
        entries["training, running mean"] = Line2D([], [], color="black", alpha=0.35)
        unigram = {round(value, 3) for lines in runs.values() for *_, value in curve(lines, "eval/unigram_loss")}
        for value in sorted(unigram):
            entries[f"word frequencies alone: {value:.3f}"] = left.axhline(value, color="black", linestyle=":")
            right.axhline(value, color="black", linestyle=":")
        left.set(xlabel="step", ylabel="loss (nats per predicted token)")
        right.set_xlabel("minutes of training, evaluation and saving")
    low, high = y_range(list(held_out.values()), list(training.values()))
    high, said = high if ymax is None else ymax, []
    if math.isfinite(high):
        left.set_ylim(low, high)
        if above := sum(value > high for value in losses):
            said = [f"{above:,} of {len(losses):,} losses lie above {high:.3f}, not shown; --ymax inf shows all"]
            left.set_title(said[0], fontsize=8)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    content = io.BytesIO()
    try:
        save(figure, entries, content, out.suffix[1:])
    except ValueError as error:  # a suffix that stands for no format
        raise UserError(f"cannot write {out}: {error}") from error
    with writing(out):
        storage.write(out, content.getvalue())
    return said


def _read(workdir: epath.Path) -> list[dict[str, Any]]:
    if not (workdir / METRICS_FILE).is_file():
        raise UserError(f"{workdir} has no {METRICS_FILE}: not the workdir of a run")
    return read_metrics(workdir)


def _metrics(lines: list[dict[str, Any]]) -> str:
    """The metrics of a fine-tuning's score."""
    found = dict.fromkeys(name for line in lines for name in line if name.startswith("eval/"))
    return ", ".join(name.removeprefix("eval/") for name in found if name != "eval/score")


def _loss(text: str) -> float:
    try:
        value = read_float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"must be a number, found {text!r}")
    return value


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.plot", description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=any_path)
    parser.add_argument("--out", type=picture, default="loss.png")
    parser.add_argument(
        "--ymax", type=_loss, help="end of the loss axis; inf shows all; default the last three quarters of a run"
    )
    args = parser.parse_args(argv)

    def command() -> int:
        for line in draw(args.workdirs, args.out, args.ymax):
            say(line)
        say(args.out)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
