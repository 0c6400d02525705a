"""Cells of an arena, run one after another, by one process or by several on one table."""

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from etils import epath

from sctd_jax import storage, stored
from sctd_jax.comparison.table import Cell, Table
from sctd_jax.errors import DivergedError, UserError
from sctd_jax.fields import LARGEST_FLOAT
from sctd_jax.lease import HeldError, hold
from sctd_jax.model.families import check_family
from sctd_jax.model.token_dropping import check_selector
from sctd_jax.pretrain.pretraining import evaluate_workdir, train_and_evaluate
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.workdir import CONFIG_FILE, ROWS_FILE, differences, read_config

RESULT_FILE = "result.json"
_LOSS, _BELOW = "eval/loss", "eval/below_unigram"
_NONE: Mapping[str, Any] = MappingProxyType({})
_FIELDS = {"method": str, "seed": int, "final": dict, "curve": list, "downstream": dict, "probes": dict}
# Fields that say where a cell finds its rows, how it computes and whom it tells; all else a table keeps.
_FREE = (
    "data.input", "data.rows", "data.prepared_dir", "model.attention", "model.remat", "train.accumulation",
    "train.consistency_accumulation", "mesh.data", "mesh.fsdp", "mesh.tensor",
    "train.track",
)  # fmt: skip


def checked(found: Any, where: str) -> Mapping[str, Any]:
    """A cell's result as `run_cells` writes it, or a UserError that names `where` it is from and what is wrong."""

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"{where} is damaged: {what}")

    need(isinstance(found, dict), f"an object is expected, found {found!r:.40}")
    found = {"downstream": {}, "probes": {}} | found
    for field, kind in _FIELDS.items():
        need(isinstance(found.get(field), kind), f"{field} is {found.get(field)!r:.40}, expected {kind.__name__}")
    for field in ("budget", "step_time"):
        value = found.get(field)
        need(_is_number(value) and value > 0, f"{field} is {value!r:.40}, expected a number")
    final = found["final"]
    need(bool(final.get("diverged")) or _is_number(final.get(_LOSS)), f"its final {_LOSS} is no number")
    for name, value in final.items():
        need(name == "diverged" or value is None or _is_number(value), f"its final {name} is no number")
    for point in found["curve"]:
        whole = isinstance(point, list) and len(point) in (2, 3) and all(map(_is_number, point[:2]))
        need(whole and (point[2:] in ([], [None]) or _is_number(point[2])), f"its curve has the point {point!r:.60}")
    times = [point[0] for point in found["curve"]]
    need(times == sorted(set(times)), "the times of its curve do not ascend")
    need(bool(found["curve"]) or bool(final.get("diverged")), "its curve has no point")
    for field in ("downstream", "probes"):
        need(all(map(_is_number, found[field].values())), f"{field} has a score that is no number")
    return found


def _is_number(value: Any) -> bool:
    """Whether a value of JSON, where NaN is one, is a number that float32 has."""
    return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT


def run_cells(table: Table, folder: epath.Path, log: Callable[[str], None], *, only_next: bool = False) -> int | None:
    """Run the cells that are not finished, or the next of them; the signal that stopped it, or None.

    A cell that another process is at is passed over, so that many may work on one table. A cell that was stopped goes
    on from its checkpoint.
    """
    check_cells(table, folder)
    for cell in table.cells:  # checks of a run, before the first one trains
        check_selector(cell.config.dropping.selector)
        check_family(cell.config.model)
    for cell in table.cells:
        place = folder / cell.name
        if storage.exists(place / RESULT_FILE):
            continue
        log(f"cell {cell.name}: {cell.config.train.steps:,} steps, {cell.budget:g} of the baseline's time")
        try:
            stopped_by = _run(table, cell, place, log)
        except HeldError:
            log(f"cell {cell.name}: another process is at it")
            continue
        if stopped_by is not None or only_next:
            return stopped_by
        jax.clear_caches()  # the programs of one cell are of no use to the next
    return None


def check_cells(table: Table, folder: epath.Path, brought: Mapping[str, Mapping[str, Any]] = _NONE) -> None:
    """Check that what is in the folder are cells of this table and no others by the same names.

    `brought` are results from elsewhere, by the name of the cell.
    """
    digests: dict[str, Any] = {}
    with storage.reaching(folder):
        there = {path.name for path in folder.glob("[!.]*")} if folder.exists() else set()
    if there and not there & {cell.name for cell in table.cells}:
        raise UserError(f"{folder} is not empty and has no cell of this table: choose another --workdir")
    for cell in table.cells:
        place = folder / cell.name
        if storage.exists(place / CONFIG_FILE):
            configs = (read_config(place), cell.config)
            there, now = (dict(stored.flat(dataclasses.asdict(config))) for config in configs)
            if other := differences(there, now, _FREE):
                raise UserError(
                    f"{place} was run by another table: {other}; give that one, or choose another --workdir"
                )
        results = {str(place): _read_result(place)} if storage.exists(place / RESULT_FILE) else {}
        if cell.name in brought:
            results[f"--cells: the cell {cell.name}"] = brought[cell.name]
        for where, result in results.items():
            _check_result(table, cell, result, where)
            if result.get("rows"):  # earlier code wrote none
                digests[cell.name] = result["rows"]
        if storage.exists(place / ROWS_FILE):
            digests[cell.name] = storage.read_json(place / ROWS_FILE)
    for name, digest in digests.items():
        first = next(iter(digests))
        if digest != digests[first]:
            raise UserError(f"{folder}: the cells {first} and {name} were trained on different rows; keep those of one")


