import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.model.encoder import MaskedLm
from sctd_jax.model.families import FAMILIES
from sctd_jax.model.token_dropping import gather, keep_highest
from tests import helpers, reference

BATCH = 5


@pytest.fixture(scope="module", params=["gelu", "gelu_tanh"])
def setting(request):
    """(config, model, parameters away from their initial values, ids, mask, kept)."""
    config = helpers.config(model__num_layers=5, dropping__last_layer=3, model__activation=request.param)
    model = MaskedLm(config.model, *config.drop_layers)
    ids = helpers.random_rows(BATCH, pad=True)
    mask = ids != helpers.SPECIAL.pad
    params = jax.jit(model.init)(jax.random.key(0), ids, mask)["params"]
    kept = keep_highest(jax.random.normal(jax.random.key(2), ids.shape), mask, config.num_kept)
    return config, model, helpers.moved(params, 0.2), ids, mask, kept


def encode(model, params, *args, **kwargs):
    def network(bert, *a, **k):
        return bert.encoder(*a, **k)

    return jax.jit(lambda p: model.apply({"params": p}, *args, **kwargs, method=network))(params)


def logits_of(model, params, *args, **kwargs):
    return jax.jit(lambda p: model.apply({"params": p}, *args, **kwargs))(params)


@pytest.mark.parametrize("drop", [False, True])
def test_every_state_and_the_logits_match_a_float64_reference(setting, drop):
    config, model, params, ids, mask, kept = setting
    _, states = encode(model, params, ids, mask, kept_BK=kept if drop else None)
    logits = logits_of(model, params, ids, mask, kept_BK=kept if drop else None)
    params64 = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    for row in range(BATCH):
        kept_row = np.asarray(kept[row]) if drop else None
        expected = reference.encode(
            config.model, params64, np.asarray(ids[row]), np.asarray(mask[row]), kept_row, *config.drop_layers
        )
        assert len(states) == len(expected) == 5
        for state, value in zip(states, expected, strict=True):
            np.testing.assert_allclose(state[row], value, rtol=2e-5, atol=2e-5)
        expected_logits = reference.mlm_logits(config.model, params64, expected[-1])
        np.testing.assert_allclose(logits[row], expected_logits, rtol=1e-4, atol=1e-4)


def test_state_sizes_follow_the_drop_layers(setting):
    config, model, params, ids, mask, kept = setting
    assert config.drop_layers == (1, 3)
    rows = jnp.tile(jnp.arange(3)[None], (BATCH, 1))
    _, states = encode(model, params, ids, mask, kept_BK=kept, rows_BR=rows)
    assert [state.shape[1] for state in states] == [32, 16, 16, 16, 3]


@pytest.mark.parametrize("layers", [(0, 0), (0, 3), (1, 2), (3, 3)])
def test_other_drop_layers_match_the_reference(setting, layers):
    config, _, params, ids, mask, kept = setting
    _, states = encode(MaskedLm(config.model, *layers), params, ids, mask, kept_BK=kept)
    params64 = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    row = 1
    expected = reference.encode(
        config.model, params64, np.asarray(ids[row]), np.asarray(mask[row]), np.asarray(kept[row]), *layers
    )
    for state, value in zip(states, expected, strict=True):
        np.testing.assert_allclose(state[row], value, rtol=2e-5, atol=2e-5)


def test_random_ltd_layers_see_their_own_tokens_and_the_others_go_around(setting):
    """random-LTD (Yao et al., 2022): each layer runs on its kept rows alone and leaves the others as they were."""
    config, _, params, ids, mask, kept = setting
    model = MaskedLm(config.model, *config.drop_layers, layerwise=True)
    other = keep_highest(jax.random.normal(jax.random.key(9), ids.shape), mask, kept.shape[1])
    assert (np.asarray(other) != np.asarray(kept)).any()
    sets = jnp.stack([kept, other, kept])

    @jax.jit
    def run(params):
        def network(bert):
            _, states = bert.encoder(ids, mask, kept_BK=sets)
            alone = [
                bert.encoder.layer[i](gather(states[i - 1], at), gather(mask, at), at, None, True)
                for i, at in enumerate(sets, start=1)
            ]
            return states, alone

        return model.apply({"params": params}, method=network)

    states, alone = run(params)
    assert [state.shape[1] for state in states] == [32] * 5
    for i, (at, expected) in enumerate(zip(sets, alone, strict=True), start=1):
        np.testing.assert_allclose(gather(states[i], at), expected, atol=1e-5)
        dropped = np.ones(ids.shape, bool)
        np.put_along_axis(dropped, np.asarray(at), False, axis=1)
        np.testing.assert_array_equal(np.asarray(states[i])[dropped], np.asarray(states[i - 1])[dropped])


