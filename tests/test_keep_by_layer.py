"""Kept tokens that become fewer by layer: `dropping.keep_by_layer` (docs/method.md 4)."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax import schedules
from sctd_jax.errors import UserError
from sctd_jax.model.token_dropping import SELECTORS, gather
from sctd_jax.objective import losses
from sctd_jax.objective.masking import row_keys
from sctd_jax.pretrain.evaluation import make_eval_step, summarize
from sctd_jax.pretrain.flops import forward_flops
from sctd_jax.pretrain.model import initial_state, make_model
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.pretrain.step import Narrowing, forward_sums, make_train_step, mask_batch, select
from sctd_jax.probing.drift import jit_compare
from tests import helpers

STAGES = {"model__num_layers": 6, "dropping__keep_by_layer": "3:12,4:9"}  # 16 in layer 2, of 32
FAMILIES = {"bert": {}, "modernbert": {"model__family": "modernbert", "model__type_vocab_size": 1,
                                       "model__global_every": 2, "model__local_attention": 6}}  # fmt: skip


def start(config):
    state = helpers.initial(config)
    return state.replace(params=helpers.moved(state.params, 0.1))


def masked(config, tokens):
    return mask_batch(config, helpers.SPECIAL, jax.random.key(9), tokens)


def keys(batch):
    return row_keys(jax.random.key(8), jnp.arange(len(batch.mask_BN)))


def sums_of(config, state, batch, variant):
    return forward_sums(
        config, make_model(config), state.params, state.importance_V, batch, variant, dropout_key=None,
        selection_keys_B=keys(batch),
    )  # fmt: skip


def chosen(config, state, batch):
    """Positions that came out of each dropping layer, by the step's own code."""
    narrowing = Narrowing(config, state.importance_V, batch, keys(batch))

    def network(bert):
        x_BND, _ = bert.encoder.prefix(batch.input_ids_BN, batch.mask_BN)
        kept_BK = select(config, state.importance_V, batch, keys(batch), x_BND)
        bert.encoder.suffix(x_BND, batch.mask_BN, kept_BK=kept_BK, narrow=narrowing)
        return [narrowing.after(layer, kept_BK) for layer in (2, 3, 4)]

    return jax.jit(lambda: make_model(config).apply({"params": state.params}, method=network))()


def largest(x_ND, ids_N, mask_N, count):
    """Rows of the special tokens and of the largest norms, ascending, in NumPy."""
    rank = np.linalg.norm(np.asarray(x_ND, np.float64), axis=-1)
    rank = np.where(np.isin(ids_N, helpers.SPECIAL.never_drop), 1e9, rank)
    rank = np.where(ids_N == helpers.SPECIAL.mask, 2e9, np.where(mask_N, rank, -1.0))
    rank[0] = 3e9
    return np.sort(np.argsort(-rank, kind="stable")[:count])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_sees_the_tokens_that_the_norm_left_and_all_are_merged_with_their_newest_states(family):
    """Row by row and layer by layer, against the network's own layers on tokens that NumPy chose."""
    config = helpers.config(**STAGES, **FAMILIES[family], dropping__selector="norm", dropping__sc_pool="mean")
    state = start(config)
    batch = masked(config, helpers.random_rows(3, pad=True))
    bound = make_model(config).bind({"params": state.params})
    encoder, local, pooled, outputs = bound.encoder, [], [], []
    for row in range(3):
        ids, mask = batch.input_ids_BN[row : row + 1], batch.mask_BN[row : row + 1]
        x, full = encoder.prefix(ids, mask)[0], None
        at, full = np.arange(32), encoder.suffix(x, mask)[1][-2]
        here = x  # states of the tokens at `at`
        for layer, count in ((2, 16), (3, 12), (4, 9)):
            rows = largest(here[0], np.asarray(ids[0])[at], np.asarray(mask[0])[at], count)
            places = None if layer == 2 else jnp.asarray(at)[None]
            here = encoder.layer[layer](here, mask[:, at], places, jnp.asarray(rows)[None], True)
            at = at[rows]
            x = x.at[:, at].set(here)
        local.append(losses.pool(encoder.normed(here), mask[:, at], "mean"))
        pooled.append(losses.pool(encoder.normed(full), mask, "mean"))
        outputs.append(encoder.normed(encoder.layer[5](x, mask, None, None, True)))
    predicted = gather(jnp.concatenate(outputs), batch.positions_BP)
    expected = losses.cross_entropy(bound.mlm_logits(predicted), batch.targets_BP)
    sums, loss_BP = jax.jit(lambda: sums_of(config, state, batch, "consistency"))()
    np.testing.assert_allclose(loss_BP, expected, rtol=2e-4, atol=2e-5)
    kl = losses.consistency_kl(jnp.concatenate(pooled), jnp.concatenate(local))
    np.testing.assert_allclose(sums.sc_local, kl, rtol=1e-3)


