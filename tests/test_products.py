"""Products in bfloat16 stay in bfloat16 in the backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.model.products import einsum_to_f32
from sctd_jax.pretrain.model import initial_state
from sctd_jax.pretrain.step import make_train_step
from tests import helpers


def products(jaxpr):
    """(operand types, result type) of every matrix product in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(str(x.aval.dtype) for x in equation.invars), str(equation.outvars[0].aval.dtype)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from products(getattr(inner, "jaxpr", inner))


MODERNBERT = {"model__family": "modernbert", "model__type_vocab_size": 1, "model__global_every": 2,
              "model__local_attention": 8}  # fmt: skip


@pytest.mark.parametrize("overrides", [{}, {"model__remat": "attention"}, MODERNBERT])
def test_no_product_of_a_bfloat16_step_has_a_float32_operand(overrides):
    config = helpers.settled(helpers.config(model__dtype="bfloat16", **helpers.DROPOUT, **overrides))
    tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.seq_len), jnp.int32)
    state = jax.eval_shape(lambda: initial_state(config, helpers.SPECIAL))
    found = list(products(jax.make_jaxpr(make_train_step(config, helpers.SPECIAL, "consistency"))(state, tokens).jaxpr))
    assert {operands for operands, _ in found} == {("bfloat16", "bfloat16")}
    assert {result for _, result in found} == {"bfloat16", "float32"}  # float32: scores and logits


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_value_and_gradient_are_those_of_float64(dtype, tolerance):
    rng = np.random.default_rng(0)
    x, y, weights = (rng.standard_normal(shape) for shape in ((3, 7, 16), (11, 16), (3, 7, 11)))
    x, y = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in (x, y))

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def ours(x, y):
        out = einsum_to_f32("bpd,vd->bpv", x, y)
        assert out.dtype == jnp.float32
        return jnp.sum(out * weights.astype(np.float32))

    value, gradients = ours(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    # The value is not rounded to the type: its sums are of float32.
    np.testing.assert_allclose(value, (x @ y.T * weights).sum(), rtol=1e-5)
    for ours, expected in zip(gradients, (weights @ y, np.einsum("bpv,bpd->vd", weights, x)), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance * 4)


def test_in_float32_all_is_bit_for_bit_what_autodiff_gives():
    shapes = ((3, 7, 16), (11, 16), (3, 7, 11))
    x, y, weights = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))

    def numbers(product):
        loss = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(weights * product("bpd,vd->bpv", x, y)), argnums=(0, 1)))
        return jax.tree.leaves(loss(x, y))

    for ours, theirs in zip(numbers(einsum_to_f32), numbers(jnp.einsum), strict=True):
        np.testing.assert_array_equal(ours, theirs)
