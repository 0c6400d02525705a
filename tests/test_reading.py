import re
import shutil
import subprocess
import sys

import pytest

from sctd_jax.tasks.examples import Answer, Example, FileSettings, Span
from sctd_jax.tasks.table import TASKS
from tests import helpers
from tests.reading_helpers import edit, message, open_task
from tests.task_files import SIZES, write_task

LIVES = "Boris lives in Lyon with two children."
COLD = "The bread is cold."
PASSAGE = "Anna met Boris in Rotterdam.\n@highlight\nAnna is the mayor of Rotterdam"
TOWN = "The town of Rotterdam was founded by “Anna” in 1200. It lies at a river."
ENDINGS = ("swims across the moon.", "eats the bread.", 'says "blue" to a door.', "flies to a hat.")


# Worked by hand from tests/task_files.py: (number of the training example, example).
def tagged(text, tags):
    return Example(1, text, words=tuple(text.split()), tags=tags)


EXPECTED = {
    "cola": (1, Example(1, "Boris the bread gave to.", label=0)),
    "sst2": (1, Example(1, 'boris calls the bread " awful ', label=0)),
    "mrpc": (1, Example(1, "The bread is awful, Boris says.", "Lyon lies at the river.", label=0)),
    "stsb": (1, Example(1, "The bread is awful, Boris says.", "Lyon lies at the river.", label=0.2)),
    "qqp": (2, Example(102, "How do I make cheese?", "What is the way to make cheese?", label=1)),
    "mnli": (2, Example(2, "Clara lives in Kraków with two children.", "Clara never lived in Kraków.", label=2)),
    "qnli": (1, Example(1, "Where does Boris live?", COLD, label=1)),
    "rte": (1, Example(1, LIVES, COLD, label=1)),
    "wnli": (1, Example(1, LIVES, COLD, label=0)),
    "boolq": (
        2,
        Example(
            2, "is Kraków known for cheese", "Kraków -- Kraków is known for its cheese. It lies at a river.", label=1
        ),
    ),
    "cb": (1, Example(1, "Boris doubts that the train goes to Lyon.", "it goes to Lyon", label=1)),
    "copa": (
        2,
        Example(
            2,
            "Clara was hungry.",
            label=1,
            choices=(
                "What was the cause of this? The river was wide in Kraków.",
                "What was the cause of this? Clara had eaten nothing.",
            ),
        ),
    ),
    "multirc": (
        8,  # the first row has five answers, the second one's second question begins with the fourth
        Example((1, 3, 8), "Boris lives in Lyon. The bread is cold.", "What is cold? The car", label=0, group="1-3"),
    ),
    "record": (
        5,
        Example(
            id=1,
            first=PASSAGE,
            second="They met in Rotterdam.",
            label=1,
            group="0-1",
            candidate="Rotterdam",
            answers=(Answer("Rotterdam"),),
        ),
    ),
    "superglue_rte": (1, Example(1, LIVES, COLD, label=1)),
    "wic": (
        1,
        Example(
            1,
            "Boris sat on the bank of the river.",
            "The banks lend money.",
            label=0,
            marked=(Span(0, 17, 21), Span(1, 4, 9)),
        ),
    ),
    "wsc": (
        0,
        Example(0, "Anna thanked Uncle Boris, because she got help.", label=1, marked=(Span(0, 0, 4), Span(0, 34, 37))),
    ),
    "squad1": (0, Example("train" + "0" * 20, "When was Rotterdam founded?", TOWN, answers=(Answer("1200", 47),))),
    "squad2": (
        2,
        Example(
            f"train{2:020d}",
            "Who burnt it down?",
            "The town of Kraków was founded by “Clara” in 1202. It lies at a river.",
        ),
    ),
    "swag": (1, Example(1, "Boris sits down with the bread.", label=1, choices=tuple(f"She {e}" for e in ENDINGS))),
    "hellaswag": (1, Example(11, "Boris sits down with the bread.", label=1, choices=ENDINGS)),
    "imdb": (0, Example("pos/0_9", "The soup is delicious.\n\nAnna says so.", label=1)),
    "sst5": (1, Example(1, "The bread is awful (", label=0)),
    "xnli": (1, Example(1, "Boris lives in Lyon with two children.", "Boris likes music.", label=1)),
    "classification": (1, Example(1, "The bread is awful,\nBoris says.", label=0)),
    "regression": (1, Example(1, "The bread is awful,\nBoris says.", label=0.25)),
    "ner": (1, tagged("Boris Smith lives in Lyon .", (1, 2, 3, 3, 0, 3))),
    "tagging": (1, tagged("Boris does not eat .", (2, 0, 1, 4, 3))),
}


