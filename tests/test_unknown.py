import dataclasses
from collections import Counter

import pytest
import tokenizers

from sctd_jax.data import byte_bpe_trainer, tokenizer, unknown
from sctd_jax.errors import UserError
from sctd_jax.hf import tokenizer_json


@pytest.fixture(scope="module")
def pieces(rows):
    return tokenizer.load(rows / "tokenizer.model")


def measure(pieces, *texts):
    return unknown.unknown_letters(pieces, texts, pieces.encode(texts))


def test_letters_are_counted_where_pieces_are_few(pieces):
    run = "".join(chr(0x4E00 + i) for i in range(3000))
    long, plain, mixed, *none = measure(
        pieces, run, "the \x01Con\u00adgress", "of \u5b57\u5b57x \u5b57, the", "the [MASK]", "", " "
    )
    assert (pieces.encode([run])[0] == pieces.special.unk).sum() == 1
    assert long == dict.fromkeys(run, 1)
    assert plain == {"\xad": 1}  # and a control character is nothing
    assert mixed == {"\u5b57": 3}
    assert none[1:] == [{}, {}]


def test_words_apart_give_what_the_whole_text_gives(pieces, rows, tmp_path):
    """Composed and decomposed letters, white space of all kinds, and WordPiece, which loses a word whole."""
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop", "##a", "##b", "##e"])
    )
    texts = [
        "caf\xe9 cafe\u0301 e\u0301e\u0301\u3000na\xefve\x85\ufb01n \u1e9b\u0323 \uac00 \u1100\u1161\u11a8",
        "abe bad zebra \u5b57ab\u5b57",
        "\u0e01\u200b\u0e02 \u2581x \u2585 \ufdfa \ufeff\U0001f468\u200d\U0001f469 a\u200cb",
        "ab" * 60 + " \u5b57 " + "ab\u5b57" * 40,  # WordPiece takes no word of more than 100 letters
        "x" * 255 + "\xea\u0323e\u0302\u0323" * 50 + "\u1112\u1161\u11ab" * 30 + "\u5b57" * 100,  # cut within a letter
    ]  # fmt: skip
    model = tokenizer_json.convert((rows / "tokenizer.model").read_bytes(), pieces.special)
    model.save(str(tmp_path / "unigram.json"))
    for model in (pieces, tokenizer.load(vocab), tokenizer.load(tmp_path / "unigram.json")):
        unk = model.special.unk
        for text, found, (ids, spans) in zip(texts, measure(model, *texts), model.encode_spans(texts), strict=True):
            whole = "".join("".join(text[start:end].split()) for start, end in spans[ids == unk])
            assert whole, ascii(text)
            assert sorted(found.elements()) == sorted(whole), ascii(text)


def test_only_texts_with_unknown_letters_are_tokenised_again(pieces):
    asked = []
    spied = dataclasses.replace(pieces, ids_of=lambda texts: asked.append(texts) or pieces.ids_of(texts))
    texts = ["the Congress", "of the \u5b57 of the", "and"]
    unknown.unknown_letters(spied, texts, pieces.encode(texts))
    assert asked == [["of", "the", "\u5b57"]]


def test_what_is_unknown_is_said_by_file_and_letter():
    few, some, much = (
        unknown.Letters(name, 1000, count, unknown.Counter({"\u5b57": count}))
        for name, count in (("a", 9), ("b\n\x1b[2J", 30), ("c", 900))
    )
    assert unknown.report([few], False) == ["unknown to the tokenizer: 9 of 1,000 letters (0.90%)"]
    (line,) = unknown.report([few, some, unknown.Letters("c")], False)
    assert line == (
        "warning: 39 of 2,000 letters (1.95%) are unknown to the tokenizer and become [UNK]: "
        "b\\n\\x1b[2J: 3.0% (\u5b57 U+5B57 30)"
    )
    with pytest.raises(
        UserError, match=r"909 of 2,000 .*c: 90.0% \(\u5b57 U\+5B57 900\).*--allow-unknown.*allow_unknown=True"
    ):
        unknown.report([few, much], False)
    assert unknown.report([few, much], True)[0].startswith("warning: 909 of 2,000")
    (line,) = unknown.report([some] * 8, False)
    assert line.endswith("; and 5 more above 1%")


def test_counting_is_bounded_by_the_commonest_letters():
    everything = unknown.Letters()
    for start in range(0, 10_000, 500):
        letters = unknown.Counter({chr(start + 0x100 + i): 1 for i in range(500)}) + unknown.Counter("\u5b57" * 50)
        everything.add(letters)
    assert everything.unknown == 20 * 550
    assert len(everything.commonest) <= 2000
    assert everything.commonest.most_common(1)[0][0] == "\u5b57"


def test_letters_in_no_token_are_found_whatever_left_them_out():
    """A normaliser that deletes; a byte-level model without all bytes."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    words.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("[^\x00-\x7f]"), "")
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    spans = tokenizer._hugging_face(words.to_str().encode(), "x", kept=False)
    assert unknown.lost_and_divided(spans, ["a 一丁 a\xad", "b"])[0] == [Counter("一丁"), Counter()]


def test_letters_of_which_byte_level_bpe_knows_the_bytes_alone_are_divided(tmp_path):
    """Nothing is unknown to it; a script that it has not learned takes several tokens a letter."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(byte_bpe_trainer.train(["the café of the café " * 5], 270))
    pieces = tokenizer.load(path)
    texts = ["the café", "the 字 ☃", "Ж x"]
    assert unknown.lost_and_divided(pieces, texts) == ([Counter()] * 3, [Counter(), Counter("字☃"), Counter("Ж")])
    assert unknown.unknown_letters(pieces, texts, pieces.encode(texts)) == [Counter()] * 3
