import json
import os
import re
from pathlib import Path

import pytest

from sctd_jax.errors import UserError
from sctd_jax.tasks.files import read_jsonl
from tests.reading_helpers import edit, message, open_task
from tests.task_files import write_task


def test_missing_files_are_named_with_what_is_expected(tmp_path):
    expected = (
        "expected train.tsv, dev.tsv, and test.tsv for a submission in config.data_dir or its folder CoLA, as "
        "https://gluebenchmark.com/tasks has them"
    )
    assert message("cola", tmp_path / "x") == f"cola: no folder {tmp_path}/x; {expected}"
    assert message("cola", tmp_path) == f"cola: no train.tsv, dev.tsv in {tmp_path}; {expected}"
    folder = write_task(tmp_path, "cola")
    (folder / "dev.tsv").unlink()
    assert message("cola", tmp_path) == message("cola", folder) == f"cola: no dev.tsv in {folder}; {expected}"
    folder = write_task(tmp_path, "mnli")
    (folder / "dev_mismatched.tsv").unlink()
    assert message("mnli", folder).startswith(f"mnli: no dev_mismatched.tsv in {folder}; expected train.tsv, dev_m")
    (folder / "dev_matched.tsv").unlink()
    assert message("mnli", folder).startswith(f"mnli: no dev_matched.tsv, dev_mismatched.tsv in {folder}; ")
    assert message("squad2", tmp_path) == (
        f"squad2: no train-v2.0.json, dev-v2.0.json in {tmp_path}; expected train-v2.0.json, dev-v2.0.json in "
        "config.data_dir or its folder SQuAD2, as https://rajpurkar.github.io/SQuAD-explorer has them"
    )


