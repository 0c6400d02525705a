"""Input construction by hand-worked examples, with a tokenizer that has one piece for each word."""

import dataclasses
import itertools

import numpy as np
import pytest
import tokenizers

from sctd_jax.data.special import SpecialIds
from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError
from sctd_jax.finetune import encode
from sctd_jax.finetune.encode import encode as encode_all
from sctd_jax.tasks.examples import Answer, Example, Span

PAD, UNK, CLS, SEP, MASK = range(5)


def words_tokenizer(*texts):
    """A piece for each word of these texts, in order of appearance from id 5 on."""
    vocab = {}
    for text in texts:
        for word in text.split():
            vocab.setdefault(word, 5 + len(vocab))

    def spans_of(texts):
        for text in texts:
            spans, at = [], 0
            for word in text.split():
                at = text.index(word, at)
                spans.append((at, at + len(word)))
                at += len(word)
            yield [vocab.get(word, UNK) for word in text.split()], spans

    return Tokenizer(tuple(vocab), SpecialIds(PAD, UNK, CLS, SEP, MASK), np.ones(1, bool), None, spans_of, None)


def test_single_text_and_pair():
    tokenizer = words_tokenizer("a b c", "d e")
    single, pair = encode_all(
        tokenizer, [Example(0, "a b c", label=1), Example(1, "a b c", "d e", label=0)], "classification", 16
    )
    assert single.rows[0].ids.tolist() == [CLS, 5, 6, 7, SEP]
    assert single.rows[0].second == 5
    assert (single.label, single.example, single.length) == (1.0, 0, 5)
    assert pair.rows[0].ids.tolist() == [CLS, 5, 6, 7, SEP, 8, 9, SEP]
    assert pair.rows[0].second == 5


def test_two_separators_stand_between_the_texts_of_a_model_of_one_segment():
    """RoBERTa's pairs, in each kind of head; a model of two segments has BERT's, whatever its tokenizer does."""
    first, second = "They lead us", "He leads them now"
    tokenizer = dataclasses.replace(words_tokenizer(first, second), pair_separators=2)
    example = Example(0, first, second, label=0, marked=(Span(0, 5, 9), Span(1, 3, 8)))
    (feature,) = encode_all(tokenizer, [example], "classification", 9, segments=1)
    assert feature.rows[0].ids.tolist() == [CLS, 5, 6, 7, SEP, SEP, 8, 9, SEP]  # cut to 9 tokens, the separators too
    assert feature.rows[0].second == 6
    assert feature.marked == ((2, 2), (7, 7))
    (feature,) = encode_all(tokenizer, [Example(0, first)], "classification", 9, segments=1)
    assert feature.rows[0].ids.tolist() == [CLS, 5, 6, 7, SEP]
    choices = Example(0, "us", choices=("He", "now"))
    (feature,) = encode_all(tokenizer, [choices], "multiple_choice", 9, segments=1)
    assert [row.ids.tolist() for row in feature.rows] == [[CLS, 7, SEP, SEP, 8, SEP], [CLS, 7, SEP, SEP, 11, SEP]]
    passage = Example("q", "us", second, answers=(Answer("leads them", 3),))
    (feature,) = encode_all(tokenizer, [passage], "span", 9, segments=1)
    assert feature.rows[0].ids.tolist() == [CLS, 7, SEP, SEP, 8, 9, 10, 11, SEP]
    assert feature.answer == (5, 6)
    assert [second[start:end] for start, end in feature.spans[4:8]] == second.split()
    (feature,) = encode_all(tokenizer, [example], "classification", 16)
    assert feature.rows[0].ids.tolist() == [CLS, 5, 6, 7, SEP, 8, 9, 10, 11, SEP]


def test_a_hidden_label_is_encoded_as_any():
    (feature,) = encode_all(words_tokenizer("a"), [Example(0, "a")], "classification", 16)
    assert feature.label == 0.0


def test_a_long_single_text_is_cut():
    (feature,) = encode_all(words_tokenizer("a b c d"), [Example(0, "a b c d")], "classification", 4)
    assert feature.rows[0].ids.tolist() == [CLS, 5, 6, SEP]


def test_the_longer_text_of_a_pair_is_cut_first():
    for room, first, second in itertools.product(range(3, 12), range(12), range(1, 12)):
        a, b = first, second
        while a + b > room:
            if a > b:
                a -= 1
            else:
                b -= 1
        assert encode._lengths(first, second, room) == (a, b)


def test_pairs_are_cut_as_berts_own_code_does_and_differ_from_the_fast_tokenizers_as_documented():
    """docs/finetuning.md: by one token, where the room is odd and the second text is at least as long as the first."""
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for room, first, second in itertools.product((12, 13), range(1, 16), range(1, 16)):
        a, b = first, second
        while a + b > room:  # BERT's
            a, b = (a - 1, b) if a > b else (a, b - 1)
        assert encode._lengths(first, second, room) == (a, b)
        fast.enable_truncation(room, strategy="longest_first")
        theirs = fast.encode("a " * first, "b " * second).ids
        differs = room % 2 == 1 and min(first, second) > room // 2 and second >= first
        assert (theirs.count(1), theirs.count(2)) == ((a - 1, b + 1) if differs else (a, b))


