"""Layers of which every family's modules are made."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from sctd_jax.config import ModelConfig


def kernel_init(config: ModelConfig, scale: float = 1.0) -> Callable:
    """Normal weights of standard deviation `initializer_range` x scale, cut at two of them."""
    return nn.initializers.truncated_normal(config.initializer_range * scale)


def dense(config: ModelConfig, features: int, name: str, *, use_bias: bool = True, scale: float = 1.0) -> nn.Dense:
    """Linear map of the last axis; `scale` is that of `kernel_init`."""
    return nn.Dense(features, use_bias, dtype=config.dtype, kernel_init=kernel_init(config, scale), name=name)


def layer_norm(config: ModelConfig, name: str | None = None, *, use_bias: bool = True) -> nn.LayerNorm:
    """LayerNorm in float32, with the two-pass variance: E[x^2] - E[x]^2 loses digits where BERT's epsilon is 1e-12."""
    return nn.LayerNorm(config.layer_norm_eps, dtype=jnp.float32, use_bias=use_bias, use_fast_variance=False, name=name)
