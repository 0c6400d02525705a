"""Chunks of text -> ids and unknown letters, a large batch at a time."""

import collections
import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sctd_jax.data import corpus, unknown
from sctd_jax.data.tokenizer import Tokenizer

_BATCH_CHARS = 8 << 20  # text that is tokenised in one call, over all cores


def batches(
    tokenizer: Tokenizer, chunks: Iterator[corpus.Chunk]
) -> Iterator[tuple[list[tuple[corpus.Chunk, bool]], list[np.ndarray], list[Counter]]]:
    """Batches of (chunk, whether it ends its document), and each chunk's ids and letters unknown to the tokenizer.

    The tokenizer works on all cores while the batch before is packed and written.
    """

    def encode(batch):
        texts = [chunk.text for chunk, _ in batch]
        encoded = tokenizer.encode(texts)
        return batch, encoded, unknown.unknown_letters(tokenizer, texts, encoded)

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: collections.deque[Future] = collections.deque()
        for batch in _with_ends(_batches(chunks)):
            pending.append(pool.submit(encode, batch))
            if len(pending) > 1:
                yield pending.popleft().result()
        yield pending.popleft().result()


def _batches(chunks: Iterator[corpus.Chunk]) -> Iterator[list[corpus.Chunk]]:
    batch, size = [], 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    yield batch


def _with_ends(batches: Iterator[list[corpus.Chunk]]) -> Iterator[list[tuple[corpus.Chunk, bool]]]:
    """Pairs of a chunk and whether it ends its document, which only the next chunk tells."""
    held: list[corpus.Chunk] = []
    for batch in batches:
        batch = held + batch
        held = batch[-1:]
        ends = [a.document != b.document for a, b in itertools.pairwise(batch)]
        yield list(zip(batch, ends, strict=False))
    yield [(chunk, True) for chunk in held]
