"""The recipes of configs/tpu, each compiled for its slice: the table of docs/tpu.md.

python benchmarks/tpu_recipes.py [base_v5e_8 ...] [--out docs/tpu_recipes.json]

Compiles every step of a recipe (without names, of all recipes), which takes minutes; what is in `--out` already is not
done again, so it can be interrupted. Prints the table as markdown. Needs libtpu: `make tpu`, and
TPU_LIBRARY_PATH=.venv-tpu/libtpu/libtpu.so.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from sctd_jax import main as sctd_main  # sets what libtpu needs, before JAX is imported

os.environ.update(sctd_main.WITHOUT_CHIPS)

from sctd_jax.arguments import CommandParser
from sctd_jax.config import from_dict
from sctd_jax.pretrain.step import programs_needed
from sctd_jax.tpu.compile import GIB, chip_hours, compile_program, open_slice

RECIPES = Path(__file__).parents[1] / "configs" / "tpu"
MFU = 0.4  # assumed, for the length of a run


def measure(name: str) -> dict:
    """Needs of a recipe on its slice."""
    recipe = importlib.import_module(f"configs.tpu.{name}")
    config, mesh, chip = open_slice(from_dict(recipe.get_config().to_dict()), recipe.TOPOLOGY, lambda line: None)
    programs = {
        step: compile_program(stage, variant, mesh, step)
        for step, (stage, variant) in programs_needed(config).items()
    }  # fmt: skip
    return {
        "recipe": name, "topology": recipe.TOPOLOGY, "rows": config.train.batch_size / mesh.size,
        "remat": config.model.remat, "hbm": chip.hbm_bytes, "hours": chip_hours(config, chip, MFU) / mesh.size,
        "needed": {step: program.needed for step, program in programs.items()}, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def table(found: list[dict]) -> str:
    """The recipes as markdown; GiB of HBM a chip for each step."""
    lines = ["| recipe | slice | rows a chip | recomputed | drop | consistency | of | hours at MFU 0.4 | compiled |"]
    lines.append(f"|{'---|' * 9}")
    for one in found:
        memory = [f"{one['needed'][step] / GIB:.1f}" for step in ("drop", "consistency")]
        cells = [f"`{one['recipe']}.py`", one["topology"], f"{one['rows']:g}", one["remat"], *memory,
                 f"{one['hbm'] / GIB:.2f}", f"{one['hours']:.1f}", one["date"]]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """The command; 1 if a recipe does not fit."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("recipe", nargs="*", default=sorted(path.stem for path in RECIPES.glob("[!_]*.py")))
    parser.add_argument("--out", type=Path, default=Path("docs/tpu_recipes.json"))
    args = parser.parse_args()
    for name in args.recipe:
        if not (RECIPES / f"{name}.py").is_file():
            parser.error(f"no recipe {name}; there are {', '.join(parser.get_default('recipe'))}")
    found = json.loads(args.out.read_text()) if args.out.exists() else []
    for name in args.recipe:
        if name not in {one["recipe"] for one in found}:
            found.append(measure(name))
            args.out.write_text(json.dumps(found, indent=1) + "\n")
            print(found[-1], file=sys.stderr, flush=True)
    found.sort(key=lambda one: one["recipe"])
    print(table(found))
    return 0 if all(size <= one["hbm"] for one in found for size in one["needed"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
