import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from sctd_jax.errors import UserError
from sctd_jax.model import token_dropping
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.model.token_dropping import SELECTORS
from sctd_jax.objective import losses
from sctd_jax.objective.masking import row_keys
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain import evaluation, report
from sctd_jax.pretrain.evaluation import EVAL_SEED, make_eval_step, make_evaluate, selection_keys, summarize
from sctd_jax.pretrain.model import initial_state, make_model
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.pretrain.rows import Data
from sctd_jax.pretrain.step import (
    compile_programs,
    forward_sums,
    make_train_step,
    mask_batch,
    program_at,
    programs_needed,
    select,
    variant_at,
)
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.step import state_shape
from sctd_jax.train.trainer import StepMetrics
from tests import helpers

METHODS = {
    "full": {}, "drop": helpers.DROPOUT, "random": {}, "sctd": {"dropping__sc_interval": 2, **helpers.DROPOUT}
}  # fmt: skip

FAMILIES = {
    "bert": {}, "roberta": {"model__family": "roberta", "model__type_vocab_size": 1},
    "modernbert": {
        "model__family": "modernbert", "model__type_vocab_size": 1, "model__global_every": 2,
        "model__local_attention": 8,
    },
}  # fmt: skip


def start(config, scale=0.0):
    """Initial state; with `scale`, parameters are moved away from it, so that gradients are not tiny."""
    state = helpers.initial(config)
    return state.replace(params=helpers.moved(state.params, scale))


def assert_trees_close(a, b, atol=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5, err_msg=jax.tree_util.keystr(path))


# The schedule.


def test_consistency_steps_come_every_interval_and_any_step_can_be_first():
    """docs/method.md 9.9."""
    config = helpers.config(train__steps=50, dropping__sc_interval=10)
    assert [s for s in range(50) if variant_at(config, s) == "consistency"] == [0, 10, 20, 30, 40]
    assert tuple(programs_needed(config)) == ("drop", "consistency")


def test_full_steps_at_both_ends():
    config = helpers.config(train__steps=20, dropping__full_steps_first=3, dropping__full_steps_last=4)
    names = [variant_at(config, s) for s in range(20)]
    assert names[:3] == ["full"] * 3
    assert names[-4:] == ["full"] * 4
    assert set(names[3:-4]) == {"drop", "consistency"}
    assert tuple(programs_needed(config)) == ("full", "drop", "consistency")


def test_full_every_has_a_full_step_where_sctd_has_a_consistency_step_and_is_drop_elsewhere():
    ends = {"train__steps": 20, "dropping__full_steps_first": 4, "dropping__full_steps_last": 3}
    sctd, ours = (helpers.config(dropping__method=method, **ends) for method in ("sctd", "full_every"))
    variants = [variant_at(ours, step) for step in range(20)]
    assert variants == [variant_at(sctd, step).replace("consistency", "full") for step in range(20)]
    assert [step for step in range(4, 17) if variants[step] == "full"] == [6, 9, 12, 15]
    assert tuple(programs_needed(ours)) == ("full", "drop")
    drop, tokens = helpers.config(dropping__method="drop"), helpers.random_rows(8)
    for variant in ("full", "drop"):  # no field but the rhythm is read
        a, b = (one_step(config, start(config), tokens, variant)[1] for config in (ours, drop))
        assert {name: float(x) for name, x in a.items()} == {name: float(x) for name, x in b.items()}


@pytest.mark.parametrize("method", [*METHODS, "full_every"])
def test_variants_are_those_that_the_schedule_meets(method):
    for first, last, steps, interval in [(0, 0, 1, 10), (0, 0, 7, 3), (5, 0, 7, 3), (3, 4, 7, 2), (1, 0, 3, 10)]:
        config = helpers.config(
            dropping__method=method, dropping__full_steps_first=first, dropping__full_steps_last=last,
            train__steps=steps, dropping__sc_interval=interval,
        )  # fmt: skip
        assert set(programs_needed(config)) == {variant_at(config, s) for s in range(steps)}


