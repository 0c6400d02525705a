"""Dropout and GELU, written so that a step spends little time and memory on them.

Shapes: B rows, `...` anything.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def keep_mask(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """bool[B, ...]: each True with probability 1 - `rate`, a hash of the key, the row and the position in it.

    A pure function of the index, so it fuses into its neighbours in the forward and again in the backward pass: no
    random bits are stored, and on a sharded batch each device makes its own. Threefry's took a tenth of a CPU step.
    The mixing function is C. Wellons' `lowbias32` (nullprogram.com/blog/2018/07/31), twice with a key word each.
    """
    words_B2 = jax.random.bits(key, (shape[0], 2), jnp.uint32)
    first, second = (words_B2[:, i].reshape(-1, *[1] * (len(shape) - 1)) for i in range(2))
    # One iota for each axis: libtpu's compiler makes a slow program, or none, of a long one that is reshaped.
    position, stride = jnp.zeros((1, *shape[1:]), jnp.uint32), 1
    for axis in reversed(range(1, len(shape))):
        position += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, position.shape, axis)
        stride *= shape[axis]
    return _mix(_mix(position ^ first) ^ second) >= jnp.uint32(round(rate * 2**32))


def _mix(x: jax.Array) -> jax.Array:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Array with each element set to 0 with probability `rate`, and scaled by 1 / (1 - rate) otherwise."""
    return jnp.where(keep_mask(key, x.shape, rate), x / (1 - rate), jnp.zeros_like(x))


class Dropout(nn.Module):
    """`flax.linen.Dropout` with `keep_mask`; draws from the `dropout` rng."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """`dropout`, or x itself."""
        if deterministic or self.rate == 0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)


def _saving_the_slope(value_and_slope: Callable) -> Callable:
    """A function of one array whose backward pass multiplies by a slope that the forward pass has left.

    Autodiff leaves several arrays instead, and XLA computes erf or tanh a second time from them.
    """
    function = jax.custom_vjp(lambda x: value_and_slope(x)[0])
    function.defvjp(value_and_slope, lambda slope, g: (g * slope,))
    return function


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    cdf = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return x * cdf, cdf + x * density


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    scale, cubic = math.sqrt(2.0 / math.pi), 0.044715
    t = jnp.tanh(scale * (x + cubic * x * x * x))
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * scale * (1.0 + 3.0 * cubic * x * x)
    return 0.5 * x * (1.0 + t), slope


# GELU (Hendrycks & Gimpel, 2016): by erf as BERT and transformers have it, by tanh as Model Garden.
ACTIVATIONS = {"gelu": _saving_the_slope(_gelu), "gelu_tanh": _saving_the_slope(_gelu_tanh)}
