from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm

from sctd_jax.data import corpus, tokenizer
from sctd_jax.errors import UserError


@pytest.fixture(scope="module")
def texts(speeches):
    return [Path(path).read_text() for path in speeches[:8]]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_specials_have_ids_0_to_4_and_training_is_deterministic(texts, model_type, tmp_path):
    model = tokenizer.train(texts, 600, model_type)
    assert model == tokenizer.train(texts, 600, model_type)
    path = tmp_path / "x.model"
    path.write_bytes(model)
    processor = tokenizer.load(str(path))
    assert [processor.id_to_piece(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert processor.get_piece_size() == 600
    assert tokenizer.special_ids(processor, "") == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    text = "the Congress of the United States"
    assert processor.decode(processor.encode(text)) == text
    # Text never produces a special id by spelling it.
    assert not set(processor.encode("a [MASK] or [CLS] of [PAD] here")) & {0, 2, 3, 4}


def test_lines_longer_than_the_trainer_takes_are_cut_between_words():
    pieces = list(tokenizer._sentences(["word " * 5000 + "\nshort"]))
    assert all(len(piece.encode()) <= 4096 for piece in pieces)
    assert " ".join(pieces).split() == ["word"] * 5000 + ["short"]


def test_a_vocabulary_larger_than_the_text_supports_is_refused(texts):
    with pytest.raises(UserError, match=r"model.vocab_size 60000: the text supports no unigram .* <= \d+"):
        tokenizer.train(texts[:1], 60_000, "unigram")
    with pytest.raises(UserError, match=r"model.vocab_size 3"):
        tokenizer.train(texts[:1], 3, "unigram")


def test_existing_models_with_other_ids_and_names(texts, tmp_path):
    prefix = str(tmp_path / "other")
    (tmp_path / "text").write_text("\n".join(texts))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=prefix, vocab_size=600, minloglevel=2, max_sentence_length=100_000,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, user_defined_symbols=["<mask>"],
    )  # fmt: skip
    processor = tokenizer.load(prefix + ".model")
    assert tokenizer.special_ids(processor, "") == {"pad": 3, "unk": 0, "cls": 1, "sep": 2, "mask": 4}
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=prefix, vocab_size=600, minloglevel=2, max_sentence_length=100_000
    )
    with pytest.raises(UserError, match=r"other.model: no special piece \[PAD\] or <pad>"):
        tokenizer.load(prefix + ".model")


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match=r"none.model: no such file"):
        tokenizer.load(str(tmp_path / "none.model"))
    (tmp_path / "x.model").write_text("hello")
    with pytest.raises(UserError, match=r"x.model: not a SentencePiece model"):
        tokenizer.load(str(tmp_path / "x.model"))


def test_word_starts(texts, tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(tokenizer.train(texts, 600, "unigram"))
    processor = tokenizer.load(str(path))
    starts = tokenizer.word_starts(processor)
    ids = processor.encode("internationalization of the")
    assert starts.dtype == bool
    assert starts[ids[0]]
    assert starts[ids].sum() == 3
    assert not starts[:5].any()
    assert np.array_equal(starts, tokenizer.word_starts(processor))


def test_rare_letters_are_in_the_vocabulary():
    """SentencePiece's own coverage leaves K, Q, X, Y and Z of the trial corpus unknown."""
    texts = [Path(source.path).read_text() for source in corpus.find_sources([])]
    processor = spm.SentencePieceProcessor(model_proto=tokenizer.train(texts, 2000, "bpe"))
    unknown = processor.unk_id()
    assert not [
        c
        for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789$%()"
        if unknown in processor.encode(c)
    ]
