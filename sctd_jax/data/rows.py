"""Packed rows on disk: a TFDS dataset in ArrayRecord shards, beside its tokenizer and `prepared.json`.

    tfds.builder_from_directory(folder).as_data_source("train")[0]["input_ids"]

reads it anywhere, without tensorflow and without this package.
"""

import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from sctd_jax import storage
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable

TRAIN, HELD_OUT = "train", "validation"
METADATA_FILE = "prepared.json"
_ROWS_PER_SHARD, _ROWS_PER_WRITE = 1 << 17, 1 << 10


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Content of `prepared.json`."""

    seq_len: int
    vocab_size: int
    tokenizer_sha256: str
    rows: int
    heldout_rows: int
    tokens: int  # tokens of both splits without padding and special tokens
    documents: int
    heldout_documents: int
    empty_documents: int
    replaced_bytes: int  # invalid UTF-8 sequences that became U+FFFD
    sources: list[str]
    settings: dict  # settings of the preparation
    # Fields from here on have defaults: older preparations have none of them.
    letters: int = 0  # characters that are no white space; 0: not counted
    unknown_letters: int = 0  # letters that are [UNK] in the rows
    commonest_unknown: dict[str, int] = dataclasses.field(default_factory=dict)  # the first hundred
    by_source: list[dict] = dataclasses.field(default_factory=list)  # counts, in the order of `sources`


class RowWriter:
    """Writes the rows of both splits, in order, into an empty folder."""

    def __init__(self, folder: Path, seq_len: int):
        # Bytes: a list of integers takes three times as long to serialise.
        tensor = tfds.features.Tensor(shape=(seq_len,), dtype=np.int32, encoding="bytes")
        features = tfds.features.FeaturesDict({"input_ids": tensor})
        identity = tfds.core.dataset_info.DatasetIdentity(
            name="packed_rows", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=features,
            description="Rows of token ids: [CLS] ... [SEP], documents run on and are closed by [SEP].",
            disable_shuffling=True,
        )
        self._writer = tfds.core.SequentialWriter(info, _ROWS_PER_SHARD, file_format="array_record")
        self._writer.initialize_splits([TRAIN, HELD_OUT])
        self._buffers: dict[str, list] = {TRAIN: [], HELD_OUT: []}
        self.counts = {TRAIN: 0, HELD_OUT: 0}

    def add(self, split: str, rows: Iterable[np.ndarray]) -> None:
        """Append rows i32[N] to a split."""
        buffer = self._buffers[split]
        buffer.extend({"input_ids": row} for row in rows)
        if len(buffer) >= _ROWS_PER_WRITE:
            self._flush(split)

    def close(self) -> None:
        """Write what is left; the folder is complete only after this."""
        for split in self._buffers:
            self._flush(split)
        self._writer.close_all()

    def _flush(self, split: str) -> None:
        self.counts[split] += len(self._buffers[split])
        self._writer.add_examples({split: self._buffers[split]})
        self._buffers[split].clear()


def read_metadata(folder: str | os.PathLike) -> Metadata:
    """Metadata of a finished preparation; fields that this version does not know are left out."""
    path = storage.as_path(folder) / METADATA_FILE
    if not storage.exists(path):
        raise UserError(f"{folder} holds no prepared rows (no {METADATA_FILE}); write them with sctd_jax.data.prepare")
    try:
        values, fields = storage.read_json(path), {field.name for field in dataclasses.fields(Metadata)}
        found = Metadata(**{name: value for name, value in values.items() if name in fields})
    except TypeError as error:
        raise UserError(f"{path} is damaged: {printable(error)}") from error
    for field in dataclasses.fields(Metadata):
        value, expected = getattr(found, field.name), typing.get_origin(field.type) or field.type
        if expected in (int, str, list, dict) and type(value) is not expected:
            said = printable(repr(value))
            raise UserError(f"{path} is damaged: {field.name} must be of type {expected.__name__}, found {said:.40}")
    return found


def on_disk(folder: str | os.PathLike, log: Callable[[str], None]) -> Path:
    """The folder itself, or a copy on this host's disk of one in a bucket: ArrayRecord reads files only."""
    if not storage.is_remote(folder):
        return Path(folder)
    return storage.local_copy(storage.as_path(folder), repr(read_metadata(folder)), log)


class Rows:
    """Random access to the rows of one split."""

    def __init__(self, folder: str | os.PathLike, split: str):
        self._folder = folder
        self._source = open_folder(folder).as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows i32[len(indices), N]; many at a time is several times faster than one by one."""
        try:
            records = self._source.__getitems__([int(i) for i in indices])
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"rows in {self._folder} cannot be read: {error}; prepare them again") from error
        return np.stack([record["input_ids"] for record in records])
