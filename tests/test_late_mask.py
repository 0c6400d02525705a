"""Late masking (docs/method.md 13): the predicted tokens enter at a later layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.errors import UserError
from sctd_jax.interop.exporting import export
from sctd_jax.model import token_dropping
from sctd_jax.models import open_run
from sctd_jax.objective.masking import row_keys
from sctd_jax.parallel.mesh import make_mesh
from sctd_jax.pretrain import report
from sctd_jax.pretrain.evaluation import make_eval_step, summarize
from sctd_jax.pretrain.flops import forward_flops, mean_step_flops, step_flops
from sctd_jax.pretrain.model import initial_state, make_model
from sctd_jax.pretrain.pretraining import evaluate_workdir, train_and_evaluate
from sctd_jax.pretrain.step import forward_sums, make_train_step, mask_batch, programs_needed, variant_at, visible
from sctd_jax.pretrain.workdir import open_rows
from sctd_jax.probing import drift, perplexity
from sctd_jax.storage import as_path
from sctd_jax.train.metrics import read_metrics
from tests import helpers

FAMILIES = {"bert": {}, "modernbert": {"model__family": "modernbert", "model__type_vocab_size": 1,
                                       "model__global_every": 2, "model__local_attention": 6}}  # fmt: skip


def late(**values):
    return helpers.config(**({"dropping__method": "late_mask", "masking__rate": 0.4} | values))


def start(config):
    state = helpers.initial(config)
    return state.replace(params=helpers.moved(state.params, 0.1))


def masked(config, tokens, word_start_V=None):
    return mask_batch(config, helpers.SPECIAL, jax.random.key(9), tokens, word_start_V)


def loss_of(config, params, batch, variant, dropout_key=None):
    """Mean MLM loss of one batch by the step's own forward pass."""
    keys_B = row_keys(jax.random.key(8), jnp.arange(len(batch.mask_BN)))
    sums, _ = forward_sums(
        config, make_model(config), params, jnp.zeros(512), batch, variant, dropout_key=dropout_key,
        selection_keys_B=keys_B,
    )  # fmt: skip
    return sums.mlm / batch.weights_BP.sum()


# Which tokens the first layers see.


def check_rows(config, batch):
    """Every row: no predicted token, [CLS], ascending, no padding in the place of a token. The tokens left out."""
    visible_BM = np.asarray(visible(config, batch))
    assert visible_BM.shape == (len(batch.mask_BN), config.data.seq_len - config.num_predicted)
    left_out = []
    for seen, real, at, weights in zip(visible_BM, *map(np.asarray, (batch.mask_BN, batch.positions_BP,
                                                                     batch.weights_BP)), strict=True):  # fmt: skip
        assert (np.diff(seen) > 0).all() and seen[0] == 0
        predicted = set(at[weights > 0])
        assert not predicted & set(seen)
        missing = set(np.flatnonzero(real)) - predicted - set(seen)
        assert not missing or real[seen].all()
        left_out.append(missing)
    return left_out


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4, 0.7])
def test_no_token_is_lost_in_padded_rows_and_no_predicted_one_is_seen(rate):
    """Rows of 2 to 32 tokens, of which the short ones have empty slots that point at tokens of theirs."""
    config = late(masking__rate=rate)
    ends = jnp.arange(2, 33)[:, None]
    full = helpers.random_rows(31)
    at = jnp.arange(32)[None]
    tokens = jnp.where(at == ends - 1, helpers.SPECIAL.sep, jnp.where(at >= ends, helpers.SPECIAL.pad, full))
    batch = masked(config, tokens)
    assert not any(check_rows(config, batch))
    slots = np.asarray(jnp.take_along_axis(batch.mask_BN, batch.positions_BP, axis=1) & (batch.weights_BP == 0))
    assert slots.any()  # or this test would not see them lost


