"""Attention that keeps no probabilities gives what plain attention gives, and is chosen where it can be used."""

import dataclasses
import functools
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from configs import base
from sctd_jax.config import from_dict
from sctd_jax.errors import UserError
from sctd_jax.model import attention
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.model.token_dropping import keep_highest
from sctd_jax.objective.masking import row_keys
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain import step
from sctd_jax.pretrain.model import initial_state, settle
from sctd_jax.pretrain.step import forward_sums, make_train_step, mask_batch
from tests import helpers

LONG = {"data__seq_len": 256, "model__max_positions": 256}
BF16 = {"model__dtype": "bfloat16"}
DROPOUT = {"model__attention_dropout": 0.1}
# Layers 0 and 3 are global.
LOCAL = {"model__family": "modernbert", "model__type_vocab_size": 1, "model__global_every": 3,
         "model__local_attention": 64}  # fmt: skip
NO_LOCAL = {"model__global_every": 1}


@pytest.fixture
def with_cudnn(monkeypatch):
    """JAX as it is on a machine with a GPU, as far as it asks for cuDNN's version."""
    monkeypatch.setattr(attention.binding, "cuda_versions", types.SimpleNamespace(cudnn_get_version=lambda: 91_200))


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
    plain = MaskedLm(config.model, *config.drop_layers)
    other = {
        "recomputed": MaskedLm(config.model, *config.drop_layers, attention.recomputed),
        "layers": MaskedLm(config.model, *config.drop_layers, remat_layers=True),
        "splash": MaskedLm(config.model, *config.drop_layers, attention.splash(mesh_of(2, 1, 1), attention.plain)),
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
        (BF16, "gpu", ("cudnn", "none")),
        ({**BF16, "model__attention": "plain"}, "gpu", ("plain", "none")),
        (BF16, "old gpu", ("plain", "none")),
        (BF16 | DROPOUT, "gpu", ("plain", "none")),
        ({**BF16, **DROPOUT, "model__attention": "cudnn"}, "gpu", ("cudnn", "none")),
        (DROPOUT, "tpu", ("plain", "attention")),
        ({"dropping__drop_rate": 0.25}, "tpu", ("plain", "attention")),  # K 192
        ({"model__attention": "plain"}, "tpu", ("plain", "attention")),
        ({"model__attention": "plain", "model__remat": "none"}, "tpu", ("plain", "none")),
        ({"model__attention": "splash", "model__remat": "block"}, "tpu", ("splash", "block")),
        ({"model__remat": "attention"}, "cpu", ("plain", "attention")),
    ],
)
def test_what_auto_means(with_cudnn, overrides, platform, expected):
    config, text = settle(long_config(**overrides), platform)
    assert (config.model.attention, config.model.remat) == expected
    assert expected[0] in text


AGAIN = "recomputed in the backward pass"
NEAR = "near the diagonal alone where a row is whole and has more than 96 tokens"
LAST = "; the last layer's rows plain where they are no multiple of 128"


@pytest.mark.parametrize(
    ("overrides", "platform", "expected"),
    [
        ({}, "cpu", f"plain; in local layers {NEAR}"),
        ({"model__remat": "block"}, "cpu", f"plain; in local layers {NEAR}; whole layers are {AGAIN}"),
        ({"model__attention": "plain"}, "tpu", f"plain; in local layers {NEAR}; its probabilities are {AGAIN}"),
        ({}, "tpu", f"splash, a TPU kernel that keeps no probabilities; in local layers too where a row is whole, else "
                    f"plain and {AGAIN}{LAST}"),
        ({"model__remat": "attention", **NO_LOCAL}, "tpu",
         f"splash, a TPU kernel that keeps no probabilities{LAST} and {AGAIN}"),
        (BF16, "gpu",
         f"cudnn, a kernel of NVIDIA's that keeps no probabilities; in local layers plain and {AGAIN}, {NEAR}"),
        ({**BF16, **NO_LOCAL, "model__remat": "attention"}, "gpu",
         "cudnn, a kernel of NVIDIA's that keeps no probabilities; model.remat=attention has none to recompute"),
    ],
)  # fmt: skip
def test_what_is_chosen_is_said_for_which_layers(with_cudnn, overrides, platform, expected):
    assert settle(long_config(**LOCAL | overrides), platform)[1] == expected


