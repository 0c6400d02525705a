"""Documents -> rows of N tokens (RoBERTa's full sentences across documents, Liu et al., 2019, section 4.2)."""

from collections.abc import Iterator

import numpy as np

from sctd_jax.data.special import SpecialIds


class Packer:
    """Packs a stream of token ids into rows `[CLS] ... [SEP]` that documents run on to fill.

    `[SEP]` stands between documents and at row ends; only the last row, from `finish`, may be padded.
    """

    def __init__(self, seq_len: int, special: SpecialIds):
        self._seq_len, self._special = seq_len, special
        self._pending = np.zeros(0, np.int32)
        self._document, self.documents = -1, 0  # number of the current one, and how many there were

    def add(self, ids: np.ndarray, document: int) -> Iterator[np.ndarray]:
        """Take more ids i32[n] of a document, by its number from 0 on; yield the rows i32[N] that are full."""
        parts = [self._pending, ids]
        if document != self._document:
            if self.documents:
                parts.insert(1, np.array([self._special.sep], np.int32))
            self._document, self.documents = document, self.documents + 1
        stream, body, start = np.concatenate(parts), self._seq_len - 2, 0
        # Look one token ahead, to see whether a document ends exactly where the row does.
        while len(stream) - start > body:
            yield self._row(stream[start : start + body])
            start += body
            if stream[start] == self._special.sep:  # the row's own [SEP] has closed the document
                start += 1
        self._pending = stream[start:]

    def finish(self) -> Iterator[np.ndarray]:
        """Yield the last row, padded, if anything is left."""
        if len(self._pending):
            yield self._row(self._pending)

    def _row(self, body: np.ndarray) -> np.ndarray:
        row = np.full(self._seq_len, self._special.pad, np.int32)
        row[0] = self._special.cls
        row[1 : 1 + len(body)] = body
        row[1 + len(body)] = self._special.sep
        return row
