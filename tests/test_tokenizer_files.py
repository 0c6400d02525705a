"""Vocabularies with files beside them; that the ids are those of `transformers` is checked in tests/test_interop.py."""

import json
import re

import pytest
import tokenizers

from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.hf import tokenizer_json

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cafe", "covid", "##19", "##s", "[", "]", "e1", "mask", "new", "x"]
VOCAB = SPECIAL + WORDS
FILL = [f"w{i}" for i in range(300)]
V = len(VOCAB)


@pytest.fixture
def folder(tmp_path):
    """Write a tokenizer's folder: its vocabulary or JSON, and the files beside it, each from an object."""

    def write(vocab=VOCAB, inner=None, **files):
        if inner is None:
            (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
        else:
            inner.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path / ("vocab.txt" if inner is None else "tokenizer.json")

    return write


def wordpiece(special=(), plain=(), vocab=VOCAB, **options):
    inner = tokenizers.BertWordPieceTokenizer({piece: i for i, piece in enumerate(vocab)}, **options)._tokenizer
    inner.add_special_tokens(list(special))
    inner.add_tokens(list(plain))
    return inner


def pieces(path, text):
    loaded = tokenizer.load(path)
    return [loaded.pieces[i] for i in loaded.encode([text])[0]]


DECODER = {
    str(V): {"content": "[E1]", "special": True, "normalized": False},
    str(V + 1): {"content": "covid19", "special": False, "lstrip": True, "rstrip": True, "single_word": True},
}


@pytest.mark.parametrize(
    "files",
    [
        {"inner": wordpiece(["[E1]"], ["covid19"])},
        {"inner": wordpiece(["[E1]"]), "added_tokens": {"covid19": V + 1}},
        {"added_tokens": {"covid19": V + 1, "[E1]": V}, "special_tokens_map": {"additional_special_tokens": ["[E1]"]}},
        {"tokenizer_config": {"added_tokens_decoder": DECODER, "do_lower_case": True}},
        {"tokenizer_config": {"bos_token": "[E1]", "additional_special_tokens": ["covid19"]}},
        {"tokenizer_config": {"additional_special_tokens": ["[E1]", {"content": "covid19", "lstrip": True}]}},
    ],
)
def test_tokens_that_were_added_stay_whole_wherever_they_are_said(folder, files):
    path = folder(**files)
    loaded = tokenizer.load(path)
    assert loaded.pieces == (*VOCAB, "[E1]", "covid19")
    (ids,) = loaded.encode(["the [E1] covid19 covids x[E1] [MASK]"])
    # The literal text of a role stays text.
    assert ids.tolist() == [5, V, V + 1, 7, 9, 15, V, 10, 13, 11]
    assert loaded.encode_spans(["[E1] x"])[0].ids_n.tolist() == [V, 15]
    assert loaded.word_start_V[V:].all()
    name, content = tokenizer.canonical(path)
    (path.parent / "kept").mkdir()
    (path.parent / "kept" / name).write_bytes(content)
    (path.parent / "kept" / "config.json").write_text("{")  # of a run; to be told by what reads it
    assert tokenizer.load(path.parent / "kept" / name, kept=True).encode(["[E1] covid19"])[0].tolist() == [V, V + 1]
    exported = tokenizer_json.framed(tokenizers.Tokenizer.from_buffer(content), loaded.special, 2, 1)
    assert exported.encode("the [E1] covid19").ids == [2, 5, V, V + 1, 3]


def test_added_tokens_have_the_flags_of_the_file_beside_them(folder):
    inner = wordpiece(["[E1]"], ["covid19"])
    beside = {"added_tokens_decoder": DECODER, "tokenizer_class": "PreTrainedTokenizerFast"}
    path = folder(inner=inner, tokenizer_config=beside)
    assert pieces(path, "x covid19 covid19s") == ["x", "covid19", "covid", "##19", "##s"]
    (path.parent / "tokenizer_config.json").unlink()
    assert pieces(path, "x covid19 covid19s") == ["x", "covid19", "covid19", "[UNK]"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"added_tokens": {"covid19": V + 5}}, rf"'covid19' gets the id {V} there, but its file says {V + 5}"),
        ({"added_tokens": {"[PAD]": 3}}, r"'\[PAD\]' gets the id 0 there, but its file says 3"),
        ({"added_tokens": {"covid": V}}, rf"'covid' gets the id 7 there, but its file says {V}"),
        (
            {"inner": wordpiece(["[E1]"]), "tokenizer_config": {"added_tokens_decoder": {}, "do_lower_case": True},
             "config": {"model_type": "bert"}},
            r"'\[E1\]' is not in added_tokens_decoder",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "added token"),
        ({"special_tokens_map": {"extra_special_tokens": "[E1]"}}, "extra_special_tokens is no list"),
        ({"tokenizer_config": {"additional_special_tokens": [3]}}, "an added token is 3, expected its text"),
    ],
)  # fmt: skip
def test_added_tokens_whose_ids_do_not_fit_are_refused(folder, files, said):
    with pytest.raises(UserError, match=said):
        tokenizer.load(folder(**files))


