"""Chunks of documents -> their ids, many at a time."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from sctd_jax.data import corpus, tokenizer, unknown
from sctd_jax.data.loader import prefetch

_CHARS = 8 << 20  # text that is tokenised in one call, over all cores


def encoded_batches(
    tok: tokenizer.Tokenizer, chunks: Iterator[corpus.Chunk]
) -> Iterator[tuple[list[corpus.Chunk], list[np.ndarray], list[Counter]]]:
    """Batches of chunks, and each chunk's ids and unknown letters; all cores work while the batch before is packed."""

    def batches() -> Iterator[list[corpus.Chunk]]:
        batch, size = [], 0
        for chunk in _with_space_before(chunks) if tok.is_byte_level else chunks:
            batch.append(chunk)
            size += len(chunk.text)
            if size >= _CHARS:
                yield batch
                batch, size = [], 0
        yield batch

    def encode(batch):
        texts = [chunk.text for chunk in batch]
        encoded = tok.encode(texts)
        return batch, encoded, unknown.unknown_letters(tok, texts, encoded)

    return prefetch(encode, batches(), depth=1)


def _with_space_before(chunks: Iterator[corpus.Chunk]) -> Iterator[corpus.Chunk]:
    """Chunks whose white space at the end begins the next one of the document: byte-level BPE has it in the word."""
    held = None
    for chunk in chunks:
        if held and held.document == chunk.document:
            text = held.text.rstrip()
            chunk, held = chunk._replace(text=held.text[len(text) :] + chunk.text), held._replace(text=text)
        if held:
            yield held
        held = chunk
    if held:
        yield held