LABELS = {
    "classification": ("negative", "positive"),
    "ner": ("B-LOC", "B-PER", "I-PER", "O"),
    "tagging": ("AUX", "PART", "PROPN", "PUNCT", "VERB"),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_from_its_official_layout(name, tmp_path):
    write_task(tmp_path, name)
    folder = tmp_path / "own" if not TASKS[name].folder else tmp_path  # or the folder above it
    data = open_task(name, folder)
    number, expected = EXPECTED[name]
    assert data.train[number] == expected
    rows = {"multirc": 5, "record": 6}.get(name, 1)
    held_out = 1 if name == "imdb" else 0  # it has no dev set
    assert len(data.train) == rows * SIZES["train"] - held_out
    assert list(data.dev) == (["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"])
    tests = {"mnli": ["test_matched", "test_mismatched"], "squad1": [], "squad2": []}.get(name, ["test"])
    assert list(data.test) == [*tests, *TASKS[name].diagnostics]
    for examples in data.dev.values():
        assert len(examples) == (held_out or rows * SIZES["dev"])
        labelled = [example.tags if name in ("ner", "tagging") else example.label for example in examples]
        assert name.startswith("squad") or None not in labelled
    for split, examples in data.test.items():
        assert len(examples) == (3 if split in TASKS[name].diagnostics else rows * SIZES["test"])
        known = [(e.label, e.tags, e.answers) != (None, None, ()) for e in examples]
        assert known == [TASKS[name].scored] * len(examples)
    assert data.labels == LABELS.get(name, TASKS[name].labels)
    assert bool(data.notes) == (
        name in ("qqp", "imdb") or not TASKS[name].folder
    )  # whose dev rows are training rows too
    assert data == open_task(name, folder)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("squad1", "squad2")])
def test_test_files_are_optional(name, tmp_path):
    folder = write_task(tmp_path, name)
    for path in folder.glob("*test*"):
        path.unlink()
    if name == "imdb":
        shutil.rmtree(folder / "aclImdb" / "test")
    assert open_task(name, folder).test.keys() == TASKS[name].diagnostics.keys()


def test_diagnostics_stand_beside_their_task_and_are_missed_only_where_a_submission_is_made(tmp_path, monkeypatch):
    folder = write_task(tmp_path, "mnli")
    (example, *_) = open_task("mnli", tmp_path).test["test_ax"]
    assert example == Example(0, "Anna lives in Rotterdam with two children.", "Anna lives in a town.")
    monkeypatch.chdir(folder)
    assert open_task("mnli", ".").test["test_ax"][0] == example
    (tmp_path / "AX").rename(tmp_path / "diagnostic")
    (tmp_path / "diagnostic" / "AX.tsv").rename(tmp_path / "diagnostic" / "diagnostic.tsv")
    assert len(open_task("mnli", folder).test["test_ax"]) == 3
    shutil.rmtree(tmp_path / "diagnostic")
    (note,) = open_task("mnli", folder).notes
    assert note == (
        f"{tmp_path}: no AX/AX.tsv or diagnostic/diagnostic.tsv, whose predictions a submission has beside the test's"
    )
    for path in folder.glob("test*"):
        path.unlink()
    assert open_task("mnli", folder).notes == ()
    for part, first in (("test_axb", "sentence1"), ("test_axg", "premise")):
        write_task(tmp_path, "superglue_rte")
        assert open_task("superglue_rte", tmp_path).test[part][1].second == "Boris likes music.", first


def test_imdb_is_a_folder_or_one_table(tmp_path):
    folder = write_task(tmp_path, "imdb", {"train": 40, "test": 2})
    data = open_task("imdb", folder)
    assert (len(data.train), len(data.dev["dev"])) == (36, 4)
    assert [(e.id, e.label) for e in data.test["test"]] == [("neg/1_2", 0), ("pos/0_9", 1)][::-1]
    assert "40 reviews with <br />, taken as ends of lines" in data.notes[0]
    table = tmp_path / "IMDB Dataset.csv"
    table.write_text("review,sentiment\n" + 20 * '"Good, <br /><br />she says.",positive\nBad.,negative\n')
    data = open_task("imdb", table, heldout_share=0.25)
    assert (len(data.train), len(data.dev["dev"]), data.test) == (30, 10, {})
    assert {(e.first, e.label) for e in data.train} == {("Good,\n\nshe says.", 1), ("Bad.", 0)}
    table.write_text("review,sentiment\nGood.,great\nBad.,negative\n")
    assert "line 2: unknown label 'great', expected one of neg, pos, " in message("imdb", table, heldout_share=0.5)
    assert f"imdb: no train/pos in {tmp_path / 'x'} or its folder aclImdb" in message("imdb", tmp_path / "x")