def test_an_added_token_with_the_id_of_another_piece_is_said(folder):
    """`tokenizers` counts pieces: a vocabulary with one twice has its last id taken again."""
    path = folder([*VOCAB, "the", "y"], added_tokens={"covid19": V + 1})
    assert pieces(path, "covid19 y") == ["covid19", "covid19"]
    assert "1 added tokens, such as 'covid19', have the id of another piece" in tokenizer.remarks(path)[0]


def test_rows_that_split_tokens_once_are_prepared_anew(folder):
    path = folder(inner=wordpiece())
    plain = tokenizer.digest(path)
    assert tokenizer.encoding_digest(path) == plain
    path = folder(inner=wordpiece(["[E1]"]))
    assert tokenizer.encoding_digest(path) == tokenizer.digest(path) + "-whole"


@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "BertweetTokenizer", "GPT2TokenizerFast", "No\nSuch"])
@pytest.mark.parametrize("file", ["config", "tokenizer_config"])
def test_another_class_is_refused_by_name(folder, file, name):
    said = rf"{file}.json: tokenizer_class is '{name}', supported are".replace("\n", r"\\n")
    for inner in (None, wordpiece()):
        with pytest.raises(UserError, match=said):
            tokenizer.load(folder(inner=inner, **{file: {"tokenizer_class": name}}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"do_basic_tokenize": False}, "do_basic_tokenize is False"),
        ({"word_tokenizer_type": "mecab"}, "word_tokenizer_type is 'mecab'"),
        ({"subword_tokenizer_type": "character"}, "subword_tokenizer_type is 'character'"),
        ({"wordpieces_prefix": "@@"}, "wordpieces_prefix is '@@'"),
        ({"never_split": ["[MASK]", "[E1]"]}, r"never_split names '\[E1\]'"),
        ({"do_lower_case": "false"}, "do_lower_case is 'false', expected true, false or null"),
        ({"split_special_tokens": True}, "split_special_tokens is true"),
        ({"auto_map": {"AutoTokenizer": ["x.X", None]}}, "auto_map, so the tokenizer is code"),
        ({"unk_token": "the"}, r"unk_token is 'the', but \[UNK\] in vocab.txt"),
        ({"mask_token": {"content": "<mask>"}}, r"mask_token is '<mask>', but \[MASK\]"),
    ],
)
def test_options_that_make_other_ids_are_refused(folder, options, said):
    with pytest.raises(UserError, match=f"tokenizer_config.json: {said}"):
        tokenizer.load(folder(tokenizer_config=options))


def test_options_that_change_nothing_are_none(folder):
    inert = {"never_split": ["[E1]"], "additional_special_tokens": ["[E1]"], "do_basic_tokenize": True}
    inert |= {"tokenizer_class": "BertTokenizer", "word_tokenizer_type": None, "pad_token": "[PAD]"}
    assert pieces(folder(tokenizer_config=inert), "new [E1]") == ["new", "[E1]"]


CASED = [*VOCAB, "The", "café"]


