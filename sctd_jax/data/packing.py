"""Documents -> rows of N tokens (RoBERTa's full sentences across documents, Liu et al., 2019, section 4.2)."""

import numpy as np

from sctd_jax.data.special import SpecialIds

_NOTHING = np.zeros(0, np.int32)


class Packer:
    """Packs a stream of token ids into rows `[CLS] ... [SEP]` that documents run on to fill.

    `[SEP]` stands between documents and at row ends; only the last row, from `finish`, may be padded.
    """

    def __init__(self, seq_len: int, special: SpecialIds):
        self._seq_len, self._special = seq_len, special
        self._parts: list[np.ndarray] = []  # parts of the stream that are in no row yet
        self._document, self.documents = -1, 0  # number of the current one, and how many there were

    def add(self, ids: np.ndarray, document: int) -> None:
        """Take more ids i32[n] of a document, by its number from 0 on."""
        if document != self._document:
            if self.documents:
                self._parts.append(np.array([self._special.sep], np.int32))
            self._document, self.documents = document, self.documents + 1
        self._parts.append(ids)

    def full(self) -> np.ndarray:
        """The rows i32[R, N] that have become full."""
        stream, body, start, starts = np.concatenate([*self._parts, _NOTHING]), self._seq_len - 2, 0, []
        # Look one token ahead, to see whether a document ends exactly where the row does.
        while len(stream) - start > body:
            starts.append(start)
            start += body
            if stream[start] == self._special.sep:  # the row's own [SEP] has closed the document
                start += 1
        self._parts = [stream[start:]]
        rows_RN = np.full((len(starts), self._seq_len), self._special.sep, np.int32)
        rows_RN[:, 0] = self._special.cls
        for row, at in zip(rows_RN, starts, strict=True):
            row[1:-1] = stream[at : at + body]
        return rows_RN

    def finish(self) -> np.ndarray:
        """The rows i32[R, N] that are left, of which the last one may be padded."""
        rows_RN, rest = self.full(), self._parts[0]
        if not len(rest):
            return rows_RN
        last = np.full((1, self._seq_len), self._special.pad, np.int32)
        last[0, : len(rest) + 2] = [self._special.cls, *rest, self._special.sep]
        return np.concatenate([rows_RN, last])