def test_a_row_with_fewer_predictions_than_slots_and_no_padding_leaves_out_what_its_slots_name():
    config = late()
    crowded = helpers.random_rows(4).at[:, 1:28].set(helpers.SPECIAL.sep)
    batch = masked(config, crowded)
    assert (batch.weights_BP.sum(1) == 3).all()
    for missing in check_rows(config, batch):
        assert len(missing) == config.num_predicted - 3 and 0 not in missing
    words = late(masking__whole_word=True)
    starts = jnp.arange(512) % 3 == 0
    batch = masked(words, helpers.random_rows(16), starts)
    empty = config.num_predicted - np.asarray(batch.weights_BP.sum(1))
    for missing, count, at in zip(check_rows(words, batch), empty, np.asarray(batch.positions_BP), strict=True):
        assert len(missing) == count and missing <= set(at)
    assert empty.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_sees_the_tokens_of_the_table(family):
    """Against a whole row whose predicted tokens nobody may attend to, and which then enter as they were embedded."""
    config = late(**FAMILIES[family], dropping__first_layer=2)
    params, batch = start(config).params, masked(config, helpers.random_rows(6, pad=True))
    visible_BM = visible(config, batch)
    hidden_BN = jnp.zeros(batch.mask_BN.shape, bool)
    hidden_BN = token_dropping.merge(hidden_BN, batch.weights_BP > 0, batch.positions_BP)

    def network(bert):
        encoder = bert.encoder
        output, states = encoder(batch.input_ids_BN, batch.mask_BN, visible_BM=visible_BM)
        embedded_BND = encoder.embeddings(batch.input_ids_BN, jnp.zeros_like(batch.input_ids_BN), True)
        x_BND, seen = embedded_BND, []
        for layer in encoder.layer[:2]:
            x_BND = layer(x_BND, batch.mask_BN & ~hidden_BN, None, None, True)
            seen.append(x_BND)
        x_BND = jnp.where(hidden_BN[..., None], embedded_BND, x_BND)
        for layer in encoder.layer[2:]:
            x_BND = layer(x_BND, batch.mask_BN, None, None, True)
        return output, states, encoder.normed(x_BND), seen

    output, states, expected, seen = jax.jit(lambda: make_model(config).apply({"params": params}, method=network))()
    assert [state.shape[1] for state in states] == [config.num_visible] * 2 + [32] * 2
    real_BM = token_dropping.gather(batch.mask_BN, visible_BM)[..., None]
    for state, row in zip(states[:2], seen, strict=True):
        np.testing.assert_allclose(state * real_BM, token_dropping.gather(row, visible_BM) * real_BM, atol=2e-5)
    np.testing.assert_allclose(output * batch.mask_BN[..., None], expected * batch.mask_BN[..., None], atol=5e-5)


# The loss and the step.


