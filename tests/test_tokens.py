"""Labels of words: files, first tokens, windows, and the scores of entities."""

import dataclasses
import json
import types

import numpy as np
import pytest

from sctd_jax.data.special import SpecialIds
from sctd_jax.data.tokenizer import Tokenized
from sctd_jax.errors import UserError
from sctd_jax.finetune.encode import by_example, encode
from sctd_jax.tasks import scoring, submission, tokens
from sctd_jax.tasks.examples import Example, FileSettings
from sctd_jax.tasks.splits import TaskData, tfds_splits
from sctd_jax.tasks.splits import open_task as open_any
from sctd_jax.tasks.table import TASKS
from sctd_jax.tasks.task import SplitNames
from tests.reading_helpers import message, open_task

NER, TAGGING = TASKS["ner"], TASKS["tagging"]
SENTENCES = "Anna B-PER\nlives O\n\nin O\nLyon B-LOC\n\n"


def folder(tmp_path, train=SENTENCES, dev=SENTENCES, suffix=".conll", **other):
    for name, text in {"train": train, "dev": dev, **other}.items():
        (tmp_path / f"{name}{suffix}").write_text(text, encoding="utf-8")
    return tmp_path


def words(examples):
    return [list(e.words) for e in examples]


def named(data, examples):
    return [tokens.names(data.labels, e.tags) for e in examples]


def test_columns_of_a_file(tmp_path):
    train = (
        "-DOCSTART- -X- O\n\n# id = 1 of 2 sentences\n# NN B-NUM\nAnna\u00a0B NN B-PER  \n \nlives VB O\r\n"
        "in IN O\n\n\n-DOCSTART- -X- O\n"
    )
    data = open_task("ner", folder(tmp_path, train, test="Anna NN ?\n\nin\tIN\t?\n".replace("\t", " ")))
    assert words(data.train) == [["#", "Anna\u00a0B"], ["lives", "in"]]
    assert named(data, data.train) == [["B-NUM", "B-PER"], ["O", "O"]]
    assert data.labels == ("B-LOC", "B-NUM", "B-PER", "O")
    assert words(data.test["test"]) == [["Anna"], ["in"]] and data.test["test"][0].tags is None
    notes = "\n".join(data.notes)
    assert "train.conll: 2 lines that begin a document passed over (first: line 1)" in notes
    assert "train.conll: 1 comments passed over (first: line 3)" in notes
    assert (
        "train.conll: 1 lines of # taken as words: their labels are entities' or other words' too (first: line 4)"
        in notes
    )
    assert "dev.conll: 1 labels without a word in training: B-LOC" in notes
    assert "dev.conll: entities are marked by IOB2; 3 types: LOC, NUM, PER" in notes


def test_comments_with_as_many_columns_as_words_are_no_words(tmp_path):
    text = "# one\n# two\nAnna N\nlives V\n\n# three\n\n# N\nis V\n# #\n\n"
    data = open_task("tagging", folder(tmp_path, text, text, test="# one\n\n# N\nAnna N\n\n"))
    assert words(data.train) == [["Anna", "lives"], ["#", "is", "#"]] and data.labels == ("#", "N", "V")
    assert words(data.test["test"]) == [["#"], ["#", "Anna"]]
    comments = "lines of # passed over as comments: no other word has their label"
    taken = "lines of # taken as words: their labels are entities' or other words' too"
    assert data.notes[:3] == (
        f"{tmp_path}/test.conll: 2 lines of # at a sentence's beginning taken as words (first: line 1)",
        f"{tmp_path}/train.conll: 3 {comments} (first: line 1)",
        f"{tmp_path}/train.conll: 1 {taken} (first: line 8)",
    )


def test_a_column_file_without_empty_lines_is_told(tmp_path):
    text = "Anna N\nlives V\n" * 60
    path = folder(tmp_path, text, SENTENCES)
    said = f"{path}/train.conll: its 120 words are one sentence; an empty line ends a sentence"
    assert said in open_task("tagging", path).notes
    assert message("tagging", path / "train.conll", heldout_share=0.25) == (
        f"{said}, and of several config.heldout_share = 0.25 is held out"
    )


