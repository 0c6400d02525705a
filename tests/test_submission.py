"""Every official submission format, letter by letter."""

import json

import numpy as np
import pytest

from sctd_jax.tasks import submission
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.table import TASKS


def examples(*ids):
    return [Example(id, "text") for id in ids]


def written(folder, task, *arguments, **settings):
    """File name and content."""
    path = submission.write(TASKS[task], *arguments, folder, **settings)
    assert path.parent == folder and [path] == list(folder.iterdir())
    return path.name, path.read_bytes().decode("utf-8")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("cola", "CoLA.tsv"),
        ("sst2", "SST-2.tsv"),
        ("mrpc", "MRPC.tsv"),
        ("qqp", "QQP.tsv"),
        ("wnli", "WNLI.tsv"),
    ],
)
def test_glue_with_classes_as_numbers(tmp_path, task, name):
    predictions = np.array([1, 0, 1], np.int32)
    found = written(tmp_path, task, "test", examples(0, 1, 2), predictions)
    assert found == (name, "index\tprediction\n0\t1\n1\t0\n2\t1\n")


@pytest.mark.parametrize(("task", "name"), [("qnli", "QNLI.tsv"), ("rte", "RTE.tsv")])
def test_glue_with_classes_as_words(tmp_path, task, name):
    found = written(tmp_path, task, "test", examples(0, 1), [1, 0])
    assert found == (name, "index\tprediction\n0\tnot_entailment\n1\tentailment\n")


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("test_matched", "MNLI-m.tsv"),
        ("test_mismatched", "MNLI-mm.tsv"),
        ("dev_matched", "dev-MNLI-m.tsv"),
        ("dev_mismatched", "dev-MNLI-mm.tsv"),
    ],
)
def test_mnli_has_two_sets(tmp_path, split, name):
    found = written(tmp_path, "mnli", split, examples(0, 1, 2), [2, 1, 0])
    assert found == (name, "index\tprediction\n0\tcontradiction\n1\tneutral\n2\tentailment\n")


def test_stsb_is_clipped_and_rounded(tmp_path):
    scores = np.array([-0.0004, 5.2, 3.14159, -0.0, 5.0, 2.9996], np.float32)
    name, text = written(tmp_path, "stsb", "test", examples(*range(6)), scores)
    assert name == "STS-B.tsv"
    assert text == "index\tprediction\n0\t0.000\n1\t5.000\n2\t3.142\n3\t0.000\n4\t5.000\n5\t3.000\n"


@pytest.mark.parametrize(
    ("task", "name", "predictions", "labels"),
    [
        ("boolq", "BoolQ.jsonl", [1, 0], ('"true"', '"false"')),
        ("cb", "CB.jsonl", [1, 2], ('"contradiction"', '"neutral"')),
        ("copa", "COPA.jsonl", [1, 0], ("1", "0")),
        ("superglue_rte", "RTE.jsonl", [0, 1], ('"entailment"', '"not_entailment"')),
        ("wic", "WiC.jsonl", [1, 0], ('"true"', '"false"')),
        ("wsc", "WSC.jsonl", [1, 0], ('"True"', '"False"')),
    ],
)
def test_superglue(tmp_path, task, name, predictions, labels):
    expected = '{{"idx": 0, "label": {}}}\n{{"idx": 7, "label": {}}}\n'.format(*labels)
    assert written(tmp_path, task, "test", examples(0, 7), np.array(predictions)) == (name, expected)


def test_multirc_is_nested(tmp_path):
    rows = examples((0, 0, 0), (0, 0, 1), (0, 1, 2), (3, 9, 27))
    name, text = written(tmp_path, "multirc", "test", rows, np.array([1, 0, 1, 0]))
    assert name == "MultiRC.jsonl"
    assert text == (
        '{"idx": 0, "passage": {"questions": [{"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]}, '
        '{"idx": 1, "answers": [{"idx": 2, "label": 1}]}]}}\n'
        '{"idx": 3, "passage": {"questions": [{"idx": 9, "answers": [{"idx": 27, "label": 0}]}]}}\n'
    )


def test_record_names_the_most_probable_entity_of_each_query(tmp_path):
    rows = [
        Example(5, "q", group="a", candidate="Paris"),
        Example(5, "q", group="a", candidate='Zoë "Z"'),
        Example(6, "q", group="b", candidate="Lyon"),
    ]
    name, text = written(tmp_path, "record", "test", rows, np.array([0.2, 0.6, 0.1], np.float32))
    assert name == "ReCoRD.jsonl"
    assert text == '{"idx": 5, "label": "Zo\\u00eb \\"Z\\""}\n{"idx": 6, "label": "Lyon"}\n'


@pytest.mark.parametrize(("task", "name"), [("squad1", "SQuAD.json"), ("squad2", "SQuAD2.json")])
def test_squad(tmp_path, task, name):
    found = written(tmp_path, task, "test", examples("56be4db0", "56be4db1"), ["São  Paulo", ""])
    assert found == (name, '{"56be4db0": "S\\u00e3o  Paulo", "56be4db1": ""}\n')
    assert json.loads(found[1])["56be4db0"] == "São  Paulo"


@pytest.mark.parametrize(("task", "name"), [("swag", "SWAG.tsv"), ("hellaswag", "HellaSwag.tsv")])
def test_multiple_choice(tmp_path, task, name):
    found = written(tmp_path, task, "test", examples(0, 1), np.array([3, 0]))
    assert found == (name, "index\tprediction\n0\t3\n1\t0\n")


def test_a_file_of_the_users_has_its_own_labels(tmp_path):
    found = written(
        tmp_path, "classification", "dev", examples("r-1", "r-2"), [1, 0], labels=("not good", 'so "so"\tor so')
    )
    assert found == ("dev-classification.tsv", 'index\tprediction\nr-1\t"so ""so""\tor so"\nr-2\tnot good\n')


def test_regression_is_neither_clipped_nor_rounded(tmp_path):
    scores = np.array([0.1, -7.25, 123456.79, 1e-5, 3.0], np.float32)
    name, text = written(tmp_path, "regression", "test", examples(*range(5)), scores)
    assert name == "regression.tsv"
    assert text == "index\tprediction\n0\t0.1\n1\t-7.25\n2\t123456.79\n3\t0.00001\n4\t3\n"
    read = [np.float32(line.split("\t")[1]) for line in text.splitlines()[1:]]
    np.testing.assert_array_equal(read, scores)


def test_no_two_tasks_share_a_file(tmp_path):
    for task in TASKS.values():
        example = Example((0, 0, 0) if task.name == "multirc" else 0, "text", group="0", candidate="x", words=("text",))
        prediction = {"span": "text", "token_classification": (1,)}.get(task.head, 1)
        submission.write(task, "dev", [example], [prediction], tmp_path, labels=("a", "b"))
    assert len(list(tmp_path.iterdir())) == len(TASKS)


def test_the_folder_is_made_and_an_old_file_replaced(tmp_path):
    folder = tmp_path / "new" / "folder"
    submission.write(TASKS["cola"], "dev", examples(0, 1), [1, 1], folder)
    assert written(folder, "cola", "dev", examples(4), [0]) == ("dev-CoLA.tsv", "index\tprediction\n4\t0\n")


@pytest.mark.parametrize("task", ["cola", "boolq", "multirc", "record", "squad1"])
def test_examples_and_predictions_of_different_number_are_refused(tmp_path, task):
    with pytest.raises(ValueError, match="zip"):
        submission.write(TASKS[task], "test", examples((0, 0, 0), (0, 0, 1)), [1], tmp_path)
    assert not list(tmp_path.iterdir())
