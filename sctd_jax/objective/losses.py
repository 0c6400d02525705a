"""MLM cross-entropy and semantic-consistency KL as sums over rows, and how they combine.

Shapes: B batch, R rows of a state, P predicted positions, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Sums:
    """Sums over rows of one (micro)batch; divided by global weights only in `combine`."""

    mlm: jax.Array  # cross-entropy of the pass that trains: the drop pass, or the full pass of a full step
    mlm_full: jax.Array  # cross-entropy of a consistency step's full pass; 0 where the loss has no such term
    sc_global: jax.Array  # KL at the last layer
    sc_local: jax.Array  # KL at the layer before


def cross_entropy(logits_BPV: jax.Array, targets_BP: jax.Array) -> jax.Array:
    """Cross-entropy f32[B, P] of every prediction slot, in nats."""
    logits_BPV = logits_BPV.astype(jnp.float32)
    target_logit_BP = jnp.take_along_axis(logits_BPV, targets_BP[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BPV, axis=-1) - target_logit_BP


def pool(state_BRD: jax.Array, mask_BR: jax.Array, how: str) -> jax.Array:
    """The sentence vector [B, D] of a state: its first row ([CLS]), or the 'mean' over real tokens."""
    if how == "cls":
        return state_BRD[:, 0]
    weight_BR1 = mask_BR[..., None].astype(jnp.float32)
    # A row of nothing but padding has the vector 0.
    return (state_BRD.astype(jnp.float32) * weight_BR1).sum(1) / jnp.maximum(weight_BR1.sum(1), 1.0)


def consistency_kl(full_BD: jax.Array, drop_BD: jax.Array) -> jax.Array:
    """Sum over the batch of KL(softmax(full) || softmax(drop)), softmax over D in f32 (ScTD, eq. 3-4)."""
    log_full_BD = jax.nn.log_softmax(full_BD.astype(jnp.float32))
    log_drop_BD = jax.nn.log_softmax(drop_BD.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_full_BD) * (log_full_BD - log_drop_BD))


def combine(
    sums: Sums,
    num_predictions: jax.Array,
    num_rows: int,
    *,
    consistency: bool,
    sc_weight: float,
    full_mlm: bool = True,
):
    """The step's loss (ScTD, eq. 5): means over the global batch.

    Consistency step: 1/2 MLM(drop) + 1/2 MLM(full) + lambda (SC_global + SC_local), without `full_mlm` MLM(drop) in
    the place of both halves; otherwise MLM. `sc_weight` is lambda. The sums may be a microbatch's, but
    `num_predictions` and `num_rows` are those of the *global* batch: the losses of its microbatches add up to the
    batch's.
    """
    mlm = sums.mlm / num_predictions
    if not consistency:
        return mlm
    kl = (sums.sc_global + sums.sc_local) / num_rows
    if not full_mlm:
        return mlm + sc_weight * kl
    return 0.5 * mlm + 0.5 * sums.mlm_full / num_predictions + sc_weight * kl