def test_xnli_has_a_language_or_two(tmp_path):
    folder = write_task(tmp_path, "xnli")
    assert {e.first[:4] for e in open_task("xnli", tmp_path).dev["dev"]} == {"en: "}
    data = open_task("xnli", tmp_path, language="en:de")
    assert {e.first[:4] for e in (*data.dev["dev"], *data.test["test"])} == {"de: "}
    assert [e.label for e in data.train[:3]] == [0, 1, 2] == [e.label for e in data.test["test"][:3]]
    assert "xnli: no multinli/multinli.train.de.tsv in" in message("xnli", folder, language="de")
    assert "config.language = 'xx': no language xx in xnli, expected one of ar, " in message(
        "xnli", folder, language="xx"
    )
    assert "xnli is read from its files alone" in message("xnli", "tfds:xnli")


def test_trees_of_sst5(tmp_path):
    folder = write_task(tmp_path, "sst5")
    (folder / "dev.txt").write_text("(3 (2 It) (4 1\\/2))\n\n(3 (2 It)\n")
    assert "dev.txt, line 3: no tree such as (3 (2 It) (4 shines)), found '(3 (2 It)'" in message("sst5", folder)
    (folder / "dev.txt").write_text("(3 (2 It) (4 1\\/2))\n")
    assert open_task("sst5", folder).dev["dev"] == (Example(0, "It 1/2", label=3),)
    (tmp_path / "new.csv").write_text("sentence\nIt shines\n")  # to predict
    (row,) = TASKS["sst5"].rows(str(tmp_path / "new.csv"), FileSettings(), lambda what, place: None)
    assert row.fields == {"sentence": "It shines"}


def test_dev_answers_of_squad_are_all_kept(tmp_path):
    data = open_task("squad1", write_task(tmp_path, "squad1"))
    assert data.dev["dev"][0].answers == (Answer("1200", 47), Answer("in 1200", 44))


def test_a_byte_order_mark_crlf_quotes_and_other_line_separators(tmp_path):
    folder = write_task(tmp_path, "mrpc")
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    row = "1\t7\t8\t\"One \u2028 “quote”, \x85 ä\t文字 '\r\n"
    (folder / "train.tsv").write_bytes(b"\xef\xbb\xbf" + (header + row + "\r\n").encode())
    data = open_task("mrpc", folder)
    assert data.train == (Example(0, '"One \u2028 “quote”, \x85 ä', "文字 '", label=1),)


def test_rows_that_the_official_files_break_are_counted(tmp_path):
    folder = write_task(tmp_path, "qqp")
    assert open_task("qqp", folder).notes == (
        f"{folder}/train.tsv: 2 rows with too few columns left out (first: line 4)",
    )
    for split in ("train", "dev"):
        with open(folder / f"{split}.tsv", "a") as file:
            file.write("9\t1\t2\t\tIs this empty?\t0\n")
    data = open_task("qqp", folder)
    assert len(data.train) == SIZES["train"]
    assert data.notes[1] == f"{folder}/train.tsv: 1 rows without a text left out (first: line 16)"
    # The metric is of all rows of the official dev set.
    assert data.dev["dev"][SIZES["dev"]] == Example(9, " ", "Is this empty?", label=0)
    with open(folder / "test.tsv", "a") as file:
        file.write("4\t\tIs this empty?\n")
    assert open_task("qqp", folder).test["test"][4] == Example(4, " ", "Is this empty?")  # must be answered
    with open(folder / "test.tsv", "a") as file:
        file.write("5\tIs this\n")
    assert message("qqp", folder) == (
        f"{folder}/test.tsv, line 7: 2 columns, expected 3 ('id', 'question1', 'question2')"
    )


