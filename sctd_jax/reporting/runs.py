"""The runs that a page shows: pretrainings, fine-tunings and sweeps, which are read and never written to."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from sctd_jax import lease, storage, stored
from sctd_jax.config import Config
from sctd_jax.data.rows import METADATA_FILE, Metadata, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.finetune.config import FinetuneConfig
from sctd_jax.finetune.finetuning import RESULT_FILE
from sctd_jax.finetune.sweep_report import REPORT_FILE
from sctd_jax.finetune.workdir import Origin, read_task
from sctd_jax.models import Model, open_model
from sctd_jax.plot import names
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.workdir import CONFIG_FILE

NOT_THERE = "–"


@dataclasses.dataclass(frozen=True)
class Run:
    """The workdir of a pretraining or of a fine-tuning."""

    name: str
    number: int  # its place among all that were named, which decides its colour
    model: Model
    metrics: list[dict[str, Any]]  # lines of `metrics.jsonl`, by step
    held_by: str | None  # the process that is at it
    task: Mapping[str, Any] | None  # settings of a fine-tuning
    result: Mapping[str, Any] | None  # `result.json` of a finished fine-tuning

    @property
    def config(self) -> Config:
        """The run's."""
        return self.model.config

    @property
    def steps_done(self) -> int:
        """Updates, by its metrics or its newest checkpoint."""
        return max([0, *self.model.steps, *(line["step"] for line in self.metrics)])

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do; a fine-tuning ends with its predictions."""
        return self.steps_done >= self.config.train.steps if self.task is None else self.result is not None

    @property
    def progress(self) -> str:
        """State and steps, in words."""
        done, steps = self.steps_done, self.config.train.steps
        counted = f"{done:,} of {steps:,} steps"
        if self.is_finished:
            return f"{'diverged' if (self.result or {}).get('diverged') else 'finished'}: {done:,} steps"
        if self.held_by:
            return f"under way: {counted}"
        if not self.metrics and self.model.steps in ((), (0,)):
            return "an imported model, not trained here" if self.model.steps else "not begun"
        saved = "nothing is saved" if not self.model.steps else f"saved at step {self.model.steps[-1]:,}"
        return f"stopped: {counted}" + ("" if self.model.steps and self.model.steps[-1] == done else f", {saved}")

    def last(self, name: str) -> tuple[int, float] | None:
        """Step and value where a metric was measured last."""
        found = [(line["step"], line[name]) for line in self.metrics if line.get(name) is not None]
        return found[-1] if found else None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The folder of a sweep, with what its `report.json` has."""

    name: str
    tasks: Sequence[Mapping[str, Any]]
    averages: Sequence[Mapping[str, Any]]


def open_runs(paths: Sequence[str], log: Callable[[str], None]) -> tuple[list[Run], list[Run], list[Sweep]]:
    """Pretrainings, fine-tunings and sweeps among folders that were named; `log` is told of what is damaged or old."""
    pretrained: list[Run] = []
    tuned: list[Run] = []
    sweeps: list[Sweep] = []
    for number, (name, path) in enumerate(zip(names(paths), paths, strict=True)):
        folder = storage.as_path(path, any_name=True)
        if storage.exists(folder / REPORT_FILE) and not storage.exists(folder / CONFIG_FILE):
            sweeps.append(_open_sweep(name, folder))
            continue
        run = _open_run(name, number, folder, log)
        (pretrained if run.task is None else tuned).append(run)
    return pretrained, tuned, sweeps


def _open_run(name: str, number: int, folder: epath.Path, log: Callable[[str], None]) -> Run:
    if not storage.exists(folder / CONFIG_FILE):
        raise UserError(
            f"{folder}: expected the workdir of a run, or of a sweep with a finished cell (neither {CONFIG_FILE} nor "
            f"{REPORT_FILE} is there)"
        )
    model = open_model(str(folder), log)
    if model.folder:
        raise UserError(f"{folder} is a folder of transformers, which records no training: name the workdirs of runs")
    metrics = read_metrics(folder, log)
    if not metrics and model.steps not in ((), (0,)):
        log(f"{name}: no metrics (metrics.jsonl is missing or empty): nothing of it to draw")
    task = result = None
    if model.task is not None:
        task = read_task(folder)
        result = _read_result(folder / RESULT_FILE)
    return Run(name, number, model, metrics, lease.holder(folder), task, result)