def test_one_choice_holds_for_all_stages_of_a_schedule():
    config = long_config(dropping__keep_schedule="0:192,3:256")
    assert settle(config, "tpu")[0].model.attention == "plain"
    assert settle(config.at(3), "tpu")[0].model.attention == "splash"
    assert settle(config, "tpu")[0].at(3).model.attention == "plain"


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
        settle(long_config(model__attention="splash", **overrides), platform)


@pytest.mark.parametrize(
    ("overrides", "platform", "message"),
    [
        ({}, "gpu", "it computes in bfloat16, and model.dtype is float32"),
        ({**BF16, "model__num_heads": 8}, "gpu", "a multiple of 8 wide for it, at most 128, found 4"),
        (BF16, "tpu", "it runs on GPUs, and the devices are TPUs"),
    ],
)
def test_cudnn_is_refused_with_the_reason(with_cudnn, overrides, platform, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        settle(long_config(model__attention="cudnn", **overrides), platform)


def test_without_cudnn_attention_is_plain_and_says_so():
    """The tests' machines have none."""
    config, text = settle(long_config(**BF16), "gpu")
    assert config.model.attention == "plain"
    assert "no cudnn: JAX finds no cuDNN" in text


@pytest.mark.parametrize(
    ("version", "expected"),
    [(8_907, r"cuDNN 9\.0\.0 or newer is needed, found 8\.9\.7"), (90_000, None), (91_200, None)],
)
def test_a_cudnn_that_is_too_old_leaves_attention_plain_in_one_line(monkeypatch, version, expected):
    monkeypatch.setattr(attention.binding, "check_cudnn_version", lambda: version)
    config, text = settle(long_config(**BF16), "gpu")
    assert config.model.attention == ("plain" if expected else "cudnn")
    assert "\n" not in text
    if expected:
        assert re.search(rf"\(no cudnn: {expected}\)", text)
        with pytest.raises(UserError, match=expected):
            settle(long_config(model__attention="cudnn", **BF16), "gpu")


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_what_jax_itself_refuses_is_known_before_a_program_is_made(with_cudnn, monkeypatch, rate):
    """As it does on compute capability 10.3 with a cuDNN before 9.11."""

    def check(*args, **kwargs):
        raise NotImplementedError("Compute capability 10.3 requires\ncuDNN version >= 9.11.")

    monkeypatch.setattr(attention.binding, "check_is_flash_attention", check)
    said = r"with cuDNN 9\.12\.0 refuses it \(Compute capability 10\.3 requires cuDNN version >= 9\.11\)"
    config, text = settle(long_config(**BF16), "gpu")
    assert config.model.attention == "plain"
    assert re.search(said, text)
    with pytest.raises(UserError, match=said):
        settle(long_config(model__attention="cudnn", **BF16, model__attention_dropout=rate), "gpu")


def test_a_binding_without_dropout_is_not_asked_for_it(with_cudnn, monkeypatch):
    monkeypatch.setattr(attention.binding, "dot_product_attention", lambda query, key, value: None)
    with pytest.raises(UserError, match=r"refuses it \(.*unexpected keyword argument"):
        settle(long_config(model__attention="cudnn", **BF16, **DROPOUT), "gpu")


def test_dropout_that_no_key_decides_is_only_taken_if_asked_for_and_says_so(with_cudnn):
    _, text = settle(long_config(**BF16, **DROPOUT), "gpu")
    assert "no cudnn: its dropout is no function of (seed, step, row)" in text
    assert "model.attention=cudnn takes it all the same" in text
    _, text = settle(long_config(model__attention="cudnn", **BF16, **DROPOUT), "gpu")
    assert "other bits than plain attention's" in text


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [("cuda 13000", "8.0", "gpu"), ("cuda 13000", "7.5", "old gpu"), ("rocm 60000", "gfx942", "old gpu")],
)
def test_only_gpus_that_cudnn_knows_count_as_such(version, capability, expected):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(platform="gpu", client=client, compute_capability=capability)
    assert attention.platform_of(device) == expected
    assert attention.platform_of(jax.devices()[0]) == "cpu"