def test_what_a_predicted_token_shows_does_not_reach_the_first_layers_and_reaches_the_later_ones():
    config = late()
    params, batch = start(config).params, masked(config, helpers.random_rows(4))
    other = batch.replace(
        input_ids_BN=token_dropping.merge(
            batch.input_ids_BN, jnp.full_like(batch.targets_BP, helpers.SPECIAL.unk), batch.positions_BP
        )
    )

    @jax.jit
    def states(batch):
        apply = make_model(config).apply
        return apply({"params": params}, batch.input_ids_BN, batch.mask_BN, visible_BM=visible(config, batch),
                     method=lambda bert, *a, **k: bert.encoder(*a, **k)[1])  # fmt: skip

    for layer, (a, b) in enumerate(zip(states(batch), states(other), strict=True)):
        assert bool((a == b).all()) == (layer < 2), layer


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_that_enter_at_layer_0_are_the_full_model_and_later_ones_are_not(family):
    tokens = helpers.random_rows(4, pad=True)
    values = []
    for config, variant in (
        (helpers.config(**FAMILIES[family], dropping__method="full", masking__rate=0.4), "full"),
        (late(**FAMILIES[family], dropping__first_layer=0), "late"),
        (late(**FAMILIES[family]), "late"),
    ):
        params, batch = start(config).params, masked(config, tokens)
        of = functools.partial(loss_of, config, batch=batch, variant=variant)
        values.append(jax.jit(jax.value_and_grad(lambda params, of=of: of(params)))(params))
    (full, full_grads), (at_0, grads_at_0), (ours, grads) = values
    np.testing.assert_allclose(at_0, full, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads_at_0), jax.tree.leaves(full_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert abs(float(ours - full)) > 1e-4
    # Every layer learns, and so does the embedding of [MASK], which the first layers never saw.
    assert all(float(jnp.abs(leaf).max()) > 0 for i in range(4)
               for leaf in jax.tree.leaves(grads["encoder"][f"layer_{i}"]["mlp"]))  # fmt: skip
    assert float(jnp.abs(grads["encoder"]["embeddings"]["word"][helpers.SPECIAL.mask]).max()) > 1e-5


def test_a_run_is_late_between_its_full_steps_and_its_masks_are_those_of_full():
    config = late(train__steps=9, dropping__full_steps_first=2, dropping__full_steps_last=1)
    assert [variant_at(config, step) for step in range(9)] == ["full"] * 2 + ["late"] * 6 + ["full"]
    assert tuple(programs_needed(config)) == ("full", "late")
    state, tokens = start(config), helpers.random_rows(8, pad=True)
    after, metrics = jax.jit(make_train_step(config, helpers.SPECIAL, "late"))(state, tokens)
    full = helpers.config(dropping__method="full", masking__rate=0.4)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 0)
    batch = mask_batch(full, helpers.SPECIAL, key, tokens)
    np.testing.assert_allclose(metrics["loss"], loss_of(config, state.params, batch, "late"), rtol=1e-5)
    assert int(after.step) == 1 and float(metrics["skipped"]) == 0


def test_late_masking_trains_with_dropout_and_lowers_the_loss():
    config = late(train__steps=30, optimizer__learning_rate=3e-3, **helpers.DROPOUT)
    step = jax.jit(make_train_step(config, helpers.SPECIAL, "late"))
    state, tokens, history = helpers.initial(config), jnp.tile(helpers.random_rows(1), (8, 1)), []
    for _ in range(30):
        state, metrics = step(state, tokens)
        history.append(float(metrics["loss"]))
    assert history[-1] < history[0] - 0.7


# Its cost.


@pytest.mark.parametrize("family", [{}, {"model__family": "modernbert", "model__type_vocab_size": 1,
                                        "model__global_every": 3, "model__intermediate_size": 1152}])  # fmt: skip
def test_the_formula_is_xlas_count_of_the_matrix_products(family):
    values = {"model__hidden_size": 768, "model__intermediate_size": 3072, "model__vocab_size": 4096}
    config = late(**(values | family))
    state = jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL))
    batch = masked(config, helpers.random_rows(2))
    forward = functools.partial(loss_of, config, batch=batch, variant="late")
    counted = jax.jit(forward).lower(state.params).compile().cost_analysis()["flops"]
    assert 2 * forward_flops(config, "late") == pytest.approx(counted, rel=0.02)
    assert forward_flops(config, "late") < 0.85 * forward_flops(config, "full")


def test_the_mean_over_a_run_is_the_mean_of_its_steps():
    config = late(train__steps=20, dropping__full_steps_first=3, train__batch_schedule="0:2,4:4,19:8",
                  data__seq_len_schedule="0:16,5:32")  # fmt: skip
    expected = sum(step_flops(config.at(step), variant_at(config, step)) for step in range(20)) / 20
    assert mean_step_flops(config) == pytest.approx(expected, rel=1e-12)
    assert {name: stage.num_visible for name, (stage, _) in programs_needed(config).items()}[
        "late of 32 x 4 rows"
    ] == 32 - 13


# Its evaluation and what a user reads of it.