def test_a_file_of_tabs_has_words_with_spaces_and_columns_by_number(tmp_path):
    text = "1\t10 000\tNUM\tx\n2\tcats\tNOUN\ty\n\n"
    data = open_task("tagging", folder(tmp_path, text, text, ".tsv"), tokens_field="2", tags_field="3")
    assert (words(data.train), named(data, data.train)) == ([["10 000", "cats"]], [["NUM", "NOUN"]])
    written = tokens.submit(data.train, [(0, tokens.NOT_READ)], data.labels)
    assert written == "10 000\tNUM\tNOUN\ncats\tNOUN\t_\n\n"


def test_one_file_is_divided_and_json_lines_have_fields_of_any_name(tmp_path):
    rows = [{"words": ["Anna", f"number {i}"], "ner": ["B-PER", "O"]} for i in range(20)]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = open_task("ner", path, tokens_field="words", tags_field="ner", heldout_share=0.2)
    assert (len(data.train), len(data.dev["dev"])) == (16, 4)
    assert sorted(words(data.train) + words(data.dev["dev"])) == sorted(row["words"] for row in rows)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("Anna B-PER\nlives\n\n", "train.conll, line 2: 1 columns, expected 2 as in the first line"),
        ("Anna\nlives\n\n", "line 1: 1 columns (Anna), expected a word in column 1 and its label in the last one"),
        ("Anna PER\nlives O\n\n", "line 1: the label 'PER' is none of an entity, expected O, or B- or I- "),
        ("Anna O\nlives O\n\n", "1 different labels of words (O), expected at least 2"),
        ("\n\n", "0 different labels of words (), expected at least 2"),
    ],
)
def test_a_malformed_file_is_said_by_line(tmp_path, train, expected):
    assert expected in message("ner", folder(tmp_path, train, dev=train))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 2: 2 words and 1 labels, expected one for each word"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "line 2: the field 'tokens, number 2' is empty"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "line 2: the field 'tokens, number 2' is no text, found 1"),
        ({"tokens": ["a\tb"], "tags": ["O"]}, "line 2: tokens, number 1 is 'a\\tb', expected a word without tabs"),
        ({"tokens": "a b", "tags": ["O"]}, "line 2: the field 'tokens' is no list, found 'a b'"),
        ({"text": "a b"}, "line 2: no field 'tokens' (config.tokens_field); found text"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "line 2: the field 'tags, number 2' is no text, found None"),
        ({"tokens": ["a", "b"], "tags": ["O", ["O"]]}, "line 2: the field 'tags, number 2' is no text, found ['O']"),
        ({"tokens": ["\ud800"], "tags": ["O"]}, "line 2: the field 'tokens, number 1' holds half of a surrogate pair"),
    ],
)
def test_a_malformed_row_is_said_by_line(tmp_path, row, expected):
    good = json.dumps({"tokens": ["Anna", "x"], "tags": ["B-PER", "O"]}) + "\n"
    assert expected in message("ner", folder(tmp_path, good + json.dumps(row) + "\n", good, ".jsonl"))


def test_numbers_of_json_lines_are_labels_and_two_spellings_of_an_entity_are_refused(tmp_path):
    text = json.dumps({"tokens": ["Anna", "isst"], "tags": [1, 10]}) + "\n"
    assert open_task("tagging", folder(tmp_path, text, text, ".jsonl")).labels == ("1", "10")
    (tmp_path / "columns").mkdir()
    path = folder(tmp_path / "columns", SENTENCES + "Rome B-Loc\n")
    assert "train.conll, line 7: the label 'B-Loc' is also written 'B-LOC'" in message("ner", path)