def test_multiple_choice_has_a_row_for_each_choice():
    example = Example(0, "a b", label=1, choices=("c", "d e"))
    (feature,) = encode_all(words_tokenizer("a b c d e"), [example], "multiple_choice", 16)
    assert [row.ids.tolist() for row in feature.rows] == [[CLS, 5, 6, SEP, 7, SEP], [CLS, 5, 6, SEP, 8, 9, SEP]]
    assert (feature.label, feature.length) == (1.0, 7)


def test_different_numbers_of_choices_are_an_error():
    examples = [Example(0, "a", choices=("b", "c")), Example(1, "a", choices=("b", "c", "d"))]
    with pytest.raises(UserError, match=r"same number of choices, found \[2, 3\]"):
        encode_all(words_tokenizer("a b c d"), examples, "multiple_choice", 16)


def test_marked_words_are_found_in_both_texts():
    # WiC: "lead" of the first text is token 3, "leads" of the second one token 1 after [SEP].
    first, second = "They lead us", "He leads"
    example = Example(0, first, second, label=0, marked=(Span(0, 5, 9), Span(1, 3, 8)))
    (feature,) = encode_all(words_tokenizer(first, second), [example], "classification", 16)
    # [CLS] They lead us [SEP] He leads [SEP]
    assert feature.marked == ((2, 2), (6, 6))


def test_a_marked_span_of_several_words():
    text = "The city councilmen refused them"
    example = Example(0, text, label=0, marked=(Span(0, 0, 19), Span(0, 28, 32)))
    (feature,) = encode_all(words_tokenizer(text), [example], "classification", 16)
    assert feature.marked == ((1, 3), (5, 5))


def test_a_marked_word_that_is_cut_off_is_an_error():
    example = Example(7, "a b c d e", label=0, marked=(Span(0, 8, 9), Span(0, 0, 1)))
    with pytest.raises(UserError, match=r"example 7: the marked text 'e' is cut off .* raise config.max_length"):
        encode_all(words_tokenizer("a b c d e"), [example], "classification", 6)


def test_squad_windows_overlap_and_map_back(monkeypatch):
    monkeypatch.setattr(encode, "_STRIDE", 2)
    passage = "p0 p1 p2 p3 p4 p5 p6"
    example = Example("q", "who ?", passage, answers=(Answer("p4 p5", 12),))
    tokenizer = words_tokenizer("who ?", passage)
    features = encode_all(tokenizer, [example], "span", 9)  # room for 9 - 2 - 3 = 4 tokens of the passage
    texts = [feature.rows[0].ids.tolist() for feature in features]
    head, first = [CLS, 5, 6, SEP], 7
    assert texts == [
        [*head, *range(first, first + 4), SEP],
        [*head, *range(first + 2, first + 6), SEP],
        [*head, *range(first + 4, first + 7), SEP],
    ]
    assert [f.rows[0].second for f in features] == [4, 4, 4]
    # Answers that are not whole in the first window; tokens 6, 7 of the second and 4, 5 of the third.
    assert [f.answer for f in features] == [(0, 0), (6, 7), (4, 5)]
    start, end = features[1].spans[6][0], features[1].spans[7][1]
    assert passage[start:end] == "p4 p5"
    assert features[1].spans[3].tolist() == [-1, -1]
    assert [f.example for f in features] == [0, 0, 0]
    # Every token of the passage has one best window.
    shown = [passage[s:e] for f in features for (s, e), best in zip(f.spans, f.best, strict=True) if best]
    assert sorted(shown) == passage.split()


def test_what_the_network_does_not_see_is_counted():
    def said(examples, head, max_length, *words):
        lines = []
        encode_all(words_tokenizer(*words), examples, head, max_length, lines.append)
        return lines

    pairs = [Example(0, "a b c", "d"), Example(1, "a b c", "d e f"), Example(2, "x", " ")]
    assert said(pairs, "classification", 8, "a b c d e f x") == [
        "1 of 3 rows are longer than 8 tokens: cut at the end of the longer text"
    ]
    choices = [Example(0, "a", choices=("b", "c d e f"))]
    assert said(choices, "multiple_choice", 6, "a b c d e f")[0].startswith("1 of 1 rows are longer than 6 tokens")
    nothing = dataclasses.replace(words_tokenizer("a"), spans_of=lambda texts: [([], [])] * len(texts))
    lines = []
    encode_all(nothing, [Example(0, "\u200b")], "classification", 16, lines.append)
    assert lines == ["1 of 1 rows have a text without any token"]
    assert said([Example(0, "aa bb c", "dd")], "classification", 16, "aa bb") == [
        "warning: 42.9% of the characters are unknown to the tokenizer"  # 3 of 7
    ]
    question = Example("q", " ".join("w" * 9), "p0 p1 p2 p3 p4 p5 p6", answers=(Answer("p0 p1 p2 p3 p4 p5", 0),))
    assert said([question], "span", 12, "w", question.second) == [
        "1 of 1 questions are longer than 6 tokens: cut",
        "1 of 1 answers are whole in no window of the passage: learned as no answer",
    ]


def test_squad_question_without_answer_points_at_cls():
    (feature,) = encode_all(words_tokenizer("who a b"), [Example("q", "who", "a b")], "span", 16)
    assert feature.answer == (0, 0)


def test_squad_takes_the_first_tokens_of_a_long_question():
    question = " ".join(f"w{i}" for i in range(100))
    (feature,) = encode_all(words_tokenizer(question, "a"), [Example("q", question, "a")], "span", 384)
    assert feature.rows[0].second == 64 + 2