def by_xla(query, key, value, lengths):
    """XLA computes what cuDNN is asked for."""
    assert query.shape[1] % 2 == key.shape[1] % 2 == 0
    return jax.nn.dot_product_attention(
        query, key, value, scale=1.0, key_value_seq_lengths=lengths, implementation="xla"
    )


@pytest.mark.parametrize(("rows", "context"), [(20, 64), (21, 64), (20, 63), (21, 63)])
def test_attention_by_lengths_equals_attention_by_a_mask(rows, context):
    """The last layer's P + 1 rows may be odd, and so may K."""
    arrays = inputs(rows, context)
    ours = value_and_gradients(lambda *x: attention.by_lengths(*x[:4], by_xla), arrays)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(value_and_gradients(attention.plain, arrays)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_padding_that_the_kernel_leaves_unwritten_goes_nowhere():
    @jax.custom_vjp
    def kernel(query, key, value, lengths):
        return by_xla(query, key, value, lengths)

    def forward(*arrays):
        return jax.vjp(by_xla, *arrays)[0], arrays

    def backward(arrays, out):
        query, key, value, _ = jax.vjp(by_xla, *arrays)[1](out)
        padding = (jnp.arange(key.shape[1])[None] >= arrays[3][:, None])[:, :, None, None]
        return query, *(jnp.where(padding, jnp.nan, x) for x in (key, value)), None

    kernel.defvjp(forward, backward)
    arrays = inputs(20, 64)
    ours = value_and_gradients(lambda *x: attention.by_lengths(*x[:4], kernel), arrays)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(value_and_gradients(attention.plain, arrays)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_row_of_padding_alone_has_a_token_for_the_kernel():
    query, key, value, mask, _ = inputs(20, 64)
    lengths = []
    attention.by_lengths(query, key, value, mask.at[1].set(False), lambda *x: lengths.append(x[3]) or by_xla(*x))
    assert lengths[0].tolist() == [64, 1, 3, 1]


def test_kept_padding_is_at_the_end():
    """Attention by lengths needs it, also where rows have fewer tokens than are kept."""
    config = long_config()
    tokens = helpers.random_rows(8, length=256, pad=True).at[0, 10:].set(helpers.SPECIAL.pad)
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(1), tokens)
    scores = jnp.where(batch.mask_BN, jax.random.uniform(jax.random.key(2), tokens.shape), -1.0)
    kept = jnp.take_along_axis(batch.mask_BN, keep_highest(scores, batch.mask_BN, 128), axis=1)
    assert not kept.all()
    assert (jnp.diff(kept.astype(jnp.int32), axis=1) <= 0).all()


def asked_of_cudnn(monkeypatch, config, variant):
    """Text of a train step that is lowered for a GPU, and (target, settings) of each call of cuDNN's in it.

    The machine has no GPU; whether cuDNN takes the calls is known only on one that has.
    """
    monkeypatch.setattr(attention, "_KERNEL_OF", {"cpu": "cudnn", "gpu": "cudnn"})
    config = helpers.settled(config)
    assert config.model.attention == "cudnn"
    mesh = meshes.make_mesh(dataclasses.replace(config.mesh, data=1))
    step_fn = make_train_step(config, helpers.SPECIAL, variant, mesh=mesh)
    tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.seq_len), jnp.int32)
    state = jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL))
    text = jax.jit(step_fn).trace(state, tokens).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r'custom_call @__cudnn\$(\w+)\(.*?backend_config = "(.*?)"[,}]', text)
    return text, [(target, json.loads(s.replace(r"\22", '"'))["cudnn_fmha_backend_config"]) for target, s in calls]


