import json
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sctd_jax.data import corpus
from sctd_jax.data.rows import Rows
from sctd_jax.errors import UserError
from sctd_jax.tasks.examples import Answer, Example, Span
from tests.reading_helpers import message, open_task

# The names that the readers of TFDS give to fields; (features, split -> records).
TEXT, INT = tfds.features.Text(), np.int32
QA = tfds.features.Sequence({"text": TEXT, "answer_start": INT})
PREPARED = {
    "mrpc": (
        {
            "sentence1": TEXT,
            "sentence2": TEXT,
            "label": tfds.features.ClassLabel(names=["not_equivalent", "equivalent"]),
            "idx": INT,
        },
        {
            "train": [{"sentence1": "ä one", "sentence2": "two", "label": 1, "idx": 5}],
            "validation": [{"sentence1": "three", "sentence2": "four", "label": "not_equivalent", "idx": 0}],
            "test": [{"sentence1": "five", "sentence2": "six", "label": -1, "idx": 8}],
        },
    ),
    "mnli": (
        {
            "premise": TEXT,
            "hypothesis": TEXT,
            "label": tfds.features.ClassLabel(names=["contradiction", "entailment", "neutral"]),
            "idx": INT,
        },
        {
            split: [{"premise": split, "hypothesis": "h", "label": "neutral", "idx": 0}]
            for split in ("train", "validation_matched", "validation_mismatched", "test_matched")
        },
    ),
    "stsb": (
        {"sentence1": TEXT, "sentence2": TEXT, "label": np.float32, "idx": INT},
        {
            "train": [{"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 0}],
            "validation": [{"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0}],
            "test": [{"sentence1": "a", "sentence2": "b", "label": -1, "idx": 0}],
        },
    ),
    "multirc": (
        {
            "paragraph": TEXT,
            "question": TEXT,
            "answer": TEXT,
            "label": tfds.features.ClassLabel(names=["False", "True"]),
            "idx": tfds.features.FeaturesDict({"paragraph": INT, "question": INT, "answer": INT}),
        },
        {
            split: [
                {
                    "paragraph": "p",
                    "question": "q?",
                    "answer": "a",
                    "label": 1,
                    "idx": {"paragraph": 2, "question": 3, "answer": 4},
                }
            ]
            for split in ("train", "validation")
        },
    ),
    "record": (
        {
            "passage": TEXT,
            "query": TEXT,
            "entities": tfds.features.Sequence(TEXT),
            "answers": tfds.features.Sequence(TEXT),
            "idx": tfds.features.FeaturesDict({"passage": INT, "query": INT}),
        },
        {
            split: [
                {
                    "passage": "Ann met Bob",
                    "query": "@placeholder ran",
                    "entities": ["Ann", "Bob"],
                    "answers": [] if split == "test" else ["Bob"],
                    "idx": {"passage": 6, "query": 7},
                }
            ]
            for split in ("train", "validation", "test")
        },
    ),
    "wsc.fixed": (
        {
            "text": TEXT,
            "span1_index": INT,
            "span2_index": INT,
            "span1_text": TEXT,
            "span2_text": TEXT,
            "idx": INT,
            "label": tfds.features.ClassLabel(names=["False", "True"]),
        },
        {
            split: [
                {
                    "text": "Ann ran, she won",
                    "span1_index": 0,
                    "span2_index": 2,
                    "span1_text": "Ann",
                    "span2_text": "she",
                    "idx": 1,
                    "label": "True",
                }
            ]
            for split in ("train", "validation")
        },
    ),
    "v2.0": (
        {"id": np.str_, "question": TEXT, "context": TEXT, "is_impossible": np.bool_, "answers": QA},
        {
            "train": [
                {
                    "id": "q1",
                    "question": "who?",
                    "context": "ä Ann",
                    "is_impossible": False,
                    "answers": {"text": ["Ann"], "answer_start": [2]},
                }
            ],
            "validation": [
                {
                    "id": "q2",
                    "question": "who?",
                    "context": "Ann",
                    "is_impossible": True,
                    "answers": {"text": [], "answer_start": []},
                }
            ],
        },
    ),
    "hellaswag": (
        {"context": TEXT, "endings": tfds.features.Sequence(TEXT), "label": INT},
        {split: [{"context": "c She", "endings": list("wxyz"), "label": 1}] for split in ("train", "validation")},
    ),
    "numbers": (
        {"question": TEXT, "sentence": TEXT, "label": INT},
        {split: [{"question": "q", "sentence": "s", "label": 1}] for split in ("train", "validation")},
    ),
    "swapped": (
        {"sentence": TEXT, "label": tfds.features.ClassLabel(names=["positive", "negative"])},
        {split: [{"sentence": "s", "label": 1}] for split in ("train", "validation")},
    ),
    "own": (
        {"text": TEXT, "label": tfds.features.ClassLabel(names=["neg", "pos"])},
        {"train": [{"text": f"text {i}", "label": i % 2} for i in range(10)]},
    ),
}


class Benchmark(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description=name) for name in PREPARED]  # noqa: RUF012

    def _info(self):
        features = tfds.features.FeaturesDict(PREPARED[self.builder_config.name][0])
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        splits = PREPARED[self.builder_config.name][1]
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows):
        yield from enumerate(rows)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepares a config of `PREPARED`; returns the data_dir that names it."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def prepare(config):
        Benchmark(config=config, data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
        return f"tfds:benchmark/{config}"

    return prepare


def test_tfds_glue(prepared):
    data = open_task("mrpc", prepared("mrpc"))
    assert data.train == (Example(5, "ä one", "two", label=1),)
    assert data.dev == {"dev": (Example(0, "three", "four", label=0),)}
    assert data.test == {"test": (Example(8, "five", "six"),)}
    data = open_task("mnli", prepared("mnli"))
    assert data.train == (Example(0, "train", "h", label=1),)
    assert {split: found[0].first for split, found in {**data.dev, **data.test}.items()} == {
        "dev_matched": "validation_matched",
        "dev_mismatched": "validation_mismatched",
        "test_matched": "test_matched",
    }
    data = open_task("stsb", prepared("stsb"))
    assert (data.train[0].label, data.test["test"][0].label) == (2.5, None)


def test_tfds_superglue(prepared):
    multirc = open_task("multirc", prepared("multirc"))
    assert multirc.train == (Example((2, 3, 4), "p", "q? a", label=1, group="2-3"),)
    record = open_task("record", prepared("record"))
    rows = [
        Example(7, "Ann met Bob", f"{name} ran", label, group="6-7", candidate=name, answers=(Answer("Bob"),))
        for name, label in (("Ann", 0), ("Bob", 1))
    ]
    assert record.train == tuple(rows)
    assert [example.label for example in record.test["test"]] == [None, None]
    wsc = open_task("wsc", prepared("wsc.fixed"))
    assert wsc.train == (Example(1, "Ann ran, she won", label=1, marked=(Span(0, 0, 3), Span(0, 9, 12))),)


def test_tfds_of_other_tasks(prepared, tmp_path):
    folder = tmp_path / "benchmark"
    squad = open_task("squad2", prepared("v2.0"))
    assert squad.train == (Example("q1", "who?", "ä Ann", answers=(Answer("Ann", 2),)),)
    assert squad.dev == {"dev": (Example("q2", "who?", "Ann"),)}
    assert message("squad1", "tfds:benchmark/v2.0") == (
        f"{folder}/v2.0/1.0.0, split validation, record 0: a question without an answer; SQuAD 2.0 is the task squad2"
    )
    # Numbers without names are taken in the task's order, which is said; names in another order are followed.
    numbers = open_task("qnli", prepared("numbers"))
    assert numbers.notes == (
        f"{folder}/numbers/1.0.0: its labels have no names: 0 is taken as entailment, 1 is taken as not_entailment",
    )
    assert (open_task("sst2", prepared("swapped")).train[0].label, numbers.train[0].label) == (0, 1)
    hellaswag = open_task("hellaswag", prepared("hellaswag"))
    assert hellaswag.train == (Example(0, "c She", label=1, choices=tuple("wxyz")),)
    own = open_task("classification", prepared("own"), heldout_share=0.3)
    assert (own.labels, len(own.train), len(own.dev["dev"])) == (("neg", "pos"), 7, 3)
    assert all(own.labels[e.label] == ("neg", "pos")[int(e.first[-1]) % 2] for e in own.train)


def test_what_is_wrong_with_a_tfds_dataset_is_said(prepared, tmp_path):
    folder = tmp_path / "benchmark"
    assert prepared("mrpc") == "tfds:benchmark/mrpc"
    assert message("mrpc", "tfds:benchmark") == (
        "config.data_dir = tfds:benchmark names no config; found tfds:benchmark/mrpc"
    )
    assert message("mrpc", "tfds:benchmark/mrpc@train") == (
        "config.data_dir = tfds:benchmark/mrpc@train: the task chooses the splits, give tfds:benchmark/mrpc"
    )
    assert message("cb", "tfds:benchmark/mrpc") == (
        f"{folder}/mrpc/1.0.0: the labels are not_equivalent, equivalent; cb has entailment, contradiction, neutral"
    )
    assert message("squad1", "tfds:benchmark/mrpc") == (
        f"{folder}/mrpc/1.0.0, split train, record 0: no field 'context'; found idx, label, sentence1, sentence2"
    )
    # As many classes, but others: which is which would be a guess.
    assert message("qnli", "tfds:benchmark/mrpc") == (
        f"{folder}/mrpc/1.0.0: the labels are not_equivalent, equivalent; qnli has entailment, not_entailment"
    )
    assert message("rte", prepared("mnli")) == (
        f"{folder}/mnli/1.0.0: the labels are contradiction, entailment, neutral; rte has entailment, not_entailment"
    )
    assert message("mnli", "tfds:benchmark/mrpc").startswith(f"{folder}/mrpc/1.0.0: the labels are")
    assert message("classification", prepared("v2.0")).endswith(
        "split train, record 0: no field 'label' (config.label_field); found answers, context, id, is_impossible, "
        "question"
    )
    assert "no prepared dataset" in message("cola", "tfds:glue/cola")


def test_no_class_that_a_folder_names_is_imported(prepared, tmp_path, monkeypatch):
    """TFDS imports any `module.Class` of features.json; the module may lie in the folder that was downloaded."""
    (tmp_path / "planted.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    prepared("own")
    folder = tmp_path / "benchmark" / "own" / "1.0.0"
    path = folder / "features.json"
    good = json.loads(path.read_text())
    text = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
    evil = {"pythonClassName": "planted.Feature", "text": {}}
    source = corpus.Source(str(folder), "train")
    openers = (
        lambda: Rows(folder, "train"),
        lambda: next(corpus.read([source], text_field="text", documents="file", counts=corpus.Counts())),
        lambda: open_task("classification", "tfds:benchmark/own"),
    )
    nested = {**good, "featuresDict": {"features": {**good["featuresDict"]["features"], "text": evil}}}
    deep = {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "sequence": {"feature": evil},
    }
    as_json = {**text, "jsonFeature": {"json": json.dumps({"type": "planted.Feature", "content": {}})}}
    del as_json["text"]
    for features in (
        {**good, "pythonClassName": "planted.Feature"},
        {"python_class_name": "planted.Feature", "text": {}},
        nested,
        {**good, "featuresDict": {"features": {"x": deep}}},
        {**good, "featuresDict": {"features": {"x": as_json}}},
        {"type": "planted.Feature", "content": {}},  # as TFDS wrote it before 4.5
        {**text, "pythonClassName": "planted\nerror: forged"},
        {},
        ["planted.Feature"],
    ):
        path.write_text(json.dumps(features))
        for opener in openers:
            with pytest.raises(
                UserError, match=r"features.json( cannot be read|: the feature .* which is not loaded)"
            ) as error:
                opener()
            assert "\n" not in str(error.value)
    info = folder / "dataset_info.json"
    whole = json.loads(info.read_text())
    path.write_text(json.dumps(good))
    info.write_text(json.dumps({**whole, "moduleName": "planted", "location": {"urls": ["planted"]}}))
    with pytest.raises(UserError, match="holds no rows of the split train"):
        openers[0]()
    for opener in openers[1:]:
        opener()
    assert "planted" not in sys.modules
    for changes in ({"name": "../x"}, {"splits": [{**whole["splits"][0], "filepathTemplate": "/etc/{SPLIT}"}]}):
        info.write_text(json.dumps({**whole, **changes}))
        for opener in openers:
            with pytest.raises(UserError, match="names shards outside of the folder"):
                opener()
    for raw in ("{", "[]", '{"fileFormat": "array_record"}'):
        info.write_text(raw)
        for opener in openers:
            with pytest.raises(UserError, match=rf"{re.escape(str(folder))}.* (prepare the dataset again|prepare it)"):
                opener()