def test_columns_are_read_as_they_are_asked_for(tmp_path):
    (tmp_path / "a.conll").write_bytes(b"\n# comment here\nAnna B-PER\n\n" + b"Lyon B-LOC\n" * 9999 + b"\xff")
    sentences = tokens.read(str(tmp_path / "a.conll"), "train", FileSettings(), lambda what, place: None)
    assert next(sentences).fields == {"tokens": ["Anna"], "tags": ["B-PER"]}
    with pytest.raises(UserError, match="line 10004: not UTF-8"):
        next(sentences)


def test_a_wrong_column_and_a_sentence_without_a_word(tmp_path):
    path = folder(tmp_path)
    assert "config.tags_field must be the number of a column from 1 on in a column file, found 'pos'" in message(
        "ner", path, tags_field="pos"
    )
    assert "line 1: 2 columns (Anna B-PER), expected a word in column 1 and its label in column 3" in message(
        "ner", path, tags_field="3"
    )
    rows = [{"tokens": ["Anna", "x"], "tags": ["B-PER", "O"]}, {"tokens": [], "tags": []}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "json").mkdir()
    data = open_task("ner", folder(tmp_path / "json", text, text, ".jsonl"))
    assert len(data.train) == 1 and "1 sentences without a word left out (first: line 2)" in "\n".join(data.notes)


class Letters:
    """A tokenizer with a token for each letter, as byte-level BPE has it: a space belongs to the letter after it."""

    special = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)

    def encode_spans(self, texts):
        found = []
        for text in texts:
            spans = [(i, i + 1) for i, c in enumerate(text) if c not in " \u200b"]
            ids = [ord(text[start]) for start, _ in spans]
            found.append(Tokenized(np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2)))
        return found


def example(sentence, tags=None):
    return Example(0, " ".join(sentence), words=tuple(sentence), tags=tags)


def test_the_first_token_of_a_word_carries_its_label():
    said = []
    sentences = [example(["ab", "c", "def"], (3, 4, 5)), example(["\u200b", "gh"], (3, 4))]
    one, two = encode(Letters(), sentences, "token_classification", 16, said.append)
    assert one.words.tolist() == [-1, 0, -1, 1, 2, -1, -1, -1] and one.tags.tolist() == [-1, 3, -1, 4, 5, -1, -1, -1]
    assert one.rows[0].ids.tolist() == [2, *map(ord, "abcdef"), 3]
    assert two.words.tolist() == [-1, 1, -1, -1]
    assert said == ["1 of 2 sentences have words without a token of their own, which are given no label"]
    logits = [np.eye(6)[[0, 5, 0, 4, 3, 0, 0, 0]], np.eye(6)[[0, 2, 0, 0]]]
    outputs = by_example("token_classification", [one, two], logits)
    assert scoring.predict(NER, sentences, outputs) == [(5, 4, 3), (tokens.NOT_READ, 2)]


def test_later_tokens_learn_to_be_inside_of_the_entity_or_nothing():
    labels = ("B-LOC", "B-PER", "E-PER", "I-PER", "O")
    assert tokens.inside(labels) == (-1, 3, -1, 3, 4)  # there is no I-LOC
    sentence = example(["abc", "de", "\u200b", "fg", "hi"], (1, 0, 1, 3, 4))
    (one,) = encode(Letters(), [sentence], "token_classification", 16, later=tokens.inside(labels))
    assert one.tags.tolist() == [-1, 1, 3, 3, 0, -1, 3, 3, 4, 4, -1]
    assert one.words.tolist() == [-1, 0, -1, -1, 1, -1, 3, -1, 4, -1, -1]
    (plain,) = encode(Letters(), [sentence], "token_classification", 16)
    assert plain.tags.tolist() == [-1, 1, -1, -1, 0, -1, 3, -1, 4, -1, -1]


