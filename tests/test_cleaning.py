"""Clean-up of text: pieces cut anywhere give what the whole document gives; what is left out is counted."""

import random

import pytest

from sctd_jax.data import prepare
from sctd_jax.data.cleaning import Cleaning, LeftOut, clean
from sctd_jax.data.rows import TRAIN, Rows
from sctd_jax.errors import UserError
from tests import helpers


def whole(documents, how):
    """(texts, what was left out), each document at once."""
    found, left_out = [], LeftOut()
    for text in documents:
        lines = text.split("\n")
        kept = [line for line in lines if len(line) <= how.longest_line]
        left_out.lines += len(lines) - len(kept)
        text = "\n".join(kept)
        if 0 < len(text.strip()) < how.shortest_document:
            left_out.documents += 1
        else:
            found.append(text.strip())
    return found, left_out


def test_pieces_cut_anywhere_give_what_whole_documents_give():
    rng = random.Random(0)
    for _ in range(500):
        documents = ["".join(rng.choice("ab \n\n") for _ in range(rng.randrange(40))) for _ in range(4)]
        pieces = []
        for text in documents:
            cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(5)))
            parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            ends_alone = rng.random() < 0.5
            pieces += [(part, i == len(parts) - 1 and not ends_alone) for i, part in enumerate(parts)]
            pieces += [("", True)] * ends_alone
        how = Cleaning("", rng.randrange(1, 8), rng.randrange(1, 12))
        left_out, found, text = LeftOut(), [], ""
        for piece, last in clean(pieces, how, left_out):
            text += piece
            if last:
                found.append(text.strip())
                text = ""
        assert (found, left_out) == whole(documents, how)


def test_a_line_without_an_end_is_not_held():
    """One gigabyte without a line end would otherwise be."""
    held = []

    def pieces():
        for i in range(2000):
            held.append(i)
            yield "x" * 1000, False
        yield "\nshort", True

    left_out = LeftOut()
    texts = list(clean(pieces(), Cleaning(longest_line=500), left_out))
    assert ("".join(text for text, _ in texts), left_out.lines) == ("short", 1)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"normal_form": "NFX"}, "normal_form must be one of NFC, NFD, NFKC, NFKD or '', found 'NFX'"),
        ({"longest_line": -1}, "longest_line must not be negative"),
    ],
)
def test_settings_are_checked(fields, match):
    with pytest.raises(UserError, match=match):
        Cleaning(**fields)


def test_a_preparation_leaves_out_copies_long_lines_and_short_documents_and_says_so(tmp_path):
    rng = random.Random(1)
    words = ["alpha", "beta", "gamma", "delta"]
    lines = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(1500)]
    copies = [f"  {line.replace(' ', '  ')}" for line in lines[:50]]  # white space does not make another document
    (tmp_path / "a.txt").write_text("\n\n".join([*lines, *copies, *["tiny"] * 30, *["y" * 900] * 7]))
    (tmp_path / "b.txt").write_text("\n\n".join(lines))
    fields = {"documents": "paragraph", "tokenizer_type": "bpe", "seq_len": 32, "heldout_share": 0.1}
    expected, said = helpers.data(input=str(tmp_path / "b.txt"), **fields), []
    prepare.prepare(expected, 50, tmp_path / "expected", said.append)
    cleaned = helpers.data(
        input=str(tmp_path / "a.txt"), **fields, drop_copies=True, longest_line=500, shortest_document=10,
        tokenizer=str(tmp_path / "expected" / "tokenizer.model"),
    )  # fmt: skip
    metadata = prepare.prepare(cleaned, 50, tmp_path / "cleaned", said.append)
    assert (
        "left out: 7 lines of more than 500 characters, 30 documents of fewer than 10, 50 copies of documents" in said
    )
    assert metadata.documents == 1500
    assert metadata.by_source[0]["copies"] == 50
    ours, theirs = (Rows(tmp_path / name, TRAIN) for name in ("cleaned", "expected"))
    assert len(ours) == len(theirs)
    assert (ours.read(range(len(ours))) == theirs.read(range(len(theirs)))).all()


def test_a_normal_form_is_that_of_unicode(tmp_path):
    assert list(clean([("ﬁne e\u0301", True)], Cleaning("NFKC"), LeftOut())) == [("fine é", True)]
