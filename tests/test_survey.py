import collections
import json
import os

import numpy as np
import pytest

from sctd_jax.data import corpus, range_rows, ranges, survey, tokenizer
from sctd_jax.errors import UserError
from tests import helpers


def settings(documents="file", seq_len=8, **options):
    return helpers.data(documents=documents, seq_len=seq_len, **options)


def look(sources, data, sample_bytes=1000):
    plan = ranges.plan(sources, data.documents)
    found = [survey.take(one, data, sample_bytes, len(plan)) for one in plan]
    return survey.together(found, data, sample_bytes)


def test_copies_of_a_document_fall_on_one_side_wherever_they_stand(tmp_path):
    """Chunks are cut by position in a file, and line ends and blank lines differ between copies."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, 6))) for _ in range(1000)]
    texts = [" ".join(rng.choice(words, size)) for size in [50] * 200 + [60_000, 30_000]]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "b.txt").write_text("x\r\n \r\n" + "\r\n\r\n\r\n".join(texts[::-1]) + "\r\n")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"{text}\n"}) + "\n" for text in texts))
    sources = corpus.find_sources([str(tmp_path)])
    draws = collections.defaultdict(set)
    pieces = list(survey.read(sources, settings("paragraph"), corpus.Counts()))
    for piece in pieces:
        draws[piece.document].add(piece.draw)
    assert len(pieces) > len(draws) + 3  # documents in several pieces
    assert all(len(different) == 1 for different in draws.values())
    draws = [draw for (draw,) in draws.values()]
    expected = [survey.heldout_draw(0, text) for text in texts]
    assert draws == [*expected, survey.heldout_draw(0, "x"), *expected[::-1], *expected]
    assert len(set(draws)) == len(texts) + 1
    assert 0.3 < np.mean(draws) < 0.7
    assert survey.heldout_draw(1, texts[0]) != survey.heldout_draw(0, texts[0])


def test_letters_at_the_end_of_a_long_document_do_not_change_its_draw(tmp_path, monkeypatch):
    """So it need not be read twice; and a piece of white space alone is no beginning of it."""
    text = "  \n" * 40 + "abcdef " * 50
    assert survey.heldout_draw(0, text) != survey.heldout_draw(0, text + "x")
    monkeypatch.setattr(survey, "_DRAWN_LETTERS", 300)
    monkeypatch.setattr(corpus, "CHUNK_CHARS", 50)
    assert survey.heldout_draw(0, text) == survey.heldout_draw(0, text + "x")
    (tmp_path / "a.txt").write_text(text)
    pieces = list(survey.read(corpus.find_sources([str(tmp_path)]), settings(), corpus.Counts()))
    assert len(pieces) > 5
    assert {piece.draw for piece in pieces} == {survey.heldout_draw(0, text)}
    assert "".join(piece.text for piece in pieces).split() == text.split()
    assert sum(piece.words for piece in pieces) == 50
    assert sum(piece.letters for piece in pieces) == 300


def test_nul_becomes_a_space_in_both_passes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\0two\0\0\n")
    sources = corpus.find_sources([str(path)])
    found = look(sources, settings())
    assert found.nul == 3
    assert found.lines() == [("one two  ", 0)]
    (piece,) = survey.read(sources, settings(), corpus.Counts())
    assert (piece.text, piece.nul) == ("one two  \n", 3)


def test_the_sample_of_many_ranges_is_that_of_lines_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "BYTES", 10_000)
    (tmp_path / "a.txt").write_text("".join(f"line {i:05d} {30 * 'x'}\n" for i in range(20_000)))
    sources, data = corpus.find_sources([str(tmp_path)]), settings("line")
    found = look(sources, data, 43_000)
    numbers = [int(line.split()[1]) for line, _ in found.lines()]
    assert len(numbers) == len(set(numbers)) == 1049  # of 41 bytes
    assert not found.all_sampled
    assert found.whole
    assert all(50 < here < 150 for here in np.histogram(numbers, 10, (0, 20_000))[0])


def test_a_sample_of_short_lines_has_no_more_of_them_than_of_longer_ones(tmp_path):
    """Lines take memory beside their letters."""
    (tmp_path / "a.txt").write_text("a\n" * 20_000)
    found = look(corpus.find_sources([str(tmp_path)]), settings("line"), 4000)
    assert len(found.lines()) == 100
    assert not found.all_sampled


def test_candidates_of_a_text_with_copies_are_as_many_as_without(tmp_path):
    lines = [f"a line of {i} words" for i in range(300)]
    for name, times in (("a.txt", 1), ("b.txt", 40)):
        (tmp_path / name).write_text("\n".join(lines * times))
    data = settings("line", drop_copies=True, seq_len=1)
    a, b = (look(corpus.find_sources([str(tmp_path / name)]), data) for name in ("a.txt", "b.txt"))
    assert a.candidates == b.candidates
    assert len(a.candidates) > 20


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("short"),
        lambda path: path.write_text(path.read_text() + "more"),
        lambda path: (path.write_text(path.read_text().swapcase()), os.utime(path, ns=(1, 1))),
        lambda path: path.unlink(),
    ],
    ids=["cut", "grown", "rewritten", "gone"],
)
def test_a_file_that_changes_is_named(tmp_path, change):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text of {name}\n" * 100)
    sources = corpus.find_sources([str(tmp_path)])
    (one,) = ranges.plan(sources, "file")
    task = range_rows.Task(one, tuple(corpus.fingerprint(source) for source in sources), {})
    range_rows.check_unchanged(task)
    change(tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"b.txt changed while it was read; prepare again when nothing writes to it"):
        range_rows.check_unchanged(task)


def test_enough_is_held_out_of_texts_whose_letters_differ_in_tokens(rows, tmp_path):
    """Reckoned by characters per token of a sample, some seeds gave less than the rows that are needed."""
    pieces = tokenizer.load(rows / "tokenizer.model")
    texts = ["the people of the United States and " * 10 + str(i) for i in range(60)]
    texts += [chr(0x4E00 + i) * 30 for i in range(600)]  # one [UNK]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = corpus.find_sources([str(tmp_path)])
    tokens = [len(ids) + 1 for ids in pieces.encode(texts)]
    for seed in range(6):
        data = settings(seed=seed, heldout_share=0.0)
        threshold = survey.threshold(look(sources, data), data, pieces)
        held = sum(
            size for text, size in zip(texts, tokens, strict=True) if survey.heldout_draw(seed, text) <= threshold
        )
        assert 65 * 8 <= held < 65 * 8 + max(tokens)
