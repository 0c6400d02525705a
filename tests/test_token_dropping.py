import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.errors import UserError
from sctd_jax.model import token_dropping as td
from tests.helpers import SPECIAL, candidates, random_rows


def table(vocab_size=512):
    return td.initial_importance(vocab_size, 10.0, SPECIAL.never_drop, SPECIAL.pad)


def keys(count):
    return jax.random.split(jax.random.key(7), count)


def test_initial_table():
    table_V = np.asarray(table())
    assert table_V.dtype == np.float32
    assert (table_V[5:] == 10).all()
    assert (table_V[list(SPECIAL.never_drop)] == 1e4).all()
    assert table_V[SPECIAL.pad] == -1e4


def test_kept_are_the_highest_in_text_order_and_ties_go_to_the_lower_position():
    score = jnp.array([[0.0, 5.0, 1.0, 5.0, 9.0, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    kept = td.keep_highest(score, jnp.ones((2, 6), bool), 4)
    np.testing.assert_array_equal(kept, [[0, 1, 3, 4], [0, 1, 2, 3]])


def test_padding_is_never_kept_before_a_real_token():
    """docs/method.md 9.2: here the pads have the highest scores, as in ScTD's code and Model Garden after its drift."""
    mask = jnp.arange(8)[None] < jnp.array([[5], [3]])
    score = jnp.where(mask, 1.0, 1e4)
    kept = td.keep_highest(score, mask, 4)
    np.testing.assert_array_equal(kept, [[0, 1, 2, 3], [0, 1, 2, 3]])  # the second row has only three words


def test_cls_is_kept_when_special_tokens_exceed_k():
    """docs/method.md 9.10."""
    ids = jnp.full((1, 16), SPECIAL.sep).at[0, 0].set(SPECIAL.cls)
    score = td.importance_scores(candidates(table(), ids))
    np.testing.assert_array_equal(td.keep_highest(score, ids > 0, 4), [[0, 1, 2, 3]])
    lower = td.keep_highest(jnp.arange(16.0)[None], ids > 0, 4)
    np.testing.assert_array_equal(lower, [[0, 13, 14, 15]])


def test_importance_keeps_every_mask_token():
    ids = random_rows(3).at[:, 20:25].set(SPECIAL.mask)
    score = td.importance_scores(candidates(table(), ids))
    kept = np.asarray(td.keep_highest(score, ids > 0, 10))
    assert all(set(range(20, 25)) | {0, 31} <= set(row) for row in kept)


def test_random_selector_is_uniform_and_a_function_of_the_row_key():
    ids = random_rows(400, seed=1).at[:, 20:25].set(SPECIAL.mask)
    score = td.random_scores(candidates(table(), ids, keys_B=keys(400)))
    kept = np.asarray(td.keep_highest(score, ids > 0, 16))
    share = np.bincount(kept.ravel(), minlength=32) / 400
    assert share[0] == 1
    np.testing.assert_allclose(share[1:], 15 / 31, atol=0.1)  # [MASK] and [SEP] have no privilege
    again = td.random_scores(candidates(table(), ids[5:9], keys_B=keys(400)[5:9]))
    np.testing.assert_array_equal(score[5:9], again)


def test_mixed_selector_takes_the_top_and_fills_up_at_random():
    ids = random_rows(200, seed=2)
    importance = jnp.arange(512.0)
    score = td.importance_plus_random_scores(candidates(importance, ids, keys_B=keys(200), num_top=8))
    kept = np.asarray(td.keep_highest(score, ids > 0, 16))
    top = np.asarray(td.keep_highest(importance[ids], ids > 0, 8))
    assert all(set(t) <= set(k) for t, k in zip(top, kept, strict=True))
    others = np.concatenate([sorted(set(k) - set(t)) for t, k in zip(top, kept, strict=True)])
    assert len(others) == 200 * 8
    assert np.bincount(others, minlength=32)[1:].min() > 20


def test_norm_keeps_the_longest_states_and_what_is_never_dropped():
    ids = random_rows(6, seed=3, pad=True).at[:, 4:6].set(SPECIAL.mask)
    state = np.random.default_rng(0).standard_normal((6, 32, 8)).astype(np.float32)
    score = td.norm_scores(candidates(table(), ids, state_BND=jnp.asarray(state)))
    kept = np.asarray(td.keep_highest(score, ids > 0, 12))
    norms = np.sqrt((state.astype(np.float64) ** 2).sum(-1))
    for row, row_ids in enumerate(np.asarray(ids)):
        rank = np.where(np.isin(row_ids, SPECIAL.never_drop), np.inf, norms[row])
        rank[row_ids == SPECIAL.pad] = -np.inf
        assert set(kept[row]) == set(np.argsort(-rank, kind="stable")[:12])
        assert {0, 4, 5} <= set(kept[row])
    half = td.norm_scores(candidates(table(), ids, state_BND=jnp.asarray(state, jnp.bfloat16)))
    assert half.dtype == jnp.float32  # norms of neighbours in bfloat16 would tie


def test_a_selector_that_does_not_exist_is_refused_by_name():
    with pytest.raises(UserError, match=r"dropping.selector must be one of importance, .*, norm; found 'best'"):
        td.check_selector("best")
    td.check_selector("norm")


def test_gather_and_merge_are_inverse():
    x = jax.random.normal(jax.random.key(0), (3, 10, 4))
    kept = jnp.array([[0, 2, 5], [0, 1, 2], [0, 8, 9]])
    rows = td.gather(x, kept)
    np.testing.assert_array_equal(rows[2], x[2, jnp.array([0, 8, 9])])
    np.testing.assert_array_equal(td.merge(x, rows, kept), x)
    merged = td.merge(x, rows + 1, kept)
    np.testing.assert_array_equal(merged[1, 3:], x[1, 3:])
    np.testing.assert_array_equal(merged[1, :3], x[1, :3] + 1)


def update(importance, ids, loss, weights, beta=0.9):
    sums = td.importance_sums(importance.shape[0], jnp.array(ids), jnp.array(loss), jnp.array(weights))
    return np.asarray(td.update_importance(importance, *sums, beta, SPECIAL.frozen))


def test_update_is_the_moving_mean_and_duplicates_average():
    """docs/method.md 3 and 9.4."""
    new = update(table(), [[7, 7, 9]], [[2.0, 4.0, 5.0]], [[1.0, 1.0, 1.0]])
    np.testing.assert_allclose(new[7], 0.9 * 10 + 0.1 * 3, rtol=1e-6)
    np.testing.assert_allclose(new[9], 0.9 * 10 + 0.1 * 5, rtol=1e-6)
    untouched = np.delete(np.arange(512), [7, 9])
    np.testing.assert_array_equal(new[untouched], np.asarray(table())[untouched])


def test_empty_slots_never_touch_the_table():
    """docs/method.md 9.2: Model Garden's padded slots move [PAD] (and would move any id in them)."""
    new = update(table(), [[0, 8, 0]], [[3.0, 3.0, 3.0]], [[0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(new, table())


@pytest.mark.parametrize("frozen", SPECIAL.frozen)
def test_special_ids_never_move(frozen):
    """docs/method.md 9.3: [UNK] is a legal target and decays in Model Garden."""
    new = update(table(), [[frozen]], [[3.0]], [[1.0]])
    np.testing.assert_array_equal(new, table())


def test_table_is_f32_and_moves_by_less_than_half_precision_resolves():
    """docs/method.md 9.5: in ScTD's fp16 recipe a loss of 9.95 leaves 10.0 where it is."""
    new = update(table(), [[7]], [[9.95]], [[1.0]], beta=0.95)
    assert new.dtype == np.float32
    np.testing.assert_allclose(new[7], 9.9975, rtol=1e-6)
    sums = td.importance_sums(512, jnp.array([[7]]), jnp.array([[1.0]], jnp.bfloat16), jnp.ones((1, 1)))
    assert all(x.dtype == jnp.float32 for x in sums)