@pytest.mark.parametrize("selector", SELECTORS)
def test_who_goes_on_is_among_those_who_were_there_and_no_masked_token_leaves(selector):
    config = helpers.config(**STAGES, dropping__selector=selector, masking__mask_share=1.0, masking__random_share=0.0)
    state, batch = start(config), masked(config, helpers.random_rows(6, pad=True))
    before = [set(range(32))] * 6
    for kept, count in zip(chosen(config, state, batch), (16, 12, 9), strict=True):
        assert kept.shape == (6, count)
        real_BK = np.asarray(gather(batch.mask_BN, kept))
        for row, positions in enumerate(np.asarray(kept)):
            assert (np.diff(positions) > 0).all() and positions[0] == 0
            assert set(positions) <= before[row]
            assert real_BK[row].all() or set(np.flatnonzero(batch.mask_BN[row])) <= set(positions)
            if selector != "random":
                assert set(np.asarray(batch.positions_BP)[row][np.asarray(batch.weights_BP)[row] > 0]) <= set(positions)
            before[row] = set(positions)


def test_by_importance_the_last_stage_keeps_what_it_would_keep_of_the_whole_row():
    """No layer changes the table, so that the choice among fewer tokens is that among all."""
    config = helpers.config(**STAGES)
    state, batch = start(config), masked(config, helpers.random_rows(6, pad=True))
    for count, kept in zip((16, 12, 9), chosen(config, state, batch), strict=True):
        direct = helpers.config(model__num_layers=6, dropping__drop_rate=1 - count / 32)
        np.testing.assert_array_equal(select(direct, state.importance_V, batch, keys(batch), None), kept)


def test_stages_at_which_all_go_on_change_nothing():
    config = helpers.config(model__num_layers=6)
    state, batch = start(config), masked(config, helpers.random_rows(4, pad=True))
    every = jnp.tile(jnp.arange(16)[None], (4, 1))

    def passes(bert):
        x_BND, _ = bert.encoder.prefix(batch.input_ids_BN, batch.mask_BN)
        kept_BK = select(config, state.importance_V, batch, keys(batch), x_BND)
        return [
            bert.encoder.suffix(x_BND, batch.mask_BN, kept_BK=kept_BK, narrow=narrow)
            for narrow in (None, lambda layer, x_BKD, kept_BK: (every, kept_BK))
        ]

    (plain, states), (narrowed, others) = jax.jit(
        lambda: make_model(config).apply({"params": state.params}, method=passes)
    )()
    for a, b in zip((plain, *states), (narrowed, *others), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_trains_and_every_layer_learns(selector):
    config = helpers.config(**STAGES, dropping__selector=selector, **helpers.DROPOUT)
    state, tokens = start(config), helpers.random_rows(8, pad=True)
    after, metrics = jax.jit(make_train_step(config, helpers.SPECIAL, "consistency"))(state, tokens)
    assert np.isfinite(float(metrics["loss"])) and not int(metrics["skipped"])
    for layer in range(6):
        name = f"layer_{layer}"
        (old, new) = (s.params["encoder"][name]["mlp"]["output"]["kernel"] for s in (state, after))
        assert float(jnp.abs(new - old).max()) > 0, name


@pytest.mark.parametrize("variant", ["drop", "consistency"])
def test_the_formula_is_xlas_count_of_the_matrix_products(variant):
    """Before XLA merges what both passes compute alike."""
    config = helpers.config(**STAGES, model__hidden_size=768, model__intermediate_size=3072, model__vocab_size=4096)
    batch, state = (
        masked(config, helpers.random_rows(2)),
        jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL)),
    )
    counted = jax.jit(lambda state: sums_of(config, state, batch, variant)).lower(state).cost_analysis()["flops"]
    assert 2 * forward_flops(config, variant) == pytest.approx(counted, rel=0.02)
    plain = helpers.config(**STAGES | {"dropping__keep_by_layer": ""}, model__hidden_size=768,
                           model__intermediate_size=3072, model__vocab_size=4096)  # fmt: skip
    assert forward_flops(config, variant) < 0.97 * forward_flops(plain, variant)


