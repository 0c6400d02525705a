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
from collections.abc import Callable, Iterator

from etils import epath

from sctd_jax import lease, storage, stored
from sctd_jax.config import Config, fill, from_dict, rerun_fields
from sctd_jax.data import tokenizer
from sctd_jax.data.fingerprint import fingerprint
from sctd_jax.data.rows import METADATA_FILE, read_metadata
from sctd_jax.errors import UserError, printable, say
from sctd_jax.parallel import hosts
from sctd_jax.train.metrics import METRICS_FILE

CONFIG_FILE, COMMAND_FILE, CHECKPOINTS = "config.json", "command.txt", "checkpoints"
TASK_FILE = "task.json"  # what a fine-tuned model has besides
ROWS_FILE = "rows.json"  # the fingerprint of the rows
_MAY_CHANGE = rerun_fields(Config)

_said: set[str] = set()  # notes on old configs


@contextlib.contextmanager
def held(workdir: epath.Path, what: str, log: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """The first host keeps other runs out of `workdir`; gives what raises where another one has taken it over.

    Raises:
      UserError: another process is at work there.
    """
    if not hosts.is_first():
        yield lambda: None
        return
    with lease.hold(workdir, what, log) as mine:
        yield mine.check


def check_workdir(workdir: epath.Path, config: Config) -> None:
    """Check before any long work that `workdir` is new or this config's.

    Raises:
      UserError: it belongs to another config, to an imported model or to something else, or cannot be written.
    """
    try:
        with storage.reaching(workdir):
            if (workdir / CONFIG_FILE).exists():
                if (workdir / TASK_FILE).exists():
                    raise UserError(f"workdir {workdir} holds a fine-tuned model: pretrain in another --workdir")
                if not (workdir / METADATA_FILE).exists():
                    check_metadata(workdir)
                    raise UserError(
                        f"workdir {workdir} holds an imported model, which stays as it is: train in another --workdir, "
                        f"starting from this one: --config=configs/continued.py:{workdir}"
                    )
                same_config(workdir, dataclasses.asdict(config))
            else:
                check_new(workdir)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error}") from error


def check_new(workdir: epath.Path) -> None:
    """Check that a folder without a config may become a workdir, and make it.

    Raises:
      UserError: something else is in it.
      OSError: it cannot be written.
    """
    if workdir.exists() and [path for path in workdir.iterdir() if not _ours(path)]:
        raise UserError(f"workdir {workdir} is not empty and has no {CONFIG_FILE}: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)


def _ours(path: epath.Path) -> bool:
    """What a kill inside `claim_workdir` can leave."""
    names = (
        tokenizer.SENTENCEPIECE_FILE, tokenizer.JSON_FILE, METADATA_FILE, COMMAND_FILE, TASK_FILE, CHECKPOINTS,
        ROWS_FILE, lease.LEASE_FILE,
    )  # fmt: skip
    return path.name in names or path.name.startswith(".claim-")


def has_checkpoints(workdir: epath.Path) -> bool:
    """Whether anything was saved in `workdir`."""
    return any((workdir / CHECKPOINTS).glob("[0-9]*"))


def is_trained(workdir: epath.Path) -> bool:
    """Whether a run's workdir is more than an imported model: a checkpoint of step 0 and nothing measured."""
    steps = [path.name for path in (workdir / CHECKPOINTS).glob("[0-9]*")]
    return steps != ["0"] or (workdir / METRICS_FILE).exists()


def check_metadata(workdir: epath.Path) -> None:
    """Check that nothing but an imported model has no `prepared.json`.

    Raises:
      UserError: the file is missing.
    """
    if not (workdir / METADATA_FILE).is_file() and is_trained(workdir):
        raise UserError(f"{workdir / METADATA_FILE} is missing, which says what rows this run is trained on: copy it "
                        "from the folder of the rows")  # fmt: skip


def check_rows(workdir: epath.Path, rows: epath.Path) -> None:
    """Check that rows can be read, and that the steps in `workdir` were trained on these.

    Raises:
      UserError: they cannot, or the steps were trained on others.
    """
    mine = fingerprint(rows)
    if not (workdir / CONFIG_FILE).exists():
        return
    there, now = read_metadata(workdir), read_metadata(rows)
    pairs = {field: (getattr(there, field), getattr(now, field)) for field in ("tokenizer_sha256", "rows", "tokens")}
    if (workdir / ROWS_FILE).exists():
        digests = storage.read_json(workdir / ROWS_FILE, "remove it to go on with the rows at hand")
        pairs |= {split: (digests.get(split), found) for split, found in mine.items()}
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(f"workdir {workdir} was trained on other rows than {rows}: {what} is {theirs} there and "
                            f"{ours} here; give it those, or choose another --workdir")  # fmt: skip


def claim_workdir(workdir: epath.Path, config: Config, rows: epath.Path, log: Callable[[str], None] = say) -> None:
    """Write tokenizer, row metadata, command and config, the last one last: it says that the workdir is a run's.

    With several hosts the first one writes.

    Raises:
      UserError: it cannot be written, or another host does not see it.
    """
    hosts.first_only("claim", lambda: _claim(workdir, config, rows, log))
    if not hosts.all_say((workdir / CONFIG_FILE).exists()):
        raise UserError(f"workdir {workdir} must be on storage that all hosts of the run share")


def _claim(workdir: epath.Path, config: Config, rows: epath.Path, log: Callable[[str], None]) -> None:
    try:
        if not (workdir / CONFIG_FILE).exists():
            for path in (tokenizer.find(rows), rows / METADATA_FILE):
                write(workdir / path.name, path.read_bytes())
        elif not (workdir / ROWS_FILE).exists():
            log(f"{workdir} has no {ROWS_FILE}, which earlier code did not write: from now on it remembers the rows in "
                f"{rows} by it")  # fmt: skip
        if not (workdir / ROWS_FILE).exists() or not (workdir / CONFIG_FILE).exists():
            write(workdir / ROWS_FILE, json.dumps(fingerprint(rows), indent=2).encode())
        write_config(workdir, config)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error}") from error


