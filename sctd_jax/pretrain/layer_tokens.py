"""Layer-tokens: how many tokens the layers of a run see, and the learning rate by them.

Yao et al. (2022, arXiv 2211.11586) let a schedule go by the sum of the tokens that each layer has consumed, so that a
step that drops many of them does not use up as much of it as a step of all (their LayerToken learning rate).
"""

import jax
import jax.numpy as jnp

from sctd_jax.config import Config
from sctd_jax.pretrain.counts import variant_counts
from sctd_jax.train.optimizer import learning_rate


def step_layer_tokens(config: Config, variant: str) -> int:
    """Tokens that the layers see in one step of a `step.Variant` on the global batch, summed over layers and passes.

    A dropping layer counts the K that come out of it, and the last layer all N, whose keys and values it reads.
    """
    length, layers = config.data.seq_len, config.model.num_layers
    first, full = config.drop_layers[0], length * layers
    tokens = full
    if variant == "late":
        tokens = config.num_visible * first + length * (layers - first)
    if variant in ("drop", "consistency"):
        tokens -= sum(length - kept for kept in config.kept_by_layer)
    if variant == "consistency":
        tokens += full - (length * first if config.dropping.sc_share_prefix else 0)
    return tokens * config.train.batch_size


def progress(config: Config, step: jax.Array | int) -> jax.Array:
    """Share f32 of a run's layer-tokens that the updates before number `step` see; 1 after the last one.

    A pure function of the step, by formula for each stage of the run's schedules: a resumed run goes on in it exactly.
    """
    return _seen(config, step) / _seen(config, config.train.steps)


def rate_at(config: Config, step: jax.Array | int) -> jax.Array:
    """Learning rate of update number `step` of a run; `config` is the whole run's, with its schedules."""
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.schedule_by == "layer_tokens":
        return learning_rate(optimizer, steps, steps * progress(config, step))
    return learning_rate(optimizer, steps, step)


def _seen(config: Config, step: jax.Array | int) -> jax.Array:
    total = jnp.zeros((), jnp.float32)
    for start, end, stage in config.stages(config.train.steps):
        counts = variant_counts(config, start, end, step)
        total += sum(count * float(step_layer_tokens(stage, variant)) for variant, count in counts.items())
    return total