def test_a_keep_schedule_compiles_each_of_its_sizes_once():
    config = helpers.config(
        train__steps=20, dropping__keep_schedule="0:12,7:24,15:32", dropping__sc_interval=4, dropping__full_steps_last=3
    )
    names = [program_at(config, step) for step in range(20)]
    assert names[3:9] == [
        "drop of 12",
        "consistency of 12",
        "drop of 12",
        "drop of 12",
        "drop of 24",
        "consistency of 24",
    ]
    assert names[15:] == ["drop of 32", "consistency of 32", "full", "full", "full"]
    needed = programs_needed(config)
    assert set(needed) == set(names)
    for step, name in enumerate(names):
        stage, variant = needed[name]
        assert variant == variant_at(config, step)
        assert variant == "full" or f"of {stage.num_kept}" in name
    assert next(iter(needed)) == "full"


# The loss.


@functools.partial(jax.jit, static_argnums=(0, 3))
def sums_of(config, params, tokens, variant, dropout_key=None):
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(9), tokens)
    table = initial_state(config, helpers.SPECIAL).importance_V
    keys = row_keys(jax.random.key(8), jnp.arange(len(tokens)))
    return forward_sums(
        config, make_model(config), params, table, batch, variant, dropout_key=dropout_key, selection_keys_B=keys
    ), (batch, table, keys)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_consistency_loss_is_the_papers_from_two_whole_passes(pool):
    """docs/method.md 5 and 9.6, against `MaskedLm` run twice on all rows: second MLM term from the full pass."""
    config = helpers.config(dropping__sc_pool=pool)
    params, tokens = start(config, scale=0.1).params, helpers.random_rows(6, pad=True)
    (sums, loss_BP), (batch, table, keys) = sums_of(config, params, tokens, "consistency")
    kept = select(config, table, batch, keys, None)
    model = MaskedLm(config.model, *config.drop_layers)
    weights = batch.weights_BP

    def whole(kept):
        def network(bert):
            output, states = bert.encoder(batch.input_ids_BN, batch.mask_BN, kept_BK=kept)
            return bert.mlm_logits(output), states

        logits, states = jax.jit(lambda: model.apply({"params": params}, method=network))()
        at = jnp.take_along_axis(logits, batch.positions_BP[..., None], axis=1)
        return losses.cross_entropy(at, batch.targets_BP), states[-2:]

    drop_loss, (drop_local, drop_global) = whole(kept)
    full_loss, (full_local, full_global) = whole(None)
    mask_K = jnp.take_along_axis(batch.mask_BN, kept, axis=1)
    np.testing.assert_allclose(loss_BP, drop_loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sums.mlm, jnp.sum(drop_loss * weights), rtol=1e-5)
    np.testing.assert_allclose(sums.mlm_full, jnp.sum(full_loss * weights), rtol=1e-5)
    assert abs(float(sums.mlm_full - sums.mlm)) > 1e-3
    local = losses.consistency_kl(losses.pool(full_local, batch.mask_BN, pool), losses.pool(drop_local, mask_K, pool))
    last = losses.consistency_kl(
        losses.pool(full_global, batch.mask_BN, pool), losses.pool(drop_global, batch.mask_BN, pool)
    )
    np.testing.assert_allclose(sums.sc_local, local, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sums.sc_global, last, rtol=1e-4, atol=1e-6)
    assert float(local) > 1e-3


def consistency_gradient(config, params, tokens):
    def loss(params):
        (sums, _), _ = sums_of(config, params, tokens, "consistency")
        return losses.combine(sums, 20.0, len(tokens), consistency=True, sc_weight=5.0)

    return jax.jit(jax.value_and_grad(loss))(params)


def test_shared_prefix_has_the_loss_and_gradient_of_two_passes():
    tokens = helpers.random_rows(4, pad=True)
    shared, apart = (helpers.config(dropping__sc_share_prefix=share) for share in (True, False))
    params = start(shared, scale=0.1).params
    (loss_a, grads_a), (loss_b, grads_b) = (consistency_gradient(c, params, tokens) for c in (shared, apart))
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-5)
    assert_trees_close(grads_a, grads_b, atol=1e-4)


