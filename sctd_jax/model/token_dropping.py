"""Token dropping as pure functions: scores, kept positions, gather, merge back, importance update.

Shapes: B batch, N sequence length, K kept tokens, P predicted positions, D width, V vocabulary.
All shapes are static, all work on a batch-sharded array is row-local, and nothing knows the model.

Sources: token dropping (Hou et al., ACL 2022, section 3) and ScTD (Zhong et al., ACL 2023).
A selector is a function of `Candidates` with an entry in `SELECTORS`: the config accepts what stands there.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sctd_jax.errors import UserError

NEVER_DROP_BONUS = 1e4


def initial_importance(vocab_size: int, value: float, never_drop_ids: Sequence[int], pad_id: int) -> jax.Array:
    """Importance table f32[V] before training: `value`, +1e4 for never-drop ids, -1e4 for [PAD]."""
    table_V = jnp.full((vocab_size,), value, jnp.float32)
    table_V = table_V.at[jnp.array(never_drop_ids)].set(NEVER_DROP_BONUS)
    return table_V.at[pad_id].set(-NEVER_DROP_BONUS)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The tokens to choose from, and what a selector may score them by."""

    importance_V: jax.Array  # f32; never-drop ids have NEVER_DROP_BONUS or more
    input_ids_BN: jax.Array  # ids after masking
    mask_BN: jax.Array  # True at real tokens
    state_BND: jax.Array  # states of the tokens where dropping begins, without a gradient
    keys_B: jax.Array  # key of each row, for selectors that draw
    num_top: int  # tokens that 'importance+random' keeps by importance


def importance_scores(tokens: Candidates) -> jax.Array:
    """Score f32[B, N] of a token = the running MLM loss of its vocabulary id (Hou et al., eq. 1-2)."""
    return jnp.take(tokens.importance_V, tokens.input_ids_BN, mode="clip")


def random_scores(tokens: Candidates) -> jax.Array:
    """Score f32[B, N] uniform per row and step: the random baseline, no special token but [CLS]."""
    length = tokens.mask_BN.shape[1]
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(tokens.keys_B)


def importance_plus_random_scores(tokens: Candidates) -> jax.Array:
    """The `num_top` most important tokens first, then random ones (Model Garden's SelectTopK)."""
    top_BK = keep_highest(importance_scores(tokens), tokens.mask_BN, tokens.num_top)
    return merge(random_scores(tokens), jnp.ones(top_BK.shape, jnp.float32), top_BK)


def norm_scores(tokens: Candidates) -> jax.Array:
    """Score f32[B, N] = L2 norm of the token's state where dropping begins; never-drop ids keep their importance.

    Vector norms as a token's weight: in attention (Kobayashi et al., 2020, arXiv:2004.10102), of embeddings as the
    information in a word (Oyama et al., 2023, arXiv:2212.09663), and beside attention in dropping image tokens (Fayyaz
    et al., 2022, arXiv:2111.15667, value vectors). None of them drops by the state's norm alone. BERT's states
    are outputs of a LayerNorm: until its scale and bias are trained all norms are sqrt(D), and rounding decides.
    """
    norm_BN = jnp.linalg.norm(tokens.state_BND.astype(jnp.float32), axis=-1)
    importance_BN = importance_scores(tokens)
    return jnp.where(importance_BN >= NEVER_DROP_BONUS, importance_BN, norm_BN)


SELECTORS: dict[str, Callable[[Candidates], jax.Array]] = {
    "importance": importance_scores,
    "random": random_scores,
    "importance+random": importance_plus_random_scores,
    "norm": norm_scores,
}


def check_selector(name: str) -> None:
    """Raise UserError unless a selector has this name."""
    if name not in SELECTORS:
        raise UserError(f"config.dropping.selector must be one of {', '.join(SELECTORS)}; found {name!r}")


def keep_highest(score_BN: jax.Array, mask_BN: jax.Array, num_kept: int) -> jax.Array:
    """Positions i32[B, K] of the K highest scores of each row, ascending (text order); `num_kept` is K, static.

    Position 0 ([CLS]) is always kept and a padded position, False in `mask_BN`, is never kept before a real one,
    whatever the scores say; ties go to the lower position.
    """
    score_BN = jnp.where(mask_BN, score_BN.astype(jnp.float32), -jnp.inf)
    score_BN = score_BN.at[:, 0].set(jnp.inf)
    position_BN = jax.lax.broadcasted_iota(jnp.int32, score_BN.shape, 1)
    # A sort stays on its shard; lax.top_k on batch-sharded scores all-gathers on a CPU mesh.
    _, order_BN = jax.lax.sort((-score_BN, position_BN), num_keys=1, is_stable=True)
    return jnp.sort(order_BN[:, :num_kept], axis=1)


def all_but(at_B: jax.Array | np.ndarray, length: int) -> jax.Array:
    """Positions i32[B, N - 1] of the tokens of a row of N = `length` but the one at `at_B`, ascending."""
    position_1N = jnp.arange(length - 1)[None]
    return position_1N + (position_1N >= at_B[:, None])


def gather(x: jax.Array, positions_BK: jax.Array) -> jax.Array:
    """Rows of x[B, N, ...] at positions -> [B, K, ...]; row-local, so no collective on a sharded batch."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="promise_in_bounds"))(x, positions_BK)


def merge(x: jax.Array, kept: jax.Array, positions_BK: jax.Array) -> jax.Array:
    """x[B, N, ...] with its rows at `positions_BK` replaced by kept[B, K, ...]: back in text order."""
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="promise_in_bounds", unique_indices=True))(
        x, positions_BK, kept
    )


def importance_sums(
    vocab_size: int, target_ids_BP: jax.Array, loss_BP: jax.Array, weights_BP: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(summed MLM loss f32[V], occurrences f32[V]) of every id that was a prediction target.

    Segment sums, so that duplicates average instead of one write winning, and a sharded batch costs one
    small all-reduce. Empty prediction slots (weight 0) add nothing.
    """
    zeros_V = jnp.zeros((vocab_size,), jnp.float32)
    loss_V = zeros_V.at[target_ids_BP].add(loss_BP.astype(jnp.float32) * weights_BP)
    return loss_V, zeros_V.at[target_ids_BP].add(weights_BP)


def update_importance(
    importance_V: jax.Array, loss_V: jax.Array, count_V: jax.Array, beta: float, frozen_ids: Sequence[int]
) -> jax.Array:
    """importance[v] <- beta * importance[v] + (1 - beta) * mean loss of v in the batch (Hou et al., eq. 2).

    Ids that were no target, and `frozen_ids` (never-drop ids and [PAD]), keep their value.
    """
    moved_V = beta * importance_V + (1.0 - beta) * loss_V / jnp.maximum(count_V, 1.0)
    count_V = count_V.at[jnp.array(frozen_ids)].set(0.0)
    return jnp.where(count_V > 0, moved_V, importance_V)
