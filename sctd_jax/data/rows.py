"""Packed rows on disk: a TFDS dataset in ArrayRecord shards, beside its tokenizer and `prepared.json`.

    tfds.builder_from_directory(folder).as_data_source("train")[0]["input_ids"]

reads it anywhere, without tensorflow and without this package.
"""

import dataclasses
import hashlib
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from sctd_jax import storage
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable

TRAIN, HELD_OUT = "train", "validation"
METADATA_FILE = "prepared.json"
FREQUENCIES_FILE = "frequencies.npy"  # number i64[V] of each piece in the training rows
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
    rows_digest: str = ""  # of all rows in their order; '': not recorded


class ShardWriter:
    """Writes the shard of one range of the text, for one split."""

    def __init__(self, path: Path, seq_len: int):
        # A tf.train.Example of rows of one length is the same bytes before each row's own.
        serialize, features = _serializer(seq_len)
        empty = serialize.serialize_example(features.encode_example({"input_ids": np.zeros(seq_len, np.int32)}))
        self._before = empty[: -4 * seq_len]
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        self.rows, self._digest = 0, hashlib.sha256()

    def add(self, rows_RN: np.ndarray) -> None:
        """Append rows i32[R, N]."""
        rows_RN = np.ascontiguousarray(rows_RN, "<i4")
        for row in rows_RN:
            self._writer.write(self._before + row.tobytes())
        self.rows += len(rows_RN)
        self._digest.update(rows_RN.tobytes())

    def close(self) -> str:
        """End the file, and tell the digest of its rows."""
        try:
            self._writer.close()
        except RuntimeError as error:  # the library's, of a full disk too
            raise OSError(str(error)) from error
        return self._digest.hexdigest()


def _features(seq_len: int) -> tfds.features.FeaturesDict:
    # Bytes: a list of integers takes three times as long to serialise.
    return tfds.features.FeaturesDict(
        {"input_ids": tfds.features.Tensor(shape=(seq_len,), dtype=np.int32, encoding="bytes")}
    )


def _serializer(seq_len: int) -> tuple[Any, tfds.features.FeaturesDict]:
    features = _features(seq_len)
    return tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info()), features


def _template(folder: str | os.PathLike, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="packed_rows", split=split, filetype_suffix="array_record"
    )


def shard_name(split: str, number: int, shards: int) -> str:
    """Name of a split's file of one range."""
    return _template("", split).relative_filepath(shard_index=number, num_shards=shards)


def write_description(folder: Path, seq_len: int, lengths: Mapping[str, Sequence[int]]) -> None:
    """Write what makes the shards in a folder a TFDS dataset; `lengths` are the rows of each shard, by split."""
    splits = [
        tfds.core.SplitInfo(
            name=split, shard_lengths=list(rows), num_bytes=4 * seq_len * sum(rows),
            filename_template=_template(folder, split),
        )
        for split, rows in lengths.items()
    ]  # fmt: skip
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="packed_rows", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=_features(seq_len), disable_shuffling=True,
        description="Rows of token ids: [CLS] ... [SEP], documents run on and are closed by [SEP].",
    )  # fmt: skip
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(folder)


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
