"""The workdir of a pretraining run: its rows are its own, and whose it is is checked before any long work."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from sctd_jax import storage, stored
from sctd_jax.config import Config, from_dict
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import METADATA_FILE, fingerprint, read_metadata, same_rows
from sctd_jax.errors import UserError, say
from sctd_jax.pretrain.rows import Data, open_data
from sctd_jax.train import workdir as workdirs
from sctd_jax.train.workdir import CONFIG_FILE, MAY_CHANGE, ROWS_FILE, TASK_FILE


def followed(workdir: epath.Path, config: Config, log: Callable[[str], None]) -> Config:
    """The config with which a workdir is gone on with: fields that its run began without stay as they were then."""
    return from_dict(workdirs.follow(workdir / CONFIG_FILE, dataclasses.asdict(config), stored.CONFIG, MAY_CHANGE, log))


def check_workdir(workdir: epath.Path, config: Config) -> None:
    """Check before any long work that `workdir` is new or this config's."""

    def same_run():
        if (workdir / TASK_FILE).exists():
            raise UserError(f"workdir {workdir} holds a fine-tuned model: pretrain in another --workdir")
        if not (workdir / METADATA_FILE).exists():
            workdirs.check_metadata(workdir)
            raise UserError(
                f"workdir {workdir} holds an imported model, which stays as it is: train in another --workdir, "
                f"starting from this one: --config=configs/continued.py:{workdir}"
            )
        workdirs.same_config(workdir, dataclasses.asdict(config))

    workdirs.check(workdir, same_run)


def open_rows(workdir: epath.Path, config: Config, log: Callable[[str], None]) -> Data:
    """The config's rows, prepared now if missing: those that the steps in `workdir` were trained on."""
    began = read_metadata(workdir) if (workdir / CONFIG_FILE).is_file() else None
    data = open_data(config, log, began)
    check_rows(workdir, *folders(data))
    return data


def folders(data: Data) -> list[Path]:
    """Folders of a run's rows, that of the length that evaluations read first."""
    return [of_length.folder for of_length in data.by_length().values()]


def fingerprints(rows: Path, *others: Path) -> dict[str, Any]:
    """`rows.fingerprint` of a run's rows, those of other lengths with N in their names."""
    found = fingerprint(rows)
    for folder in others:
        length = read_metadata(folder).seq_len
        found |= {f"{split} of {length} tokens": one for split, one in fingerprint(folder).items()}
    return found


def check_rows(workdir: epath.Path, rows: Path, *others: Path) -> None:
    """Check that rows can be read, and that the steps in `workdir` were trained on these."""
    mine = fingerprints(rows, *others)
    if not (workdir / CONFIG_FILE).exists():
        return
    there, now = read_metadata(workdir), read_metadata(rows)
    tokenizer.of_rows(workdir, there.tokenizer_sha256)
    pairs = {field: (getattr(there, field), getattr(now, field)) for field in ("tokenizer_sha256", "rows", "tokens")}
    differ = {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}
    if (workdir / ROWS_FILE).exists():
        digests = storage.read_json(workdir / ROWS_FILE, "remove it to go on with the rows at hand")
        pairs = {split: (digests.get(split), found) for split, found in mine.items()}
        differ |= {split: pair for split, pair in pairs.items() if not same_rows(*pair)}
    for what, (theirs, ours) in differ.items():
        raise UserError(f"workdir {workdir} was trained on other rows than {rows}: {what} is {theirs} there and "
                        f"{ours} here; give it those, or choose another --workdir")  # fmt: skip


def claim_workdir(
    workdir: epath.Path, config: Config, rows: Path, log: Callable[[str], None] = say, others: Sequence[Path] = ()
) -> None:
    """Make `workdir` this run's: tokenizer, metadata and fingerprint of its rows, command and config."""

    def files():
        new = not (workdir / CONFIG_FILE).exists()
        if new:
            yield from ((path.name, path.read_bytes()) for path in (tokenizer.find(rows), rows / METADATA_FILE))
        elif not (workdir / ROWS_FILE).exists():
            log(f"{workdir} has no {ROWS_FILE}, which earlier code did not write: from now on it remembers the rows in "
                f"{rows} by it")  # fmt: skip
        if new or not (workdir / ROWS_FILE).exists():
            yield ROWS_FILE, json.dumps(fingerprints(rows, *others), indent=2).encode()

    workdirs.claim(workdir, config, files)
