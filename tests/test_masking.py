import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.config import MaskingConfig
from sctd_jax.objective.masking import _row_uniform, mask_tokens
from tests.helpers import SPECIAL, random_rows

KEY = jax.random.key(3)
MASKING = MaskingConfig(rate=0.15, mask_share=0.8, random_share=0.1)
SETTINGS = {"special": SPECIAL, "vocab_size": 512, "num_predicted": 5}


def mask(tokens, rows=None, key=KEY, masking=MASKING, **changes):
    rows = jnp.arange(len(tokens)) if rows is None else jnp.asarray(rows)
    return mask_tokens(key, rows, tokens, masking, **{**SETTINGS, **changes})


def test_targets_are_the_true_ids_and_only_their_positions_change():
    tokens = random_rows(64)
    batch = mask(tokens)
    assert batch.positions_BP.shape == (64, 5)
    assert (batch.weights_BP == 1).all()
    np.testing.assert_array_equal(jnp.take_along_axis(tokens, batch.positions_BP, 1), batch.targets_BP)
    assert all(len(set(row)) == 5 for row in np.asarray(batch.positions_BP))
    at = jnp.zeros(tokens.shape, bool).at[jnp.arange(64)[:, None], batch.positions_BP].set(True)
    np.testing.assert_array_equal(jnp.where(at, 0, tokens), jnp.where(at, 0, batch.input_ids_BN))


def test_shares_of_mask_random_and_unchanged():
    batch = mask(random_rows(4000))
    shown = np.asarray(jnp.take_along_axis(batch.input_ids_BN, batch.positions_BP, 1))
    targets = np.asarray(batch.targets_BP)
    assert abs((shown == SPECIAL.mask).mean() - 0.8) < 0.01
    assert abs((shown == targets).mean() - 0.1) < 0.01
    random = shown[(shown != SPECIAL.mask) & (shown != targets)]
    assert abs(len(random) / shown.size - 0.1) < 0.01
    assert random.min() >= 5
    assert random.max() == 511


def test_random_ids_skip_specials_wherever_they_lie():
    special = type(SPECIAL)(pad=0, unk=100, cls=101, sep=102, mask=103)
    tokens = jnp.full((3000, 32), 7).at[:, 0].set(101)
    batch = mask(tokens, masking=MaskingConfig(mask_share=0.0, random_share=1.0), special=special, vocab_size=110)
    shown = np.asarray(jnp.take_along_axis(batch.input_ids_BN, batch.positions_BP, 1))
    assert set(np.unique(shown)) == set(range(110)) - {0, 100, 101, 102, 103}


def test_special_tokens_are_no_targets_and_short_rows_have_empty_slots():
    """Row i has 32 - 3 i tokens; 15% of them, at least one, are predicted."""
    tokens = random_rows(10, pad=True)
    batch = mask(tokens)
    lengths = 32 - 3 * np.arange(10)
    np.testing.assert_array_equal(batch.weights_BP.sum(1), np.clip(np.round(0.15 * lengths), 1, 5))
    chosen = np.asarray(batch.targets_BP)[np.asarray(batch.weights_BP) == 1]
    assert not set(chosen) & set(SPECIAL.unmaskable)
    np.testing.assert_array_equal(batch.mask_BN, tokens != SPECIAL.pad)


def test_unk_can_be_predicted_and_a_row_without_words_predicts_nothing():
    tokens = random_rows(2).at[0, 1:31].set(SPECIAL.unk).at[1, 1:31].set(SPECIAL.sep)
    batch = mask(tokens)
    assert (batch.targets_BP[0] == SPECIAL.unk).all()
    np.testing.assert_array_equal(batch.weights_BP.sum(1), [5, 0])
    np.testing.assert_array_equal(batch.input_ids_BN[1], tokens[1])


def test_masks_are_a_function_of_key_and_global_row():
    tokens = random_rows(8)
    whole = mask(tokens)
    parts = [mask(tokens[i : i + 4], rows=range(i, i + 4)) for i in (0, 4)]
    for name in ("input_ids_BN", "positions_BP", "targets_BP", "weights_BP"):
        both = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(whole, name), both)
    other = mask(tokens, key=jax.random.key(4))
    assert (other.positions_BP != whole.positions_BP).any()


@pytest.fixture
def word_start():
    """Ids below 256 begin a word."""
    return jnp.arange(512) < 256


def words_of(row, starts):
    """Spans of words: a special token and whatever follows it begin a new one."""
    words, previous_special = [], True
    for position, token in enumerate(row):
        special = token in SPECIAL.unmaskable
        if special or token < starts or previous_special:
            words.append([])
        words[-1].append(position)
        previous_special = special
    return words


def chosen_in_order(batch):
    """Predicted positions of each row in the order of their slots."""
    for positions, weights in zip(*map(np.asarray, (batch.positions_BP, batch.weights_BP)), strict=True):
        yield positions[weights == 1].tolist()


@pytest.mark.parametrize("starts", [256, 64, 24])  # of 512 ids: words of 2, 8 and 20 pieces on average
def test_whole_words_are_berts_and_single_pieces_fill_up_only_where_words_cannot(starts):
    """BERT's rule one word after the other: one that does not fit is passed over, and the next is tried."""
    tokens, budget = random_rows(200, length=64, seed=5), 10
    batch = mask(tokens, word_start_V=jnp.arange(512) < starts, num_predicted=budget)
    score_BN = _row_uniform(jax.random.fold_in(KEY, 0), jnp.arange(200), 64)
    for row, score, chosen in zip(np.asarray(tokens), np.asarray(score_BN), chosen_in_order(batch), strict=True):
        words, expected = words_of(row, starts), []
        by_score = [word for _, word in sorted(zip(score, words, strict=False)) if row[word[0]] >= 5]
        for word in by_score:
            expected += word if len(word) <= budget - len(expected) else []
        assert chosen[: len(expected)] == expected
        passed_over = {position for word in by_score if len(word) > budget for position in word}
        if 2 * len(expected) < budget:
            passed_over = {position for word in by_score for position in word}
        added = chosen[len(expected) :]
        assert set(added) <= passed_over - set(expected)
        assert len(chosen) == min(budget, len(expected) + len(passed_over - set(expected)))


def test_text_without_spaces_is_masked_piece_by_piece(word_start):
    """Words longer than the budget: the predictions are those of single tokens."""
    tokens = random_rows(8).at[:, 1:31].set(300)  # thirty pieces
    whole, single = mask(tokens, word_start_V=word_start), mask(tokens)
    jax.tree.map(np.testing.assert_array_equal, whole, single)
    assert (whole.weights_BP == 1).all()
    beside = mask(tokens.at[:, 25:31].set(200), word_start_V=word_start)  # words that fit come before their pieces
    assert all(min(chosen) >= 25 for chosen in chosen_in_order(beside))


def test_short_rows_have_a_prediction_whatever_their_words(word_start):
    """Rows of 3 to 10 tokens, each one word between [CLS] and [SEP]."""
    at, last = jnp.arange(32)[None], jnp.arange(2, 10)[:, None]
    tokens = jnp.where(at > last, SPECIAL.pad, jnp.where(at == last, SPECIAL.sep, 300)).at[:, 0].set(SPECIAL.cls)
    batch = mask(tokens, word_start_V=word_start)
    np.testing.assert_array_equal(batch.weights_BP.sum(1), [1] * 7 + [2])
