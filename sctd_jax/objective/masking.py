"""Dynamic MLM masking on the device (BERT's 80/10/10; RoBERTa, section 4.1: new masks every step).

Shapes: B batch, N sequence length, P predicted positions, V vocabulary. Everything is a pure function of
(key, global row), so masks do not depend on the mesh, the number of hosts or microbatches, or a restart.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sctd_jax import schedules
from sctd_jax.config import MaskingConfig
from sctd_jax.data.special import SpecialIds

# A pass takes the words up to one that does not fit. BERT goes on until none does; in 7,000 rows of words of 1.4 to 50
# pieces on average, 8 passes gave the same predictions in every row.
_GREEDY_PASSES = 8


@struct.dataclass
class MaskedBatch:
    """Rows that the model reads, and what it has to predict."""

    input_ids_BN: jax.Array  # ids after masking
    mask_BN: jax.Array  # True at real tokens
    positions_BP: jax.Array
    targets_BP: jax.Array  # true ids
    weights_BP: jax.Array  # f32: 1 at predictions, 0 at empty slots
    mask_id: int = struct.field(pytree_node=False)  # id of [MASK] in `input_ids_BN`


def row_keys(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    """One key per global row number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)


def rate_at(masking: MaskingConfig, step: jax.Array | int) -> jax.Array | float:
    """Share of a row's tokens that update number `step` predicts: a number in the program, of which one serves all.

    The slots P are those of the highest rate; at lower ones some stay empty and cost the last layer and the head alone.
    A falling rate is Yang et al.'s (2023, arXiv 2208.10806).
    """
    if not masking.rate_schedule:
        return masking.rate
    starts, rates = zip(*schedules.parse(masking.rate_schedule, float), strict=True)
    return jnp.array(rates, jnp.float32)[jnp.searchsorted(jnp.array(starts), step, side="right") - 1]


def mask_tokens(
    key: jax.Array,
    rows_B: jax.Array,
    tokens_BN: jax.Array,
    masking: MaskingConfig,
    *,
    special: SpecialIds,
    vocab_size: int,
    num_predicted: int,
    step: jax.Array | int = 0,
    word_start_V: jax.Array | np.ndarray | None = None,
) -> MaskedBatch:
    """Choose min(P, rate * tokens in the row) positions, at least one, and hide them.

    Args:
      key: random key of the step.
      rows_B: global row numbers, unique within the step.
      tokens_BN: packed rows, padded at the end.
      masking: share of the tokens that is predicted, and shares of those that are shown as [MASK] or as a random token.
      special: ids that are never predicted, and [MASK].
      vocab_size: V.
      num_predicted: P, static.
      step: number of the update, which a `rate_schedule` reads.
      word_start_V: bool[V], True for ids that begin a word: whole words are chosen (`_whole_words`). None: single
        tokens are chosen.
    """
    tokens_BN = tokens_BN.astype(jnp.int32)
    mask_BN = tokens_BN != special.pad
    candidate_BN = ~jnp.isin(tokens_BN, jnp.array(special.unmaskable))
    budget_B = jnp.clip(jnp.round(rate_at(masking, step) * mask_BN.sum(1)).astype(jnp.int32), 1, num_predicted)
    choose_key, show_key, random_key = (jax.random.fold_in(key, i) for i in range(3))

    score_BN = _row_uniform(choose_key, rows_B, tokens_BN.shape[1])
    if word_start_V is None:
        order_BN, count_B = _by_score(score_BN, candidate_BN)[0], jnp.minimum(budget_B, candidate_BN.sum(1))
    else:
        starts_BN = jnp.take(word_start_V, tokens_BN, mode="clip") | ~candidate_BN
        # The token after [CLS] or [SEP] starts a word whatever its spelling.
        starts_BN |= jnp.pad(~candidate_BN[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        order_BN, count_B = _whole_words(score_BN, starts_BN, candidate_BN, budget_B)
    positions_BP = order_BN[:, :num_predicted]
    chosen_BP = jax.lax.broadcasted_iota(jnp.int32, positions_BP.shape, 1) < count_B[:, None]

    targets_BP = jnp.take_along_axis(tokens_BN, positions_BP, axis=1)
    fate_BP = _row_uniform(show_key, rows_B, num_predicted)
    random_BP = _random_ordinary_ids(random_key, rows_B, num_predicted, special, vocab_size)
    shown_BP = jnp.where(fate_BP < masking.mask_share + masking.random_share, random_BP, targets_BP)
    shown_BP = jnp.where(fate_BP < masking.mask_share, special.mask, shown_BP)
    shown_BP = jnp.where(chosen_BP, shown_BP, targets_BP)
    show = jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))
    return MaskedBatch(
        input_ids_BN=show(tokens_BN, positions_BP, shown_BP),
        mask_BN=mask_BN,
        positions_BP=positions_BP,
        targets_BP=targets_BP,
        weights_BP=chosen_BP.astype(jnp.float32),
        mask_id=special.mask,
    )