def test_its_held_out_loss_is_that_of_the_training_network_on_every_methods_predictions():
    config, full = late(masking__rate=0.15), helpers.config(dropping__method="full")
    state, tokens, valid = start(config), helpers.random_rows(4, pad=True), jnp.ones(4, bool)
    sums = [jax.jit(make_eval_step(c, helpers.SPECIAL))(state, tokens, jnp.arange(4), valid) for c in (config, full)]
    ours, plain = (summarize({name: float(value) for name, value in s.items()}) for s in sums)
    assert sums[0]["predictions"] == sums[1]["predictions"]
    assert ours["eval/plain_loss"] == pytest.approx(plain["eval/loss"], rel=1e-6)
    batch = mask_batch(full, helpers.SPECIAL, jax.random.key(20230524), tokens, None, jnp.arange(4))
    assert ours["eval/loss"] == pytest.approx(float(loss_of(config, state.params, batch, "late")), rel=1e-5)
    assert ours["eval/loss"] != pytest.approx(ours["eval/plain_loss"], rel=1e-4)
    assert "eval/drop_loss" not in ours and "eval/plain_loss" not in plain


def test_a_run_says_what_it_does_and_is_exported(rows, tmp_path, capsys):
    config = late(train__steps=3, data__rows=str(rows), mesh__data=1, model__initializer_range=0.2)
    log = []
    result = train_and_evaluate(config, tmp_path / "run", log.append)
    assert any("enter at layer 2 of 0 to 3; before it 19 of 32 tokens" in line for line in log)
    assert "with [MASK] in all layers, as fill-mask shows it" in capsys.readouterr().out
    data, model = open_rows(as_path(tmp_path / "run"), config, log.append), make_model(config)
    examples = [
        report.fill_mask_examples(model, data, make_mesh(config.mesh), result.state, late=late)
        for late in (True, False)
    ]
    assert examples[0] != examples[1] and len(examples[0]) > 2
    assert log[-len(examples[0]) :] == examples[0]  # as it was trained
    last = [line for line in read_metrics(tmp_path / "run") if "eval/loss" in line][-1]
    again = evaluate_workdir(config, tmp_path / "run", log.append)
    assert again["eval/plain_loss"] == pytest.approx(last["eval/plain_loss"], rel=1e-5)
    export(as_path(tmp_path / "run"), tmp_path / "out", step=None, force=False, log=log.append)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "layers 0 to 1 never saw a predicted token" in card and "late-masking" in card
    assert f"(held-out loss {last['eval/plain_loss']:.3f}, and {last['eval/loss']:.3f} as it was trained)" in card
    assert "Method: `late_mask`, 19 of 32 tokens before layer 2" in card
    with pytest.raises(UserError, match=r"drops no tokens \(dropping.method = late_mask\)"):
        drift._curves(open_run(as_path(tmp_path / "run"), log.append))


def test_perplexity_hides_a_token_as_the_run_did():
    config = late()
    params, ids = start(config).params, helpers.random_rows(1)[:, :9]
    hidden, at = ids.at[0, 3].set(helpers.SPECIAL.mask), jnp.array([3])
    score = perplexity.jit_token_losses(config.model, helpers.SPECIAL.mask, config.drop_layers[0])
    seen = jnp.array([[0, 1, 2, 4, 5, 6, 7, 8]])
    logits = make_model(config).apply({"params": params}, hidden, ids > 0, visible_BM=seen)
    expected = -jax.nn.log_softmax(logits[0, 3])[ids[0, 3]]
    np.testing.assert_allclose(score(params, ids, ids > 0, at)[0], expected, rtol=1e-5)
    plain = perplexity.jit_token_losses(config.model, helpers.SPECIAL.mask)
    assert abs(float(plain(params, ids, ids > 0, at)[0] - expected)) > 1e-4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dropping__first_layer": 4}, ["dropping.first_layer", "0 to 3", "4"]),
        ({"masking__rate_schedule": "0:0.4,2:0.15"}, ["masking.rate_schedule", "late_mask", "N - P"]),
    ],
)
def test_what_does_not_go_with_it_is_refused(values, words):
    with pytest.raises(UserError) as error:
        late(**values)
    assert all(word in str(error.value) for word in words)


def test_all_but_one_position():
    np.testing.assert_array_equal(token_dropping.all_but(jnp.array([0, 2, 3]), 4), [[1, 2, 3], [0, 1, 3], [0, 1, 2]])
