"""Methods of token reduction compared at equal time: runs a table of pretrainings and reports it.

python -m sctd_jax.arena --config=configs/arena/small.py:ROWS --workdir=DIR [--next]
python -m sctd_jax.arena --config=configs/arena/small.py:ROWS --workdir=DIR --report [--out OUT]
python -m sctd_jax.arena --report --cells OUT/cells.jsonl --out OUT
python -m sctd_jax.arena --config=configs/arena/small.py:ROWS --workdir=DIR --cells OUT/cells.jsonl

Each cell of the table (method x budget x seed) is a run in a folder of its own, DIR/METHOD-BUDGET-SEED. What was
stopped goes on when the command is given again, what is finished is not run again, and several processes may work on
one table. A report has whatever is finished. By the cells.jsonl of a report another machine knows what is finished.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from sctd_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()  # done before the imports that take seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import logging

from sctd_jax import recipes, storage
from sctd_jax.arguments import CommandParser, any_path, local_path
from sctd_jax.errors import UserError, run_command, say, writing


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.arena", description=__doc__)
    add = parser.add_argument
    add("--config", help="a recipe of configs/arena, with its argument: FILE.py:ROWS")
    add("--workdir", type=any_path, help="folder of the cells")
    add("--step-time", type=local_path, help="JSON file with the step times to use instead of the recipe's")
    add("--next", action="store_true", help="run the next unfinished cell, and no more")
    add("--report", action="store_true", help="report what is finished, and run nothing")
    add("--cells", type=local_path, help="cells.jsonl of a report: finished cells for --workdir, or a report anew")
    add("--baseline", help="method that the others of --cells are held against, without --config; default full")
    add("--out", type=any_path, help="folder of the report; default WORKDIR/report")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax report every file they touch
    drawn = args.cells and args.report and args.out and not args.workdir  # --cells is all it needs
    if not drawn and not (args.config and args.workdir):
        parser.error("--config and --workdir are expected" + ", or --report and --out" * bool(args.cells))
    if drawn and (args.config or args.step_time or args.next):
        parser.error("--cells has all that a report is of: without --config, --step-time and --next, or with --workdir")
    if args.baseline and not drawn:
        parser.error("--baseline is for a report of --cells alone: the recipe names that of its table")

    def command() -> int:
        # Imports of these take seconds: --help and a bad option answer at once.
        from sctd_jax.comparison.report import check_out
        from sctd_jax.comparison.run import check_cells, read_results, run_cells, take_cells
        from sctd_jax.comparison.table import read_table

        check_out(storage.as_path(args.out or os.path.join(args.workdir, "report")))
        if drawn:
            return _report(_read_lines(args.cells), args.baseline or "full", args.out)
        step_time = storage.read_json(storage.as_path(args.step_time)).get("step_time") if args.step_time else None
        if args.step_time and step_time is None:
            raise UserError(f"--step-time {args.step_time} has no field step_time: benchmarks/train_step.py writes it")
        table = read_table(recipes.load(recipes.find(args.config, say)).to_dict(), step_time)
        folder = storage.as_path(args.workdir)
        if args.cells:
            for line in take_cells(table, folder, _read_lines(args.cells)):
                say(line)
        if not args.report:
            stopped_by = run_cells(table, folder, say, only_next=args.next)
            if stopped_by is not None:
                return 128 + stopped_by
        check_cells(table, folder)
        results = read_results(table, folder)
        say(f"{len(results)} of {len(table.cells)} cells are finished")
        return _report(results, table.baseline, args.out or str(folder / "report"))

    return run_command(command)


def _report(results: list[Mapping[str, Any]], baseline: str, out: str) -> int:
    from sctd_jax.comparison import report

    if not results:
        raise UserError("no cell is finished: nothing to report")
    methods = sorted({one["method"] for one in results})
    if baseline not in methods:
        say(f"warning: no finished cell is of the baseline {baseline}; there are {', '.join(methods)}")
    with writing(out):
        lines = report.write_report(storage.as_path(out), results, baseline)
    for line in lines:
        say(line)
    return 0


def _read_lines(path: Path) -> list[Mapping[str, Any]]:
    from sctd_jax.comparison.run import checked
    from sctd_jax.tasks.files import read_jsonl

    places: dict[tuple[str, float, int], str] = {}
    by_method: dict[tuple, Any] = {}
    found = []
    try:
        for record in read_jsonl(str(path)):
            one = checked(record.fields, record.place)
            before = places.setdefault((one["method"], one["budget"], one["seed"]), record.place)
            if before != record.place:
                raise UserError(f"{record.place} is the cell of {before} once more: keep one of them")
            # Reference time is step_time x steps: seeds of one method share the one, and at one budget the other.
            for of in ((one["method"], "step_time"), (one["method"], one["budget"], "steps")):
                value = one.get(of[-1])
                if (other := by_method.setdefault(of, value)) != value:
                    raise UserError(f"{record.place}: {of[-1]} is {value}, and {other} in another cell of {of[0]}")
            found.append(one)
    except UserError as error:
        raise UserError(f"--cells {error}") from error
    return found


if __name__ == "__main__":
    sys.exit(main())
