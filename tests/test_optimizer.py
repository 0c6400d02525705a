import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sctd_jax.pretrain import report
from sctd_jax.pretrain.model import initial_state
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.train.optimizer import decay_mask, learning_rate, make_optimizer, muon_dimensions
from tests import helpers


def test_linear_and_cosine_schedules():
    linear = helpers.config(train__steps=100, optimizer__warmup_steps=10, optimizer__learning_rate=2.0)
    rates = np.array([learning_rate(linear.optimizer, 100, step) for step in (0, 4, 9, 10, 55, 99, 100, 200)])
    np.testing.assert_allclose(rates, [0.2, 1.0, 2.0, 2.0, 1.0, 2 / 90, 0, 0], atol=1e-6)
    cosine = helpers.config(
        train__steps=100, optimizer__warmup_steps=10, optimizer__learning_rate=2.0, optimizer__schedule="cosine"
    )
    rates = np.array([learning_rate(cosine.optimizer, 100, step) for step in (0, 9, 55, 100)])
    np.testing.assert_allclose(rates, [0.2, 2.0, 1.0, 0], atol=1e-6)


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_wsd_stays_at_the_peak_until_its_decay(shape):
    config = helpers.config(
        train__steps=100, optimizer__warmup_steps=10, optimizer__learning_rate=2.0, optimizer__schedule="wsd",
        optimizer__decay_steps=20, optimizer__decay_shape=shape,
    )  # fmt: skip
    rates = np.array([learning_rate(config.optimizer, 100, step) for step in (0, 9, 10, 79, 80, 85, 99, 100, 200)])
    done = {"linear": lambda x: x, "1-sqrt": np.sqrt}[shape]
    np.testing.assert_allclose(rates[:5], [0.2, 2, 2, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(rates[5:], [2 * (1 - done(x)) for x in (0.25, 0.95, 1, 1)], atol=1e-6)
    stable = dataclasses.replace(config.optimizer, decay_steps=0)
    np.testing.assert_allclose([learning_rate(stable, 100, step) for step in (9, 50, 99)], 2.0, rtol=1e-6)


def test_a_stable_run_goes_on_at_its_rate_and_a_decay_that_is_added_is_said(tmp_path):
    def config(steps, decay_steps=0):
        return helpers.config(
            train__steps=steps,
            optimizer__warmup_steps=10,
            optimizer__schedule="wsd",
            optimizer__decay_steps=decay_steps,
        )

    assert not report.schedule_lines(config(200), config(100), tmp_path, 100)
    assert not report.schedule_lines(config(120, 20), config(100), tmp_path, 100)  # begins at the peak
    (fall,) = report.schedule_lines(config(120, 80), config(100), tmp_path, 100)
    assert fall.endswith("train.steps was 100 and is 120, optimizer.decay_steps was 0 and is 80")


def test_a_run_shorter_than_its_warmup_never_reaches_the_peak():
    config = helpers.config(train__steps=3, optimizer__warmup_steps=10, optimizer__learning_rate=1.0)
    np.testing.assert_allclose([learning_rate(config.optimizer, 3, s) for s in (0, 2)], [0.1, 0.3], rtol=1e-6)


def test_a_rate_that_jumps_on_resuming_is_said_with_what_works_better(tmp_path):
    def config(**changes):
        return helpers.config(**{
            "train__steps": 1200, "optimizer__warmup_steps": 100, "optimizer__learning_rate": 1.0, "data__rows": "rows",
            **changes,
        })  # fmt: skip

    before = config()
    jump, better = report.schedule_lines(config(train__steps=2400), before, tmp_path, 1200)
    assert jump == (
        "warning: the learning rate goes from 0.000909 (0.1% of the peak) at step 1,200 to 0.522 (52.2% of the peak) "
        "at step 1,201 at once, for train.steps was 1200 and is 2400"
    )
    assert f"--config.train.init={tmp_path}" in better
    (fall,) = report.schedule_lines(config(train__steps=700, optimizer__learning_rate=0.5), before, tmp_path, 650)
    assert "(50.1% of the peak) at step 650 to 0.0417 (8.3%" in fall
    assert "train.steps was 1200 and is 700, optimizer.learning_rate was 1.0 and is 0.5" in fall
    assert not report.schedule_lines(config(train__log_every=5), before, tmp_path, 50)
    assert not report.schedule_lines(config(train__steps=2400), before, tmp_path, 50)  # the warm-up is the same
    assert not report.schedule_lines(before, before, tmp_path, 1200)
    ends = {"dropping__full_steps_last": 100, "optimizer__learning_rate": 0.0}
    (again,) = report.schedule_lines(config(train__steps=2400, **ends), config(**ends), tmp_path, 1200)
    assert again.endswith("the run drops tokens again, for train.steps was 1200 and is 2400")
    every = {"dropping__method": "full_every", "dropping__sc_interval": 10, "optimizer__learning_rate": 0.0}
    assert not report.schedule_lines(config(train__steps=2400, **every), config(**every), tmp_path, 1191)


def test_decay_covers_every_parameter_and_spares_biases_and_norms():
    config = helpers.config()
    params = jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL)).params
    mask = decay_mask(config.optimizer, params)
    decayed = {jax.tree_util.keystr(path) for path, on in jax.tree_util.tree_leaves_with_path(mask) if on}
    kept = {jax.tree_util.keystr(path) for path, on in jax.tree_util.tree_leaves_with_path(mask) if not on}
    assert all(name.endswith(("['kernel']", "['word']", "['position']", "['segment']")) for name in decayed)
    assert all(name.endswith(("['bias']", "['scale']")) for name in kept)
    assert "['encoder']['embeddings']['word']" in decayed
    assert len(decayed) + len(kept) == len(jax.tree.leaves(params))
    everything = decay_mask(helpers.config(optimizer__decay="all").optimizer, params)
    assert all(jax.tree.leaves(everything))