def test_two_passes_draw_their_own_dropout():
    """Dropout in the embeddings alone: with a shared prefix both passes see the same, without it they differ."""
    values = {}
    for share in (True, False):
        config = helpers.config(
            dropping__sc_share_prefix=share, dropping__drop_rate=0.0, dropping__first_layer=2, **helpers.DROPOUT
        )
        params, tokens = start(config, scale=0.1).params, helpers.random_rows(4)
        (sums, _), _ = sums_of(config, params, tokens, "consistency", jax.random.key(0))
        values[share] = float(sums.sc_local)
    assert values[False] > 1.5 * values[True] > 0


def test_stop_gradient_detaches_the_full_pass_from_the_kl_alone():
    tokens = helpers.random_rows(4)
    flows, stops = (helpers.config(dropping__sc_stop_gradient=stop) for stop in (False, True))
    params = start(flows, scale=0.1).params

    def kl_gradient(config, which):
        def kl(params):
            (sums, _), _ = sums_of(config, params, tokens, "consistency")
            return getattr(sums, which)

        return jax.jit(jax.value_and_grad(kl))(params)

    (kl_a, grads_a), (kl_b, grads_b) = (kl_gradient(c, "sc_global") for c in (flows, stops))
    np.testing.assert_allclose(kl_a, kl_b, rtol=1e-4)
    leaves = zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True)
    assert max(float(jnp.abs(a - b).max()) for a, b in leaves) > 1e-4
    (_, mlm_a), (_, mlm_b) = (kl_gradient(c, "mlm_full") for c in (flows, stops))
    assert_trees_close(mlm_a, mlm_b, atol=0)
    assert float(jnp.abs(mlm_b["encoder"]["layer_1"]["mlp"]["output"]["kernel"]).max()) > 0


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_without_the_full_passs_mlm_term_a_consistency_step_is_a_drop_step_and_the_kl(pool):
    """docs/method.md 5: the KL is that of a whole full pass, MLM(drop) has weight 1, and the KL has its gradient."""
    config = helpers.config(dropping__sc_full_mlm=False, dropping__sc_pool=pool)
    whole = helpers.config(dropping__sc_pool=pool)
    params, tokens = start(config, scale=0.1).params, helpers.random_rows(4, pad=True)

    def value_and_gradient(config, variant, weight):
        def loss(params):
            (sums, _), _ = sums_of(config, params, tokens, variant)
            consistency, full_mlm = variant == "consistency", config.dropping.sc_full_mlm
            kwargs = {"consistency": consistency, "sc_weight": weight, "full_mlm": full_mlm}
            return losses.combine(sums, 20.0, 4, **kwargs), sums

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss, sums), grads = value_and_gradient(config, "consistency", 5.0)
    (full_loss, full_sums), _ = value_and_gradient(whole, "consistency", 5.0)
    for name in ("mlm", "sc_global", "sc_local"):
        np.testing.assert_allclose(getattr(sums, name), getattr(full_sums, name), rtol=1e-4, err_msg=name)
    assert float(sums.mlm_full) == 0 < float(full_sums.mlm_full)
    kl = (full_sums.sc_global + full_sums.sc_local) / 4
    np.testing.assert_allclose(loss, full_sums.mlm / 20 + 5 * kl, rtol=1e-5)
    _, mlm_grads = value_and_gradient(config, "drop", 5.0)
    _, no_kl = value_and_gradient(config, "consistency", 0.0)
    assert_trees_close(no_kl, mlm_grads)
    kl_grads = jax.tree.map(lambda a, b: a - b, grads, mlm_grads)
    assert float(jnp.abs(kl_grads["encoder"]["layer_1"]["mlp"]["output"]["kernel"]).max()) > 1e-3
    assert not np.allclose(full_loss, loss)


# The whole step.


