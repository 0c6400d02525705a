import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.objective.masking import mask_tokens
from tests.helpers import SPECIAL, random_rows

KEY = jax.random.key(3)
SETTINGS = {
    "special": SPECIAL, "vocab_size": 512, "num_predicted": 5, "rate": 0.15, "mask_share": 0.8, "random_share": 0.1
}  # fmt: skip


def mask(tokens, rows=None, key=KEY, **changes):
    rows = jnp.arange(len(tokens)) if rows is None else jnp.asarray(rows)
    return mask_tokens(key, rows, tokens, **{**SETTINGS, **changes})


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
    batch = mask(tokens, special=special, mask_share=0.0, random_share=1.0, vocab_size=110)
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


def words_of(row):
    """Spans of words: a special token and whatever follows it begin a new one."""
    words, previous_special = [], True
    for position, token in enumerate(row):
        special = token in SPECIAL.unmaskable
        if special or token < 256 or previous_special:
            words.append([])
        words[-1].append(position)
        previous_special = special
    return words


def test_whole_words_are_chosen_together_and_within_the_budget(word_start):
    tokens = random_rows(200, seed=5)
    batch = mask(tokens, word_start_V=word_start)
    counts = []
    for row, positions, weights in zip(*map(np.asarray, (tokens, batch.positions_BP, batch.weights_BP)), strict=True):
        chosen = {int(p) for p, w in zip(positions, weights, strict=True) if w}
        counts.append(len(chosen))
        for word in words_of(row):
            assert set(word) <= chosen or not set(word) & chosen
    assert max(counts) == 5
    assert np.mean(counts) > 4


def test_a_word_longer_than_the_budget_is_never_cut(word_start):
    tokens = random_rows(1).at[0, 1:31].set(300)  # one word of thirty pieces
    batch = mask(tokens, word_start_V=word_start)
    assert batch.weights_BP.sum() == 0
    np.testing.assert_array_equal(batch.input_ids_BN, tokens)
