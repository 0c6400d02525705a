"""Features -> batches of a few static lengths; every batch a pure function of (seed, step).

Shapes: B examples, C rows of one example (1, or the choices), N length, M marked spans.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh

from sctd_jax.finetune.encode import Feature
from sctd_jax.parallel import mesh as meshes

LENGTHS = (32, 64, 128, 256, 384, 512)
_POOL = 32  # batches whose examples are sorted by length together


@struct.dataclass
class TaskBatch:
    """A batch of a task. Examples of weight 0 fill it up and count nothing."""

    input_ids_BCN: jax.Array  # i32
    mask_BCN: jax.Array  # bool, True at real tokens
    segment_ids_BCN: jax.Array  # i32
    marked_BM2: jax.Array  # i32, first and last token of each marked span
    labels_B: jax.Array  # f32: class, choice or score
    answers_B2: jax.Array  # i32, first and last token of the answer
    weights_B: jax.Array  # f32
    tags_BN: jax.Array  # i32, label read at each token, -1 at others; N is 0 but in token classification


def static_length(features: Sequence[Feature], max_length: int, lengths: Sequence[int] = LENGTHS) -> int:
    """N of a batch: the smallest of `lengths` that holds it, at most `max_length`."""
    longest = max(feature.length for feature in features)
    return next((length for length in lengths if longest <= length < max_length), max_length)


def assemble(features: Sequence[Feature], weights: np.ndarray, length: int, pad_id: int) -> TaskBatch:
    """A batch of these features on the host, padded to `length`."""
    count, rows = len(features), len(features[0].rows)
    ids = np.full((count, rows, length), pad_id, np.int32)
    mask = np.zeros((count, rows, length), bool)
    segments = np.zeros((count, rows, length), np.int32)
    for i, feature in enumerate(features):
        for j, row in enumerate(feature.rows):
            size = len(row.ids)
            ids[i, j, :size], mask[i, j, :size] = row.ids, True
            segments[i, j, row.second : size] = 1
    tags = np.full((count, 0 if features[0].tags is None else length), -1, np.int32)
    for i, feature in enumerate(features):
        if feature.tags is not None:
            tags[i, : len(feature.tags)] = feature.tags
    marked = np.array([feature.marked for feature in features], np.int32)
    return TaskBatch(
        input_ids_BCN=ids,
        mask_BCN=mask,
        segment_ids_BCN=segments,
        marked_BM2=marked.reshape(count, len(features[0].marked), 2),
        labels_B=np.array([feature.label for feature in features], np.float32),
        answers_B2=np.array([feature.answer for feature in features], np.int32),
        weights_B=np.asarray(weights, np.float32),
        tags_BN=tags,
    )


@dataclasses.dataclass(frozen=True)
class Group:
    """The members of one batch: numbers of features, and how many of them count; the others fill it up."""

    members: np.ndarray
    count: int
    length: int  # N


class TrainBatches:
    """Every example once an epoch, in an order of its own; neighbours in length share a batch."""

    def __init__(self, features: Sequence[Feature], *, batch_size: int, seed: int, max_length: int):
        self.features, self._batch_size, self._seed, self._max_length = features, batch_size, seed, max_length
        self._lengths = np.array([feature.length for feature in features])
        self.per_epoch = -(-len(features) // batch_size)
        self._plan = functools.lru_cache(maxsize=2)(self._compute_plan)

    def group(self, step: int) -> Group:
        """The batch of update number `step`."""
        epoch, place = divmod(step, self.per_epoch)
        return self._plan(epoch)[place]

    def lengths(self, steps: int) -> list[int]:
        """N of all batches of so many steps, each once, ascending."""
        return sorted({self.group(step).length for step in range(steps)})

    def _compute_plan(self, epoch: int) -> list[Group]:
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
        order, pool = rng.permutation(len(self.features)), _POOL * self._batch_size
        chunks = [order[start : start + pool] for start in range(0, len(order), pool)]
        sorted_order = np.concatenate([chunk[np.argsort(self._lengths[chunk], kind="stable")] for chunk in chunks])
        groups = _in_order(self.features, sorted_order, self._batch_size, self._max_length)
        return [groups[i] for i in rng.permutation(len(groups))]


def by_length(
    features: Sequence[Feature], batch_size: int, max_length: int, lengths: Sequence[int] = LENGTHS
) -> list[Group]:
    """Batches of all features, short ones first."""
    order = np.argsort([feature.length for feature in features], kind="stable")
    return _in_order(features, order, batch_size, max_length, lengths)


def put(mesh: Mesh, features: Sequence[Feature], group: Group, pad_id: int) -> TaskBatch:
    """A batch of features on the mesh; those that fill it up have weight 0."""
    count = len(group.members)
    mine = meshes.host_rows(mesh, count)
    weights = (np.arange(count) < group.count)[mine]
    host_batch = assemble([features[i] for i in group.members[mine]], weights, group.length, pad_id)
    return jax.tree.map(lambda rows: meshes.put_batch(mesh, count, rows), host_batch)


def _in_order(
    features: Sequence[Feature],
    order: np.ndarray,
    batch_size: int,
    max_length: int,
    lengths: Sequence[int] = LENGTHS,
) -> list[Group]:
    """Consecutive batches of features in this order; the last one is filled up with its own members."""
    groups = []
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        length = static_length([features[i] for i in members], max_length, lengths)
        groups.append(Group(np.resize(members, batch_size), len(members), length))
    return groups
