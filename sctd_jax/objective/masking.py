"""Dynamic MLM masking on the device (BERT's 80/10/10; RoBERTa, section 4.1: new masks every step).

Shapes: B batch, N sequence length, P predicted positions, V vocabulary. Everything is a pure function of
(key, global row), so masks do not depend on the mesh, the number of hosts or microbatches, or a restart.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class MaskedBatch:
    """What the model reads and what it has to predict."""

    input_ids_BN: jax.Array  # after masking
    mask_BN: jax.Array  # True at real tokens
    positions_BP: jax.Array
    targets_BP: jax.Array  # true ids
    weights_BP: jax.Array  # f32: 1 at predictions, 0 at empty slots


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids that masking and dropping treat apart."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @property
    def never_drop(self) -> tuple[int, ...]:
        """Ids that importance always keeps (SPEC 2)."""
        return (self.cls, self.sep, self.mask, self.unk)

    @property
    def frozen(self) -> tuple[int, ...]:
        """Ids whose importance never moves."""
        return (*self.never_drop, self.pad)

    @property
    def unmaskable(self) -> tuple[int, ...]:
        """Ids that are no prediction target; [UNK] stands for a word and is one."""
        return (self.pad, self.cls, self.sep, self.mask)


def row_keys(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    """One key per global row number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)


def mask_tokens(
    key: jax.Array,
    rows_B: jax.Array,
    tokens_BN: jax.Array,
    *,
    special: SpecialIds,
    vocab_size: int,
    num_predicted: int,
    rate: float,
    mask_share: float,
    random_share: float,
    word_start_V: jax.Array | None = None,
) -> MaskedBatch:
    """Choose min(P, rate * tokens in the row) positions and hide them.

    Args:
      key: of the step.
      rows_B: global row numbers, unique within the step.
      tokens_BN: packed rows, padded at the end.
      special: ids that are never predicted, and [MASK].
      vocab_size: V.
      num_predicted: P, static.
      rate: share of a row's real tokens to predict (at least one).
      mask_share: of the predicted positions, shown as [MASK].
      random_share: of the predicted positions, shown as a random ordinary id; the rest is unchanged.
      word_start_V: bool[V], True for ids that begin a word: whole words are chosen, and a word that would
        exceed the number of predictions is left out. None: single tokens are chosen.
    """
    tokens_BN = tokens_BN.astype(jnp.int32)
    mask_BN = tokens_BN != special.pad
    candidate_BN = ~jnp.isin(tokens_BN, jnp.array(special.unmaskable))
    budget_B = jnp.clip(jnp.round(rate * mask_BN.sum(1)).astype(jnp.int32), 1, num_predicted)
    choose_key, show_key, random_key = (jax.random.fold_in(key, i) for i in range(3))

    score_BN = _row_uniform(choose_key, rows_B, tokens_BN.shape[1])
    if word_start_V is None:
        word_BN = jax.lax.broadcasted_iota(jnp.int32, tokens_BN.shape, 1)
    else:
        starts_BN = jnp.take(word_start_V, tokens_BN, mode="clip") | ~candidate_BN
        # The token after [CLS] or [SEP] starts a word whatever its spelling.
        starts_BN |= jnp.pad(~candidate_BN[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        word_BN = jnp.cumsum(starts_BN, axis=1) - 1
    score_BN = jnp.where(candidate_BN, jnp.take_along_axis(score_BN, word_BN, axis=1), 2.0)
    positions_BP, chosen_BP = _take(score_BN, word_BN, candidate_BN, budget_B, num_predicted)

    targets_BP = jnp.take_along_axis(tokens_BN, positions_BP, axis=1)
    fate_BP = _row_uniform(show_key, rows_B, num_predicted)
    random_BP = _random_ordinary_ids(random_key, rows_B, num_predicted, special, vocab_size)
    shown_BP = jnp.where(fate_BP < mask_share + random_share, random_BP, targets_BP)
    shown_BP = jnp.where(fate_BP < mask_share, special.mask, shown_BP)
    shown_BP = jnp.where(chosen_BP, shown_BP, targets_BP)
    show = jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))
    return MaskedBatch(
        input_ids_BN=show(tokens_BN, positions_BP, shown_BP),
        mask_BN=mask_BN,
        positions_BP=positions_BP,
        targets_BP=targets_BP,
        weights_BP=chosen_BP.astype(jnp.float32),
    )


def _take(
    score_BN: jax.Array, word_BN: jax.Array, candidate_BN: jax.Array, budget_B: jax.Array, num_predicted: int
) -> tuple[jax.Array, jax.Array]:
    """The P lowest scores: their positions, and which of them are predictions (whole words in budget)."""
    position_BN = jax.lax.broadcasted_iota(jnp.int32, score_BN.shape, 1)
    _, order_BN = jax.lax.sort((score_BN, position_BN), num_keys=1, is_stable=True)
    word_in_order_BN = jnp.take_along_axis(word_BN, order_BN, axis=1)
    slot_BN = position_BN
    # A word fits if the slot of its last token is inside the budget: the next slot holds another word.
    ends_BN = jnp.pad(word_in_order_BN[:, 1:] != word_in_order_BN[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    in_budget_BN = ends_BN & (slot_BN < budget_B[:, None])
    last_slot_B = jnp.max(jnp.where(in_budget_BN, slot_BN, -1), axis=1)
    chosen_BN = (slot_BN <= last_slot_B[:, None]) & jnp.take_along_axis(candidate_BN, order_BN, axis=1)
    return order_BN[:, :num_predicted], chosen_BN[:, :num_predicted]


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
