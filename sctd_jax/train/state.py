"""State that a run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sctd_jax.config import OptimizerConfig
from sctd_jax.train.optimizer import make_optimizer


@struct.dataclass
class TrainState:
    """Saved and restored as a whole."""

    step: jax.Array  # i32: updates tried so far
    params: Any
    opt_state: Any
    importance_V: jax.Array | None  # f32, never trained by gradient; None in fine-tuning
    key: jax.Array  # the run's; every random number is a fold_in of it
    skipped: jax.Array  # i32: steps left out because the loss or a gradient was not finite


def first_state(
    params: Any, optimizer: OptimizerConfig, key: jax.Array, importance_V: jax.Array | None = None
) -> TrainState:
    """State before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, make_optimizer(optimizer).init(params), importance_V, key, zero)