def run(config, devices, steps=5, rows=None):
    """State and metrics after `steps` steps on the first `devices` virtual devices."""
    config = helpers.config() if config is None else config
    mesh = meshes.make_mesh(config.mesh)
    assert mesh.size == devices
    layout = state_shape(lambda: start(config), mesh)
    state = jax.device_put(start(config), meshes.shardings(layout))
    # Compiled ahead of time as in the loop, so that nothing can compile twice.
    fns = compile_programs(programs_needed(helpers.settled(config)), helpers.SPECIAL, mesh, layout)
    history = []
    for step in range(steps):
        tokens = np.asarray(helpers.random_rows(config.train.batch_size, seed=step, pad=rows == "pad"))
        state, metrics = fns[variant_at(config, step)](state, meshes.put_batch(mesh, len(tokens), tokens))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_accumulation_changes_nothing_but_the_memory():
    """Rows of unequal numbers of predictions: means of microbatch means would differ."""
    results = []
    for accumulation, of_consistency in ((1, 0), (4, 0), (1, 4)):
        config = helpers.config(
            train__accumulation=accumulation, train__consistency_accumulation=of_consistency, mesh__data=2,
            dropping__sc_interval=1,
        )  # fmt: skip
        assert [config.train.microbatches(v) for v in ("full", "drop")] == [accumulation] * 2
        assert config.train.microbatches("consistency") == (of_consistency or accumulation)
        results.append(run(config, 2, steps=2, rows="pad"))
    (one, losses_one), *others = results
    for four, losses_four in others:
        for a, b in zip(losses_one, losses_four, strict=True):
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)
        assert_trees_close(one.params, four.params)
        assert_trees_close(one.importance_V, four.importance_V)


@functools.cache
def train_step(config, variant="drop"):
    return jax.jit(make_train_step(config, helpers.SPECIAL, variant))


def one_step(config, state, tokens, variant="drop"):
    return train_step(config, variant)(state, tokens)


def test_a_non_finite_step_changes_nothing_but_the_counters():
    config, tokens = helpers.config(), helpers.random_rows(8)
    state = start(config)
    bias = state.params["mlm_head"]["bias"].at[7].set(jnp.nan)
    broken = state.replace(params={**state.params, "mlm_head": {**state.params["mlm_head"], "bias": bias}})
    after, metrics = one_step(config, broken, tokens)
    assert int(metrics["skipped"]) == 1
    assert (int(after.step), int(after.skipped)) == (1, 1)
    for name in ("params", "opt_state", "importance_V"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(broken, name))
    good, metrics = one_step(config, state, tokens)
    assert int(metrics["skipped"]) == 0
    assert float(jnp.abs(good.importance_V - state.importance_V).max()) > 0


def test_a_step_moves_the_table_by_the_drop_passs_mean_losses():
    config, tokens = helpers.config(dropping__importance_beta=0.5), helpers.random_rows(8)
    state = start(config, scale=0.1)
    after, metrics = one_step(config, state, tokens, "consistency")
    assert float(metrics["predictions"]) == 8 * config.num_predicted
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 0)
    batch = mask_batch(config, helpers.SPECIAL, key, tokens)
    keys = row_keys(key, jnp.arange(8))
    forward = jax.jit(
        lambda state: forward_sums(
            config, make_model(config), state.params, state.importance_V, batch, "drop", dropout_key=None,
            selection_keys_B=keys,
        )
    )  # fmt: skip
    _, loss_BP = forward(state)
    expected = np.array(state.importance_V)
    for v in set(np.asarray(batch.targets_BP).ravel()):
        expected[v] = 0.5 * 10 + 0.5 * np.asarray(loss_BP)[np.asarray(batch.targets_BP) == v].mean()
    np.testing.assert_allclose(after.importance_V, expected, rtol=1e-4)


def test_every_step_has_other_masks_and_dropout_but_a_step_repeats_itself():
    config, tokens = helpers.config(**helpers.DROPOUT), helpers.random_rows(8)
    state = start(config)
    runs = [state, state, state.replace(step=state.step + 1)]
    same, again, other = (float(one_step(config, s, tokens)[1]["loss"]) for s in runs)
    assert same == again
    assert same != other


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_sees_the_predicted_rows_only(family):
    """docs/method.md 9.8: no [B, N, V] logits anywhere in the program."""
    config = helpers.config(model__vocab_size=509, **FAMILIES[family])
    lowered = jax.jit(make_train_step(config, helpers.SPECIAL, "consistency")).lower(
        jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL)), helpers.random_rows(8, vocab_size=509)
    )
    text = lowered.as_text()
    assert "tensor<8x5x509xf32>" in text
    assert "tensor<8x32x509xf32>" not in text


