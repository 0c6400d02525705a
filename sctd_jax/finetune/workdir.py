"""The workdir of a fine-tuned model: a run's, with `task.json` beside its `config.json`."""

import dataclasses
import json
from collections.abc import Callable, Collection
from typing import Any

from etils import epath

from sctd_jax import storage, stored
from sctd_jax.config import Config, fill, rerun_fields
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError, printable
from sctd_jax.finetune.config import FinetuneConfig
from sctd_jax.parallel import hosts
from sctd_jax.train.workdir import CONFIG_FILE, TASK_FILE, check_new, same_config, write, write_config

_MAY_CHANGE = rerun_fields(FinetuneConfig)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a fine-tuning was made from, as `task.json` keeps it beside the settings."""

    labels: tuple[str, ...]
    data_sha256: str  # of the labelled examples
    init_identity: str  # of the parameters that it starts from


def check_workdir(workdir: epath.Path, settings: FinetuneConfig, config: Config, origin: Origin) -> None:
    """Check before any long work that `workdir` is new or this fine-tuning's.

    Raises:
      UserError: it belongs to another one or to something else, or cannot be written.
    """
    try:
        with storage.reaching(workdir):
            if not (workdir / CONFIG_FILE).exists():
                check_new(workdir)
            elif not (workdir / TASK_FILE).exists():
                raise UserError(f"workdir {workdir} is a pretraining run's: fine-tune in another --workdir")
            else:
                check_task(workdir, settings, origin)
                same_config(workdir, {"model": dataclasses.asdict(config.model)})
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error}") from error


def check_task(
    workdir: epath.Path,
    settings: FinetuneConfig,
    origin: Origin,
    but_for: Collection[str] = (),
    same_start: bool = True,
) -> None:
    """Check that a workdir's fine-tuning is this one, but for what a rerun may change.

    Args:
      workdir: of a fine-tuning.
      settings: of this one.
      origin: of this one.
      but_for: more settings that may be others.
      same_start: whether it must have started from the same parameters.

    Raises:
      UserError: it is another one, or damaged.
    """
    theirs, mine = read_task(workdir), dataclasses.asdict(settings)
    other = [
        f"{field} ({theirs.get(field)!r} there, {value!r} now)"
        for field, value in mine.items()
        if field not in (*_MAY_CHANGE, *but_for) and theirs.get(field) != value
    ]
    if other:
        raise UserError(
            f"workdir {workdir} belongs to another fine-tuning: {', '.join(other)}; choose another --workdir"
        )

    what = None
    if same_start and theirs["init_identity"] != origin.init_identity:
        what = f"started from other parameters ({theirs['init_identity']}) than those of {settings.init} now"
    if (theirs["labels"], theirs["data_sha256"]) != (list(origin.labels), origin.data_sha256):
        what = f"was trained on other examples than those in {settings.data_dir}"
    if what:
        raise UserError(f"workdir {workdir} {what}; choose another --workdir")


def read_task(workdir: epath.Path, log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """`task.json`: the settings and the origin, as this code has them.

    Args:
      workdir: of a fine-tuning.
      log: told of what earlier code had otherwise.

    Raises:
      UserError: it is damaged or a newer version's.
    """
    found = _stored(workdir, log)
    origin = {field.name: found.values.pop(field.name, None) for field in dataclasses.fields(Origin)}
    labels, *texts = origin.values()
    try:
        settings = fill("config", FinetuneConfig, found.values)
        listed = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not listed or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{', '.join(origin)} must be names and two texts, found {origin}")
    except UserError as error:
        raise UserError(f"{workdir / TASK_FILE} is damaged ({printable(error)}); choose another --workdir") from error
    return dataclasses.asdict(settings) | origin


def followed(workdir: epath.Path, settings: FinetuneConfig, log: Callable[[str], None]) -> FinetuneConfig:
    """The settings with which a workdir is gone on with: those that its run began without stay as they were then.

    Raises:
      UserError: `task.json` is damaged or a newer version's.
    """
    with storage.reaching(workdir):
        there = (workdir / TASK_FILE).is_file() and (workdir / CONFIG_FILE).is_file()
    if not there:
        return settings
    values, notes = stored.follow(dataclasses.asdict(settings), _stored(workdir, log), stored.TASK, _MAY_CHANGE)
    for note in notes:
        log(note)
    return fill("config", FinetuneConfig, values)


def _stored(workdir: epath.Path, log: Callable[[str], None]) -> stored.Stored:
    found = stored.read(workdir / TASK_FILE, stored.TASK)
    for note in found.notes:
        log(note)
    return found


def claim_workdir(
    workdir: epath.Path,
    settings: FinetuneConfig,
    config: Config,
    origin: Origin,
    tokenizer_file: epath.Path,
) -> None:
    """Write tokenizer, task, command and config, the last one last: it says that the workdir is a run's.

    Raises:
      UserError: it cannot be written, or another host does not see it.
    """

    def claim():
        try:
            begun = stored.read(workdir / TASK_FILE, stored.TASK).begun if (workdir / CONFIG_FILE).exists() else None
            task = stored.header(stored.TASK, begun) | dataclasses.asdict(settings) | dataclasses.asdict(origin)
            if not (workdir / CONFIG_FILE).exists():
                name, content = tokenizer.canonical(tokenizer_file)
                write(workdir / name, content)
            write(workdir / TASK_FILE, json.dumps(task, indent=2).encode())
            write_config(workdir, config)
        except OSError as error:
            raise UserError(f"workdir {workdir}: {error}") from error

    hosts.first_only("claim", claim)
    if not hosts.all_say((workdir / CONFIG_FILE).exists()):
        raise UserError(f"workdir {workdir} must be on storage that all hosts of the run share")
