"""Datasets of the Hugging Face hub, and folders that `datasets` reads, as `hf:NAME[/CONFIG][@SPLIT]`, streamed."""

import os
import re
from collections.abc import Iterator
from typing import Any

from sctd_jax.errors import UserError, printable

PREFIX = "hf:"
_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:/([\w.-]+))?")


def is_one(path: str) -> bool:
    """Whether an input or a source's path names a dataset."""
    return path.startswith(PREFIX) and not path.startswith(f"{PREFIX}//")


def parse(text: str) -> tuple[str, str]:
    """(path of the source, split) of an input."""
    name, _, split = text.removeprefix(PREFIX).partition("@")
    if not os.path.isdir(name) and not _NAME.fullmatch(name):
        raise UserError(f"input {text}: expected {PREFIX}NAME or {PREFIX}OWNER/NAME, [/CONFIG][@SPLIT], or a folder")
    return PREFIX + name, split or "train"


def fingerprint(path: str, split: str) -> str:
    """A text that changes with the dataset's files or revision."""
    builder = _load("load_dataset_builder", path)
    return f"{path}@{split}:{builder.config.name}:{builder.hash}"


def records(path: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split."""
    yield from _load("load_dataset", path, split=split, streaming=True)


def _load(function: str, path: str, **options) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"input {path} needs datasets: pip install datasets, or '.[hf]'") from error
    name, config = path.removeprefix(PREFIX), None
    if not os.path.isdir(name) and (found := _NAME.fullmatch(name)):
        name, config = found.groups()
    try:
        return getattr(datasets, function)(name, config, **options)
    except Exception as error:  # exceptions of many kinds
        reason = printable((str(error).strip() or repr(error)).splitlines()[0])
        raise UserError(
            f"input {path} cannot be loaded: {reason}; where there is no network, download it elsewhere (hf download "
            f"--repo-type dataset {name} --local-dir FOLDER) and name the folder"
        ) from error
