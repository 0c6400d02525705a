"""Batches as a pure function of (seed, step, host), so that a run resumes anywhere and on any number of hosts."""

import collections
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from sctd_jax.data.rows import Rows
from sctd_jax.data.shuffle import ShardOrder, Window


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


class ShardLoader:
    """Batches of one split in `ShardOrder`'s order: of each lane the shards of one window are open at a time.

    Args:
      rows: rows of the split.
      seed: seed of the order.
      batches: (first row, rows of the global batch from there on) of each stage of the batch size, ascending.
    """

    def __init__(self, rows: Rows, *, seed: int, batches: Sequence[tuple[int, int]]):
        self._rows, self.order = rows, ShardOrder(rows.lengths_S, seed, batches)
        self._windows: dict[int, Window] = {}  # lane -> the window that it reads

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Rows i32[len(positions), N] at places of the endless shuffled sequence."""
        tokens_BN = np.empty((len(positions), self._rows.seq_len), np.int32)
        of_lanes = itertools.groupby(self.order.parts(positions), key=lambda part: part.window.lane)
        # A batch may straddle windows: of each lane those that end in it come first, and are closed.
        for parts in itertools.zip_longest(*(list(parts) for _, parts in of_lanes)):
            parts = [part for part in parts if part]
            windows = self._windows | {part.window.lane: part.window for part in parts}
            numbers = np.concatenate([part.rows for part in parts])
            if windows != self._windows:
                self._windows = windows
                self._announce(np.unique(self._rows.shards_of(numbers)).tolist())
            tokens_BN[np.concatenate([part.at for part in parts])] = self._rows.read(numbers)
        return tokens_BN

    def _announce(self, first: list[int]) -> None:
        """Say which shards are read from now on, `first` before the others, and which then."""
        now, ahead = (
            [shard for window in windows for shard in self.order.shards(window).tolist()]
            for windows in (self._windows.values(), map(self.order.after, self._windows.values()))
        )
        self._rows.keep(set(now))
        self._rows.want(list(dict.fromkeys([*first, *now])), list(dict.fromkeys(ahead)))


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
