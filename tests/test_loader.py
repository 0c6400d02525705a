import time

import numpy as np
import pytest

from sctd_jax.data.loader import Loader, prefetch
from sctd_jax.data.rows import TRAIN, Rows


@pytest.fixture(scope="module")
def data(rows):
    return Rows(rows, TRAIN)


class Numbered:
    """Rows whose only token is their number."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, indices):
        return np.array(indices)[:, None]


def test_batches_are_rows_of_the_split(data):
    batch = Loader(data, batch_size=8, seed=0).batch(3)
    assert batch.shape == (8, 32)
    assert batch.dtype == np.int32
    everything = {row.tobytes() for row in data.read(range(len(data)))}
    assert all(row.tobytes() in everything for row in batch)


def test_every_epoch_meets_every_row_once_in_another_order():
    loader = Loader(Numbered(10), batch_size=4, seed=0)
    stream = np.concatenate([loader.batch(step) for step in range(10)]).ravel()
    epochs = stream[:40].reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_split_spans_epochs():
    batch = Loader(Numbered(3), batch_size=8, seed=0).batch(0).ravel()
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


def test_a_batch_is_a_function_of_seed_and_step_alone(data):
    """O(1) seek: a fresh loader at step 1000 gives what one that ran there gives."""
    ran = Loader(data, batch_size=8, seed=1)
    for step in range(5):
        ran.batch(step)
    np.testing.assert_array_equal(ran.batch(1000), Loader(data, batch_size=8, seed=1).batch(1000))
    assert (ran.batch(1000) != Loader(data, batch_size=8, seed=2).batch(1000)).any()
    assert (ran.batch(1000) != ran.batch(1001)).any()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_their_slices_of_one_global_batch(data, hosts):
    whole = Loader(data, batch_size=8, seed=0).batch(7)
    share = 8 // hosts
    parts = [
        Loader(data, batch_size=8, seed=0, host_rows=slice(i * share, (i + 1) * share)).batch(7) for i in range(hosts)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_only_the_current_epochs_index_is_kept(monkeypatch):
    loader = Loader(Numbered(10), batch_size=4, seed=0)
    for step in range(100):
        loader.batch(step)
    assert loader._permutation.cache_info().currsize == 1


def test_prefetch_keeps_order_works_ahead_and_raises_in_its_turn():
    made = []

    def make(step):
        if step == 5:
            raise ValueError("row 5")
        made.append(step)
        return step * 10

    items = prefetch(make, range(2, 8), depth=2)
    assert next(items) == 20
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [2, 3, 4]
    assert [next(items), next(items)] == [30, 40]
    with pytest.raises(ValueError, match="row 5"):
        next(items)


def test_prefetch_can_be_left_early():
    items = prefetch(lambda step: step, range(1000))
    next(items)
    items.close()
    assert list(prefetch(lambda step: step, [])) == []