# name: (task, file, its new content, message after the file's path)
HEAD = "index\tsentence1\tsentence2\tlabel\n"
SWAG = "sent1,sent2,ending0,ending1,ending2,ending3,label\n"
BAD_FILES = {
    "columns": ("rte", "train.tsv", HEAD + "0\ta\tb\n",
                ", line 2: 3 columns, expected 4 ('index', 'sentence1', 'sentence2', 'label')"),
    "blank lines are counted": ("rte", "train.tsv", HEAD + "\n0\ta\tb\n",
                                ", line 3: 3 columns, expected 4 ('index', 'sentence1', 'sentence2', 'label')"),
    "label": ("rte", "train.tsv", HEAD + "0\ta\tb\tmaybe\n",
              ", line 2: unknown label 'maybe', expected one of entailment, not_entailment"),
    "no judgement": ("rte", "dev.tsv", HEAD + "0\ta\tb\t-\n",
                     ", line 2: unknown label '-', expected one of entailment, not_entailment; leave out the rows on "
                     "which the judges disagreed"),
    "semicolons": ("swag", "val.csv", SWAG.replace(",", ";"),
                   f", line 1: one column, {SWAG.strip().replace(',', ';')!r}; separate the columns by ','"),
    "commas": ("rte", "train.tsv", "a,b\n", ", line 1: one column, 'a,b'; separate the columns by '\\t'"),
    "empty label": ("rte", "train.tsv", HEAD + "0\ta\tb\t\n", ", line 2: the field 'label' is empty"),
    "header": ("rte", "train.tsv", "index\tpremise\n0\ta\n", ", line 2: no field 'sentence1'; found index, premise"),
    "empty text": ("rte", "train.tsv", HEAD + "0\ta\t \tentailment\n", ", line 2: the field 'sentence2' is empty"),
    "index": ("rte", "train.tsv", HEAD + "x\ta\tb\tentailment\n",
              ", line 2: the field 'index' is no whole number, found 'x'"),
    "no rows": ("rte", "train.tsv", HEAD, ": no rows"),
    "empty": ("rte", "train.tsv", "", ": no rows"),
    "dev": ("rte", "dev.tsv", HEAD + "0\ta\tb\tmaybe\n",
            ", line 2: unknown label 'maybe', expected one of entailment, not_entailment"),
    "test": ("rte", "test.tsv", HEAD + "0\ta\n",
             ", line 2: 2 columns, expected 4 ('index', 'sentence1', 'sentence2', 'label')"),
    "UTF-8": ("rte", "train.tsv", HEAD.encode() + b"0\ta\xff\tb\tentailment\n",
              ", line 2: not UTF-8 (byte 4); save it as UTF-8"),
    "CR": ("rte", "train.tsv", HEAD.replace("\n", "\r") + "0\ta\tb\tentailment\r",
           ": its lines end in CR alone; convert it: tr '\\r' '\\n' < OLD > NEW"),
    "header twice": ("rte", "train.tsv", "sentence1\tsentence2\tlabel\tlabel\n",
                     ", line 1: the header names a column twice: sentence1, sentence2, label, label"),
    "header's escape": ("rte", "train.tsv", "sentence1\t\x1b[2J\nx\ty\n",
                        ", line 2: no field 'sentence2'; found sentence1, \\x1b[2J"),
    "score's range": ("stsb", "dev.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t7.5\n",
                      ", line 2: the score 7.5 is outside of 0 to 5"),
    "score's digits": ("stsb", "train.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t1_5\n",
                       ", line 2: the field 'score' is no number, found '1_5'"),
    "json field twice": ("boolq", "train.jsonl", '{"label": true, "label": false}\n',
                         ", line 1: not JSON (the field 'label' stands twice in one object)"),
    "score": ("stsb", "train.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\tnan\n",
              ", line 2: the field 'score' is no number, found 'nan'"),
    "json": ("boolq", "train.jsonl", '{"question": \n',
             ", line 1: not JSON (Expecting value: line 2 column 1 (char 14))"),
    "no object": ("boolq", "train.jsonl", "[1]\n", ", line 1: not a JSON object, found [1]"),
    "no field": ("boolq", "train.jsonl", '\n{"question": "q", "label": true}\n',
                 ", line 2: no field 'passage'; found question, label"),
    "no label": ("boolq", "val.jsonl", '{"question": "q", "passage": "p"}\n',
                 ", line 1: no field 'label'; found question, passage"),
    "no text": ("boolq", "train.jsonl", '{"question": 3, "passage": "p", "label": true}\n',
                ", line 1: the field 'question' is no text, found 3"),
    "surrogate": ("boolq", "train.jsonl", '{"question": "q\\ud83d", "passage": "p", "label": true}\n',
                  ", line 1: the field 'question' holds half of a surrogate pair at character 1"),
    "swag label": ("swag", "train.csv", SWAG + "a,b,c,d,e,f,4\n",
                   ", line 2: unknown label 4, expected 0 to 3"),
    "swag columns": ("swag", "train.csv", SWAG + '"a\nb",b,c,d,e,f,1\n1,2,3\n',
                     f", line 4: 3 columns, expected 7 ({', '.join(map(repr, SWAG.strip().split(',')))})"),
    "open quote": ("swag", "train.csv", SWAG + 'a,b,c,d,e,f,1\na,"b\n', ", line 3: not CSV (unexpected end of data)"),
    "squad json": ("squad1", "train-v1.1.json", '{\n"data": [}',
                   ": not JSON (Expecting value: line 2 column 10 (char 11))"),
    "squad field": ("squad1", "train-v1.1.json", '{"data": [{"paragraphs": [{"qas": [{"question": "q"}]}]}]}',
                    ", article 1, paragraph 1, question 1: no field 'answers'; found question"),
    "squad article": ("squad1", "train-v1.1.json", '{"data": [3]}', ", article 1: not a JSON object, found 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_malformed_files_are_named_by_line(case, tmp_path):
    name, file, content, expected = BAD_FILES[case]
    path = write_task(tmp_path, name) / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message(name, tmp_path) == f"{path}{expected}"


QA1 = {"question": "q", "idx": 0, "answers": [{"text": "a", "idx": 0, "label": 2}]}
# name: (task, fields of line 2 of its training file, message after the line)
BAD_FIELDS = {
    "copa question": ("copa", {"question": "why"}, "unknown question 'why', expected one of cause, effect"),
    "copa label": ("copa", {"label": 2}, "unknown label 2, expected 0 to 1"),
    "cb label": ("cb", {"label": "x"}, "unknown label 'x', expected one of entailment, contradiction, neutral"),
    "idx": ("cb", {"idx": "b"}, "the field 'idx' is no whole number, found 'b'"),
    "wic": ("wic", {"end1": 36}, "start1 .. end1 = 17 .. 36 is outside of sentence1 (35 characters)"),
    "wic empty": ("wic", {"start2": 9}, "start2 .. end2 = 9 .. 9 is outside of sentence2 (21 characters)"),
    "wic negative": ("wic", {"start2": -1}, "start2 .. end2 = -1 .. 9 is outside of sentence2 (21 characters)"),
    "wsc": ("wsc", {"target": {"span1_index": 8, "span1_text": "he", "span2_index": 0, "span2_text": "he"}},
            "span1_index 8 is outside of the text (8 words)"),
    "wsc target": ("wsc", {"target": 3}, ", target: not a JSON object, found 3"),
    "multirc label": ("multirc", {"passage": {"text": "p", "questions": [QA1]}},
                      ", question 1, answer 1: unknown label '2', expected one of 0, 1"),
    "multirc answers": ("multirc", {"passage": {"text": "p", "questions": [{**QA1, "answers": []}]}},
                        ", question 1: a question without answers"),
    "multirc list": ("multirc", {"passage": {"text": "p", "questions": 3}},
                     "the field 'questions' is no list, found 3"),
    "record entity": ("record", {"passage": {"text": "abc", "entities": [{"start": 1, "end": 3}]}},
                      ", entity 1: 1 .. 3 is outside of the passage (3 characters)"),
    "record query": ("record", {"qas": [{"query": "no one", "idx": 0, "answers": [{"text": "a"}]}]},
                     ", query 1: no @placeholder in the query 'no one'"),
    "record answers": ("record", {"qas": [{"query": "@placeholder", "idx": 0, "answers": []}]},
                       ", query 1: a query without answers"),
    "record entities": ("record", {"passage": {"text": "abc", "entities": []}},
                        ", query 1: a query without entities"),
    "hellaswag label": ("hellaswag", {"label": "4"}, "unknown label 4, expected 0 to 3"),
    "hellaswag endings": ("hellaswag", {"endings": ["a", "b", "c"]}, "3 endings, expected 4"),
    "hellaswag context": ("hellaswag", {"ctx_b": None}, "no field 'ctx_b'; found ind, activity_label, ctx_a, ctx, "
                          "split, split_type, endings, label"),
    "hellaswag ending": ("hellaswag", {"endings": ["a", ""]}, "the field 'endings' is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_malformed_rows_are_named_by_line_and_field(case, tmp_path):
    name, fields, expected = BAD_FIELDS[case]
    path = write_task(tmp_path, name) / ("hellaswag_train.jsonl" if name == "hellaswag" else "train.jsonl")
    edit(path, 2, **fields)
    between = "" if expected.startswith(",") else ": "
    assert message(name, tmp_path) == f"{path}, line 2{between}{expected}"


def test_a_reader_that_is_left_half_way_has_no_open_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    records = read_jsonl(str(path))
    assert next(records).fields == {"a": 1}
    del records
    assert str(path) not in {os.path.realpath(open_file) for open_file in Path("/proc/self/fd").iterdir()}


def test_squad_answers_must_stand_where_the_file_says(tmp_path):
    path = write_task(tmp_path, "squad1") / "dev-v1.1.json"
    data = json.loads(path.read_text())
    question = data["data"][0]["paragraphs"][0]["qas"][0]

    def said(**answer):
        question["answers"] = [{"text": "1200", "answer_start": 47} | answer] if answer else []
        path.write_text(json.dumps(data))
        return message("squad1", tmp_path)

    where = f"{path}, article 1, paragraph 1, question 1 ({question['id']}): "
    assert said(answer_start=46) == where + "the answer '1200' does not stand at character 46, found ' 120'"
    assert said(answer_start=-25) == where + "the answer '1200' does not stand at character -25, found 'The '"
    assert said(answer_start=900) == where + "the answer '1200' does not stand at character 900, found ''"
    assert said(text="") == where + "the field 'text' is empty"
    for value in ("false", 0, None):  # each of which Python would take for one or the other
        question["is_impossible"] = value
        assert said(answer_start=47) == f"{where}the field 'is_impossible' is neither true nor false, found {value!r}"
    question["is_impossible"] = True
    assert message("squad1", tmp_path).endswith(f"found {value!r}")
    assert said(answer_start=47) == where + "a question without an answer; SQuAD 2.0 is the task squad2"
    question["is_impossible"] = False
    assert said() == where + "no answer; SQuAD 2.0 says of such a question is_impossible: true"


def test_an_impossible_question_has_no_answers(tmp_path):
    path = write_task(tmp_path, "squad2") / "train-v2.0.json"
    path.write_text(path.read_text().replace('"is_impossible": false', '"is_impossible": true', 1))
    assert message("squad2", tmp_path) == (
        f"{path}, article 1, paragraph 1, question 1 (train{0:020d}): is_impossible is true, but there are 1 answers"
    )


def test_ids_by_which_a_metric_groups_rows_are_each_of_one_question(tmp_path):
    what, advice = "rows repeat the id of another", "and their predictions would become one: give each an id of its own"
    path = write_task(tmp_path, "squad1") / "dev-v1.1.json"
    path.write_text(re.sub(r'"dev0*\d"', '"q"', path.read_text()))
    assert message("squad1", tmp_path) == (
        f"{path}: 5 {what} (first: 'q' at article 1, paragraph 2, question 1 (q)), {advice}"
    )
    for split in ("val", "test"):  # the submission merges them too
        path = write_task(tmp_path, "record") / f"{split}.jsonl"
        path.write_text(path.read_text().replace('"idx": 3', '"idx": 2'))
        assert message("record", tmp_path) == f"{path}: 1 {what} (first: 2 at line 2, query 2), {advice}"
    path = write_task(tmp_path, "multirc") / "val.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"idx": 1}', '"idx": 0}', 1))  # the question, whose answers have numbers of their own
    assert message("multirc", tmp_path) == (
        f"{path}: 3 {what} (first: (0, 0, 2) at line 1, question 2, answer 1), {advice}"
    )
    path.write_text(whole.replace('"idx": 1, "label"', '"idx": 0, "label"', 1))
    assert message("multirc", tmp_path) == (
        f"{path}: 1 {what} (first: (0, 0, 0) at line 1, question 1, answer 2), {advice}"
    )
    path.write_text(whole)
    edit(path, 2, idx=0)  # another passage's
    assert message("multirc", tmp_path).startswith(f"{path}: 5 {what} (first: (0, 2, 5) at line 2, question 1")


INVISIBLE = (("yes", "yes\u200b"), ("\ufeffyes", "yes"), ("re\u00adply", "reply"), ("a b", "a\u2060 b"))


def test_a_label_in_two_spellings_is_no_two_classes(tmp_path):
    path = tmp_path / "rows.jsonl"
    for first, second in (("pos", "Pos"), ("pos", " pos"), (1, 1.0), ("é", "e\u0301"), (True, "True"), *INVISIBLE):
        rows = [{"text": "a", "label": first}, {"text": "b", "label": "neg"}, {"text": "c", "label": second}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        first, second = (str(label).lower() if label is True else str(label) for label in (first, second))
        assert message("classification", path) == (
            f"{path}, line 3: the label {second!r} is also written {first!r} ({path}, line 1); these would be two "
            "classes: write it in one way"
        )
    path.write_text('{"text": "a", "label": "1.1"}\n{"text": "b", "label": "1.10"}\n')  # as sections are numbered
    assert open_task("classification", path, heldout_share=0.5).labels == ("1.1", "1.10")
    path.write_text('{"text": "a", "label": "\u200b"}\n{"text": "b", "label": "y"}\n')
    assert message("classification", path) == (
        f"{path}, line 1: the label '\\u200b' holds nothing to see, expected a name"
    )
    path.write_text('{"text": "a", "label": NaN}\n')
    assert message("classification", path) == f"{path}, line 1: the field 'label' is no text, found nan"


def test_files_of_the_users_that_cannot_be_used(tmp_path):
    path = tmp_path / "rows.tsv"
    assert message("regression", path) == f"regression: no file or folder {path} (config.data_dir)"
    path.write_text("text\tlabel\na\tx\nb\tx\n")
    assert message("classification", path) == (
        f"{path}: 1 different labels in the field 'label' (x), expected at least 2"
    )
    path.write_text("text\tlabel\na\tx\ty\n")
    assert message("classification", path) == f"{path}, line 2: 3 columns, expected 2 ('text', 'label')"
    path.write_text("body\tlabel\na\tx\nb\ty\n")
    assert message("classification", path, heldout_share=0.5) == (
        f"{path}, line 3: no field 'text' (config.text_field); found body, label"
    )
    assert message("classification", path, text_field="body", pair_field="other", heldout_share=0.5) == (
        f"{path}, line 3: no field 'other' (config.pair_field); found body, label"
    )
    assert message("classification", path, label_field="class") == (
        f"{path}, line 2: no field 'class' (config.label_field); found body, label"
    )
    assert message("regression", path, text_field="body", heldout_share=0.5) == (
        f"{path}, line 3: the field 'label' is no number, found 'y'"
    )
    assert message("classification", path, text_field="body") == (
        f"{path}: config.heldout_share = 0.1 of 2 rows leaves 2 rows for training and 0 for the dev set, expected at "
        "least 1 of each"
    )
    path = tmp_path / "rows.txt"
    path.write_text("a")
    assert message("classification", path) == f"{path}: unknown kind of file, expected .csv, .tsv, .jsonl"


def test_folders_of_the_users_that_cannot_be_used(tmp_path):
    expected = "expected train and dev, and maybe test (.csv, .tsv, .jsonl)"
    assert message("classification", tmp_path) == f"classification: no train file in {tmp_path}; {expected}"
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    assert message("classification", tmp_path) == f"classification: no dev file in {tmp_path}; {expected}"
    (tmp_path / "dev.csv").write_text("text,label\na,z\n")
    assert message("classification", tmp_path) == (
        f"{tmp_path}/dev.csv, line 2: unknown label 'z', expected one of x, y"
    )
    (tmp_path / "dev.csv").write_text("text,label\na,x\n")
    (tmp_path / "train.tsv").write_text("")
    assert message("classification", tmp_path) == (
        f"classification: {tmp_path}/train.csv and {tmp_path}/train.tsv are both there, expected one of them"
    )


def test_a_column_that_is_there_twice(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,label,text\na,1,b\nc,0,d\n")
    with pytest.raises(UserError, match=r"own.csv, line 1: the header names a column twice: text, label, text"):
        open_task("classification", path)


def test_a_long_text_in_a_csv_is_no_error(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + "".join(f'"{i} {"word " * 40_000}",{i % 2}\n' for i in range(4)))
    data = open_task("classification", path, heldout_share=0.5)
    assert len(data.train[0].first) > 200_000
