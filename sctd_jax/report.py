"""Runs on one page: settings that differ, curves, cost, fill-mask examples, fine-tuning results; HTML in one file.

python -m sctd_jax.report RUN [RUN ...] --out report.html [--text FILE] [--examples 8]

A RUN is the workdir of a pretraining or of a fine-tuning, or the folder of a sweep, on a disk or in a bucket. The page
loads nothing and has no script: it can be sent, or opened on a phone. Nothing is written into the runs.
"""

import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import logging

from sctd_jax.arguments import CommandParser, any_path, local_path, number
from sctd_jax.errors import UserError, printable, run_command, say


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    args = _parser().parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax report every file they touch

    def command() -> int:
        # Imports of these take seconds: --help and a bad option answer at once.
        from sctd_jax.reporting import curves, examples, page, runs

        page.check_out(args.out)
        if len(args.runs) > curves.MOST_RUNS:
            raise UserError(f"one page tells {curves.MOST_RUNS} runs apart, found {len(args.runs)}: name fewer")
        notes: list[str] = []

        def note(line: str) -> None:
            say(line)
            notes.append(printable(line))

        pretrained, tuned, sweeps = runs.open_runs(args.runs, note)
        if args.text and not (pretrained and args.examples):
            note(f"--text {args.text} is not read: that wants a pretraining among the runs, and --examples above 0")
        groups = examples.ask(pretrained, args.text, args.examples, note) if args.examples else []
        made_by = shlex.join(["python", "-m", "sctd_jax.report", *(sys.argv[1:] if argv is None else argv)])
        html = page.render(pretrained, tuned, sweeps, groups, notes, printable(made_by))
        page.save(args.out, html)
        say(f"{args.out} ({len(html.encode('utf-8', 'backslashreplace')) / 1000:,.0f} kB)")
        return 0

    return run_command(command)


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m sctd_jax.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=any_path, metavar="RUN")
    parser.add_argument("--out", type=local_path, default=Path("report.html"), help="default %(default)s")
    text = "file with a text on each line for fill-mask, which may hold [MASK]; default: held-out rows of the runs"
    parser.add_argument("--text", default="", help=text)
    count = "fill-mask sentences; 0: none, and no weights are read; default %(default)s"
    parser.add_argument("--examples", type=number(int, 0), default=8, help=count)
    return parser


if __name__ == "__main__":
    sys.exit(main())