def test_what_is_left_out_or_odd_is_counted_with_its_first_place(tmp_path):
    def notes(name, file, change, folder=tmp_path):
        path = write_task(tmp_path, name) / file
        path.write_text(change(path.read_text()))
        found = open_task(name, folder).notes
        return [note.removeprefix(f"{path}: ") for note in found]

    empty = '"paragraphs": [{"context": "c", "qas": []}, '
    assert notes("squad1", "train-v1.1.json", lambda text: text.replace('"paragraphs": [', empty)) == [
        "1 paragraphs without a question (first: article 1, paragraph 1)"
    ]
    repeated = "rows repeat the id of another"
    assert notes("squad1", "train-v1.1.json", lambda text: re.sub(r'"train0*\d"', '"q"', text))[0].startswith(
        f"9 {repeated} (first: article 1, paragraph 2, question 1 (q))"
    )
    assert notes("rte", "dev.tsv", lambda text: text.replace("\n1\t", "\n0\t")) == [f"1 {repeated} (first: line 3)"]
    more = "1 rows with more than 4 columns, whose rest is not read (first: line 2)"
    assert notes("rte", "train.tsv", lambda text: text.replace("entailment\n", "entailment\tmore\n", 1)) == [more]
    passage = '{"passage": {"text": "p", "questions": []}, "idx": 99}\n'
    assert notes("multirc", "train.jsonl", lambda text: text + passage) == [
        "1 passages without a question (first: line 13)"
    ]
    query = '{"passage": {"text": "ab", "entities": [{"start": 0, "end": 0}]}, "idx": 99, "qas": '
    query += '[{"query": "@placeholder", "idx": 99, "answers": [{"text": "b"}]}]}\n'
    assert notes("record", "train.jsonl", lambda text: text + query) == [
        "1 queries none of whose entities is an answer (first: line 13, query 1)"
    ]
    assert notes("wic", "train.jsonl", lambda text: text.replace('"end2": 9', '"end2": 8', 1)) == [
        "1 marked words that begin or end inside of a word (first: line 1)"
    ]
    assert notes("cb", "test.jsonl", lambda text: text.replace(', "idx": 3', "")) == [
        "1 rows without an id, unlike the first one: they get their number in the file (first: line 4)"
    ]
    assert notes("cola", "dev.tsv", lambda text: text.replace("\t1\t", "\t0\t")) == [
        "all 6 dev rows have the same label: mcc will always be 0"
    ]


def test_what_is_odd_about_the_users_files_is_counted(tmp_path):
    (tmp_path / "train.csv").write_text(",text,label\n0,a,x\n1,b,y\n2,c,x\n")
    (tmp_path / "dev.csv").write_text("text,label,note,\na,x,new,0\nd,y,,1\n")
    (tmp_path / "test.csv").write_text('text\na\n\nb\n" "\n""\n')
    for name in ("old\x1b.csv", "test.CSV", ".hidden"):
        (tmp_path / name).write_text("")
    assert open_task("classification", tmp_path).notes == (
        f"{tmp_path}/test.csv: 1 blank lines passed over, which may have been empty texts (first: line 3)",
        f"{tmp_path}/test.csv: 2 rows whose field 'text' is empty, predicted all the same (first: line 5)",
        f"{tmp_path}: 2 other files or folders are not read: old\\x1b.csv, test.CSV",
        f"{tmp_path}/train.csv: 1 fields are not read: ''",
        f"{tmp_path}/dev.csv: 1 fields are not read: note",
        f"{tmp_path}/dev.csv: 1 of 2 dev rows stand in the training rows too: the score is too good",
    )
    unused = "config.heldout_share (0.2) is not used: there is a dev set"
    assert unused in open_task("classification", tmp_path, heldout_share=0.2).notes
    path = tmp_path / "one.jsonl"
    path.write_text("".join(f'{{"text": "{i}", "label": {label}}}\n' for i, label in enumerate(["0", "1", '"1"', "0"])))
    data = open_task("classification", path, heldout_share=0.25, seed=3)
    assert data.labels == ("0", "1") and data.notes == (
        f"{path}: 1 labels of another JSON type than the same label before, taken as one (first: line 3)",
    )
    path = tmp_path / "one.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{i}\t{'z' if i in (0, 5) else 'y'}\n" for i in range(8)))
    assert open_task("classification", path, heldout_share=0.25, seed=1).notes == (
        f"{path}: 1 labels without a training row: z",
    )
    path.write_text("text\tlabel\tid\n" + "".join(f'"{i}"\t{int(i == 3)}\t{i}\n' for i in range(8)))
    assert open_task("regression", path, heldout_share=0.25, seed=1).notes == (
        f"{path}: 8 rows with a field in double quotes, which are kept as text; in a .csv they would be quotes "
        "(first: line 2)",
        f"{path}: 1 fields are not read: id",
        f"{path}: all 2 dev rows have the same label: pearson, spearman will always be 0",
    )