def test_a_long_sentence_is_read_in_windows_each_word_once_with_most_context():
    said, sentence = [], [chr(97 + i) for i in range(26)]
    features = encode(Letters(), [example(sentence, tuple(range(26)))], "token_classification", 18, said.append)
    assert said == ["1 of 1 sentences are longer than 18 tokens: cut into windows"]
    assert [len(f.rows[0].ids) for f in features] == [18, 18, 12]
    read = [f.words[f.words >= 0].tolist() for f in features]
    assert read == [list(range(12)), list(range(12, 20)), list(range(20, 26))]
    assert all((f.tags == f.words).all() for f in features)
    logits = [np.eye(26)[np.maximum(f.words, 0)] for f in features]
    (found,) = scoring.predict(TAGGING, [example(sentence)], by_example("token_classification", features, logits))
    assert found == tuple(range(26))


LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def numbers(text, labels=LABELS):
    return tuple(labels.index(tag) for tag in text.split())


def test_entities_are_scored_as_seqeval_does_by_default_and_strictly():
    golds = [numbers("B-PER I-PER O B-LOC"), numbers("B-LOC I-LOC O O")]
    examples = [example(["a", "b", "c", "d"], tags) for tags in golds]
    # One right, one with a wrong end, and one that begins with I-: right as conlleval reads it, not strictly.
    predictions = [numbers("B-PER I-PER O I-LOC"), numbers("B-LOC O O O")]
    found = scoring.measure(NER, {"dev": examples}, {"dev": predictions}, LABELS)
    assert found == {
        "eval/f1": pytest.approx(2 / 3), "eval/precision": pytest.approx(2 / 3), "eval/recall": pytest.approx(2 / 3),
        "eval/strict_f1": pytest.approx(2 / 5), "eval/score": pytest.approx(2 / 3),
    }  # fmt: skip
    nothing = scoring.measure(NER, {"dev": examples}, {"dev": [(4,) * 4] * 2}, LABELS)
    assert set(nothing.values()) == {0.0}


@pytest.mark.parametrize(
    ("sentences", "name"),
    [
        (["B-PER I-PER O"], "IOB2"),
        (["I-PER I-PER O", "I-PER B-PER"], "IOB1"),
        (["I-PER O"], "IOB1"),
        (["S-PER O", "B-PER I-PER E-PER"], "IOBES"),
        (["U-PER O", "B-PER L-PER"], "BILOU"),
        (["I-PER E-PER O"], "IOE2"),
    ],
)
def test_the_scheme_of_the_labels(sentences, name):
    labels = tuple(sorted({tag for sentence in sentences for tag in sentence.split()}))
    assert tokens.scheme(labels, [numbers(sentence, labels) for sentence in sentences]) == name


def test_strict_scores_follow_the_scheme_of_the_labels():
    labels = ("B-PER", "I-PER", "O")
    tags = numbers("I-PER I-PER O I-PER B-PER", labels)
    found = tokens.measure_entities([example("abcde", tags)], [tags], labels)
    assert found == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "strict_f1": 1.0}


def test_entities_of_bilou_that_touch_are_two():
    labels = ("B-PER", "L-PER", "O", "U-PER")
    golds, found = numbers("U-PER U-PER O B-PER L-PER U-PER", labels), numbers("U-PER O O B-PER L-PER U-PER", labels)
    scores = tokens.measure_entities([example("abcdef", golds)], [found], labels)
    assert scores == {"f1": pytest.approx(6 / 7), "precision": 1.0, "recall": 0.75, "strict_f1": pytest.approx(6 / 7)}


