import re

import pytest

from sctd_jax.data import sentencepiece_trainer, tokenizer
from sctd_jax.errors import UserError
from sctd_jax.hf import tokenizer_json

ENGLISH = ["the court found that evidence of a contract was not clear " * 20] * 5
PERSIAN = [
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0646\u0645 \u06a9\u062a\u0627\u0628\u200c\u0647\u0627 \u0631\u0627 " * 20
] * 5


def load(tmp_path, texts, vocab_size=60, **options):
    path = tmp_path / "x.model"
    path.write_bytes(sentencepiece_trainer.train(texts, vocab_size, "bpe", **options))
    return tokenizer.load(path)


def test_the_trainer_gets_all_of_every_line():
    """It skips what is longer than it is told, and every sentence with its own mark, U+2585."""
    long = "".join(chr(0x4E00 + i % 3000) for i in range(6000))
    texts = ["word " * 5000 + "\nshort", f"{long}\U0001f600{long} and {'ACGT' * 5000}", "a \u2585 b"]
    pieces = list(sentencepiece_trainer._sentences(texts))
    assert max(len(piece.encode()) for piece in pieces) <= 4097
    kept = "".join(pieces).replace(" ", "")
    assert kept == "".join(texts).replace("\u2585", "").replace(" ", "").replace("\n", "")
    assert [piece for piece in pieces if "word" in piece or "short" in piece] == [
        *(" ".join(["word"] * 819) for _ in range(6)), " ".join(["word"] * 86), "short",
    ]  # fmt: skip


def test_scripts_without_spaces_are_learnt_however_long_their_lines(tmp_path):
    pieces = load(tmp_path, [*ENGLISH, "ABCDEF" * 3000, "\u2585 xyz " * 50])
    (ids,) = pieces.encode(["FEDCBA zyx"])
    assert pieces.special.unk not in ids


def test_the_zero_width_non_joiner_is_kept_where_the_text_has_it(tmp_path):
    kept = load(tmp_path, [*ENGLISH * 100, "not\u200cclear"])  # one in the text is enough
    assert kept.decode(kept.encode(["no\u200ccourt"])[0]) == "no\u200ccourt"
    assert "\u200c" in kept.pieces
    model = (tmp_path / "x.model").read_bytes()
    assert b".tsv" not in model  # a temporary name would make each model another
    exported = tokenizer_json.convert(model, kept.special)
    lines = [*PERSIAN, "court\u200c", "\u200ccourt \u200c", "\ufb01\u200cx 1\u200d2\u200b3"]
    for line, ids in zip(lines, kept.encode(lines), strict=True):
        assert exported.encode(line, add_special_tokens=False).ids == ids.tolist(), ascii(line)
    # Without any in the text, or without the setting, it stays a space.
    for spaced in (load(tmp_path, ENGLISH), load(tmp_path, [*ENGLISH, *PERSIAN], keep_zwnj=False)):
        assert spaced.decode(spaced.encode(["no\u200ccourt"])[0]) == "no court"


@pytest.mark.parametrize(
    ("texts", "vocab_size", "model_type", "advice"),
    [
        (["".join(map(chr, range(0x4E00, 0x4E00 + 300)))], 100, "bpe", r"too small: .* need 306 pieces; raise it"),
        (["".join(map(chr, range(0x4E00, 0x4E00 + 300)))], 100, "unigram", r"too small: .* need 306 pieces; raise it"),
        (ENGLISH, 60_000, "bpe", r"too large: the text supports at most \d+ pieces of a bpe .* more text$"),
        (ENGLISH, 60_000, "unigram", r"too large: the text supports at most \d+ pieces of a uni.* or train a bpe one"),
        (["\x01\x02"], 30, "bpe", "the text holds nothing that a tokenizer could learn"),
        ([], 30, "bpe", "the text holds nothing that a tokenizer could learn"),
        (ENGLISH, 3, "unigram", r"model.vocab_size 3: no unigram tokenizer of that size"),
    ],
)
def test_each_failure_of_the_trainer_has_its_own_advice(texts, vocab_size, model_type, advice):
    with pytest.raises(UserError, match=advice) as raised:
        sentencepiece_trainer.train(texts, vocab_size, model_type)
    assert len(re.findall("raise it|lower it", str(raised.value))) < 2