def write_config(workdir: epath.Path, config: Config) -> None:
    """Write the running command, then the config, which makes the folder a run's."""
    path = workdir / CONFIG_FILE
    begun = stored.read(path, stored.CONFIG).begun if path.is_file() else None
    content = stored.header(stored.CONFIG, begun) | dataclasses.asdict(config)
    write(workdir / COMMAND_FILE, shlex.join(["python", *sys.orig_argv[1:]]).encode())
    write(path, json.dumps(content, indent=2).encode())


def write(path: epath.Path, content: bytes) -> None:
    """Write a file of a workdir; a kill leaves the one before or the new one."""
    temporary = path.with_name(f".claim-{path.name}-{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_command(workdir: epath.Path) -> str:
    """The last command that wrote here; 'not recorded' where its file is missing or damaged."""
    try:
        return (workdir / COMMAND_FILE).read_bytes().decode().strip() or "not recorded"
    except (OSError, UnicodeDecodeError):
        return "not recorded"


def read_config(workdir: epath.Path, log: Callable[[str], None] = lambda line: None) -> Config:
    """The config of a run, as this code has it.

    Args:
      workdir: of the run.
      log: told of what earlier code had otherwise.

    Raises:
      UserError: not a run's workdir, or its config is damaged or a newer version's.
    """
    path = workdir / CONFIG_FILE
    with storage.reaching(workdir):
        there = path.exists()
    if not there:
        raise UserError(f"{workdir} is not the workdir of a run (no {CONFIG_FILE})")
    found = stored.read(path, stored.CONFIG)
    for note in found.notes:
        if note not in _said:  # a command may read a config for each checkpoint
            log(note)
            _said.add(note)
    try:
        return from_dict(found.values)
    except UserError as error:
        raise UserError(f"{path} is damaged: {printable(error)}") from error


def followed(workdir: epath.Path, config: Config, log: Callable[[str], None]) -> Config:
    """The config with which a workdir is gone on with: fields that its run began without stay as they were then.

    Raises:
      UserError: the workdir's config is damaged or a newer version's.
    """
    path = workdir / CONFIG_FILE
    with storage.reaching(workdir):
        there = path.is_file()
    if not there:
        return config
    found = stored.read(path, stored.CONFIG)
    values, notes = stored.follow(dataclasses.asdict(config), found, stored.CONFIG, _MAY_CHANGE)
    for note in (*found.notes, *notes):
        log(note)
    return from_dict(values)


def same_config(workdir: epath.Path, mine: dict) -> None:
    """Check that a workdir's config is this one, but for what a rerun may change.

    Raises:
      UserError: it is another one, or damaged.
    """
    path = workdir / CONFIG_FILE
    try:
        theirs = dataclasses.asdict(fill("config", Config, stored.read(path, stored.CONFIG).values))
    except UserError as error:
        said = str(error) if str(path) in str(error) else f"{path} is damaged: {printable(error)}"
        raise UserError(f"{said}; choose another --workdir") from error
    other = [
        f"{section}.{field} ({theirs[section][field]!r} there, {value!r} now)"
        for section, fields in mine.items()
        for field, value in fields.items()
        if f"{section}.{field}" not in _MAY_CHANGE and theirs[section][field] != value
    ]
    if other:
        raise UserError(f"workdir {workdir} belongs to another config: {', '.join(other)}; choose another --workdir")
