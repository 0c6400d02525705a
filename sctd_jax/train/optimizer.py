"""Learning-rate schedule, AdamW or LAMB, decay by rule, clipping: optax, put together."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sctd_jax.config import Config, OptimizerConfig

# Leaf name -> decayed under decay='kernels'. Every parameter must be named here, or `decay_mask` raises.
_DECAYED = {
    "kernel": True,
    "word": True,
    "position": True,
    "segment": True,
    "bias": False,
    "scale": False,
}


def learning_rate(config: Config, step: jax.Array) -> jax.Array:
    """Rate of update number `step` (from 0): linear warm-up to the peak, then linear or cosine to 0.

    The first update has 1/warmup of the peak, the last one a rate just above 0.
    """
    optimizer, steps = config.optimizer, config.train.steps
    step = jnp.asarray(step, jnp.float32)
    warmup = (step + 1.0) / max(optimizer.warmup_steps, 1)
    left = (steps - step) / max(steps - optimizer.warmup_steps, 1)
    if optimizer.schedule == "cosine":
        left = 0.5 * (1.0 - jnp.cos(jnp.pi * jnp.clip(left, 0.0, 1.0)))
    return optimizer.learning_rate * jnp.clip(jnp.minimum(warmup, left), 0.0, 1.0)


def decay_mask(config: OptimizerConfig, params: Any) -> Any:
    """Tree of bools like `params`: which leaves weight decay touches.

    Raises:
      KeyError: a leaf has a name that no rule covers.
    """

    def rule(path, _):
        name = path[-1].key
        if name not in _DECAYED:
            raise KeyError(f"no decay rule for parameter {jax.tree_util.keystr(path)}")
        return config.decay == "all" or _DECAYED[name]

    return jax.tree_util.tree_map_with_path(rule, params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Updates before the learning rate, which the train step applies from its own step counter.

    So a skipped step moves the schedule on but not the moments, and no counter has to agree with another.
    """
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    steps.append(optax.scale_by_adam(config.beta1, config.beta2, config.eps, mu_dtype=config.mu_dtype))
    steps.append(optax.add_decayed_weights(config.weight_decay, lambda params: decay_mask(config, params)))
    if config.name == "lamb":
        steps.append(optax.scale_by_trust_ratio())
    return optax.chain(*steps)
