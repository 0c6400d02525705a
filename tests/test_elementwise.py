import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.model.elementwise import ACTIVATIONS, Dropout, keep_mask

SHAPE = (64, 4, 32, 32)
N = np.prod(SHAPE)


def masks(count, rate=0.1):
    keys = jax.random.split(jax.random.key(3), count)
    return np.stack([keep_mask(key, SHAPE, rate) for key in keys])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements(rate):
    dropped = 1 - masks(4, rate).reshape(4, -1).mean(1)
    np.testing.assert_allclose(dropped, rate, atol=5 * np.sqrt(rate * (1 - rate) / N))


def test_masks_of_keys_rows_and_neighbours_are_independent():
    """Correlations of what should have nothing to do with each other stay within five standard errors of 0."""
    a, b = (mask.reshape(SHAPE[0], -1) - 0.9 for mask in masks(2))
    bound = 5 * 0.09
    for name, x, y in (
        ("keys", a, b),
        ("rows", a[1:], a[:-1]),
        ("neighbours", a[:, 1:], a[:, :-1]),
        ("lines", a[:, 32:], a[:, :-32]),
        ("keys, shifted", a[:, 1:], b[:, :-1]),
        ("rows, positions exchanged in pairs", a[1:], a[:-1].reshape(63, -1, 2)[:, :, ::-1].reshape(63, -1)),
    ):
        assert abs((x * y).sum()) < bound * np.sqrt(x.size), name
    counts = (a > 0).sum(1)  # kept in each row: the spread of a binomial, not less and not more
    expected = np.sqrt(a.shape[1] * 0.09)
    assert 0.6 * expected < counts.std() < 1.4 * expected


def test_a_row_does_not_depend_on_the_number_of_rows():
    key = jax.random.key(1)
    np.testing.assert_array_equal(keep_mask(key, (8, 50), 0.3)[:3], keep_mask(key, (3, 50), 0.3))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_keeps_the_mean_and_its_gradient_is_its_mask(dtype):
    x = jnp.ones(SHAPE, dtype)
    dropout = Dropout(0.25)

    def total(x):
        return dropout.apply({}, x, False, rngs={"dropout": jax.random.key(0)}).astype(jnp.float32)

    y = total(x)
    assert set(np.unique(y).tolist()) == {0.0, float(1 / jnp.asarray(0.75, dtype))}
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    np.testing.assert_array_equal(jax.grad(lambda x: total(x).sum())(x), y.astype(dtype))
    assert dropout.apply({}, x, True) is x
    assert Dropout(0.0).apply({}, x, False) is x


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_and_its_slope_are_jaxs(name):
    x = jnp.linspace(-12, 12, 10_001)
    approximate = name == "gelu_tanh"
    np.testing.assert_allclose(ACTIVATIONS[name](x), nn.gelu(x, approximate=approximate), atol=1e-6)
    ours, theirs = (
        jax.vmap(jax.grad(f))(x) for f in (ACTIVATIONS[name], lambda x: nn.gelu(x, approximate=approximate))
    )
    np.testing.assert_allclose(ours, theirs, atol=5e-6)
    assert ACTIVATIONS[name](x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