@pytest.mark.parametrize(("rate", "suffix"), [(0.0, ""), (0.1, "Dropout")])
def test_every_attention_of_bert_base_is_cudnns_in_both_directions(with_cudnn, monkeypatch, rate, suffix):
    values = base.get_config()
    values.train.batch_size = 2
    values.model.update(attention="cudnn", attention_dropout=rate)
    config = from_dict(values.to_dict())
    text, calls = asked_of_cudnn(monkeypatch, config, "consistency")
    layers, shared = config.model.num_layers, config.drop_layers[0]
    attentions = 2 * layers - shared  # the layers before dropping begins are run once for both passes
    forward, backward = ([s for name, s in calls if name == f"fmhaSoftmax{suffix}{end}"] for end in ("", "Backward"))
    assert len(forward) == len(backward) == attentions
    assert len(calls) == 2 * attentions
    # No scores or probabilities [B, H, R, N] anywhere: what has B and H is queries, keys and values [B, H, R, d].
    assert {last for last in re.findall(r"tensor<2x12x\d+x(\d+)x", text)} == {"64"}
    assert {s["mask_type"] for _, s in calls} == {"PADDING"}
    if rate:
        assert {s["dropout_rate"] for _, s in calls} == {rate}
        seeds = sorted(s["seed"] for s in forward)
        assert len(set(seeds)) == attentions
        assert sorted(s["seed"] for s in backward) == seeds


def test_a_modernberts_global_layers_are_cudnns_and_its_local_ones_compute_blocks(with_cudnn, monkeypatch):
    config = long_config(**BF16, **LOCAL, model__num_layers=5, dropping__first_layer=2, model__attention="cudnn")
    text, calls = asked_of_cudnn(monkeypatch, config, "drop")
    assert sorted(name for name, _ in calls) == ["fmhaSoftmax"] * 2 + ["fmhaSoftmaxBackward"] * 2
    scores = set(re.findall(r"tensor<8x((?:\d+x)+)f32>", text))
    # Layer 1 in 8 blocks of 32 queries and 96 keys; layer 2's 128 kept queries and all 256 keys; no 256 x 256.
    assert {"8x4x32x96x", "4x128x256x"} <= scores
    assert not {shape for shape in scores if shape.endswith("256x256x")}


def test_another_seed_of_the_run_gives_cudnn_other_seeds(with_cudnn, monkeypatch):
    def seeds(seed):
        config = long_config(**BF16, **DROPOUT, model__attention="cudnn", train__seed=seed)
        return {settings["seed"] for _, settings in asked_of_cudnn(monkeypatch, config, "drop")[1]}

    assert seeds(1) == seeds(1)
    assert not seeds(1) & seeds(2)


@pytest.mark.parametrize(("rate", "graphs"), [(0.0, None), (0.1, "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL")])
def test_cudnns_dropout_is_kept_out_of_cuda_graphs(with_cudnn, monkeypatch, rate, graphs):
    """In one it would be the same in every step."""
    given = []
    monkeypatch.setattr(step, "compile_ahead", lambda *args: given.append(args[-1]))
    config, _ = settle(long_config(**BF16, model__attention="cudnn", model__attention_dropout=rate), "gpu")
    mesh = meshes.make_mesh(dataclasses.replace(config.mesh, data=1))
    step.compile_train_step(config, helpers.SPECIAL, "drop", mesh, None)
    assert [options.get("xla_gpu_enable_command_buffer") for options in given] == [graphs]


@pytest.mark.parametrize("field", ["attention", "remat"])
def test_unknown_names_are_refused_by_the_config(field):
    with pytest.raises(UserError, match=f"config.model.{field} must be one of auto"):
        helpers.config(**{f"model__{field}": "flash"})