def test_evaluation_and_drift_see_the_same_drop_pass():
    config = helpers.config(**STAGES, dropping__selector="norm")
    state, tokens, rows_B = start(config), helpers.random_rows(4, pad=True), jnp.arange(4)
    sums = jax.jit(make_eval_step(config, helpers.SPECIAL))(state, tokens, rows_B, jnp.ones(4, bool))
    ours = summarize({name: float(value) for name, value in sums.items()})
    found = jit_compare(config, helpers.SPECIAL, None)(state.params, state.importance_V, tokens, rows_B)
    assert found.shape == (2, 4, 2, 4)  # layers 2 to 5
    np.testing.assert_allclose(found[0, -1, 0].mean(), ours["eval/cosine_global"], rtol=1e-4)
    np.testing.assert_allclose(found[0, -2, 0].mean(), ours["eval/cosine_local"], rtol=1e-4)
    plain = helpers.config(**STAGES | {"dropping__keep_by_layer": ""}, dropping__selector="norm")
    other = jax.jit(make_eval_step(plain, helpers.SPECIAL))(state, tokens, rows_B, jnp.ones(4, bool))
    assert float(other["loss"]) == pytest.approx(float(sums["loss"]), rel=1e-6)
    assert float(other["drop_loss"]) != pytest.approx(float(sums["drop_loss"]), rel=1e-4)


def test_its_config_says_how_many_go_on():
    config = helpers.config(**STAGES)
    assert config.kept_by_layer == (16, 12, 9)
    assert helpers.config(model__num_layers=6).kept_by_layer == (16, 16, 16)
    assert schedules.parse(config.dropping.keep_by_layer, int) == ((3, 12), (4, 9))
    assert [count for name, count in config.context_lengths if name.startswith("K")] == [16, 12, 9]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dropping__keep_by_layer": "2:12"}, ["layers from 3 to 4", "'2:12'"]),
        ({"dropping__keep_by_layer": "3:12,5:9"}, ["layers from 3 to 4"]),
        ({"dropping__keep_by_layer": "3:16"}, ["below 16"]),
        ({"dropping__keep_by_layer": "3:9,4:12"}, ["falling K"]),
        ({"dropping__keep_by_layer": "3:6"}, ["at least 7"]),
        ({"dropping__keep_by_layer": "3-12"}, ["LAYER:K,LAYER:K", "'3-12'"]),
        ({"dropping__keep_by_layer": "\uff13:12"}, ["LAYER:K,LAYER:K"]),
        ({"dropping__keep_by_layer": "3:" + "9" * 5000}, ["LAYER:K,LAYER:K"]),
        ({"dropping__method": "random_ltd"}, ["drop, sctd and full_every", "random_ltd"]),
        ({"dropping__keep_schedule": "0:16,3:20"}, ["dropping.keep_schedule"]),
        ({"data__seq_len_schedule": "0:16,3:32"}, ["data.seq_len_schedule"]),
    ],
)
def test_what_cannot_be_is_refused(values, words):
    with pytest.raises(UserError) as error:
        helpers.config(**STAGES | values)
    assert all(word in str(error.value) for word in ["dropping.keep_by_layer", *words])


def test_a_run_says_its_stages_evaluates_and_resumes_with_the_same_bits(rows, tmp_path):
    recipe = dict.fromkeys(("train__eval_every", "train__checkpoint_every", "mesh__data"), 1)
    config = helpers.config(**STAGES, **recipe, dropping__method="drop", train__steps=2, data__rows=str(rows))
    log = []
    whole = train_and_evaluate(config, tmp_path / "run", log.append).state
    assert int(whole.step) == 2
    assert any("16 of 32 in layers 2 to 4 of 0 to 5, 12 from layer 3 on, 9 from layer 4 on" in line for line in log)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    resumed = train_and_evaluate(config, tmp_path / "run", log.append).state
    assert "resuming at step 1" in log
    for name in ("params", "opt_state", "importance_V"):
        jax.tree.map(np.testing.assert_array_equal, getattr(resumed, name), getattr(whole, name))