@pytest.mark.parametrize(
    ("made", "options", "expected"),
    [
        ({"lowercase": True}, {"do_lower_case": False}, ["The", "café", "[UNK]"]),
        ({"lowercase": False}, {"do_lower_case": True}, ["the", "cafe", "new"]),
        ({"lowercase": True}, {"do_lower_case": True, "strip_accents": False}, ["the", "café", "new"]),
        ({"lowercase": False}, {"do_lower_case": False}, ["The", "café", "[UNK]"]),
        ({"lowercase": False, "strip_accents": False}, {"do_lower_case": True}, ["the", "cafe", "new"]),
    ],
)
def test_options_beside_a_json_count_more_than_its_normalizer(folder, made, options, expected):
    path = folder(
        inner=wordpiece(vocab=CASED, **made), tokenizer_config={**options, "tokenizer_class": "BertTokenizer"}
    )
    assert pieces(path, "The café NEW") == expected
    # Another class takes the file as it is.
    (path.parent / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": not made["lowercase"]})
    )
    assert pieces(path, "The") == ["the" if made["lowercase"] else "The"]


def test_a_json_that_bert_tokenizer_would_read_otherwise_is_refused(folder):
    bert = {"model_type": "bert"}
    with pytest.raises(UserError, match=r"lowercase False, but .* takes True where .* does not say do_lower_case"):
        tokenizer.load(folder(inner=wordpiece(lowercase=False), config=bert))
    with pytest.raises(UserError, match=r"strip_accents False, .* does not say strip_accents"):
        tokenizer.load(folder(inner=wordpiece(strip_accents=False), config=bert))
    own = wordpiece()
    own.normalizer = tokenizers.normalizers.Lowercase()
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match=r"has a normalizer, a pre_tokenizer of its own, .*PreTrainedTokenizerFast"):
        tokenizer.load(folder(inner=own, config=bert))
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, 0.0) for piece in VOCAB], unk_id=1))
    with pytest.raises(UserError, match=r"has a Unigram model, a normalizer, a pre_tokenizer of its own"):
        tokenizer.load(folder(inner=unigram, config=bert))
    # Nothing beside it, nothing to differ from.
    (folder(inner=unigram).parent / "config.json").unlink()
    assert tokenizer.load(folder(inner=unigram)).pieces == tuple(VOCAB)


@pytest.mark.parametrize(
    ("vocab", "options", "text", "expected", "said"),
    [
        # Five special pieces of 60 are more than a twentieth, and say nothing of the words.
        (SPECIAL + list("abcdefghijklmnopqrstuvwxyz0123456789"), {}, "A b", ["a", "b"], ""),
        ([*VOCAB, "The"], {}, "The the", ["The", "the"], "case is kept, as 1 of 12 pieces have capitals"),
        ([*VOCAB, *FILL, "möchte", "##ß"], {}, "Möchte", ["möchte"], "accents are kept, as 1 of 313"),
        ([*VOCAB, *FILL, "が", "か"], {}, "が か", ["が", "か"], "accents are kept, as 1 of 313"),
        ([*VOCAB, *FILL, "한국"], {}, "한국", ["한국"], "accents are kept, as 1 of 312"),
        ([*VOCAB, *FILL, "möchte"], {"do_lower_case": True}, "möchte", ["[UNK]"], "warning: .* will never occur"),
        ([*VOCAB, *FILL, "möchte"], {"strip_accents": False}, "Möchte", ["möchte"], ""),
        ([*VOCAB, "The"], {"do_lower_case": True}, "The", ["the"], ""),
    ],
)
def test_what_nothing_says_is_guessed_from_the_words_and_said(folder, vocab, options, text, expected, said):
    path = folder(vocab, tokenizer_config=options)
    assert pieces(path, text) == expected
    remarks = tokenizer.remarks(path)
    assert len(remarks) == bool(said)
    if said:
        assert re.search(said, remarks[0])


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_piece(folder):
    path = folder()
    expected = tokenizer.canonical(path)
    for start, end in ((b"\xef\xbb\xbf", b"\n"), (b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r\n")):
        path.write_bytes(start + end.join(piece.encode() for piece in VOCAB))
        assert tokenizer.canonical(path) == expected