def test_weights_of_labels():
    data = TaskData(("A", "B", "C"), (example("ab", (0, 0)), example("c", (1,))), {}, {}, ())
    assert scoring.label_weights(TAGGING, "", data) == ()
    assert scoring.label_weights(TAGGING, "balanced", data) == (0.5, 1.0, 0.0)
    assert scoring.label_weights(TAGGING, "A=0,C=2.5", data) == (0.0, 1.0, 2.5)
    odd = dataclasses.replace(data, labels=("so, so", "a=b"))
    assert scoring.label_weights(TAGGING, "so, so=2,a=b=0.5", odd) == (2.0, 0.5)
    classes = dataclasses.replace(data, train=tuple(Example(0, "a", label=label) for label in (0, 0, 0, 1, 2, 2)))
    assert scoring.label_weights(TASKS["classification"], "balanced", classes) == (2 / 3, 2.0, 1.0)
    for task, given, expected in (
        (
            TAGGING,
            "A=x",
            "config.class_weights has 'A=x', expected 'balanced' or LABEL=WEIGHT with a weight from 0 on ",
        ),
        (TAGGING, "D=1", "a label among A, B, C"),
        (TAGGING, "A=-1", "has 'A=-1'"),
        (TAGGING, "A=1,B=2,A=3", "config.class_weights names the label 'A' twice"),
        (TAGGING, "A=1,B", "has 'B'"),
        (TAGGING, "A=0,B=0,C=0", "gives no label a weight above 0"),
        (TASKS["stsb"], "balanced", "config.class_weights = 'balanced': stsb has no classes, give ''"),
    ):
        with pytest.raises(UserError) as error:
            scoring.label_weights(task, given, data)
        assert expected in str(error.value)


def test_words_are_scored_by_accuracy_and_the_floor_reads_no_context(tmp_path):
    train = [example(["the", "can", "can"], (0, 1, 2)), example(["can"], (2,)), example(["cat"], (1,))]
    dev = [example(["the", "can", "dog"], (0, 1, 1))]
    floor = tokens.most_frequent(train, dev)
    assert floor == [(0, 2, 1)]  # the most frequent label of all is one of two, and the first of them
    labels = ("DET", "NOUN", "VERB")
    assert tokens.measure_words(dev, floor, labels) == {"accuracy": pytest.approx(2 / 3)}
    assert tokens.measure_words(dev, [(0, tokens.NOT_READ, 1)], labels) == {"accuracy": pytest.approx(2 / 3)}
    path = submission.write(TAGGING, "dev", dev, floor, tmp_path, labels)
    assert path.name == "dev-tagging.conll" and path.read_text() == "the DET DET\ncan NOUN VERB\ndog NOUN NOUN\n\n"
    hidden = [example(["the", "can", "dog"])]
    assert tokens.submit(hidden, floor, labels) == "the DET\ncan VERB\ndog NOUN\n\n"
    assert tokens.names(LABELS, [0, tokens.NOT_READ]) == ["B-LOC", "O"]


def test_examples_of_other_tasks_have_the_digest_that_they_had():
    assert repr(Example(3, "a", label=1)) == (
        "Example(id=3, first='a', second='', label=1, choices=(), marked=(), group='', candidate='', answers=())"
    )


def test_a_dataset_of_tfds_has_its_labels_by_name(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class Tagged(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            tags = tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-PER"]))
            features = {"tokens": tfds.features.Sequence(tfds.features.Text()), "tags": tags}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"tokens": ["Anna", "isst"], "tags": ["B-PER", "O"]}

    Tagged(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    data = open_any(NER, "tfds:tagged", FileSettings())
    assert (words(data.train), named(data, data.train)) == ([["Anna", "isst"]], [["B-PER", "O"]])


def test_a_number_of_tfds_without_a_label_is_not_the_last_label():
    rows = {"train": [{"tags": [1, -1]}]}
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(splits=rows), data_dir="here", as_data_source=lambda split: rows[split]
    )
    splits = tfds_splits(builder, SplitNames("train", {}), "tags", ("O", "B-PER"), {})
    assert next(splits["train"].records).fields == {"tags": ["B-PER", -1]}


def test_an_unknown_kind_of_file(tmp_path):
    (tmp_path / "a.xml").write_text("x")
    with pytest.raises(UserError, match=r"a\.xml: unknown kind of file, expected \.conll"):
        open_any(NER, str(tmp_path / "a.xml"), FileSettings())