def _whole_words(
    score_BN: jax.Array, starts_BN: jax.Array, candidate_BN: jax.Array, budget_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """BERT's rule: the words in random order, each taken that fits into what is left of the budget.

    Where less than half of the budget could be filled so, the rest is single pieces; otherwise only pieces of words
    that exceed the whole budget, such as those of a script without spaces, fill what is left.

    Args:
      score_BN: uniform numbers: a word has that of its number in the row, a single piece that of its position.
      starts_BN: True where a word begins.
      candidate_BN: True at tokens that may be predicted.
      budget_B: predictions that each row may have.

    Returns:
      Positions i32[B, N], those to predict first, and their number i32[B].
    """
    at_BN = jax.lax.broadcasted_iota(jnp.int32, score_BN.shape, 1)
    length = score_BN.shape[1]
    first_BN = jax.lax.cummax(jnp.where(starts_BN, at_BN, 0), axis=1)
    ends_BN = jnp.pad(starts_BN[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    last_BN = jax.lax.cummin(jnp.where(ends_BN, at_BN, length), axis=1, reverse=True)
    word_score_BN = jnp.take_along_axis(score_BN, jnp.cumsum(starts_BN, axis=1) - 1, axis=1)
    order_BN, size_BN, after_BN, candidate_BN, score_BN = _by_score(
        word_score_BN, candidate_BN, last_BN - first_BN + 1, last_BN - at_BN, candidate_BN, score_BN
    )
    budget_B1 = budget_B[:, None]

    def take_prefix(_, taken_BN):
        """Words up to the first that does not fit. One that is too long now stays so: what is left only shrinks."""
        left_B1 = budget_B1 - taken_BN.sum(1, keepdims=True)
        fits_BN = candidate_BN & ~taken_BN & (size_BN <= left_B1)
        return taken_BN | (fits_BN & (jnp.cumsum(fits_BN, axis=1) + after_BN <= left_B1))

    taken_BN = jax.lax.fori_loop(0, _GREEDY_PASSES, take_prefix, jnp.zeros_like(candidate_BN))
    taken_B1 = taken_BN.sum(1, keepdims=True)
    pieces_BN = candidate_BN & ~taken_BN & ((size_BN > budget_B1) | (2 * taken_B1 < budget_B1))
    # Words in their order before single pieces in theirs before the rest.
    rank_BN = jnp.where(taken_BN, -1.0, jnp.where(pieces_BN, score_BN, 2.0))
    _, order_BN = jax.lax.sort((rank_BN, order_BN), num_keys=1, is_stable=True)
    return order_BN, jnp.minimum(budget_B, (taken_BN | pieces_BN).sum(1))


def _by_score(score_BN: jax.Array, candidate_BN: jax.Array, *others_BN: jax.Array) -> tuple[jax.Array, ...]:
    """Positions by ascending score, candidates first, and other arrays in that order."""
    position_BN = jax.lax.broadcasted_iota(jnp.int32, score_BN.shape, 1)
    score_BN = jnp.where(candidate_BN, score_BN, 2.0)
    return jax.lax.sort((score_BN, position_BN, *others_BN), num_keys=1, is_stable=True)[1:]


def _row_uniform(key: jax.Array, rows_B: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda row_key: jax.random.uniform(row_key, (count,)))(row_keys(key, rows_B))


def _random_ordinary_ids(
    key: jax.Array, rows_B: jax.Array, count: int, special: SpecialIds, vocab_size: int
) -> jax.Array:
    """Uniform over the vocabulary without the special ids, wherever those lie."""
    special_ids: Sequence[int] = sorted(special.frozen)
    draw = jax.vmap(lambda row_key: jax.random.randint(row_key, (count,), 0, vocab_size - len(special_ids)))
    ids_BP = draw(row_keys(key, rows_B))
    for special_id in special_ids:  # ascending: each shifts the ids at and above it by one
        ids_BP = ids_BP + (ids_BP >= special_id)
    return ids_BP
