"""Packed rows on disk: a TFDS dataset in ArrayRecord shards, beside its tokenizer and `prepared.json`.

    tfds.builder_from_directory(folder).as_data_source("train")[0]["input_ids"]

reads it anywhere, without tensorflow and without this package.
"""

import dataclasses
import hashlib
import os
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sctd_jax import storage
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable

TRAIN, HELD_OUT = "train", "validation"
METADATA_FILE = "prepared.json"
_ROWS_PER_SHARD = 1 << 17
# Rows of a split whose digest is its fingerprint, evenly spread: few beside an epoch, and one of each shard at least.
_SAMPLE, _ROWS_PER_SAMPLE = 256, 1 << 16


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
    heldout_up_to: float = 0.0  # highest draw that is held out; 0: not recorded
    unigram_loss: float = 0.0  # `frequencies.cross_entropy` of the held-out rows; 0: not recorded


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
        self.counts = {TRAIN: 0, HELD_OUT: 0}

    def add(self, split: str, rows: Iterable[np.ndarray]) -> None:
        """Append rows i32[N] to a split, many at a time: each call writes the split's metadata anew."""
        examples = [{"input_ids": row} for row in rows]
        self._writer.add_examples({split: examples})
        self.counts[split] += len(examples)

    def close(self) -> None:
        """End the last shards; the folder is complete only after this."""
        self._writer.close_all()


def read_metadata(folder: str | os.PathLike) -> Metadata:
    """Metadata of a finished preparation; fields that this version does not know are left out."""
    path = storage.as_path(folder) / METADATA_FILE
    if not storage.exists(path):
        raise UserError(f"{folder} holds no prepared rows (no {METADATA_FILE}); write them with sctd_jax.data.prepare")
    types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Metadata)}
    try:
        found = Metadata(**{name: value for name, value in storage.read_json(path).items() if name in types})
    except TypeError as error:
        raise UserError(f"{path} is damaged: {printable(error)}") from error
    for name, type_ in types.items():
        value, expected = getattr(found, name), typing.get_origin(type_) or type_
        if type(value) is not expected:
            said = printable(repr(value))
            raise UserError(f"{path} is damaged: {name} must be of type {expected.__name__}, found {said:.40}")
    return found


def on_disk(folder: str | os.PathLike, log: Callable[[str], None]) -> Path:
    """The folder itself, or a copy on this host's disk of one in a bucket: ArrayRecord reads files only."""
    if not storage.is_remote(folder):
        return Path(folder)
    return storage.local_copy(storage.as_path(folder), repr(read_metadata(folder)), log)


class Rows:
    """Random access to the rows of one split."""

    def __init__(self, folder: str | os.PathLike, split: str):
        self.folder = folder
        self._source = open_folder(folder).as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows i32[len(indices), N]; many at a time is several times faster than one by one."""
        try:
            records = self._source.__getitems__([int(i) for i in indices])
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"rows in {self.folder} cannot be read: {error}; prepare them again") from error
        return np.stack([record["input_ids"] for record in records])


def fingerprint(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Count of the rows in a folder on a disk, and digest of some of them, by split.

    A resume with other rows is noticed by it. Files are not compared: the same rows may be compressed otherwise by
    another version of a library.
    """
    metadata, found = read_metadata(folder), {}
    for split, expected in ((TRAIN, metadata.rows), (HELD_OUT, metadata.heldout_rows)):
        try:
            rows = Rows(folder, split)
            count = len(rows)
            numbers = np.linspace(0, count - 1, min(count, max(_SAMPLE, count // _ROWS_PER_SAMPLE))).round().astype(int)
            tokens_RN = rows.read(np.unique(numbers)) if count else np.zeros((0, metadata.seq_len), np.int32)
        except UserError:
            raise
        except Exception as error:  # TFDS and protobuf raise many kinds
            said = printable(str(error).strip().partition("\n")[0] or repr(error))
            raise UserError(f"the rows in {folder} cannot be read ({said}); prepare them again") from error
        problem = None
        if count != expected:
            problem = f"{count:,} {split} rows in dataset_info.json, {expected:,} in prepared.json"
        elif tokens_RN.shape[1] != metadata.seq_len:
            problem = f"{split} rows of {tokens_RN.shape[1]} tokens, {metadata.seq_len} in prepared.json"
        elif tokens_RN.size and not 0 <= tokens_RN.min() <= tokens_RN.max() < metadata.vocab_size:
            problem = f"{split} rows with ids that a vocabulary of {metadata.vocab_size:,} has not"
        if problem:
            raise UserError(f"the rows in {folder} are damaged: {problem}; prepare them again")
        digest = hashlib.sha256(np.ascontiguousarray(tokens_RN, "<i4").tobytes()).hexdigest()[:16]
        found[split] = {"rows": count, "sha256": digest}
    return found
