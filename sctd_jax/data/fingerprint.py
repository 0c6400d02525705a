"""Fingerprint of a run's rows, so that a resume with others does not become another run unnoticed."""

import hashlib
import os
from typing import Any

import numpy as np

from sctd_jax.data.rows import HELD_OUT, TRAIN, Rows, read_metadata
from sctd_jax.errors import UserError, printable

# Rows of a split that are looked at, evenly spread: few beside an epoch, and one of each shard of 2^17 at least.
_SAMPLE, _ROWS_PER_SAMPLE = 256, 1 << 16


def fingerprint(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Count of the rows and digest of some of them, by split.

    Files are not compared: the same rows may be compressed otherwise by another version of a library.

    Args:
      folder: prepared rows on a disk.
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
