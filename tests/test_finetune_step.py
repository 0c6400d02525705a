"""Heads and losses by hand, and the step on meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.finetune import step
from sctd_jax.finetune.batches import TaskBatch, assemble
from sctd_jax.finetune.encode import Feature, Row
from sctd_jax.parallel import mesh as meshes
from sctd_jax.train.step import state_shape
from tests import helpers

CLASSES = step.Shape("classification", 3)


def finetune_config(**overrides):
    return helpers.config(dropping__method="full", model__num_layers=2, **overrides)


def features(count, rows=1, marked=0, seed=0, tags=False):
    rng = np.random.default_rng(seed)

    def row():
        size = int(rng.integers(8, 30))
        ids = rng.integers(5, 512, size).astype(np.int32)
        ids[0], ids[-1] = 2, 3
        return Row(ids, size // 2)

    found = [
        Feature(i, tuple(row() for _ in range(rows)), float(i % 2), tuple((2, 4) for _ in range(marked)), (1, 3))
        for i in range(count)
    ]
    if not tags:
        return found
    return [dataclasses.replace(one, tags=rng.integers(-1, 3, one.length).astype(np.int32)) for one in found]


def batch_of(found, length=32, weights=None):
    host = assemble(found, np.ones(len(found)) if weights is None else weights, length, 0)
    return jax.tree.map(jnp.asarray, host)


def stirred(config, shape):
    """A state whose biases and head are not tiny."""
    state = jax.jit(lambda: step.initial_state(config, shape))()
    return state.replace(params=helpers.moved(state.params, 0.3))


def test_a_class_is_read_from_the_pooled_cls():
    config, batch = finetune_config(), batch_of(features(3))
    params = stirred(config, CLASSES).params
    model = step.make_model(config, CLASSES)
    found = step.logits(model, params, batch)
    x_BND, _ = model.bind({"params": params}).encoder(
        batch.input_ids_BCN[:, 0], batch.mask_BCN[:, 0], batch.segment_ids_BCN[:, 0]
    )
    pooled = np.tanh(x_BND[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"][None])
    expected = pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("how", ["mean", "attention"])
def test_marked_spans_are_read_as_in_superglues_baseline(how):
    """wic: [CLS] and the mean of each word's tokens; wsc: the spans alone, each by an attention of its own."""
    shape = step.Shape("classification", 2, marked=how)
    config, found = finetune_config(), features(2, marked=2)
    found = [dataclasses.replace(f, marked=((1, 1), (2, 4))) for f in found]
    batch = batch_of(found)
    params = stirred(config, shape).params
    model = step.make_model(config, shape)
    x_BND, _ = model.bind({"params": params}).encoder(
        batch.input_ids_BCN[:, 0], batch.mask_BCN[:, 0], batch.segment_ids_BCN[:, 0]
    )
    x_BND = np.asarray(x_BND)
    if how == "mean":
        pooled = np.tanh(x_BND[:, 0] @ params["pooler"]["kernel"] + params["pooler"]["bias"][None])
        parts = [pooled, x_BND[:, 1], x_BND[:, 2:5].mean(axis=1)]
    else:
        assert "pooler" not in params
        scores = (x_BND[:, 2:5] @ params["span_score_1"]["kernel"])[..., 0]
        weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        parts = [x_BND[:, 1], (weights[..., None] * x_BND[:, 2:5]).sum(axis=1)]
    expected = np.concatenate(parts, axis=1) @ params["classifier"]["kernel"]
    np.testing.assert_allclose(
        step.logits(model, params, batch), expected + params["classifier"]["bias"][None], atol=1e-5
    )


def test_logits_do_not_depend_on_the_padded_length():
    config, found = finetune_config(), features(3)
    params = stirred(config, CLASSES).params
    model = step.make_model(config, CLASSES)
    short = step.logits(model, params, batch_of(found, 30))
    np.testing.assert_allclose(step.logits(model, params, batch_of(found, 32)), short, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [
        (CLASSES, 1, (4, 3)),
        (step.Shape("regression", 1), 1, (4, 1)),
        (step.Shape("multiple_choice", 1, rows=3), 3, (4, 3)),
        (step.Shape("span", 2), 1, (4, 32, 2)),
        (step.Shape("token_classification", 5), 1, (4, 32, 5)),
    ],
)
def test_shapes_of_the_heads(shape, rows, expected):
    config = finetune_config()
    params = jax.eval_shape(lambda: step.initial_state(config, shape)).params
    found = jax.eval_shape(
        lambda p, b: step.logits(step.make_model(config, shape), p, b), params, batch_of(features(4, rows))
    )
    assert found.shape == expected
    assert found.dtype == jnp.float32


def batch_with(**fields):
    empty = {field.name: None for field in dataclasses.fields(TaskBatch)}
    return TaskBatch(**(empty | {name: jnp.array(value) for name, value in fields.items()}))