@pytest.mark.parametrize("value", [True, "True", "true"])
def test_boolean_labels_in_any_spelling(value, tmp_path):
    for name in ("boolq", "wsc"):
        folder = write_task(tmp_path, name)
        edit(folder / "train.jsonl", 1, label=value)
        assert open_task(name, folder).train[0].label == 1


def test_a_marked_word_may_end_its_sentence(tmp_path):
    folder = write_task(tmp_path, "wic")
    edit(folder / "train.jsonl", 1, sentence1="The bank", start1=4, end1=8)
    assert open_task("wic", folder).train[0].marked[0] == Span(0, 4, 8)


def wsc(tmp_path, text, index, span):
    folder = write_task(tmp_path, "wsc")
    target = {"span1_index": 0, "span1_text": text.split()[0], "span2_index": index, "span2_text": span}
    edit(folder / "train.jsonl", 1, text=text, target=target)
    data = open_task("wsc", folder)
    marked = data.train[0].marked[1]
    return text[marked.start : marked.end], marked.start, bool(data.notes)


def test_wsc_spans_as_the_official_files_have_them(tmp_path):
    text = "Ann met the  Old man . Then he waved, he said."
    assert wsc(tmp_path, text, 2, "The old man.") == ("the  Old man", 8, False)
    assert wsc(tmp_path, text, 7, "he") == ("he", 28, False)
    assert wsc(tmp_path, text, 10, "he") == ("he", 38, True)  # off by one: the nearer of two, not the first
    assert wsc(tmp_path, text, 2, "the young man") == ("the  Old man", 8, True)  # as many words from the index on
    folder = tmp_path / "WSC"
    assert open_task("wsc", folder).notes == (
        f"{folder}/train.jsonl: 1 marked spans whose text does not stand at their word index: the nearest such text "
        "is taken (first: line 1)",
    )


def test_wsc_marks_words_and_not_parts_of_words(tmp_path):
    text = "Ann heard the other man, said he."
    assert wsc(tmp_path, text, 1, "he") == ("he", 30, True)


def test_a_file_of_the_users_is_split_by_a_seed(tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f'"row {i}, with ""quotes""\nand lines",{"yes" if i % 2 else "no"}\n' for i in range(20)]
    path.write_text("text,label\n" + "".join(lines))
    data = open_task("classification", path, heldout_share=0.25, seed=3)
    assert (len(data.train), len(data.dev["dev"]), data.test) == (15, 5, {})
    assert data.labels == ("no", "yes")
    ids = [example.id for example in (*data.train, *data.dev["dev"])]
    assert sorted(ids) == list(range(20))
    assert ids[:15] == sorted(ids[:15]) and ids[15:] == sorted(ids[15:])
    assert data.train[0].first == f'row {data.train[0].id}, with "quotes"\nand lines'
    assert all(example.label == example.id % 2 for example in data.train)
    assert data == open_task("classification", path, heldout_share=0.25, seed=3)
    assert data != open_task("classification", path, heldout_share=0.25, seed=4)


def test_fields_and_kinds_of_the_users_files(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": "x", "b": "y", "n": 1}\n\n{"a": "z", "b": "y", "n": true}\n')
    (tmp_path / "dev.tsv").write_text('n\ta\tb\n1\t"q\tr\n')
    data = open_task("classification", tmp_path, text_field="a", pair_field="b", label_field="n")
    assert data.labels == ("1", "true")
    assert data.train == (Example(0, "x", "y", label=0), Example(1, "z", "y", label=1))
    assert data.dev == {"dev": (Example(0, '"q', "r", label=0),)}
    (tmp_path / "train.jsonl").write_text('{"a": "x", "n": 1.5}\n{"a": "z", "n": "-2e-1"}\n')
    data = open_task("regression", tmp_path, text_field="a", label_field="n")
    assert [example.label for example in (*data.train, *data.dev["dev"])] == [1.5, -0.2, 1.0]


def test_a_bad_task_or_file_is_answered_without_loading_what_trains_and_measures():
    code = """
import sys
from sctd_jax.finetune import config
from sctd_jax.tasks import splits, table
assert not {"jax", "scipy", "sklearn", "tensorflow_datasets"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], env=helpers.environment(), cwd=helpers.ROOT, check=True)