@pytest.mark.parametrize(
    ("selector", "keep_schedule"),
    [("importance", ""), ("importance+random", ""), ("importance+random", "0:8,3:32"), ("norm", "")],
)
def test_mask_tokens_are_kept_before_other_special_tokens(selector, keep_schedule):
    """Rows with more [SEP] or [UNK] than K: [MASK] shares its importance with them in the table."""
    config = helpers.config(
        dropping__selector=selector, dropping__keep_schedule=keep_schedule, masking__mask_share=1.0,
        masking__random_share=0.0,
    ).at(0)  # fmt: skip
    state_BND = jax.random.normal(jax.random.key(3), (8, 32, 16))
    for special in (helpers.SPECIAL.sep, helpers.SPECIAL.unk):
        tokens = helpers.random_rows(8).at[:, 1:26].set(special)
        batch = mask_batch(config, helpers.SPECIAL, jax.random.key(1), tokens)
        kept = select(config, start(config).importance_V, batch, row_keys(jax.random.key(2), jnp.arange(8)), state_BND)
        assert (batch.weights_BP.sum(1) == config.num_predicted).all()
        for row, predicted in zip(np.asarray(kept), np.asarray(batch.positions_BP), strict=True):
            assert set(predicted) <= set(row)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_trains(selector):
    config = helpers.config(dropping__selector=selector)
    _, metrics = one_step(config, start(config), helpers.random_rows(8, pad=True))
    assert np.isfinite(float(metrics["loss"]))


def test_no_selector_changes_what_a_run_saves():
    """So that a run of any of them is opened and exported like the others."""
    configs = [helpers.config(dropping__selector=selector) for selector in SELECTORS]
    states = [jax.eval_shape(lambda config=config: initial_state(config, helpers.SPECIAL)) for config in configs]
    assert all(state == states[0] for state in states)


def as_numpy_would_choose(monkeypatch, config, params, batch):
    """A config whose selector keeps what 'norm' should, from a reference in NumPy, whatever the state is."""
    state = jax.jit(
        lambda: make_model(config).apply(
            {"params": params}, batch.input_ids_BN, batch.mask_BN, method=lambda bert, *a: bert.encoder.prefix(*a)[0]
        )
    )()
    rank = np.linalg.norm(np.asarray(state, np.float64), axis=-1)
    rank = np.where(np.isin(batch.input_ids_BN, helpers.SPECIAL.never_drop), 1e9, rank)
    monkeypatch.setitem(SELECTORS, "fixed", lambda tokens: jnp.asarray(rank))
    return dataclasses.replace(config, dropping=dataclasses.replace(config.dropping, selector="fixed"))


@pytest.mark.parametrize("variant", ["drop", "consistency"])
def test_norm_reads_the_state_where_dropping_begins_and_no_gradient_flows_through_the_choice(variant, monkeypatch):
    config = helpers.config(dropping__selector="norm")
    params, tokens = start(config, scale=0.1).params, helpers.random_rows(4, pad=True)

    def loss_and_gradient(config):
        def loss(params):
            (sums, _), (batch, *_) = sums_of(config, params, tokens, variant)
            return losses.combine(sums, 20.0, 4, consistency=variant == "consistency", sc_weight=5.0), batch

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (ours, batch), grads = loss_and_gradient(config)
    fixed = as_numpy_would_choose(monkeypatch, config, params, batch)
    (expected, _), expected_grads = loss_and_gradient(fixed)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert_trees_close(grads, expected_grads, atol=1e-6)


def test_a_consistency_step_of_two_prefixes_chooses_by_that_of_the_drop_pass():
    """Their dropout differs; the drop pass is the one that a shared prefix gives."""
    values = []
    for share in (True, False):
        config = helpers.config(dropping__selector="norm", dropping__sc_share_prefix=share, **helpers.DROPOUT)
        params, tokens = start(config, scale=0.1).params, helpers.random_rows(4)
        values.append(sums_of(config, params, tokens, "consistency", jax.random.key(0))[0][0])
    np.testing.assert_allclose(values[0].mlm, values[1].mlm, rtol=1e-6)
    assert abs(float(values[0].mlm_full / values[1].mlm_full - 1)) > 1e-4


