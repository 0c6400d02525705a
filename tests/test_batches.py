"""Batches of a few lengths: every example once an epoch, the same for the same seed."""

import numpy as np

from sctd_jax.finetune import batches
from sctd_jax.finetune.encode import Feature, Row


def feature(number, length, **other):
    ids = np.arange(1, length + 1, dtype=np.int32)
    return Feature(number, (Row(ids, min(3, length)),), label=float(number), **other)


FEATURES = [feature(i, 5 + (7 * i) % 60) for i in range(101)]


def plan(seed, steps, batch_size=8):
    train = batches.TrainBatches(FEATURES, batch_size=batch_size, seed=seed, max_length=100)
    return train, [train.group(step) for step in range(steps)]


def test_an_epoch_has_every_example_once():
    train, groups = plan(0, 26)
    assert train.per_epoch == 13
    for epoch in (groups[:13], groups[13:]):
        members = np.concatenate([group.members[: group.count] for group in epoch])
        assert sorted(members) == list(range(101))
        assert sorted(group.count for group in epoch) == [5] + 12 * [8]
        assert all(len(group.members) == 8 for group in epoch)


def test_batches_are_a_function_of_seed_and_step():
    def members(seed, steps):
        return [group.members.tolist() for group in plan(seed, steps)[1]]

    assert members(3, 26) == members(3, 26)
    assert members(3, 26) != members(4, 26)
    assert members(3, 26)[:13] != members(3, 26)[13:]
    late = batches.TrainBatches(FEATURES, batch_size=8, seed=3, max_length=100)
    assert late.group(20).members.tolist() == members(3, 26)[20]


def test_a_batch_is_as_long_as_its_longest_example_needs():
    train, groups = plan(0, 13)
    for group in groups:
        longest = max(FEATURES[i].length for i in group.members)
        assert group.length == (32 if longest <= 32 else 64)
    assert train.lengths(13) == [32, 64]
    # Neighbours in length share a batch: by chance nearly all batches of 8 would hold a long one.
    assert sum(group.length == 32 for group in groups) >= 5


def test_static_lengths_end_at_the_longest_allowed():
    assert batches.static_length([feature(0, 32)], 100) == 32
    assert batches.static_length([feature(0, 33)], 100) == 64
    assert batches.static_length([feature(0, 65)], 100) == 100
    assert batches.static_length([feature(0, 10)], 24) == 24


def test_assembled_arrays():
    pair = Feature(0, (Row(np.array([2, 9, 3, 8, 3], np.int32), 3),), 1.0, ((1, 1), (3, 3)), (3, 4))
    other = Feature(1, (Row(np.array([2, 9, 3], np.int32), 3),), 0.5, ((1, 1), (1, 1)))
    batch = batches.assemble([pair, other], np.array([True, False]), 6, 7)
    assert batch.input_ids_BCN.tolist() == [[[2, 9, 3, 8, 3, 7]], [[2, 9, 3, 7, 7, 7]]]
    assert batch.mask_BCN.sum(axis=-1).tolist() == [[5], [3]]
    assert batch.segment_ids_BCN.tolist() == [[[0, 0, 0, 1, 1, 0]], [[0] * 6]]
    assert batch.marked_BM2.tolist() == [[[1, 1], [3, 3]], [[1, 1], [1, 1]]]
    assert batch.labels_B.tolist() == [1.0, 0.5]
    assert batch.answers_B2.tolist() == [[3, 4], [0, 0]]
    assert batch.weights_B.tolist() == [1.0, 0.0]
