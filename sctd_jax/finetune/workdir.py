"""The workdir of a fine-tuned model: a run's, with `task.json` beside its `config.json`."""

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from etils import epath

from sctd_jax import storage, stored
from sctd_jax.config import Config, ModelConfig
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError, printable
from sctd_jax.fields import fill, require, rerun_fields
from sctd_jax.finetune.config import FinetuneConfig
from sctd_jax.finetune.step import shape_of
from sctd_jax.hf import hub
from sctd_jax.tasks.table import TASKS
from sctd_jax.tasks.task import Task
from sctd_jax.train.workdir import CONFIG_FILE, TASK_FILE, check, claim, differences, follow, same_config

RESULT_FILE, PREDICTIONS = "result.json", "predictions"
MAY_CHANGE = rerun_fields(FinetuneConfig)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a fine-tuning, as `task.json` keeps it beside the settings."""

    labels: tuple[str, ...]
    data_sha256: str  # digest of the labelled examples
    init_identity: str  # changes with the parameters that it starts from
    tokenizer_sha256: str  # digest of the tokenizer beside it; '' where earlier code wrote it


def check_workdir(workdir: epath.Path, settings: FinetuneConfig, model: ModelConfig, origin: Origin) -> None:
    """Check before any long work that `workdir` is new or this fine-tuning's."""

    def same_run():
        if not (workdir / TASK_FILE).exists():
            raise UserError(f"workdir {workdir} is a pretraining run's: fine-tune in another --workdir")
        check_task(workdir, settings, origin)
        same_config(workdir, {"model": dataclasses.asdict(model)})
        check_results(workdir)

    check(workdir, same_run)


def check_results(workdir: epath.Path) -> None:
    """Check that what is written at the end can be: nothing else has taken the places."""
    storage.regular_file(workdir / RESULT_FILE)
    if storage.exists(workdir / PREDICTIONS) and not (workdir / PREDICTIONS).is_dir():
        raise UserError(f"{workdir / PREDICTIONS} is a file, a folder is expected: move it away")


def check_sweep(workdir: epath.Path) -> None:
    """Check before any work that `workdir` is new or a sweep's, by whose cells it is known: RUN/TASK/RATE-seedSEED."""

    def a_run():
        raise UserError(f"workdir {workdir} is a run's, by its {CONFIG_FILE}: sweep in another --workdir")

    with storage.reaching(workdir):
        places = list(workdir.glob("*/*/*-seed*"))
        swept = any(p.parts[-2] in TASKS and re.fullmatch(r"[\d.e+-]+-seed\d+", p.name) for p in places)
        if (workdir / CONFIG_FILE).exists() or not swept:
            check(workdir, a_run)


def check_task(
    workdir: epath.Path,
    settings: FinetuneConfig,
    origin: Origin,
    may_change: Collection[str] = MAY_CHANGE,
    same_start: bool = True,
) -> None:
    """Check that a workdir's fine-tuning is this one, but for the settings `may_change`, by default a rerun's.

    Without `same_start` it may also have started from other parameters.
    """
    theirs = read_task(workdir)
    if other := differences(theirs, dataclasses.asdict(settings), may_change):
        raise UserError(f"workdir {workdir} belongs to another fine-tuning: {other}; choose another --workdir")
    what = None
    if same_start and theirs["init_identity"] != origin.init_identity:
        began = "" if theirs["init"] == settings.init else f" (it began with {theirs['init']})"
        what = f"started from other parameters ({theirs['init_identity']}) than those of {settings.init} now{began}"
    if (theirs["labels"], theirs["data_sha256"]) != (list(origin.labels), origin.data_sha256):
        what = f"was trained on other examples than those in {settings.data_dir}"
    if what:
        raise UserError(f"workdir {workdir} {what}; choose another --workdir")


def read_task(workdir: epath.Path, log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """`task.json`: the settings and the origin, as this code has them; `log` receives what was otherwise then."""
    found = stored.read(workdir / TASK_FILE, stored.TASK)
    for note in found.notes:
        log(note)
    origin = {field.name: found.values.pop(field.name, None) for field in dataclasses.fields(Origin)}
    labels, *texts = origin.values()
    try:
        settings = fill("config", FinetuneConfig, found.values, new=False)
        listed = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not listed or len(set(labels)) < len(labels) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{', '.join(origin)} must be different names and texts, found {origin}")
        require(settings.max_length >= 16, "max_length", f"must be at least 16, found {settings.max_length}")
    except UserError as error:
        raise UserError(f"{workdir / TASK_FILE} is damaged ({printable(error)}); choose another --workdir") from error
    return dataclasses.asdict(settings) | origin


def check_outputs(workdir: epath.Path, task: Task, labels: Sequence[str], params: Mapping[str, Any]) -> None:
    """Check that the head of a fine-tuned model has an output for each label that its `task.json` names."""
    expected, found = shape_of(task, labels).outputs, params["classifier"]["bias"].shape[0]
    if found != expected:
        raise UserError(
            f"{workdir / TASK_FILE} is damaged: {task.name} with its {len(labels)} labels wants {expected} outputs, "
            f"and its checkpoint has {found}"
        )


def followed(workdir: epath.Path, settings: FinetuneConfig, log: Callable[[str], None]) -> FinetuneConfig:
    """The settings with which a workdir is gone on with: those that its run began without stay as they were then.

    A model of the hub is pinned to a commit, that with which the run began unless `init` names a revision.
    """
    if hub.is_one(settings.init) and storage.exists(workdir / TASK_FILE):
        settings = dataclasses.replace(settings, init=hub.as_begun(settings.init, read_task(workdir)["init"]))
    mine = dataclasses.asdict(settings) | {"init": hub.pinned(settings.init, log)}
    return fill("config", FinetuneConfig, follow(workdir / TASK_FILE, mine, stored.TASK, MAY_CHANGE, log))


def claim_workdir(
    workdir: epath.Path,
    settings: FinetuneConfig,
    config: Config,
    origin: Origin,
    tokenizer_file: epath.Path,
) -> None:
    """Make `workdir` this fine-tuning's: tokenizer, task, command and config."""

    def files():
        new = not (workdir / CONFIG_FILE).exists()
        if new:
            yield tokenizer.canonical(tokenizer_file)
        begun = None if new else stored.read(workdir / TASK_FILE, stored.TASK).begun
        task = stored.header(stored.TASK, begun) | dataclasses.asdict(settings) | dataclasses.asdict(origin)
        yield TASK_FILE, json.dumps(task, indent=2).encode()

    claim(workdir, config, files)
