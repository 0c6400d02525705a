"""Loss against steps and against time, as a PNG.

python -m sctd_jax.plot runs/a runs/b [--out loss.png]
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from etils import epath

from sctd_jax import storage
from sctd_jax.arguments import CommandParser, local_path
from sctd_jax.errors import UserError, run_command
from sctd_jax.train.metrics import METRICS_FILE, read_metrics


def curve(lines: list[dict[str, Any]], name: str) -> list[tuple[int, float, float]]:
    """(step, seconds of training, value) of one metric; a step that was repeated after a kill counts once.

    Seconds add up over restarts; the pause between two runs is left out.
    """
    points: dict[int, tuple[float, float]] = {}
    for line in lines:
        if line.get(name) is not None:
            points[line["step"]] = (line["seconds"], line[name])
    return [(step, *points[step]) for step in sorted(points)]


def draw(workdirs: list[epath.Path], out: Path) -> None:
    """Write the picture.

    Raises:
      UserError: a workdir has no metrics.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for number, workdir in enumerate(workdirs):
        if not (workdir / METRICS_FILE).is_file():
            raise UserError(f"{workdir} has no {METRICS_FILE}: not the workdir of a run")
        lines, color = read_metrics(workdir), f"C{number % 10}"
        for name, style, label in (
            ("eval/loss", "o-", f"{workdir.name}: held out, full model"),
            ("train/loss", "-", f"{workdir.name}: training"),
        ):
            points = curve(lines, name)
            if not points:
                continue
            steps, seconds, values = zip(*points, strict=True)
            look = {"color": color, "alpha": 1.0 if style == "o-" else 0.35, "markersize": 4, "label": label}
            axes[0].plot(steps, values, style, **look)
            axes[1].plot([s / 60 for s in seconds], values, style, **look)
    for axis, label in zip(axes, ("step", "minutes of training, evaluation and saving"), strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss (nats per predicted token)")
    axes[0].legend(fontsize=8)
    try:
        figure.savefig(out, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a suffix that stands for no format
        raise UserError(f"cannot write {out}: {error}") from error
    finally:
        plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.plot", description=__doc__.split("\n")[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--out", type=local_path, default=Path("loss.png"))
    args = parser.parse_args(argv)

    def command() -> int:
        draw([storage.as_path(workdir) for workdir in args.workdirs], args.out)
        print(args.out)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
