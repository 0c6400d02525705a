"""Pieces of documents -> their ids, many at a time."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from sctd_jax.data import survey, tokenizer, unknown
from sctd_jax.data.loader import prefetch

_CHARS = 8 << 20  # text that is tokenised in one call, over all cores
_PIECE_CHARS = 64  # characters for whose memory a piece stands beside its own


def encoded_batches(
    tok: tokenizer.Tokenizer, pieces: Iterator[survey.Piece]
) -> Iterator[tuple[list[survey.Piece], list[np.ndarray], list[Counter]]]:
    """Batches of chunks, and each piece's ids and unknown letters; all cores work while the batch before is packed."""

    def batches() -> Iterator[list[survey.Piece]]:
        batch, size = [], 0
        for piece in _with_space_before(pieces) if tok.is_byte_level else pieces:
            batch.append(piece)
            size += len(piece.text) + _PIECE_CHARS
            if size >= _CHARS:
                yield batch
                batch, size = [], 0
        yield batch

    def encode(batch):
        texts = [piece.text for piece in batch]
        encoded = tok.encode(texts)
        return batch, encoded, unknown.unknown_letters(tok, texts, encoded)

    return prefetch(encode, batches(), depth=1)


def _with_space_before(pieces: Iterator[survey.Piece]) -> Iterator[survey.Piece]:
    """Pieces whose white space at the end begins the next one of the document: byte-level BPE has it in the word."""
    held = None
    for piece in pieces:
        if held and held.document == piece.document:
            text = held.text.rstrip()
            piece, held = piece._replace(text=held.text[len(text) :] + piece.text), held._replace(text=text)
        if held:
            yield held
        held = piece
    if held:
        yield held
