"""Checkpoints x tasks x learning rates x seeds, each cell a fine-tuning in a workdir of its own."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from sctd_jax import storage
from sctd_jax.config import fill, require
from sctd_jax.errors import DivergedError, UserError
from sctd_jax.finetune import config as settings
from sctd_jax.finetune import sweep_report
from sctd_jax.finetune.config import FinetuneConfig, SweepConfig
from sctd_jax.finetune.finetuning import RESULT_FILE, finetune, prepare
from sctd_jax.finetune.workdir import check_task
from sctd_jax.parallel import hosts
from sctd_jax.train.workdir import CONFIG_FILE, held, write

_OWN = tuple(field.name for field in dataclasses.fields(SweepConfig))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One fine-tuning of a sweep."""

    name: str  # CHECKPOINT/TASK/RATE-SEED: its folder
    settings: FinetuneConfig


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All cells, in the order in which they run."""

    cells: tuple[Cell, ...]
    keep_weights: bool


def from_dict(values: Mapping[str, Any]) -> Sweep:
    """The cells of `configs/sweep.py`: seeds first, so that every rate has a first number early.

    In `data_dir` each task's name takes the place of `{task}`.
    """
    own = fill("config", SweepConfig, {name: values[name] for name in _OWN if name in values})
    common = {name: value for name, value in values.items() if name not in _OWN}
    tasks, inits = _listed("tasks", own.tasks), _listed("inits", own.inits)
    names = [storage.as_path(init).name for init in inits]
    require(len(set(names)) == len(names), "inits", f"must end in different folder names, found {', '.join(names)}")
    try:
        rates = [float(rate) for rate in _listed("learning_rates", own.learning_rates)]
    except ValueError as error:
        raise UserError(f"config.learning_rates must be numbers separated by commas: {error}") from error
    require(all(rate > 0 for rate in rates), "learning_rates", f"must be positive, found {own.learning_rates}")
    require(len(set(rates)) == len(rates), "learning_rates", f"names one twice: {own.learning_rates}")
    found = []
    for (init, name), task, seed, rate in itertools.product(
        zip(inits, names, strict=True), tasks, range(own.seeds), rates
    ):
        data_dir = common["data_dir"].replace("{task}", task)
        cell = {"task": task, "data_dir": data_dir, "init": init, "learning_rate": rate, "seed": seed}
        one = settings.from_dict({**common, **cell})
        found.append(Cell(f"{name}/{task}/{rate:g}-seed{seed}", one))
    return Sweep(tuple(found), own.keep_weights)


def _listed(field: str, names: str) -> list[str]:
    found = [part.strip() for part in names.split(",") if part.strip()]
    require(bool(found), field, "is missing: names separated by commas")
    require(len(set(found)) == len(found), field, f"names one twice: {names}")
    return found


def run_sweep(sweep: Sweep, workdir: str, log: Callable[[str], None]) -> int | None:
    """Run what is not finished, and write the report after every cell; returns the signal that stopped it, or None.

    The report covers all cells in `workdir`, those of earlier sweeps too, which must have the same settings and data.
    Every checkpoint and task is read before the first cell, so that one which cannot be read costs no training.
    """
    folder, say = storage.as_path(workdir), hosts.on_first(log)
    with held(folder, "a sweep", say):
        left = _look_at_all(sweep, folder, say)
        say(f"{len(sweep.cells)} cells, {len(sweep.cells) - len(left)} finished before")
        for number, cell in enumerate(left, start=1):
            say(f"cell {number} of {len(left)}: {cell.name}")
            try:
                result = finetune(cell.settings, folder / cell.name, log)
            except DivergedError as error:
                say(f"warning: {error}; it counts as score 0")
                zero = {name: getattr(cell.settings, name) for name in ("task", "init", "learning_rate", "seed")}
                zero |= {"diverged": True, "eval/score": 0.0}
                content = (json.dumps(zero, indent=1) + "\n").encode()
                hosts.run_on_first(
                    f"diverged {cell.name}", functools.partial(write, folder / cell.name / RESULT_FILE, content)
                )
            else:
                if result.stopped_by is not None:
                    return result.stopped_by
            hosts.run_on_first(f"cell {cell.name}", functools.partial(_finish, folder, cell, sweep.keep_weights))
            jax.clear_caches()  # the programs of one cell are of no use to the next
        if hosts.is_first():
            for line in sweep_report.write_report(folder, read_results(folder)):
                say(line)
    return None


def _look_at_all(sweep: Sweep, folder: epath.Path, say: Callable[[str], None]) -> list[Cell]:
    """The cells that are not finished, once every checkpoint with every task is known to be able to run."""
    left = []
    for _, group in itertools.groupby(sweep.cells, key=lambda cell: (cell.settings.init, cell.settings.task)):
        cells = list(group)
        first = next((cell for cell in cells if not (folder / cell.name / CONFIG_FILE).exists()), cells[0])
        origin = prepare(first.settings, folder / first.name, say).origin
        # Nothing but checkpoint, rate and seed may set a task's finished cells apart from those of this sweep.
        checkpoint, task, _ = first.name.split("/")
        for result in folder.glob(f"*/{task}/*/{RESULT_FILE}"):
            same = _checkpoint(result) == checkpoint
            check_task(result.parent, first.settings, origin, but_for=("learning_rate", "seed"), same_start=same)
        for cell in cells:
            if (folder / cell.name / RESULT_FILE).exists():
                let_go = functools.partial(_let_go, folder, cell, sweep.keep_weights)
                hosts.run_on_first(f"weights {cell.name}", let_go)
            else:
                left.append(cell)
    return left


def _let_go(folder: epath.Path, cell: Cell, keep_weights: bool) -> None:
    weights = folder / cell.name / "checkpoints"
    if not keep_weights and weights.exists():
        weights.rmtree()


def _finish(folder: epath.Path, cell: Cell, keep_weights: bool) -> None:
    _let_go(folder, cell, keep_weights)
    sweep_report.write_report(folder, read_results(folder))


def read_results(folder: epath.Path) -> list[dict[str, Any]]:
    """Every finished cell in a sweep's workdir: its `result.json`, and `checkpoint`, `learning_rate`, `seed`."""
    found = [
        {**storage.read_json(path), "checkpoint": _checkpoint(path)} for path in folder.glob(f"*/*/*/{RESULT_FILE}")
    ]
    return sorted(found, key=lambda r: (r["checkpoint"], r["task"], r["learning_rate"], r["seed"]))


def _checkpoint(result: epath.Path) -> str:
    return result.parent.parent.parent.name
