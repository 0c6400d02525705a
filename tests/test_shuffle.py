"""The order of rows by shards, without a file."""

import tracemalloc

import numpy as np
import pytest

from sctd_jax.data.shuffle import LANES, WINDOW, ShardOrder

SIZES = [
    ([7, 0, 13, 5, 5], [(0, 4)]),
    ([100] * 20, [(0, 37)]),  # an epoch ends in the middle of a batch, lanes have 2 or 3 columns
    ([3], [(0, 8)]),  # a batch of several epochs
    ([0, 500, 0], [(0, 48)]),
    ([100] * 20, [(0, 8), (80, 24), (80 + 24 * 7, 64)]),  # stages of the batch size
]


def stream(order, start, end):
    """Rows of these places."""
    rows = np.full(end - start, -1)
    for part in order.parts(np.arange(start, end)):
        rows[part.at] = part.rows
    return rows


@pytest.mark.parametrize(("lengths", "batches"), SIZES)
def test_every_epoch_has_every_row_once_in_another_order(lengths, batches):
    order, count = ShardOrder(np.array(lengths), 0, batches), sum(lengths)
    epochs = stream(order, 0, 4 * count).reshape(4, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 10 or len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(("lengths", "batches"), SIZES)
def test_a_place_has_the_same_row_whoever_asks_and_whenever(lengths, batches):
    count = sum(lengths)
    whole = stream(ShardOrder(np.array(lengths), 1, batches), 0, 4 * count)
    for start in (0, 1, count - 1, count, 2 * count + 3):
        fresh = ShardOrder(np.array(lengths), 1, batches)
        np.testing.assert_array_equal(stream(fresh, start, start + count // 3), whole[start : start + count // 3])
    places = np.random.default_rng(0).permutation(3 * count)[: count // 2]  # columns of a host on a torus
    for part in ShardOrder(np.array(lengths), 1, batches).parts(places):
        np.testing.assert_array_equal(part.rows, whole[places[part.at]])
    assert count < 10 or (stream(ShardOrder(np.array(lengths), 2, batches), 0, count) != whole[:count]).any()


@pytest.mark.parametrize("hosts", [1, 2, 8, 32])
def test_a_host_needs_the_shards_of_few_windows(hosts):
    lengths, batch = np.random.default_rng(0).integers(50, 150, 600), 64
    order, seen = ShardOrder(lengths, 0, [(0, batch)]), set()
    ends = np.cumsum(lengths)
    for step in range(0, 900, 7):
        parts = order.parts(step * batch + np.arange(batch // hosts))
        shards = set().union(*(order.shards(part.window).tolist() for part in parts))
        assert {int(np.searchsorted(ends, row, side="right")) for part in parts for row in part.rows} <= shards
        windows = len({part.window for part in parts})
        assert windows <= 2 * max(LANES // hosts, 1)
        assert len(shards) <= windows * 2 * (WINDOW + 2)
        seen |= shards
    assert len(seen) > 500 / hosts


def test_the_rows_of_a_batch_come_from_all_lanes_and_of_a_window_evenly():
    order = ShardOrder(np.full(640, 100), 0, [(0, 64)])
    parts = order.parts(np.arange(64))
    shards = np.concatenate([part.rows // 100 for part in parts])
    assert len(parts) == LANES
    assert len(np.unique(shards)) > 40  # of 64 shards, of which 64 draws with replacement meet 41
    # Within a window the place says nothing of the row: no correlation of more than what 4,000 draws have.
    place, row = np.arange(250), stream(order, 0, 64 * 80).reshape(80, 64)[:, :4]
    of_lane = row.ravel()[:250] % 100
    assert abs(np.corrcoef(place, of_lane)[0, 1]) < 0.2


def test_the_window_after_is_the_one_that_comes():
    order = ShardOrder(np.full(50, 20), 0, [(0, 24)])
    last = {}
    for step in range(120):
        for part in order.parts(step * 24 + np.arange(24)):
            window = part.window
            assert last.get(window.lane, window) in (window,) or order.after(last[window.lane]) == window
            last[window.lane] = window
    assert {window.epoch for window in last.values()} == {2}


def test_a_thousand_million_rows_have_no_index():
    tracemalloc.start()
    order = ShardOrder(np.full(16_000, 62_500), 0, [(0, 256)])
    for step in (0, 3_906_250 - 1, 10**7):
        assert sum(len(part.rows) for part in order.parts(step * 256 + np.arange(256))) == 256
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert order.rows == 10**9
    assert peak < 64 << 20