def _check_result(table: Table, cell: Cell, result: Mapping[str, Any], where: str) -> None:
    """Check that a result is of this table's cell, also where nothing else of its run is there."""
    if (time := result["step_time"]) != cell.step_time:
        raise UserError(f"{where} was run with step_time {time}, found {cell.step_time} now")
    if (steps := result.get("steps", cell.config.train.steps)) != cell.config.train.steps:
        raise UserError(f"{where} was run for {steps} steps, found {cell.config.train.steps} now")
    if (judged := result.get("judge_rows", table.judge_rows)) != table.judge_rows:  # earlier code wrote none
        raise UserError(f"{where} was judged on {judged} rows, found judge_rows {table.judge_rows} now")


def take_cells(table: Table, folder: epath.Path, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the results of cells that were finished elsewhere where this table finds them; the lines that say so.

    Raises UserError, before anything is written, where one of them was not run as the table says.
    """
    there = {(one["method"], one["budget"], one["seed"]): one for one in results}
    found = {cell.name: there[key] for cell in table.cells if (key := (cell.method, cell.budget, cell.seed)) in there}
    check_cells(table, folder, found)
    new = {name: one for name, one in found.items() if not storage.exists(folder / name / RESULT_FILE)}
    if begun := [name for name in new if storage.exists(folder / name / CONFIG_FILE)]:
        raise UserError(f"--cells has {begun[0]}, which {folder} has begun: remove the one or the other")
    for name, one in new.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        storage.write(folder / name / RESULT_FILE, (json.dumps(one) + "\n").encode())
    others = f"; {len(results) - len(found)} are of no cell of the table" if len(results) > len(found) else ""
    return [f"{len(new)} of {len(results)} cells of --cells are taken as finished{others}"]


def _run(table: Table, cell: Cell, place: epath.Path, log: Callable[[str], None]) -> int | None:
    """Train, judge and write the result; the signal that stopped it, or None."""
    try:
        result = train_and_evaluate(cell.config, place, log)
        if result.stopped_by is not None:
            return result.stopped_by
    except DivergedError as error:
        log(f"warning: cell {cell.name}: {error}")
        _write_result(table, cell, place, {"diverged": True})
        return None
    train = dataclasses.replace(cell.config.train, eval_rows=table.judge_rows)
    with hold(place, "judging a cell", log):  # training has given its own back
        if not storage.exists(place / RESULT_FILE):
            final = evaluate_workdir(dataclasses.replace(cell.config, train=train), place, log)
            _write_result(table, cell, place, final)
    return None


def _write_result(table: Table, cell: Cell, place: epath.Path, final: Mapping[str, Any]) -> None:
    rows = storage.read_json(place / ROWS_FILE) if storage.exists(place / ROWS_FILE) else None
    lines = [line for line in read_metrics(place) if line.get(_LOSS) is not None]
    share = cell.budget / cell.config.train.steps
    content = {
        "method": cell.method, "budget": cell.budget, "seed": cell.seed, "step_time": cell.step_time,
        "steps": cell.config.train.steps, "judge_rows": table.judge_rows, "final": final,
        "curve": [[line["step"] * share, line[_LOSS], line.get(_BELOW)] for line in lines], "rows": rows,
    }  # fmt: skip
    storage.write(place / RESULT_FILE, (json.dumps(content) + "\n").encode())


def read_results(table: Table, folder: epath.Path) -> list[Mapping[str, Any]]:
    """The finished cells of a table, in its order, with what else was measured of them.

    That is `downstream`, the median scores of sweeps in `downstream/NAME/` (`--mode=sweep`) by NAME and, where that has
    more tasks than one, task; and `probes`, the mean score over the layers of linear probes of the rows' mean states
    (`sctd_jax.probe layers --out WORKDIR/probes`).
    """
    downstream: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "downstream").glob("*/report.json")):
        with _as_written(path) as found:
            several, name = len({row["task"] for row in found["tasks"]}) > 1, path.parent.name
            for row in found["tasks"]:
                what = f"{name} {row['task']}" if several else name
                downstream.setdefault(row["checkpoint"], {})[what] = _score(row["median"])
    probes: dict[str, dict[str, float]] = {}
    if storage.exists(path := folder / "probes" / "layers.json"):
        with _as_written(path) as found:
            for model in found["models"]:
                probes[model["model"]] = {
                    found["settings"]["task"]: statistics.mean(map(_score, model["mean"]["score"][1:]))
                }
    found = {
        cell.name: _read_result(folder / cell.name)
        for cell in table.cells
        if storage.exists(folder / cell.name / RESULT_FILE)
    }
    return [
        one
        | {  # beside what a cell from --cells brought
            "downstream": one["downstream"] | downstream.get(name, {}),
            "probes": one["probes"] | probes.get(name, {}),
        }
        for name, one in found.items()
    ]


def _score(value: Any) -> float:
    if not _is_number(value):
        raise ValueError(f"a score is {value!r:.40}")
    return value


@contextlib.contextmanager
def _as_written(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Content of a report; a UserError where the reader finds it to be another's."""
    found = storage.read_json(path)
    try:
        yield found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: expected a report as its command writes it ({error!r:.80})") from error


def _read_result(place: epath.Path) -> Mapping[str, Any]:
    path, advice = place / RESULT_FILE, "remove it, and the cell is judged again"
    return checked(storage.read_json(path, advice), str(path))
