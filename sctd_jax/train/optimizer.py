"""Learning-rate schedule, AdamW, LAMB, Muon or StableAdamW, decay by rule, clipping: optax, put together."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from sctd_jax.config import OptimizerConfig

# Leaf name -> decayed under decay='kernels'. Every parameter must be named here, or `decay_mask` raises.
_DECAYED = {
    "kernel": True,
    "word": True,
    "position": True,
    "segment": True,
    "bias": False,
    "scale": False,
}
# Root mean square of an update of Muon, whatever the matrix's shape: that of AdamW's, so that both have one rate.
_MUON_RMS = 0.2


def learning_rate(optimizer: OptimizerConfig, steps: int, step: jax.Array | int) -> jax.Array:
    """Rate of update number `step` (from 0) of `steps`: linear warm-up to the peak, then linear or cosine to 0.

    'wsd' stays at the peak and falls in the last `decay_steps` alone (Hu et al., 2024, arXiv 2404.06395), linearly or
    by 1 - sqrt(share of them that is done) (Haegele et al., 2024, arXiv 2405.18392). The first update has 1/warmup of
    the peak, the last one a rate just above 0.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = (step + 1.0) / max(optimizer.warmup_steps, 1)
    falls = optimizer.decay_steps if optimizer.schedule == "wsd" else steps - optimizer.warmup_steps
    left = (steps - step) / max(falls, 1)
    if optimizer.schedule == "wsd" and optimizer.decay_shape == "1-sqrt":
        left = 1.0 - jnp.sqrt(jnp.clip(1.0 - left, 0.0, 1.0))
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
    decay = optax.add_decayed_weights(config.weight_decay, lambda params: decay_mask(config, params))
    match config.name:
        case "muon":
            parts = {"muon": _scale_by_muon(config), "adamw": _scale_by_adam(config)}
            steps += [optax.partition(parts, _muon_or_adamw), decay]
        case "stable_adamw":
            steps.append(_scale_by_stable_adamw(config, decay))
        case _:
            steps += [_scale_by_adam(config), decay]
    if config.name == "lamb":
        steps.append(_scale_by_trust_ratio(config))
    return optax.chain(*steps)


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's m / (sqrt(v) + eps), `eps` added to sqrt(v) after or before the correction of its bias.

    Before it is Kingma and Ba's "epsilon hat" (section 2), as in Keras and fairseq: the same as eps / sqrt(1 - beta2^t)
    after it, so that the state is the same too.
    """

    def adam(eps):
        return optax.scale_by_adam(config.beta1, config.beta2, eps, mu_dtype=config.mu_dtype)

    if config.eps_place == "after_correction":
        return adam(config.eps)

    def update(updates, state, params=None):
        eps = config.eps / jnp.sqrt(1.0 - config.beta2 ** (state.count + 1.0))
        return adam(eps).update(updates, state, params)

    return optax.GradientTransformation(adam(config.eps).init, update)


def _scale_by_trust_ratio(config: OptimizerConfig) -> optax.GradientTransformation:
    """LAMB's layer-wise rate (You et al., ICLR 2020) of the leaves that decay, as in its code.

    Biases, which start at 0, and LayerNorms would hardly move otherwise.
    """
    # `optax.masked` would make the state another tree than that of older runs.
    adapted = optax.scale_by_trust_ratio()

    def update(updates, state, params=None):
        scaled, state = adapted.update(updates, state, params)
        return jax.tree.map(lambda on, a, b: a if on else b, decay_mask(config, params), scaled, updates), state

    return optax.GradientTransformation(adapted.init, update)


def _muon_or_adamw(params: Any) -> Any:
    """Tree like `params` of 'muon' at matrices, and 'adamw' at embeddings, which are the decoder too, and vectors."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if path[-1].key == "kernel" else "adamw", params)


def muon_dimensions(params: Any) -> Any:
    """Tree like `params`, or a part of it, with the axes of each kernel that are the matrix's rows and columns.

    Attention's kernels have the heads apart, [D, H, D/H] and for its output [H, D/H, D], and are one D x D matrix.

    Raises:
      KeyError: a kernel has a shape and name that no rule covers.
    """

    def rule(path, kernel):
        if kernel.ndim == 2:
            return optax.contrib.MuonDimensionNumbers(0, 1)
        if kernel.ndim == 3 and path[-2].key in ("query", "key", "value"):
            return optax.contrib.MuonDimensionNumbers(0, (1, 2))
        if kernel.ndim == 3 and path[-2].key == "output":
            return optax.contrib.MuonDimensionNumbers((0, 1), 2)
        raise KeyError(f"no rule of Muon for parameter {jax.tree_util.keystr(path)} {kernel.shape}")

    return jax.tree_util.tree_map_with_path(rule, params)


def _scale_by_muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) with updates as large as AdamW's (Liu et al., 2025, arXiv 2502.16982, section 2.2)."""
    muon = optax.contrib.scale_by_muon(
        beta=config.muon_beta, mu_dtype=config.mu_dtype, weight_dimension_numbers=muon_dimensions
    )

    def update(updates, state, params=None):
        def scaled(update, axes):
            rows, columns = (math.prod(update.shape[i] for i in np.atleast_1d(side)) for side in axes)
            return _MUON_RMS * math.sqrt(max(rows, columns)) * update

        updates, state = muon.update(updates, state, params)
        return jax.tree.map(scaled, updates, muon_dimensions(updates)), state

    return optax.GradientTransformation(muon.init, update)


def _scale_by_stable_adamw(
    config: OptimizerConfig, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    """AdamW whose rate of a leaf is divided by RMS = sqrt(mean(g^2 / v)) where that exceeds 1.

    So a gradient that its second moment has not seen coming moves no leaf far (Wortsman et al., 2023, arXiv 2304.13013,
    algorithm 2: StableAdamW; the clipping is Adafactor's). The state is AdamW's.
    """
    adam = _scale_by_adam(config)

    def update(grads, state, params=None):
        updates, state = adam.update(grads, state, params)
        updates, _ = decay.update(updates, decay.init(params), params)
        correction = 1.0 - config.beta2 ** state.count.astype(jnp.float32)

        def calmed(update, grad, nu):
            rms = jnp.sqrt(jnp.mean(jnp.square(grad) / jnp.maximum(nu / correction, config.eps**2)))
            return update / jnp.maximum(1.0, rms)

        return jax.tree.map(calmed, updates, grads, state.nu), state

    return optax.GradientTransformation(adam.init, update)
