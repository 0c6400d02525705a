"""Batches as a pure function of (seed, step, host), so that a run resumes anywhere and on any number of hosts."""

import collections
import functools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from sctd_jax.data.rows import Rows


class Loader:
    """Batches of one split, shuffled every epoch; epochs follow each other without dropping a row.

    The global batch of step s is rows s*B .. (s+1)*B - 1 of the endless shuffled sequence; a host reads
    `host_rows` of it.
    """

    def __init__(self, rows: Rows, *, batch_size: int, seed: int, host_rows: np.ndarray | slice = slice(None)):
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._mine = np.arange(batch_size)[host_rows]
        self._permutation = functools.lru_cache(maxsize=1)(self._compute_permutation)

    def batch(self, step: int) -> np.ndarray:
        """Rows i32[B / hosts, N] of update number `step` that this host reads."""
        return self.read(step * self._batch_size + self._mine)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Rows i32[len(positions), N] at places of the endless shuffled sequence."""
        epochs, offsets = np.divmod(positions, len(self._rows))
        # One epoch after the other, so that one index is in memory at a time even where a batch straddles two.
        indices = [self._permutation(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        return self._rows.read(np.concatenate(indices))

    def _compute_permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
        index = np.arange(len(self._rows), dtype=np.uint32)
        rng.shuffle(index)
        return index


def prefetch(make: Callable[[Any], Any], items: Iterable[Any], depth: int = 2) -> Generator[Any, None, None]:
    """make(item) of each item in order, computed up to `depth` ahead in one thread.

    An exception of `make` is raised here, at its turn.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    pending: collections.deque[Future] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