def test_a_parameter_without_a_rule_raises():
    with pytest.raises(KeyError, match="surprise"):
        decay_mask(helpers.config().optimizer, {"layer": {"surprise": jnp.zeros(2)}})


def updates(name, params, grads, **changes):
    config = helpers.config(optimizer__name=name, optimizer__weight_decay=0.5, optimizer__clip_norm=0.0, **changes)
    optimizer = make_optimizer(config.optimizer)
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_adamw_first_step_is_the_sign_plus_decoupled_decay():
    params = {"a": {"kernel": jnp.array([2.0, -4.0]), "bias": jnp.array([3.0, 3.0])}}
    grads = {"a": {"kernel": jnp.array([1e-1, -1e-1]), "bias": jnp.array([1e-1, 1e-1])}}
    got = updates("adamw", params, grads)["a"]
    np.testing.assert_allclose(got["kernel"], [1 + 0.5 * 2, -1 - 0.5 * 4], rtol=1e-4)
    np.testing.assert_allclose(got["bias"], [1, 1], rtol=1e-4)


def test_lamb_scales_a_leafs_update_to_the_norm_of_its_parameters():
    params = {"a": {"kernel": jnp.array([2.0, -4.0])}}
    got = updates("lamb", params, {"a": {"kernel": jnp.array([1e-1, -1e-1])}})["a"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(got), np.sqrt(20), rtol=1e-5)
    np.testing.assert_allclose(got[0] / got[1], -2 / 3, rtol=1e-4)


def test_lamb_leaves_biases_and_norms_to_adam():
    """They start at 0 and 1: the norm of their parameters would hold them there. The state is that of older runs."""
    params = {"a": {"kernel": jnp.array([2.0, -4.0]), "bias": jnp.array([1e-3, 0.0]), "scale": jnp.array([1.0, 1.0])}}
    grads = jax.tree.map(lambda _: jnp.array([1e-1, -1e-1]), params)
    got = {decay: updates("lamb", params, grads, optimizer__decay=decay)["a"] for decay in ("kernels", "all")}
    for name in ("bias", "scale"):
        np.testing.assert_allclose(got["kernels"][name], [1, -1], rtol=1e-4)
        np.testing.assert_allclose(jnp.linalg.norm(got["all"][name]), jnp.linalg.norm(params["a"][name]), rtol=1e-4)
    state = make_optimizer(helpers.config(optimizer__name="lamb").optimizer).init(params)
    assert type(state[-1]) is type(optax.scale_by_trust_ratio().init(params))