def test_keeping_every_token_is_plain_bert(setting):
    _, model, params, ids, mask, _ = setting
    every = jnp.tile(jnp.arange(32)[None], (BATCH, 1))
    plain = logits_of(model, params, ids, mask)
    np.testing.assert_allclose(logits_of(model, params, ids, mask, kept_BK=every), plain, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_full_training_of_a_model_too_shallow_to_drop_runs_every_layer_once(layers):
    config = helpers.config(dropping__method="full", model__num_layers=layers)
    model, ids = MaskedLm(config.model, *config.drop_layers), helpers.random_rows(2)
    params = jax.jit(model.init)(jax.random.key(0), ids, ids > 0)["params"]
    _, states = encode(model, params, ids, ids > 0)
    assert len(states) == layers


def test_padding_does_not_change_real_tokens(setting):
    _, model, params, ids, mask, _ = setting
    other = jnp.where(mask, ids, 77)
    real = mask[..., None]
    a, b = (jnp.where(real, logits_of(model, params, x, mask), 0.0) for x in (ids, other))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("drop", [False, True])
def test_last_layer_at_some_rows_has_the_same_loss_and_gradient(setting, drop):
    """docs/method.md 6: P + 1 rows of the last layer against all N."""
    _, model, params, ids, mask, kept = setting
    rows = jnp.tile(jnp.array([0, 3, 9, 4])[None], (BATCH, 1))
    kept = kept if drop else None

    def some(params):
        return jnp.sum(model.apply({"params": params}, ids, mask, kept_BK=kept, rows_BR=rows) ** 2)

    def plain(params):
        logits = model.apply({"params": params}, ids, mask, kept_BK=kept)
        return jnp.sum(jnp.take_along_axis(logits, rows[..., None], axis=1) ** 2)

    a, b = jax.jit(jax.value_and_grad(some))(params), jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    largest = max(float(jnp.abs(y).max()) for y in jax.tree.leaves(b[1]))
    for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * largest)


def test_bfloat16_computes_in_bf16_over_f32_parameters(setting):
    config, _, params, ids, mask, _ = setting
    bf16 = helpers.config(model__num_layers=5, model__dtype="bfloat16", model__activation=config.model.activation)
    model = MaskedLm(bf16.model, *bf16.drop_layers)
    output, _ = encode(model, params, ids, mask)
    assert output.dtype == jnp.bfloat16
    logits = logits_of(model, params, ids, mask)
    assert logits.dtype == jnp.float32
    initial = jax.jit(model.init)(jax.random.key(0), ids, mask)["params"]
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(initial))
    exact = logits_of(MaskedLm(config.model, *config.drop_layers), params, ids, mask)
    assert 1e-6 < float(jnp.abs(logits - exact).mean() / jnp.abs(exact).mean()) < 0.1


def test_dropout_needs_a_key_and_changes_the_output():
    config = helpers.config(**helpers.DROPOUT)
    model = MaskedLm(config.model, *config.drop_layers)
    ids = helpers.random_rows(2)
    params = jax.jit(model.init)(jax.random.key(0), ids, ids > 0)
    a, b = (
        model.apply(params, ids, ids > 0, deterministic=False, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 2)
    )
    assert (a != b).any()


def test_robertas_network_is_berts():
    """So that what holds of the one's layers, head and dropping holds of the other's."""
    assert dataclasses.replace(FAMILIES["roberta"], check=FAMILIES["bert"].check) == FAMILIES["bert"]


def test_initial_parameters_are_berts():
    config = helpers.config(model__hidden_size=64, model__num_heads=4)
    ids = helpers.random_rows(1)
    params = jax.jit(MaskedLm(config.model, *config.drop_layers).init)(jax.random.key(0), ids, ids > 0)["params"]
    kernel = params["encoder"]["layer_0"]["mlp"]["intermediate"]["kernel"]
    assert float(jnp.abs(kernel).max()) <= 0.04 + 1e-6  # cut at two deviations
    assert abs(float(kernel.std()) / (0.02 * 0.8796) - 1) < 0.05
    assert float(jnp.abs(params["mlm_head"]["bias"]).max()) == 0
    assert (params["encoder"]["layer_0"]["output_norm"]["scale"] == 1).all()