def _read_result(path: epath.Path) -> Mapping[str, Any] | None:
    """Content of a fine-tuning's `result.json`; None before its end."""
    if not storage.exists(path):
        return None
    found = storage.read_json(path)
    shares = found.get("floor", {})  # not there in those of earlier code
    numbers = [value for name, value in found.items() if name.startswith(("eval/", "test/"))]
    numbers += shares.values() if isinstance(shares, dict) else [None]
    if not all(type(value) in (int, float) for value in numbers):
        raise UserError(f"{path} is damaged: its metrics and its floor must be numbers")
    return found


def _open_sweep(name: str, folder: epath.Path) -> Sweep:
    path = folder / REPORT_FILE
    found = storage.read_json(path)
    if "baseline" in found:
        raise UserError(f"{path} is the report of an arena, whose tables are beside it: name the workdirs of its cells")
    try:
        tasks = [
            {**{key: str(row[key]) for key in ("checkpoint", "task")},
             **{key: float(row[key]) for key in ("learning_rate", "median", "lowest", "highest")},
             "seeds": int(row["seeds"]), "unfinished": int(row["unfinished"])}
            for row in found["tasks"]
        ]  # fmt: skip
        averages = [
            {"checkpoint": str(row["checkpoint"]), "benchmark": str(row["benchmark"]), "average": float(row["average"]),
             "tasks": int(row["tasks"]), "of": int(row["of"])}
            for row in found["averages"]
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: expected what a sweep writes there ({error!r})") from error
    return Sweep(name, tasks, averages)


def settings(run: Run) -> dict[str, Any]:
    """`section.field` and value of a run's configuration, or field and value of a fine-tuning's."""
    if run.task is None:
        return dict(stored.flat(dataclasses.asdict(run.config)))
    origin = {field.name for field in dataclasses.fields(Origin)}
    return dict(stored.flat({name: value for name, value in run.task.items() if name not in origin}))


def differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Each setting in which runs of one kind differ, with their values; of a single run those that are no defaults."""
    found = [settings(run) for run in runs]
    defaults = stored.flat(dataclasses.asdict(Config() if runs[0].task is None else FinetuneConfig()))
    others = found[1:] or [dict(defaults)]
    fields = [name for name, value in found[0].items() if any(other.get(name) != value for other in others)]
    return [(name, [values[name] for values in found]) for name in fields]


def metadata(run: Run) -> Metadata | None:
    """Description of a pretraining's rows; None for an imported model."""
    return read_metadata(run.model.path) if storage.exists(run.model.path / METADATA_FILE) else None


def data_line(run: Run) -> str:
    """Text, rows and tokenizer of a pretraining, in words."""
    rows = metadata(run)
    if rows is None:
        return "not recorded: an imported model"
    text = ", ".join(rows.settings.get("input") or ["the embedded trial corpus"])
    given, kind = (rows.settings.get(name) for name in ("tokenizer", "tokenizer_type"))
    unknown = f"; {rows.unknown_letters:,} of {rows.letters:,} letters unknown to it" if rows.unknown_letters else ""
    return (
        f"{text}: {rows.documents:,} documents, {rows.tokens / 1e6:,.1f} M tokens in {rows.rows:,} rows of "
        f"{rows.seq_len} and {rows.heldout_rows:,} held out; tokenizer of {rows.vocab_size:,} pieces "
        f"({given or kind or 'kind not recorded'}, sha256 {rows.tokenizer_sha256[:8]}){unknown}"
    )