def orthogonal(matrix):
    """Five steps of the Newton-Schulz iteration of Jordan et al., 2024, in float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_turns_each_matrix_of_the_layers_and_the_heads_into_an_orthogonal_one():
    """In numpy, of what the kernel does to a token's state: attention's kernels are one D x D matrix for all heads."""
    params = jax.eval_shape(lambda: initial_state(helpers.config(), helpers.SPECIAL)).params
    rng = np.random.default_rng(0)
    params, grads = (jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params) for _ in range(2))
    got = updates("muon", params, grads, optimizer__decay="all")
    adam = updates("adamw", params, grads, optimizer__decay="all")
    leaves = zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (params, grads, got, adam)), strict=True)
    count = 0
    for (path, param), (_, grad), (_, update), (_, by_adam) in leaves:
        if path[-1].key != "kernel":
            np.testing.assert_array_equal(update, by_adam, err_msg=jax.tree_util.keystr(path))
            continue
        count += 1
        first = grad.shape[0] if path[-2].key != "output" or grad.ndim == 2 else grad.shape[0] * grad.shape[1]
        matrix = np.asarray(grad, np.float64).reshape(first, -1)
        matrix = orthogonal(matrix) if matrix.shape[0] <= matrix.shape[1] else orthogonal(matrix.T).T
        expected = 0.2 * np.sqrt(max(matrix.shape)) * matrix.reshape(grad.shape) + 0.5 * param
        np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-3, err_msg=jax.tree_util.keystr(path))
    assert count == 4 * 6 + 1


def test_muons_momentum_is_nesterovs_with_its_bias_corrected():
    params = {"dense": {"kernel": jnp.zeros((3, 5))}}
    optimizer = make_optimizer(
        helpers.config(optimizer__name="muon", optimizer__clip_norm=0.0, optimizer__muon_beta=0.8).optimizer
    )
    rng, state, momentum = np.random.default_rng(1), optimizer.init(params), np.zeros((3, 5))
    for t in range(1, 4):
        grad = rng.standard_normal((3, 5))
        update, state = optimizer.update({"dense": {"kernel": jnp.asarray(grad)}}, state, params)
        momentum = 0.8 * momentum + 0.2 * grad
        ahead = 0.8 * momentum / (1 - 0.8 ** (t + 1)) + 0.2 * grad / (1 - 0.8**t)
        np.testing.assert_allclose(
            update["dense"]["kernel"], 0.2 * np.sqrt(5) * orthogonal(ahead), rtol=1e-3, atol=1e-3
        )


def test_a_kernel_that_muon_has_no_rule_for_raises():
    with pytest.raises(KeyError, match=r"surprise.*\(2, 2, 2\)"):
        muon_dimensions({"surprise": {"kernel": jnp.zeros((2, 2, 2))}})


def test_stable_adamw_takes_a_smaller_step_where_the_second_moment_is_too_old():
    """Wortsman et al., 2023, algorithm 2, in numpy; the rate of each leaf is divided, its decay's too."""
    kinds = {"eps": 1e-6, "weight_decay": 0.5, "clip_norm": 0.0, "beta2": 0.99}
    optimizer = make_optimizer(
        helpers.config(optimizer__name="stable_adamw", **{f"optimizer__{k}": v for k, v in kinds.items()}).optimizer
    )
    param = np.array([2.0, -4.0, 1.0])
    params = {"a": {"kernel": jnp.asarray(param)}}
    rng, state, m, v, divided = np.random.default_rng(0), optimizer.init(params), np.zeros(3), np.zeros(3), []
    for t, size in enumerate((1.0, 1.0, 30.0, 0.1), start=1):
        grad = size * rng.standard_normal(3)
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        second = v / (1 - 0.99**t)
        divided.append(max(1.0, np.sqrt(np.mean(grad**2 / np.maximum(second, 1e-12)))))
        expected = (m / (1 - 0.9**t) / (np.sqrt(second) + 1e-6) + 0.5 * param) / divided[-1]
        update, state = optimizer.update({"a": {"kernel": jnp.asarray(grad)}}, state, params)
        np.testing.assert_allclose(update["a"]["kernel"], expected, rtol=1e-4, atol=1e-5)
    assert divided[2] > 1.5
    assert divided[3] == 1.0
    adam = make_optimizer(helpers.config(optimizer__clip_norm=0.0).optimizer)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [
        leaf.shape for leaf in jax.tree.leaves(adam.init(params))
    ]


