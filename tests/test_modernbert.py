"""ModernBERT's network and token dropping in it, against a float64 program; `transformers` is met in test_interop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.errors import UserError
from sctd_jax.model import attention, modernbert
from sctd_jax.model.attention import Window
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.model.families import check_family
from sctd_jax.model.token_dropping import gather, keep_highest
from sctd_jax.objective import losses
from sctd_jax.pretrain.model import make_model
from sctd_jax.pretrain.step import forward_sums, mask_batch
from tests import helpers, reference, reference_modernbert
from tests.test_attention import inputs, mesh_of, value_and_gradients

BATCH = 4


def config_of(**overrides):
    """Six layers, 0 and 3 of them global; a token of a local layer sees four on either side."""
    values = {
        "model__family": "modernbert", "model__num_layers": 6, "model__global_every": 3, "model__local_attention": 8,
        "model__type_vocab_size": 1, "model__layer_norm_eps": 1e-5, "model__intermediate_size": 48,
    }  # fmt: skip
    return helpers.config(**(values | overrides))


@pytest.fixture(scope="module")
def setting():
    """(config, parameters away from their initial values, ids, mask, kept)."""
    config = config_of()
    ids = helpers.random_rows(BATCH, pad=True)
    params = jax.jit(MaskedLm(config.model, *config.drop_layers).init)(jax.random.key(0), ids, ids > 0)["params"]
    kept = keep_highest(jax.random.normal(jax.random.key(2), ids.shape), ids > 0, config.num_kept)
    return config, helpers.moved(params, 0.1), ids, ids > 0, kept


def run(config, params, ids, mask, layers=None, attend=attention.plain, layerwise=False, **kwargs):
    model = MaskedLm(config.model, *(layers or config.drop_layers), attend, layerwise=layerwise)

    def both(bound):
        output, states = bound.encoder(ids, mask, **kwargs)
        return states, bound.mlm_logits(output)

    return jax.jit(lambda p: model.apply({"params": p}, method=both))(params)


def in_float64(params):
    return jax.tree.map(lambda p: np.asarray(p, np.float64), params)


@pytest.mark.parametrize(("layers", "drop"), [(None, False), (None, True), ((0, 4), True), ((1, 3), True)])
def test_every_state_and_the_logits_match_a_float64_reference(setting, layers, drop):
    config, params, ids, mask, kept = setting
    layers, params64 = layers or config.drop_layers, in_float64(params)
    rows = jnp.array([[0, 3, 7, 8, 20]] * BATCH)
    states, logits = run(config, params, ids, mask, layers, kept_BK=kept if drop else None, rows_BR=rows)
    for row in range(BATCH):
        kept_row = np.asarray(kept[row]) if drop else None
        inputs, at_rows = (np.asarray(ids[row]), np.asarray(mask[row])), np.asarray(rows[row])
        expected = reference_modernbert.encode(config.model, params64, *inputs, kept_row, *layers, at_rows)
        assert len(states) == len(expected) == 6
        for state, value in zip(states, expected, strict=True):
            at = {32: np.arange(32), 16: kept_row, 5: at_rows}[len(value)]
            # Padding that sees nothing but padding has the mean of other rows; nobody reads it.
            real = inputs[1][at]
            np.testing.assert_allclose(state[row][real], value[real], rtol=2e-5, atol=2e-5)
        expected_logits = reference_modernbert.mlm_logits(config.model, params64, expected[-1])
        real = inputs[1][at_rows]
        np.testing.assert_allclose(logits[row][real], expected_logits[real], rtol=1e-4, atol=1e-4)


def test_random_ltd_matches_a_float64_reference(setting):
    """Each dropping layer, global or local, sees tokens of its own at their places in the text."""
    config, params, ids, mask, _ = setting
    first, last = config.drop_layers
    keys = jax.random.split(jax.random.key(7), last - first + 1)
    sets = jnp.stack([keep_highest(jax.random.normal(key, ids.shape), mask, config.num_kept) for key in keys])
    states, logits = run(config, params, ids, mask, layerwise=True, kept_BK=sets)
    params64 = in_float64(params)
    for row in range(BATCH):
        real = np.asarray(mask[row])
        expected = reference_modernbert.encode_layerwise(
            config.model, params64, np.asarray(ids[row]), real, np.asarray(sets[:, row]), first
        )
        for state, value in zip(states, expected, strict=True):
            np.testing.assert_allclose(state[row][real], value[real], rtol=2e-5, atol=2e-5)
        expected_logits = reference_modernbert.mlm_logits(config.model, params64, expected[-1])
        np.testing.assert_allclose(logits[row][real], expected_logits[real], rtol=1e-4, atol=1e-4)


def test_keeping_every_token_drops_none_and_padding_changes_nothing(setting):
    config, params, ids, mask, _ = setting
    every = jnp.tile(jnp.arange(32)[None], (BATCH, 1))
    _, plain = run(config, params, ids, mask)
    _, kept = run(config, params, jnp.where(mask, ids, 77), mask, kept_BK=every)
    np.testing.assert_allclose(kept[mask], plain[mask], atol=1e-5)


@pytest.mark.parametrize("variant", ["drop", "consistency"])
def test_losses_and_their_gradient_match_the_float64_reference(setting, variant):
    """The vectors of the consistency loss are taken after the final norm; the gradient along random directions."""
    config, params, ids, _, _ = setting
    importance_V = jax.random.normal(jax.random.key(3), (512,))
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(9), ids)
    kept = np.asarray(keep_highest(jnp.take(importance_V.at[4].set(2e4), batch.input_ids_BN), ids > 0, config.num_kept))

    def ours(params):
        sums, _ = forward_sums(
            config, make_model(config), params, importance_V, batch, variant,
            dropout_key=None, selection_keys_B=jax.random.split(jax.random.key(0), BATCH),
        )  # fmt: skip
        return losses.combine(sums, 20.0, BATCH, consistency=variant == "consistency", sc_weight=0.5)

    def theirs(params64):
        total = 0.0
        for row in range(BATCH):
            inputs = np.asarray(batch.input_ids_BN[row]), np.asarray(ids[row]) > 0
            at, targets = np.asarray(batch.positions_BP[row]), np.asarray(batch.targets_BP[row])
            drop = reference_modernbert.encode(config.model, params64, *inputs, kept[row], *config.drop_layers)
            passes = [drop]
            if variant == "consistency":
                passes.append(reference_modernbert.encode(config.model, params64, *inputs))
            mlm = []
            for states in passes:
                logits = reference_modernbert.mlm_logits(config.model, params64, states[-1][at])
                chances = reference.log_softmax(logits)[np.arange(len(at)), targets]
                mlm.append(-(chances * np.asarray(batch.weights_BP[row])).sum() / 20.0)
            total += np.mean(mlm)
            if variant == "consistency":
                pairs = [[reference_modernbert.normed(config.model, params64, states[-2][0]) for states in passes]]
                pairs.append([states[-1][0] for states in passes])
                for drop_D, full_D in pairs:
                    p, q = reference.log_softmax(full_D), reference.log_softmax(drop_D)
                    total += 0.5 * (np.exp(p) * (p - q)).sum() / BATCH
        return total

    value, grads = jax.jit(jax.value_and_grad(ours))(params)
    params64 = in_float64(params)
    assert float(value) == pytest.approx(theirs(params64), rel=2e-5)
    for seed in range(2):
        direction = helpers.moved(jax.tree.map(np.zeros_like, params64), 1.0, seed)
        products = jax.tree.map(lambda g, d: np.sum(np.asarray(g, np.float64) * d), grads, direction)
        ends = [theirs(jax.tree.map(lambda p, d, s=s: p + s * d, params64, direction)) for s in (1e-5, -1e-5)]
        assert sum(jax.tree.leaves(products)) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize(("length", "rate"), [(32, 0.0), (30, 0.0), (32, 0.1)])
def test_blocks_of_a_local_layer_are_the_attention_near_the_diagonal(length, rate):
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (jax.random.normal(k, (2, length, 4, 8)) for k in keys[:3])
    mask = jnp.arange(length)[None] < jnp.array([[length], [19]])
    places = jnp.arange(length)[None]
    near = [
        jax.jit(lambda w: attention.plain(query, key, value, mask, rate, keys[3], w))(window)
        for window in (Window(4, None, None), Window(4, places, places), Window(32, None, None))
    ]
    if not rate:  # dropout draws by place in its array
        real = np.asarray(mask)[..., None, None]
        np.testing.assert_allclose(near[0] * real, near[1] * real, rtol=1e-5, atol=1e-6)
    assert np.abs(near[0] - near[2]).max() > 0.1


def test_a_tpus_kernel_has_local_windows_and_kept_tokens_take_the_plain_path():
    """Splash, interpreted, for rows of 256 tokens; queries and keys of kept tokens are recomputed by their places."""
    config = config_of(
        model__max_positions=256, data__seq_len=256, model__num_layers=4, model__local_attention=64,
        model__hidden_size=32, model__num_heads=2,
    )  # fmt: skip
    ids = helpers.random_rows(2, 256, pad=True)
    params = jax.jit(MaskedLm(config.model, 1, 2).init)(jax.random.key(0), ids, ids > 0)["params"]
    params = helpers.moved(params, 0.1)
    kept = jnp.tile(jnp.arange(0, 256, 2)[None], (2, 1))
    for kept_BK in (None, kept):
        expected, _ = run(config, params, ids, ids > 0, (1, 2), kept_BK=kept_BK)
        kernel = attention.splash(mesh_of(2, 1, 1), attention.plain)
        found, _ = run(config, params, ids, ids > 0, (1, 2), kernel, kept_BK=kept_BK)
        for a, b in zip(expected, found, strict=True):
            real = np.asarray(ids > 0 if a.shape[1] == 256 else gather(ids > 0, kept))[..., None]
            np.testing.assert_allclose(np.asarray(a) * real, np.asarray(b) * real, rtol=2e-4, atol=2e-4)


def test_a_tpus_kernel_with_a_window_has_the_gradient_of_plain_attention():
    *arrays, mask, weights = inputs(256, 256)
    window = Window(32, None, None)
    kernel = attention.splash(mesh_of(4, 1, 1), attention.plain)
    found, expected = (
        value_and_gradients(functools.partial(attend, window=window), (*arrays, mask, weights * mask[..., None, None]))
        for attend in (kernel, attention.plain)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    everywhere = value_and_gradients(attention.plain, (*arrays, mask, weights * mask[..., None, None]))
    assert np.abs(everywhere[1][1] - found[1][1]).max() > 0.1


def test_first_weights_are_those_of_the_paper():
    """0.02, and 0.02 / sqrt(2 L) for what leads into the residual stream and the head; cut at two deviations."""
    config = config_of(model__hidden_size=128, model__intermediate_size=256)
    ids = helpers.random_rows(1)
    params = jax.jit(MaskedLm(config.model, 2, 4).init)(jax.random.key(0), ids, ids > 0)["params"]
    layer, small = params["encoder"]["layer_1"], 0.02 / np.sqrt(12)
    wide = [params["encoder"]["embeddings"]["word"], layer["attention"]["query"]["kernel"]]
    wide += [layer["mlp"]["intermediate"]["kernel"], layer["mlp"]["gate"]["kernel"]]
    narrow = [layer["attention"]["output"]["kernel"], layer["mlp"]["output"]["kernel"]]
    narrow += [params["mlm_head"]["dense"]["kernel"]]
    for leaves, deviation in ((wide, 0.02), (narrow, small)):
        for leaf in leaves:
            assert np.abs(leaf).max() <= 2 * deviation * 1.001
            assert np.std(leaf) == pytest.approx(0.88 * deviation, rel=0.03)
    assert "attention_norm" not in params["encoder"]["layer_0"] and "bias" not in layer["mlp_norm"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__type_vocab_size": 2}, ["type_vocab_size", "must be 1", "found 2"]),
        ({"model__hidden_size": 12, "model__num_heads": 4}, ["num_heads", "even", "12 / 4"]),
        ({"model__family": "bert"}, ["global_every", "must be 1", "found 3", "modernbert"]),
        ({"model__family": "roberta"}, ["global_every", "roberta"]),
        ({"model__family": "bert", "model__global_every": 1}, ["local_attention", "must be 128", "found 8"]),
        (
            {
                "model__family": "xlm-roberta",
                "model__global_every": 1,
                "model__local_attention": 128,
                "model__activation": "gelu_tanh",
            },
            ["activation", "must be gelu", "xlm-roberta"],
        ),
    ],
)
def test_what_a_family_cannot_have_is_refused(overrides, words):
    with pytest.raises(UserError) as error:
        check_family(config_of(**overrides).model)
    assert all(word in str(error.value) for word in words)


def test_a_local_layer_counts_the_keys_in_its_window():
    model = config_of().model
    counted = [modernbert.layer_flops(model, i, 32, 32, True) for i in (0, 1)]
    assert counted[0] - counted[1] == 4 * 32 * 32 * (32 - 9)
    assert modernbert.layer_flops(model, 1, 16, 16, False) == modernbert.layer_flops(model, 0, 16, 16, True)
