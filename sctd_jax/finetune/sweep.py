"""Checkpoints x tasks x learning rates x seeds, each cell a fine-tuning in a workdir of its own."""

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from sctd_jax import storage
from sctd_jax.errors import DivergedError, UserError
from sctd_jax.finetune import sweep_report
from sctd_jax.finetune.config import Cell, Sweep
from sctd_jax.finetune.finetuning import finetune, prepare
from sctd_jax.finetune.workdir import MAY_CHANGE, RESULT_FILE, check_results, check_sweep, check_task
from sctd_jax.parallel import hosts
from sctd_jax.tasks.table import TASKS
from sctd_jax.train.workdir import CONFIG_FILE, held

# A rerun may have more patience, but cells of less reached less.
_MAY_DIFFER = {*MAY_CHANGE, "learning_rate", "seed"} - {"patience"}


def run_sweep(sweep: Sweep, workdir: str, log: Callable[[str], None]) -> int | None:
    """Run what is not finished, and write the report after every cell; returns the signal that stopped it, or None.

    The report covers all cells in `workdir`, those of earlier sweeps too, which must have the same settings and data.
    Every checkpoint and task is read before the first cell, so that one which cannot be read costs no training.
    """
    folder, say = storage.as_path(workdir), hosts.on_first(log)
    with held(folder, "a sweep", say):
        check_sweep(folder)
        try:
            read_results(folder)  # a damaged one would end the report behind the first cell
            for name in sweep_report.FILES:
                storage.regular_file(folder / name)
            left = _look_at_all(sweep, folder, say)
        except BaseException:
            _remove_empty(folder, sweep)
            raise
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
                    f"diverged {cell.name}", functools.partial(storage.write, folder / cell.name / RESULT_FILE, content)
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
            same = result.parts[-4] == checkpoint
            check_task(result.parent, first.settings, origin, _MAY_DIFFER, same_start=same)
        for cell in cells:
            if (folder / cell.name / RESULT_FILE).exists():
                let_go = functools.partial(_let_go, folder, cell, sweep.keep_weights)
                hosts.run_on_first(f"weights {cell.name}", let_go)
            else:
                check_results(folder / cell.name)
                left.append(cell)
    return left


def _remove_empty(folder: epath.Path, sweep: Sweep) -> None:
    """Remove the cells' folders that hold nothing, which the checks have made."""
    for cell in sweep.cells:
        place = folder / cell.name
        for empty in () if storage.is_remote(folder) else (place, place.parent, place.parent.parent):
            with contextlib.suppress(OSError):
                os.rmdir(empty)


def _let_go(folder: epath.Path, cell: Cell, keep_weights: bool) -> None:
    weights = folder / cell.name / "checkpoints"
    if not keep_weights and weights.exists():
        weights.rmtree()


def _finish(folder: epath.Path, cell: Cell, keep_weights: bool) -> None:
    _let_go(folder, cell, keep_weights)
    sweep_report.write_report(folder, read_results(folder))


def read_results(folder: epath.Path) -> list[dict[str, Any]]:
    """Every finished cell in a sweep's workdir: its `result.json`, and `checkpoint`, `learning_rate`, `seed`."""
    paths = folder.glob(f"*/*/*/{RESULT_FILE}")
    found = [{**_read_result(path), "checkpoint": path.parts[-4]} for path in paths]
    return sorted(found, key=lambda r: (r["checkpoint"], r["task"], r["learning_rate"], r["seed"]))


def _read_result(path: epath.Path) -> dict[str, Any]:
    found = storage.read_json(path)
    numbers = [found.get(name) for name in ("learning_rate", "seed", "eval/score")]
    if found.get("task") not in TASKS or not all(type(number) in (int, float) for number in numbers):
        raise UserError(f"{path} is damaged: expected task, learning_rate, seed and eval/score of a cell")
    return found
