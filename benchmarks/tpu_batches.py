"""The table of docs/tpu.md: the largest batch a chip holds, for every method, model, length and chip.

python benchmarks/tpu_batches.py [--out docs/tpu_batches.json] [--minutes 100]

Compiles for TPUs on a machine without one, which takes minutes a cell; what is in `--out` already is not done again, so
it can be interrupted. Prints the table as markdown. Needs libtpu: `make tpu`, and
TPU_LIBRARY_PATH=.venv-tpu/libtpu/libtpu.so.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from sctd_jax import main as sctd_main  # sets what libtpu needs, before JAX is imported

os.environ.update(sctd_main.WITHOUT_CHIPS)

from configs import base, large
from sctd_jax.arguments import CommandParser
from sctd_jax.config import Config, from_dict
from sctd_jax.pretrain.step import programs_needed
from sctd_jax.tpu.compile import open_slice
from sctd_jax.tpu.largest_batch import largest_batch

MODELS = {"BERT-base": base, "BERT-large": large}
LENGTHS = (512, 128)
METHODS = {"full": "full", "drop": "drop", "sctd": "consistency"}  # -> its largest step
HBM = {"v5e": 16, "v6e": 32, "v4": 32, "v5p": 96}  # GiB, for guesses
SLICES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v4": "v4:2x2x1", "v5p": "v5p:2x2x1"}


def config_of(model: str, length: int, method: str, rows: int) -> Config:
    """The recipe with one method and length, and so many rows a chip on four chips."""
    config = MODELS[model].get_config()
    config.data.seq_len = length
    config.dropping.method = method
    config.train.batch_size = 4 * rows
    return from_dict(config.to_dict())


def measure(model: str, length: int, method: str, chip: str, guess: int) -> dict:
    """One cell of the table."""
    config, mesh, sheet = open_slice(config_of(model, length, method, guess), SLICES[chip], lambda line: None)
    stage, variant = programs_needed(config)[METHODS[method]]
    began = time.monotonic()
    found = largest_batch(stage, variant, SLICES[chip], mesh, sheet.hbm_bytes)
    return {
        "model": model, "length": length, "method": method, "chip": chip, "rows": found.rows, "needed": found.needed,
        "too_many": found.too_many, "seconds": round(time.monotonic() - began), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def guess_rows(cells: list[dict], model: str, length: int, method: str, chip: str) -> int:
    """First guess from the cells that are there: the same step on another chip, at another length, of another model."""
    for same, factor in (
        (("model", "length", "method"), lambda cell: HBM[chip] / HBM[cell["chip"]]),
        (("model", "method", "chip"), lambda cell: cell["length"] / length),
        (("model", "length", "chip"), lambda cell: 1.0),
        (("length", "method", "chip"), lambda cell: 0.4),
    ):
        wanted = {"model": model, "length": length, "method": method, "chip": chip}
        for cell in reversed(cells):  # the last of several chips is the likest
            if all(cell[field] == wanted[field] for field in same):
                return max(8, int(cell["rows"] * factor(cell)))
    return 96 * 512 // length


def table(cells: list[dict]) -> str:
    """The cells as markdown: a row for each model, length and method, a column for each chip."""
    found = {(cell["model"], cell["length"], cell["method"], cell["chip"]): cell for cell in cells}
    lines = [f"| model | N | method | {' | '.join(SLICES)} |", f"|---|---|---|{'---|' * len(SLICES)}"]
    for row in itertools.product(MODELS, LENGTHS, METHODS):
        there = [found.get((*row, chip)) for chip in SLICES]
        values = [str(cell["rows"]) if cell else "" for cell in there]
        lines.append(f"| {row[0]} | {row[1]} | {row[2]} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    """The command; see the module's docstring."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/tpu_batches.json"))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after this time")
    args = parser.parse_args()
    cells = json.loads(args.out.read_text()) if args.out.exists() else []
    began = time.monotonic()
    for chip, model, length, method in itertools.product(SLICES, MODELS, LENGTHS, METHODS):
        key = {"model": model, "length": length, "method": method, "chip": chip}
        if any(key.items() <= cell.items() for cell in cells) or time.monotonic() - began > 60 * args.minutes:
            continue
        cells.append(measure(**key, guess=guess_rows(cells, **key)))
        args.out.write_text(json.dumps(cells, indent=1) + "\n")
        print(cells[-1], file=sys.stderr, flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