@pytest.mark.parametrize("name", ["muon", "stable_adamw"])
def test_a_run_that_was_interrupted_is_bit_for_bit_the_whole_one(name, rows, tmp_path):
    def train(folder, on_step=lambda step: None):
        config = helpers.config(
            data__rows=str(rows), optimizer__name=name, dropping__method="full", model__num_layers=1,
            optimizer__mu_dtype="bfloat16", train__eval_rows=8,
        )  # fmt: skip
        return train_and_evaluate(config, tmp_path / folder, lambda line: None, on_step)

    def end(step):
        if step == 4:
            raise RuntimeError("killed")

    whole = train("whole").state
    with pytest.raises(RuntimeError, match="killed"):
        train("resumed", end)
    resumed = train("resumed").state
    assert int(resumed.step) == 6
    for a, b in zip(
        jax.tree.leaves((whole.params, whole.opt_state)),
        jax.tree.leaves((resumed.params, resumed.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_epsilon_before_the_bias_correction_is_keras_and_fairseqs():
    rng, params = np.random.default_rng(0), {"kernel": jnp.zeros(3)}
    kinds = {"eps": 0.1, "weight_decay": 0.0, "clip_norm": 0.0}
    places = {
        place: make_optimizer(
            helpers.config(optimizer__eps_place=place, **{f"optimizer__{k}": v for k, v in kinds.items()}).optimizer
        )
        for place in ("after_correction", "before_correction")
    }
    state = {place: optimizer.init(params) for place, optimizer in places.items()}
    m, v = np.zeros(3), np.zeros(3)
    for t in range(1, 4):
        grad = rng.standard_normal(3)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        correction = np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        expected = {
            "before_correction": correction * m / (np.sqrt(v) + 0.1),
            "after_correction": correction * m / (np.sqrt(v) + 0.1 * np.sqrt(1 - 0.999**t)),
        }
        for place, optimizer in places.items():
            update, state[place] = optimizer.update({"kernel": jnp.asarray(grad)}, state[place], params)
            np.testing.assert_allclose(update["kernel"], expected[place], rtol=1e-4)
    assert jax.tree.structure(state["after_correction"]) == jax.tree.structure(state["before_correction"])


def test_clipping_scales_by_the_global_norm():
    config = helpers.config(optimizer__clip_norm=1.0, optimizer__weight_decay=0.0)
    optimizer = make_optimizer(config.optimizer)
    params = {"kernel": jnp.zeros(2)}
    _, state = optimizer.update({"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    moment = next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,))
    np.testing.assert_allclose(moment, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


def test_first_moments_in_bfloat16_give_nearly_the_same_update():
    params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}
    grads = {"kernel": jax.random.normal(jax.random.key(1), (64, 64))}
    updates = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(helpers.config(optimizer__mu_dtype=dtype, optimizer__clip_norm=0.0).optimizer)
        state = optimizer.init(params)
        for _ in range(3):
            updates[dtype], state = optimizer.update(grads, state, params)
        assert state[0].mu["kernel"].dtype == dtype
        assert state[0].nu["kernel"].dtype == jnp.float32
    difference = jnp.linalg.norm(updates["float32"]["kernel"] - updates["bfloat16"]["kernel"])
    assert 0 < difference < 0.01 * jnp.linalg.norm(updates["float32"]["kernel"])
