import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sctd_jax.objective import losses


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_cross_entropy_is_optaxs_and_stays_finite_at_extreme_logits():
    logits, targets = 5 * normal(0, 3, 4, 11), jnp.arange(12).reshape(3, 4) % 11
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(losses.cross_entropy(logits, targets), expected, rtol=1e-5)
    extreme = jnp.array([[[1e4, 0.0, -1e4]]])
    np.testing.assert_allclose(losses.cross_entropy(extreme, jnp.array([[2]])), [[2e4]])


def test_kl_by_hand_and_its_direction():
    """KL(full || drop) of (3/4, 1/4) and (1/2, 1/2) = log 2 - H(3/4)."""
    full, drop = jnp.log(jnp.array([[0.75, 0.25]])), jnp.zeros((1, 2))
    expected = np.log(2) - (0.75 * np.log(4 / 3) + 0.25 * np.log(4))
    np.testing.assert_allclose(losses.consistency_kl(full, drop), expected, rtol=1e-6)
    assert not np.isclose(losses.consistency_kl(drop, full), expected)
    both = jnp.concatenate([full, full]), jnp.concatenate([drop, drop])
    np.testing.assert_allclose(losses.consistency_kl(*both), 2 * expected, rtol=1e-6)


def test_kl_of_half_precision_vectors_is_computed_in_f32():
    full, drop = normal(1, 4, 64).astype(jnp.bfloat16), normal(2, 4, 64).astype(jnp.bfloat16)
    kl = losses.consistency_kl(full, drop)
    assert kl.dtype == jnp.float32
    expected = losses.consistency_kl(full.astype(jnp.float32), drop.astype(jnp.float32))
    np.testing.assert_array_equal(kl, expected)


def test_pooling():
    state = normal(3, 2, 5, 4)
    mask = jnp.array([[True] * 5, [True, True, False, False, False]])
    np.testing.assert_array_equal(losses.pool(state, mask, "cls"), state[:, 0])
    mean = losses.pool(state, mask, "mean")
    np.testing.assert_allclose(mean[1], state[1, :2].mean(0), rtol=1e-6)
    padding = jnp.zeros((2, 5), bool)
    np.testing.assert_array_equal(losses.pool(state, padding, "mean"), 0)
    assert (jax.grad(lambda x: losses.pool(x, padding, "mean").sum())(state) == 0).all()


@pytest.mark.parametrize(("consistency", "expected"), [(False, 3.0), (True, 0.5 * 3 + 0.5 * 4 + 0.1 * (5 + 6))])
def test_the_loss_weighs_its_terms_as_the_paper_does(consistency, expected):
    sums = losses.Sums(
        mlm=jnp.array(30.0), mlm_full=jnp.array(40.0), sc_global=jnp.array(10.0), sc_local=jnp.array(12.0)
    )
    loss = losses.combine(sums, jnp.array(10.0), 2, consistency=consistency, sc_weight=0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