def test_losses_by_hand():
    logits = jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5]]))
    batch = batch_with(labels_B=[1.0, 0.0])
    expected = [-np.log(0.8), -np.log(0.5)]
    np.testing.assert_allclose(step.losses("classification", logits, batch), expected, rtol=1e-6)
    np.testing.assert_allclose(step.losses("multiple_choice", logits, batch), expected, rtol=1e-6)
    scores = jnp.array([[3.0], [1.0]])
    np.testing.assert_allclose(step.losses("regression", scores, batch_with(labels_B=[2.5, 4.0])), [0.25, 9.0])


def test_labels_of_tokens_count_alike_in_the_mean_or_by_their_weights():
    logits = jnp.log(jnp.array([[[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]], [[0.7, 0.3], [0.4, 0.6], [0.6, 0.4]]]))
    batch = batch_with(tags_BN=[[1, -1, 0], [-1, -1, 0]], weights_B=[1.0, 1.0], labels_B=[0.0, 0.0])
    shape = step.Shape("token_classification", 2)
    found, shares = step.losses(shape.head, logits, batch), step.shares(shape, batch)
    np.testing.assert_array_equal(shares, [[1, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose((found * shares).sum(), -np.log([0.8, 0.1, 0.6]).sum(), rtol=1e-6)
    weighted = dataclasses.replace(shape, label_weights=(3.0, 0.5))
    np.testing.assert_array_equal(step.shares(weighted, batch), [[0.5, 0, 3], [0, 0, 3]])
    classes = dataclasses.replace(CLASSES, label_weights=(3.0, 0.5, 1.0))
    batch = batch_with(labels_B=[1.0, 0.0, 2.0], weights_B=[1.0, 1.0, 0.0])
    np.testing.assert_array_equal(step.shares(classes, batch), [0.5, 3.0, 0.0])


def test_the_answers_loss_is_the_mean_of_both_ends_and_leaves_padding_out():
    starts, ends = [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]
    logits = jnp.log(jnp.array([[*zip(starts, ends, strict=True), (9.0, 9.0)]]))
    batch = batch_with(mask_BCN=[[[True, True, True, False]]], answers_B2=[[0, 2]])
    found = step.losses("span", logits, batch)
    np.testing.assert_allclose(found, [-(np.log(0.5) + np.log(0.8)) / 2], rtol=1e-6)


def test_examples_that_fill_up_a_batch_count_nothing():
    config, found = finetune_config(), features(4)
    state = stirred(config, CLASSES)
    step_fn = jax.jit(step.make_train_step(config, CLASSES))
    filled = batch_of([*found[:3], found[0]], weights=np.array([1, 1, 1, 0]))
    other = batch_of([*found[:3], found[3]], weights=np.array([1, 1, 1, 0]))
    (one, metrics), (two, _) = step_fn(state, filled), step_fn(state, other)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    alone = step.losses(
        "classification", step.logits(step.make_model(config, CLASSES), state.params, batch_of(found[:3])),
        batch_of(found[:3]),
    )  # fmt: skip
    np.testing.assert_allclose(metrics["loss"], alone.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "mesh", "accumulation"),
    [
        (step.Shape("multiple_choice", 1, rows=2), {"mesh__data": 8}, 1),
        (step.Shape("multiple_choice", 1, rows=2), {"mesh__fsdp": 2, "mesh__tensor": 2}, 1),
        (step.Shape("multiple_choice", 1, rows=2), {"mesh__data": 2}, 4),
        (step.Shape("token_classification", 3, label_weights=(0.5, 1.0, 3.0)), {"mesh__fsdp": 4, "mesh__data": 2}, 2),
    ],
)
def test_any_mesh_and_accumulation_give_one_devices_numbers(shape, mesh, accumulation):
    config = finetune_config(train__batch_size=8, train__steps=20, **mesh)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=accumulation))
    host = assemble(
        features(8, rows=shape.rows, tags=shape.head == "token_classification"),
        np.array([1, 1, 1, 1, 1, 1, 0, 0]),
        32,
        0,
    )
    plain = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=1))
    expected, metrics = jax.jit(step.make_train_step(plain, shape))(
        stirred(plain, shape), jax.tree.map(jnp.asarray, host)
    )
    devices = meshes.make_mesh(config.mesh)
    layout = state_shape(lambda: step.initial_state(config, shape), devices)
    state = jax.device_put(stirred(config, shape), meshes.shardings(layout))
    (program,) = step.compile_programs(helpers.settled(config), shape, devices, layout, [32]).values()
    found, other = program(state, jax.tree.map(lambda x: meshes.put_batch(devices, 8, x), host))
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found.params), jax.tree.leaves(expected.params), strict=True
    ):
        # A bias that all choices share moves no loss: its gradient is rounding, which Adam makes a step of.
        if jax.tree_util.keystr(path) != "['classifier']['bias']":
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))
