"""Order of rows by shards: a function of (seed, step) alone, for which a host needs few shards at a time.

Each column of the global batch belongs to a lane, a group of neighbouring columns. In each epoch the shards are
permuted; of the sequence of all rows that this gives, each lane has an interval of its own, as long as its columns have
room in the epoch, and reads it window by window, the rows of a window in uniform order. Shapes: S shards, L lanes,
C stages of the batch size.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Both are part of the order: another number is another run.
LANES = 16  # lanes at most; fewer in a smaller batch
WINDOW = 4  # mean shards' worth of rows


class Window(NamedTuple):
    """A window of a lane's interval."""

    lane: int
    epoch: int
    number: int


class Part(NamedTuple):
    """Rows of one window."""

    window: Window
    at: np.ndarray  # places among the positions that were asked for
    rows: np.ndarray  # i64, their numbers in the split


class _Epoch(NamedTuple):
    shards_S: np.ndarray  # the shards in their order
    ends_S: np.ndarray  # rows up to the end of each
    bounds: np.ndarray  # i64[L + 1], ends of the lanes' intervals among these rows
    before_L: np.ndarray  # rows that each lane read in the epochs before


class ShardOrder:
    """The endless order of the rows of S shards, whose rows are numbered through.

    Args:
      lengths_S: rows of each shard; a shard may have none.
      seed: seed of the order.
      batches: (first row, rows of the global batch from there on) of each stage of the batch size, ascending.
    """

    def __init__(self, lengths_S: np.ndarray, seed: int, batches: Sequence[tuple[int, int]]):
        self._lengths_S, self._seed = np.asarray(lengths_S, np.int64), seed
        self._starts_S = np.cumsum(self._lengths_S) - self._lengths_S
        self.rows = int(self._lengths_S.sum())
        self._begins_C, self._sizes_C = np.array(batches, np.int64).T
        self.lanes = min(LANES, int(self._sizes_C.min()))
        bounds = -(-np.arange(self.lanes + 1) * self._sizes_C[:, None] // self.lanes)
        self._first_CL, self._columns_CL = bounds[:, :-1], np.diff(bounds)
        steps_C = np.diff(self._begins_C) // self._sizes_C[:-1]
        self._base_CL = np.cumsum(np.vstack([0 * bounds[:1, :-1], steps_C[:, None] * self._columns_CL[:-1]]), axis=0)
        # Rows of a window at most.
        self._window: int = max(WINDOW * self.rows // max(int(np.count_nonzero(self._lengths_S)), 1), 1)
        self._epoch = functools.lru_cache(maxsize=3)(self._compute_epoch)
        self._permutation = functools.lru_cache(maxsize=2 * self.lanes)(self._compute_permutation)

    def lanes_of(self, columns: np.ndarray, batch_size: int) -> np.ndarray:
        """Lanes of these columns of the global batch, each once."""
        return np.unique(columns * self.lanes // batch_size)

    def parts(self, positions: np.ndarray) -> list[Part]:
        """The rows at places of the endless sequence, by lane and then in the order in which its windows come."""
        stages = np.searchsorted(self._begins_C, positions, side="right") - 1
        steps, columns = np.divmod(positions - self._begins_C[stages], self._sizes_C[stages])
        lanes = columns * self.lanes // self._sizes_C[stages]
        ranks = self._base_CL[stages, lanes] + steps * self._columns_CL[stages, lanes]
        ranks += columns - self._first_CL[stages, lanes]
        epochs = positions // self.rows
        found = []
        for lane, number in sorted(set(zip(lanes.tolist(), epochs.tolist(), strict=True))):
            of_lane = np.flatnonzero((lanes == lane) & (epochs == number))
            epoch = self._epoch(number)
            of_epoch = ranks[of_lane] - epoch.before_L[lane]
            begin, size = int(epoch.bounds[lane]), int(epoch.bounds[lane + 1] - epoch.bounds[lane])
            count = self._windows(size)
            windows = ((of_epoch + 1) * count - 1) // size  # window i is from i * size // count on
            for i in np.unique(windows).tolist():
                mine = windows == i
                permutation = self._permutation(Window(lane, number, i))
                there = begin + i * size // count + permutation[of_epoch[mine] - i * size // count]
                places = np.searchsorted(epoch.ends_S, there, side="right")
                shards = epoch.shards_S[places]
                rows = self._starts_S[shards] + there - (epoch.ends_S[places] - self._lengths_S[shards])
                found.append(Part(Window(lane, number, i), of_lane[mine], rows))
        return found

    def shards(self, window: Window) -> np.ndarray:
        """The shards that a window has rows of, in their order."""
        epoch, begin, end = self._ends(window)
        first, last = np.searchsorted(epoch.ends_S, [begin, end - 1], side="right")
        shards = epoch.shards_S[first : last + 1]
        return shards[self._lengths_S[shards] > 0]

    def after(self, window: Window) -> Window:
        """The window that its lane reads next."""
        lane, number, i = window
        epoch = self._epoch(number)
        if i + 1 < self._windows(int(epoch.bounds[lane + 1] - epoch.bounds[lane])):
            return Window(lane, number, i + 1)
        # A lane may have no row of an epoch that is shorter than a batch.
        while True:
            number += 1
            epoch = self._epoch(number)
            if epoch.bounds[lane + 1] > epoch.bounds[lane]:
                return Window(lane, number, 0)

    def _windows(self, size: int) -> int:
        """Windows of an interval."""
        return max(-(-size // self._window), 1)

    def _ends(self, window: Window) -> tuple[_Epoch, int, int]:
        epoch = self._epoch(window.epoch)
        begin, size = int(epoch.bounds[window.lane]), int(np.diff(epoch.bounds)[window.lane])
        count = self._windows(size)
        return epoch, begin + window.number * size // count, begin + (window.number + 1) * size // count

    def _before(self, position: int) -> np.ndarray:
        """Rows i64[L] of each lane before a place of the endless sequence."""
        stage = int(np.searchsorted(self._begins_C, position, side="right")) - 1
        step, column = divmod(position - int(self._begins_C[stage]), int(self._sizes_C[stage]))
        within_L = np.clip(column - self._first_CL[stage], 0, self._columns_CL[stage])
        return self._base_CL[stage] + step * self._columns_CL[stage] + within_L

    def _compute_epoch(self, number: int) -> _Epoch:
        shards_S = self._random(number, 0, 0).permutation(len(self._lengths_S))
        before_L, after_L = (self._before(epoch * self.rows) for epoch in (number, number + 1))
        bounds = np.concatenate([[0], np.cumsum(after_L - before_L)])
        return _Epoch(shards_S, np.cumsum(self._lengths_S[shards_S]), bounds, before_L)

    def _compute_permutation(self, window: Window) -> np.ndarray:
        _, begin, end = self._ends(window)
        index = np.arange(end - begin, dtype=np.uint32)
        self._random(window.epoch, 1 + window.lane, window.number).shuffle(index)
        return index

    def _random(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, *numbers]))
