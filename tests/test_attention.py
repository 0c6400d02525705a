"""Attention that keeps no probabilities gives what plain attention gives, and is chosen where it can be used."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from sctd_jax.errors import UserError
from sctd_jax.model import attention
from sctd_jax.model.bert import Bert
from sctd_jax.model.token_dropping import keep_highest
from sctd_jax.objective.masking import row_keys
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.model import initial_state
from sctd_jax.pretrain.step import forward_sums, make_train_step, mask_batch
from tests import helpers

LONG = {"data__seq_len": 256, "model__max_positions": 256}


def mesh_of(*shape):
    count = int(np.prod(shape))
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:count])


def inputs(rows, context, heads=2, width=8):
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, weights = (
        jax.random.normal(k, (4, n, heads, width)) for k, n in zip(keys, (rows, context, context, rows), strict=True)
    )
    lengths = jnp.array([context, context // 2, 3, 1])
    return query, key, value, jnp.arange(context)[None] < lengths[:, None], weights


def value_and_gradients(attend, arrays, rate=0.0):
    *qkv, mask, weights = arrays

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(query, key, value):
        return jnp.sum(weights * attend(query, key, value, mask, rate, jax.random.key(3)))

    return loss(*qkv)


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_the_kernel_equals_plain_attention_with_padding_on_a_mesh(mesh_shape):
    arrays = inputs(128, 256)
    ours = value_and_gradients(attention.splash(mesh_of(*mesh_shape), otherwise=attention.plain), arrays)
    plain = value_and_gradients(attention.plain, arrays)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_rows_that_the_kernel_cannot_take_go_the_other_way():
    def other(query, *_):
        return query + 1

    query, key, value, mask, _ = inputs(20, 256)
    out = attention.splash(mesh_of(1, 1, 1), otherwise=other)(query, key, value, mask, 0.0, None)
    np.testing.assert_array_equal(out, query + 1)


def test_recomputing_draws_the_same_dropout_and_keeps_no_probabilities():
    arrays = inputs(128, 256)
    plain = value_and_gradients(attention.plain, arrays, rate=0.3)
    again = value_and_gradients(attention.recomputed, arrays, rate=0.3)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)

    def saved(attend):
        *qkv, mask, _ = arrays
        _, pullback = jax.vjp(lambda *x: attend(*x, mask, 0.3, jax.random.key(3)), *qkv)
        return {leaf.shape for leaf in jax.tree.leaves(pullback)}

    probabilities = (4, 2, 128, 256)
    assert probabilities in saved(attention.plain)
    assert probabilities not in saved(attention.recomputed)


@pytest.mark.parametrize("how", ["recomputed", "layers", "splash"])
def test_a_drop_pass_is_the_same_however_attention_is_computed(how):
    dropout = 0.0 if how == "splash" else 0.1
    config = helpers.config(**LONG, model__num_layers=4, model__attention_dropout=dropout)
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(1), helpers.random_rows(2, length=256, pad=True))
    plain = Bert(config.model, *config.drop_layers)
    other = {
        "recomputed": Bert(config.model, *config.drop_layers, attention.recomputed),
        "layers": Bert(config.model, *config.drop_layers, remat_layers=True),
        "splash": Bert(config.model, *config.drop_layers, attention.splash(mesh_of(2, 1, 1), attention.plain)),
    }[how]
    params = jax.jit(plain.init)(jax.random.key(0), batch.input_ids_BN, batch.mask_BN)["params"]
    importance_V = jnp.arange(config.model.vocab_size, dtype=jnp.float32)

    def gradients(model):
        def loss(params):
            sums, _ = forward_sums(
                config, model, params, importance_V, batch, "drop",
                dropout_key=jax.random.key(2), selection_keys_B=row_keys(jax.random.key(4), jnp.arange(2)),
            )  # fmt: skip
            return sums.mlm

        return jax.jit(jax.value_and_grad(loss))(params)

    for a, b in zip(jax.tree.leaves(gradients(plain)), jax.tree.leaves(gradients(other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def long_config(**overrides):
    return helpers.config(**{**LONG, "model__attention_dropout": 0.0, **overrides})


@pytest.mark.parametrize(
    ("overrides", "platform", "expected"),
    [
        ({}, "tpu", ("splash", "none")),
        ({}, "cpu", ("plain", "none")),
        ({}, "gpu", ("plain", "none")),  # the tests' float32
        ({"model__dtype": "bfloat16"}, "gpu", ("cudnn", "none")),
        ({"model__dtype": "bfloat16", "model__attention": "plain"}, "gpu", ("plain", "none")),
        ({"model__dtype": "bfloat16"}, "old gpu", ("plain", "none")),
        ({"model__dtype": "bfloat16", "model__attention_dropout": 0.1}, "gpu", ("plain", "none")),
        ({"model__attention_dropout": 0.1}, "tpu", ("plain", "attention")),
        ({"dropping__drop_rate": 0.25}, "tpu", ("plain", "attention")),  # K 192
        ({"model__attention": "plain"}, "tpu", ("plain", "attention")),
        ({"model__attention": "plain", "model__remat": "none"}, "tpu", ("plain", "none")),
        ({"model__attention": "splash", "model__remat": "block"}, "tpu", ("splash", "block")),
        ({"model__remat": "attention"}, "cpu", ("plain", "attention")),
    ],
)
def test_what_auto_means(overrides, platform, expected):
    choice = attention.choose(long_config(**overrides), platform)
    assert (choice.attention, choice.remat) == expected
    assert expected[0] in choice.text


def test_one_choice_holds_for_all_stages_of_a_schedule():
    config = long_config(dropping__keep_schedule="0:192,3:256")
    assert attention.choose(config, "tpu").attention == "plain"
    assert attention.choose(config.at(3), "tpu").attention == "splash"
    assert attention.choose(attention.settled(config, "tpu").at(3), "tpu").attention == "plain"


@pytest.mark.parametrize(
    ("overrides", "platform", "message"),
    [
        ({}, "cpu", "it runs on TPUs, and the devices are CPUs"),
        ({}, "gpu", "it runs on TPUs, and the devices are GPUs"),
        ({"model__attention_dropout": 0.1}, "tpu", "model.attention_dropout is 0.1"),
        ({"dropping__drop_rate": 0.25}, "tpu", "K, the kept tokens, must be a multiple of 128"),
        ({"data__seq_len": 192, "dropping__method": "full"}, "tpu", "data.seq_len must be a multiple of 128"),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_be_used_is_refused_with_the_reason(overrides, platform, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        attention.choose(long_config(model__attention="splash", **overrides), platform)


@pytest.mark.parametrize(
    ("overrides", "platform", "message"),
    [
        ({}, "gpu", "it computes in bfloat16, and model.dtype is float32"),
        (
            {"model__dtype": "bfloat16", "model__num_heads": 8},
            "gpu",
            "a multiple of 8 wide for it, at most 128, found 4",
        ),
        ({"model__dtype": "bfloat16", "model__attention_dropout": 0.1}, "gpu", "model.attention_dropout is 0.1"),
        ({"model__dtype": "bfloat16"}, "tpu", "it runs on GPUs, and the devices are TPUs"),
    ],
)
def test_cudnn_is_refused_with_the_reason(overrides, platform, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        attention.choose(long_config(model__attention="cudnn", **overrides), platform)


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [("cuda 13000", "8.0", "gpu"), ("cuda 13000", "7.5", "old gpu"), ("rocm 60000", "gfx942", "old gpu")],
)
def test_only_gpus_that_cudnn_knows_count_as_such(version, capability, expected):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(platform="gpu", client=client, compute_capability=capability)
    assert attention.platform_of(device) == expected
    assert attention.platform_of(jax.devices()[0]) == "cpu"


def test_attention_by_lengths_equals_attention_by_a_mask():
    """XLA computes what cuDNN is asked for."""
    arrays = inputs(20, 64)
    ours = value_and_gradients(functools.partial(attention.by_lengths, implementation="xla"), arrays)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(value_and_gradients(attention.plain, arrays)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_kept_padding_is_at_the_end():
    """Attention by lengths needs it, also where rows have fewer tokens than are kept."""
    config = long_config()
    tokens = helpers.random_rows(8, length=256, pad=True).at[0, 10:].set(helpers.SPECIAL.pad)
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(1), tokens)
    scores = jnp.where(batch.mask_BN, jax.random.uniform(jax.random.key(2), tokens.shape), -1.0)
    kept = jnp.take_along_axis(batch.mask_BN, keep_highest(scores, batch.mask_BN, 128), axis=1)
    assert not kept.all()
    assert (jnp.diff(kept.astype(jnp.int32), axis=1) <= 0).all()


def test_a_train_step_asks_cudnn_in_both_directions(monkeypatch):
    """Lowered for a GPU on a machine without one; whether cuDNN takes it is known only there."""
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.cuda_versions",
        types.SimpleNamespace(cudnn_get_version=lambda: 91_200),
    )
    monkeypatch.setattr(attention, "_KERNEL_OF", {"cpu": "cudnn", "gpu": "cudnn"})
    config = long_config(model__dtype="bfloat16")
    mesh = meshes.make_mesh(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=1)))
    step = make_train_step(config, helpers.SPECIAL, "consistency", mesh=mesh)
    tokens = jax.ShapeDtypeStruct((config.train.batch_size, 256), jnp.int32)
    state = jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL))
    text = jax.jit(step).trace(state, tokens).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in text
    assert "__cudnn$fmhaSoftmaxBackward" in text


@pytest.mark.parametrize("field", ["attention", "remat"])
def test_unknown_names_are_refused_by_the_config(field):
    with pytest.raises(UserError, match=f"config.model.{field} must be one of auto"):
        helpers.config(**{f"model__{field}": "flash"})
