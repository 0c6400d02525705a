import io
import json
import unicodedata

import pytest

from sctd_jax.data import byte_bpe_trainer, tokenizer
from sctd_jax.errors import UserError
from tests import helpers
from tests.tokenizer_folders import LINES

TEXTS = [*LINES, "the court found that evidence of a contract was not clear " * 20]


def load(tmp_path, texts=TEXTS, vocab_size=300, **options):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(byte_bpe_trainer.train(texts, vocab_size, **options))
    return tokenizer.load(path)


def test_any_text_comes_back_letter_for_letter(tmp_path):
    trained = load(tmp_path)
    assert trained.pieces[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert trained.special == helpers.SPECIAL
    assert len(trained.pieces) == 300 and trained.is_byte_level
    texts = [
        *LINES,
        "  two  spaces\n\n and [MASK], [UNK]\t",
        "\U0001f9ff\u2585\x01 ꙮ",
        "".join(map(chr, range(1, 800))),
    ]
    for text, ids in zip(texts, trained.encode(texts), strict=True):
        assert trained.decode(ids) == unicodedata.normalize("NFC", text)
        assert not set(ids.tolist()) & set(helpers.SPECIAL)
    assert len(trained.encode([" the"])[0]) == 1  # the space is the word's first letter
    assert load(tmp_path).pieces == trained.pieces  # the same text, the same pieces


def test_the_zero_width_non_joiner_is_a_letter_or_a_space(tmp_path):
    word = "\u0645\u06cc\u200c\u062e"
    for keep_zwnj, expected in ((True, word), (False, word.replace("\u200c", " "))):
        trained = load(tmp_path, keep_zwnj=keep_zwnj)
        assert trained.decode(trained.encode([word])[0]) == expected


def test_a_vocabulary_that_cannot_be_is_refused_with_its_bound():
    with pytest.raises(UserError, match="260 is too small for byte_bpe: the 256 bytes and 5 special pieces are 261"):
        byte_bpe_trainer.train(TEXTS, 260)
    with pytest.raises(UserError, match="5000 is too large: the text supports at most ") as caught:
        byte_bpe_trainer.train(TEXTS, 5000)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert len(json.load(io.BytesIO(byte_bpe_trainer.train(TEXTS, most)))["model"]["vocab"]) == most


def test_the_trainers_memory_is_bounded_by_an_even_part_of_the_text(monkeypatch):
    texts = ["a b c " * 3, "x" * 10_000, *(f"word{i}" for i in range(100))]
    assert "".join(byte_bpe_trainer._bounded(texts)) == "".join(texts)
    assert max(map(len, byte_bpe_trainer._bounded(texts))) == 4096
    assert byte_bpe_trainer._bounded([]) == []
    monkeypatch.setattr(byte_bpe_trainer, "_DISTINCT_BYTES", 300)
    words = [f"w{i:03}" for i in range(100)]  # 400 bytes
    assert byte_bpe_trainer._bounded(words) == words[::2]
    assert byte_bpe_trainer._bounded(words[:75] * 9) == words[:75] * 9