def test_random_ltd_draws_a_set_for_each_layer_and_trains():
    config = helpers.config(dropping__method="random_ltd", model__num_layers=5)
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(1), helpers.random_rows(4, pad=True))
    keys_B = jax.random.split(jax.random.key(2), 4)
    sets = select(config, jnp.zeros(512), batch, keys_B, None)
    assert [kept.shape for kept in sets] == [(4, 16)] * 3
    assert len({np.asarray(kept).tobytes() for kept in sets}) == 3
    for kept in sets:
        assert (kept[:, 0] == 0).all()
        assert token_dropping.gather(batch.mask_BN, kept)[0].all()
    _, metrics = one_step(config, start(config), helpers.random_rows(8, pad=True))
    assert np.isfinite(float(metrics["loss"]))


def test_a_run_and_its_evaluation_go_through_its_keep_schedule(rows, tmp_path):
    config = helpers.config(
        dropping__method="drop", dropping__keep_schedule="0:12,2:32", train__steps=3, data__rows=str(rows),
        mesh__data=1, model__initializer_range=0.2,
    )  # fmt: skip
    log, tracked = [], []
    result = train_and_evaluate(
        config, tmp_path / "run", log.append, track=lambda step, values: tracked.append({"step": step, **values})
    )
    assert result.step == 3
    written = read_metrics(tmp_path / "run")
    assert tracked == [{name: value for name, value in line.items() if name != "seconds"} for line in written]
    assert any(line.startswith("compiled drop of 12, drop of 32 in") for line in log)
    assert any("12, then 32 from step 2 of 32 in layers 1 to 2" in line for line in log)
    dropped, kept = (line for line in read_metrics(tmp_path / "run") if "eval/loss" in line)
    assert (dropped["step"], kept["step"]) == (0, 3)
    assert dropped["eval/drop_loss"] != pytest.approx(dropped["eval/loss"], rel=1e-5)
    assert kept["eval/drop_loss"] == pytest.approx(kept["eval/loss"], rel=1e-5)  # K = N: the full model
    assert kept["eval/cosine_global"] == pytest.approx(1, abs=1e-5)


def test_a_step_without_a_prediction_is_said_once_and_a_run_of_them_stops():
    said = []
    console = types.SimpleNamespace(log=said.append, advance=lambda done: None, progress=lambda done, means: None)
    run = types.SimpleNamespace(
        config=helpers.config(train__steps=30).train, cost=lambda step: (256, 1.0), blank=report.blank,
        mesh=types.SimpleNamespace(size=1),
    )  # fmt: skip

    def reader():
        said.clear()
        return StepMetrics(run, types.SimpleNamespace(write=lambda step, values: None), console)

    def read(metrics, predictions):
        for step, count in enumerate(predictions):
            metrics.take(step, {"loss": 0.0, "learning_rate": 1.0, "skipped": 0, "predictions": count})
        metrics.flush()

    read(reader(), [40, 0, *[0] * 20, 40])
    (line,) = said
    assert line.startswith("warning: step 2 had no prediction (all tokens of its rows are special tokens)")
    read(reader(), [0] * 9 + [40] * 9)
    assert len(said) == 1
    with pytest.raises(UserError, match=r"the first 10 steps had no prediction \(all tokens of its rows are special"):
        read(reader(), [0] * 11)


def test_training_lowers_the_loss():
    config = helpers.config(train__steps=40, optimizer__learning_rate=3e-3)
    step = jax.jit(make_train_step(config, helpers.SPECIAL, "drop"))
    state, tokens, history = start(config), jnp.tile(helpers.random_rows(1), (8, 1)), []
    for _ in range(40):
        state, metrics = step(state, tokens)
        history.append(float(metrics["loss"]))
    assert history[-1] < history[0] - 1


# Evaluation.


@functools.cache
def eval_step(config):
    return jax.jit(make_eval_step(config, helpers.SPECIAL))


