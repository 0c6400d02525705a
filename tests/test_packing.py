import itertools

import numpy as np
import pytest

from sctd_jax.data.packing import Packer
from sctd_jax.data.special import SpecialIds

PAD, CLS, SEP = 0, 2, 3


def pack(documents, length, pieces=1):
    """Rows of documents, each given to the packer in `pieces` parts."""
    packer, rows = Packer(length, SpecialIds(pad=PAD, unk=1, cls=CLS, sep=SEP, mask=4)), []
    for number, document in enumerate(documents):
        for part in np.array_split(np.array(document, np.int32), pieces):
            packer.add(part, number)
            rows += [*packer.full()]
    return np.array([*rows, *packer.finish()])


def test_documents_run_on_and_only_the_last_row_is_padded():
    rows = pack([[11, 12, 13], [21, 22, 23, 24, 25]], 7)
    np.testing.assert_array_equal(rows, [[2, 11, 12, 13, 3, 21, 3], [2, 22, 23, 24, 25, 3, 0]])


def test_a_document_that_ends_where_the_row_does_is_closed_once():
    rows = pack([[11, 12, 13], [21, 22]], 5)
    np.testing.assert_array_equal(rows, [[2, 11, 12, 13, 3], [2, 21, 22, 3, 0]])


def test_nothing_gives_no_row():
    assert len(pack([], 8)) == 0


def test_rows_do_not_depend_on_when_the_full_ones_are_taken():
    packer, rng = Packer(9, SpecialIds(pad=PAD, unk=1, cls=CLS, sep=SEP, mask=4)), np.random.default_rng(0)
    documents = [rng.integers(10, 99, size) for size in rng.integers(1, 30, 40)]
    for number, document in enumerate(documents):
        packer.add(document.astype(np.int32), number)
    np.testing.assert_array_equal(packer.finish(), pack(documents, 9))


@pytest.mark.parametrize("length", [5, 8, 33])
@pytest.mark.parametrize("pieces", [1, 3])
def test_no_token_is_lost_repeated_or_reordered(length, pieces):
    rng = np.random.default_rng(length)
    documents = [list(range(1000 * i + 10, 1000 * i + 10 + n)) for i, n in enumerate(rng.integers(1, 40, size=50))]
    rows = pack(documents, length, pieces)
    np.testing.assert_array_equal(rows, pack(documents, length))
    flat = [token for row in rows for token in row if token not in (PAD, CLS, SEP)]
    assert flat == [token for document in documents for token in document]
    assert (rows[:, 0] == CLS).all()
    assert (rows[:, 1] != SEP).all()
    assert (rows[:-1] != PAD).all()
    assert (rows[:-1, -1] == SEP).all()
    # A [SEP] stands between tokens of different documents.
    for row in rows:
        body = [int(token) for token in row if token not in (PAD, CLS)]
        for a, b in itertools.pairwise(body):
            assert SEP in (a, b) or a // 1000 == b // 1000
