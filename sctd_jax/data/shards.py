"""The files of packed rows as TFDS has them: what writes a shard, what tells its digest, and what describes all."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

_AT_ONCE = 1 << 10  # rows


class ShardWriter:
    """Writes the shard of one range of the text, for one split."""

    def __init__(self, path: Path, seq_len: int):
        self._before = beginning(_features(seq_len), seq_len)
        self._writer = ArrayRecordWriter(str(path), "group_size:1")
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


def digest(path: Path, seq_len: int) -> str:
    """Digest of the rows in a file, as `ShardWriter.close` told it.

    Args:
      path: file that a `ShardWriter` wrote.
      seq_len: N.

    Raises:
      RuntimeError: the library cannot read it.
    """
    reader, found = ArrayRecordReader(str(path), options="readahead_buffer_size:0"), hashlib.sha256()
    try:
        rows = reader.num_records()
        for start in range(0, rows, _AT_ONCE):
            for record in reader.read(list(range(start, min(rows, start + _AT_ONCE)))):
                found.update(record[-4 * seq_len :])
    finally:
        reader.close()
    return found.hexdigest()


def _features(seq_len: int) -> tfds.features.FeaturesDict:
    # Bytes: a list of integers takes three times as long to serialise.
    return tfds.features.FeaturesDict(
        {"input_ids": tfds.features.Tensor(shape=(seq_len,), dtype=np.int32, encoding="bytes")}
    )


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


def beginning(features: Any, seq_len: int) -> bytes:
    """Bytes before the tokens in each record that `ShardWriter` writes; b"" where `features` are others."""
    if features["input_ids"].np_dtype != np.int32:
        return b""
    row = np.arange(seq_len, dtype="<i4")
    record, size = features.serialize_example({"input_ids": row}), 4 * seq_len
    return record[:-size] if record.endswith(row.tobytes()) else b""