def evaluate(config, state, tokens, valid):
    sums = eval_step(config)(state, tokens, jnp.arange(len(tokens)), jnp.array(valid))
    return summarize({name: float(value) for name, value in sums.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_uses_the_full_model_and_reports_the_drop_pass_beside_it(family):
    """docs/method.md 9.7."""
    config = helpers.config(**FAMILIES[family])
    state, tokens = start(config, scale=0.1), helpers.random_rows(4)
    metrics = evaluate(config, state, tokens, [True] * 4)
    full = evaluate(helpers.config(**FAMILIES[family], dropping__method="full"), state, tokens, [True] * 4)
    assert metrics["eval/loss"] == pytest.approx(full["eval/loss"], rel=1e-6)
    assert metrics["eval/drop_loss"] != pytest.approx(metrics["eval/loss"], rel=1e-5)
    assert 0 < metrics["eval/cosine_local"] < 1
    assert "eval/drop_loss" not in full


def test_evaluation_chooses_by_the_state_too(monkeypatch):
    config = helpers.config(dropping__selector="norm")
    state, tokens = start(config, scale=0.1), helpers.random_rows(4, pad=True)
    batch = mask_batch(config, helpers.SPECIAL, jax.random.key(EVAL_SEED), tokens)
    fixed = as_numpy_would_choose(monkeypatch, config, state.params, batch)
    ours, expected = (evaluate(c, state, tokens, [True] * 4) for c in (config, fixed))
    assert ours == pytest.approx(expected, rel=1e-6)
    by_importance = evaluate(helpers.config(), state, tokens, [True] * 4)
    assert ours["eval/drop_loss"] != pytest.approx(by_importance["eval/drop_loss"], rel=1e-4)


def test_evaluation_reads_rows_from_all_over_the_held_out_ones(monkeypatch):
    assert base.get_config().train.eval_rows == 256
    read = []

    class Held:
        def __init__(self, folder, split):
            pass

        def __len__(self):
            return 1001

        def read(self, numbers):
            return np.zeros((len(numbers), 32), np.int32) + np.asarray(numbers)[:, None]

    def counting(config, *_):
        def step(state, tokens_BN, rows_B, valid_B):
            read.append((config.num_kept, np.asarray(tokens_BN[:, 0]), np.asarray(rows_B)[np.asarray(valid_B)]))
            return {"predictions": (rows_B < 1000).sum() * blank, "rows": 8.0, "loss": 1.0, "correct": 1.0}

        return step

    monkeypatch.setattr(evaluation, "Rows", Held)
    monkeypatch.setattr(evaluation, "make_eval_step", counting)
    monkeypatch.setattr(meshes, "jit_eval_step", lambda mesh, step, state: step)
    config = helpers.config(train__eval_rows=20, dropping__keep_schedule="0:12,2:24", mesh__data=1)
    data = Data(None, None, types.SimpleNamespace(special=helpers.SPECIAL), None)
    evaluate = make_evaluate(helpers.settled(config), data, meshes.make_mesh(config.mesh), None)
    state, blank = start(config), 1
    evaluate(state)
    evaluate(state.replace(step=state.step + 2))  # of which no step has had more than 12 yet
    evaluate(state.replace(step=state.step + 3))
    assert [kept for kept, *_ in read] == [12] * 6 + [24] * 3
    tokens, numbers = (np.concatenate([part[i] for part in read[:3]]) for i in (1, 2))
    np.testing.assert_array_equal(tokens[:20], numbers)  # the masks are those of the row, whichever rows are beside it
    assert len(numbers) == 20
    assert set(np.diff(numbers)) == {50}
    blank = 0
    with pytest.raises(UserError, match="held-out rows have no token to predict"):
        evaluate(state)


def test_selection_of_the_evaluation_draws_apart_from_its_masks():
    """`mask_tokens` folds 0, 1 and 2 into the evaluation's key."""
    rows_B = jnp.arange(3)
    masks = [row_keys(jax.random.fold_in(jax.random.key(EVAL_SEED), i), rows_B) for i in range(3)]
    keys = np.concatenate([jax.random.key_data(keys_B) for keys_B in (*masks, selection_keys(rows_B))])
    assert len(np.unique(keys, axis=0)) == 12


def test_rows_that_fill_up_the_last_batch_do_not_count():
    config = helpers.config()
    state, tokens = start(config, scale=0.1), helpers.random_rows(4)
    some = evaluate(config, state, tokens, [True, True, False, False])
    np.testing.assert_allclose(
        list(some.values()), list(evaluate(config, state, tokens[:2], [True] * 2).values()), rtol=1e-5
    )
