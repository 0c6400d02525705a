"""The folder of a run, but for its checkpoints.

A workdir is all that is needed later: `config.json`, `command.txt`, the tokenizer, `prepared.json` (about the
rows) and `checkpoints/STEP/` with the whole TrainState, importance table included.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sctd_jax import lease, storage, stored
from sctd_jax.config import Config, from_dict
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import METADATA_FILE
from sctd_jax.errors import UserError, of_disk, printable, writing
from sctd_jax.fields import rerun_fields
from sctd_jax.parallel import hosts
from sctd_jax.train.metrics import METRICS_FILE

CONFIG_FILE, COMMAND_FILE, CHECKPOINTS = "config.json", "command.txt", "checkpoints"
TASK_FILE = "task.json"  # file that a fine-tuned model has besides
ROWS_FILE = "rows.json"  # the fingerprint of the rows
# Files that `claim` writes before there is a config.
_LEFT_BY_A_KILL = {
    tokenizer.SENTENCEPIECE_FILE, tokenizer.JSON_FILE, METADATA_FILE, COMMAND_FILE, TASK_FILE, CHECKPOINTS, ROWS_FILE,
    lease.LEASE_FILE,
}  # fmt: skip
MAY_CHANGE = rerun_fields(Config)

_said: set[str] = set()  # notes on old configs


@contextlib.contextmanager
def held(workdir: epath.Path, what: str, log: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """The first host keeps other runs out of `workdir`; gives what raises where another one has taken it over."""
    if not hosts.is_first():
        yield lambda: None
        return
    with lease.hold(workdir, what, log) as still_mine:
        yield still_mine


def check(workdir: epath.Path, same_run: Callable[[], None]) -> None:
    """Check before any long work that `workdir` is new, or one of which `same_run` finds nothing to say."""
    try:
        with storage.reaching(workdir):
            if (workdir / CONFIG_FILE).exists():
                same_run()
                # Read, or written to, when much else has been written.
                storage.regular_file(workdir / METRICS_FILE)
                for name, is_one in ((METRICS_FILE, os.path.isfile), ("tensorboard", os.path.isdir)):
                    path = os.fspath(workdir / name)
                    if not storage.is_remote(path) and os.path.lexists(path) and not is_one(path):
                        raise UserError(f"{path} is a link to nothing, or of another kind; move it away")
                return
            there = [path.name for path in workdir.iterdir()] if workdir.exists() else []
            if any(name not in _LEFT_BY_A_KILL and not name.startswith(".claim-") for name in there):
                raise UserError(f"workdir {workdir} is not empty and has no {CONFIG_FILE}: choose another --workdir")
            workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise of_disk(error)(f"workdir {workdir}: {error}") from error


def is_trained(workdir: epath.Path) -> bool:
    """Whether a run's workdir is more than an imported model: a checkpoint of step 0 and nothing measured."""
    steps = [path.name for path in (workdir / CHECKPOINTS).glob("[0-9]*")]
    return steps != ["0"] or (workdir / METRICS_FILE).exists()


def check_metadata(workdir: epath.Path) -> None:
    """Check that nothing but an imported model has no `prepared.json`."""
    if not (workdir / METADATA_FILE).is_file() and is_trained(workdir):
        raise UserError(f"{workdir / METADATA_FILE} is missing, which says what rows this run is trained on: copy it "
                        "from the folder of the rows")  # fmt: skip


def claim(workdir: epath.Path, config: Config, files: Callable[[], Iterable[tuple[str, bytes]]]) -> None:
    """Write files, command and config, the last one last: it says that the workdir is a run's.

    `files` gives name and content of each; it is called in the first process alone, which writes.
    """

    def write_all():
        with writing(f"workdir {workdir}"):
            for name, content in files():
                storage.write(workdir / name, content)
            write_config(workdir, config)

    hosts.run_on_first("claim", write_all)
    if not hosts.all_agree((workdir / CONFIG_FILE).exists()):
        raise UserError(f"workdir {workdir} must be on storage that all hosts of the run share")


def write_config(workdir: epath.Path, config: Config, command: Sequence[str] = ()) -> None:
    """Write the command, by default the running one, then the config, which makes the folder a run's."""
    path = workdir / CONFIG_FILE
    begun = stored.read(path, stored.CONFIG).begun if path.is_file() else None
    content = stored.header(stored.CONFIG, begun) | dataclasses.asdict(config)
    storage.write(workdir / COMMAND_FILE, shlex.join(["python", *(command or sys.orig_argv)[1:]]).encode())
    storage.write(path, json.dumps(content, indent=2).encode())


def read_command(workdir: epath.Path) -> str:
    """The last command that wrote here; 'not recorded' where its file is missing or damaged."""
    try:
        return storage.regular_file(workdir / COMMAND_FILE).read_bytes().decode().strip() or "not recorded"
    except (OSError, UnicodeDecodeError, UserError):
        return "not recorded"


def read_config(workdir: epath.Path, log: Callable[[str], None] | None = None) -> Config:
    """The config of a run, as this code has it; `log` receives what earlier code had otherwise, once a process."""
    path = workdir / CONFIG_FILE
    if not storage.exists(path):
        raise UserError(f"{workdir} is not the workdir of a run (no {CONFIG_FILE})")
    found = stored.read(path, stored.CONFIG)
    for note in found.notes:
        if log and note not in _said:  # a command may read a config for each checkpoint
            log(note)
            _said.add(note)
    try:
        return from_dict(found.values, new=False)
    except UserError as error:
        raise UserError(f"{path} is damaged: {printable(error)}") from error


def follow(
    path: epath.Path,
    mine: Mapping[str, Any],
    changes: Sequence[stored.Change],
    may_change: Collection[str],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """`stored.follow` by a workdir's `config.json` or `task.json`; in a new workdir the recipe's fields as they are.

    `log` receives what earlier code had otherwise.
    """
    if not (storage.exists(path) and storage.exists(path.with_name(CONFIG_FILE))):
        return dict(mine)
    found = stored.read(path, changes)
    values, notes = stored.follow(mine, found, changes, may_change)
    for note in (*found.notes, *notes):
        log(note)
    return values


def differences(there: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str]) -> str:
    """Fields of a run in which a rerun differs and may not, as `field (x there, y now)`; '' if there are none."""
    return ", ".join(
        f"{field} ({there.get(field)!r} there, {value!r} now)"
        for field, value in now.items()
        if field not in may_change and there.get(field) != value
    )


def same_config(workdir: epath.Path, mine: dict) -> None:
    """Check that a workdir's config is this one, but for what a rerun may change."""
    try:
        theirs = dict(stored.flat(dataclasses.asdict(read_config(workdir))))
    except UserError as error:
        raise UserError(f"{error}; choose another --workdir") from error
    if other := differences(theirs, dict(stored.flat(mine)), MAY_CHANGE):
        began, advice = read_command(workdir), "choose another --workdir"
        for recipe, (field, value, now) in stored.RECIPES.items():
            if recipe in began and theirs[field] == value:
                advice = f"what {recipe} was when this run began is {now} now: go on with that, or {advice}"
        raise UserError(f"workdir {workdir} belongs to another config: {other}; {advice}")
