"""Predictions of a fine-tuned model for files without labels."""

import csv
import json

import numpy as np
import pytest

from configs import predict as recipe
from sctd_jax import fields
from sctd_jax.errors import DivergedError, TryAgainError, UserError
from sctd_jax.finetune import predicting
from sctd_jax.finetune.config import PredictConfig
from sctd_jax.finetune.predicting import predict_file
from sctd_jax.tasks.examples import FileSettings
from sctd_jax.tasks.tokens import read_columns
from tests import finetuning, helpers

TASKS = ("classification", "ner", "stsb", "copa", "squad1", "record")


@pytest.fixture(scope="module")
def runs(rows, folders, tmp_path_factory):
    """Workdirs by task, of a model with so much noise that texts differ."""
    root = tmp_path_factory.mktemp("finetuned")
    start = finetuning.write_pretrained(root / "start", rows, scale=0.3)
    for name in TASKS:
        finetuning.run(start, root / name, name, folders[name], epochs=1, learning_rate=1e-2)
    return root


def predict(runs, name, file, out, **overrides):
    """What it said."""
    lines = []
    values = recipe.get_config().to_dict() | {"init": str(runs / name), "data_dir": str(file), "batch_size": 8}
    values["mesh"] = values["mesh"] | {"data": 1}
    predict_file(fields.fill("config", PredictConfig, values | overrides), out, lines.append)
    return lines


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_rows_of_a_test_file_get_the_predictions_of_the_run_in_their_order(runs, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "_AT_A_TIME", 3)  # four rows are read in two parts
    file, out = folders["classification"] / "test.csv", tmp_path / "new" / "a.jsonl"
    lines = predict(runs, "classification", file, out, tokens_field="3")
    said = "config.tokens_field (3) is not used: config.task is classification, and only ner or tagging reads it"
    lines.remove(said)
    found = written(tmp_path / "new" / "a.jsonl")
    text = (runs / "classification/predictions/classification.tsv").read_text()
    expected = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    assert [(row["id"], row["label"]) for row in found] == [(int(e["index"]), e["prediction"]) for e in expected]
    for row in found:
        assert row["probabilities"].keys() == {"negative", "positive"}
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]
    assert len({row["probability"] for row in found}) > 1
    assert lines[0].startswith("classification of step ") and lines[-1].startswith("done: 4 rows in ")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.jsonl"]

    predict(runs, "classification", folders["classification"] / "test.csv", tmp_path / "a.csv", batch_size=2)
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["id", "label", "probability"]] * 4
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows], [row["probability"] for row in found], atol=1e-5
    )


def test_labels_of_words_in_columns_and_in_json_lines(runs, folders, tmp_path, monkeypatch):
    predict(runs, "ner", folders["ner"] / "test.txt", tmp_path / "a.conll")
    expected = (runs / "ner/predictions/ner.conll").read_text().replace(" ", "\t")
    assert (tmp_path / "a.conll").read_text() == expected
    sentences = [{"words": ["Anna", "lives", "in", "Lyon"]}, {"words": ["x"] * 100}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(sentence) + "\n" for sentence in sentences))
    lines = predict(runs, "ner", tmp_path / "a.jsonl", tmp_path / "b.jsonl", tokens_field="words")
    found = written(tmp_path / "b.jsonl")
    assert [row["tokens"] for row in found] == [sentence["words"] for sentence in sentences]
    assert [len(row["tags"]) for row in found] == [4, 100]
    monkeypatch.setattr(predicting, "_AT_A_TIME", 1)
    spaces = [{"words": ["Anna", "B"]}, {"words": ["10 000", "x"]}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(sentence) + "\n" for sentence in spaces))
    predict(runs, "ner", tmp_path / "c.jsonl", tmp_path / "c.conll", tokens_field="words")
    again = read_columns(str(tmp_path / "c.conll"), True, FileSettings(), lambda what, place: None)
    assert [record.fields["tokens"] for record in again] == [sentence["words"] for sentence in spaces]
    assert any("a.jsonl: 1 of 2 sentences are longer than 64 tokens: cut into windows" in line for line in lines)


def test_every_head_has_its_row(runs, folders, tmp_path):
    files = {"stsb": "test.tsv", "copa": "test.jsonl", "squad1": "dev-v1.1.json", "record": "test.jsonl"}
    keys = {
        "stsb": ["id", "score"], "copa": ["id", "choice", "probability", "probabilities"], "squad1": ["id", "answer"],
        "record": ["id", "candidate", "probability"],
    }  # fmt: skip
    for name, file in files.items():
        predict(runs, name, folders[name] / file, tmp_path / f"{name}.jsonl")
        found = written(tmp_path / f"{name}.jsonl")
        assert len(found) >= 4 and {tuple(row) for row in found} == {tuple(keys[name])}
    expected = json.loads((runs / "squad1/predictions/dev-SQuAD.json").read_text())
    assert {row["id"]: row["answer"] for row in written(tmp_path / "squad1.jsonl")} == expected


def test_what_cannot_be_predicted_is_said_before_anything_is_written(runs, pretrained, folders, tmp_path, monkeypatch):
    test = folders["classification"] / "test.csv"
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "empty.csv").write_text("text\n")
    (tmp_path / "other.csv").write_text("body\nfine\n")
    for file, out, overrides, expected in (
        (test, "there.jsonl", {}, "there.jsonl is there already: give another name, or delete it"),
        (test, "a.xml", {}, r"a.xml: unknown kind of file, expected .jsonl or .csv for classification"),
        (test, "a.jsonl", {"init": str(pretrained)}, r"is not the workdir of a fine-tuning \(no task.json\)"),
        (test, "there.jsonl/a.jsonl", {}, "--out=.*/a.jsonl: no folder .*/there.jsonl can be made: .*File exists"),
        (
            test,
            "a.jsonl",
            {"batch_size": 3, "mesh": {"data": 2, "fsdp": 1, "tensor": 1}},
            r"config.batch_size / accumulation \(3\) must be div",
        ),
        (tmp_path / "empty.csv", "a.jsonl", {}, "empty.csv: no rows"),
        (tmp_path / "other.csv", "a.jsonl", {}, r"line 2: no field 'text' \(config.text_field\); found body"),
        (tmp_path / "missing.csv", "a.jsonl", {}, "cannot read .*missing.csv"),
    ):
        with pytest.raises(UserError, match=expected):
            predict(runs, "classification", file, tmp_path / out, **overrides)
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    (tmp_path / "other.csv").write_text('body\nfine\n""\n')
    lines = predict(runs, "classification", tmp_path / "other.csv", tmp_path / "a.jsonl", text_field="body")
    empty = "1 rows whose field 'body' is empty, predicted all the same (first: line 3)"
    assert f"{tmp_path / 'other.csv'}: {empty}" in lines

    monkeypatch.setattr(predicting, "_AT_A_TIME", 1)  # the second row is bad when the first is predicted
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(UserError, match="line 2: the field 'text' is no text, found 3"):
        predict(runs, "classification", tmp_path / "bad.jsonl", tmp_path / "b.jsonl")

    def no_numbers(*args):
        return [np.full(2, np.nan) for _ in args[3]]

    monkeypatch.setattr(predicting, "outputs", no_numbers)
    with pytest.raises(DivergedError, match="1 of 1 outputs of the network are not finite"):
        predict(runs, "classification", test, tmp_path / "b.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {
        "there.jsonl", "empty.csv", "other.csv", "a.jsonl", "bad.jsonl"
    }  # fmt: skip


def test_predictions_of_two_at_once_are_both_kept_and_a_full_disk_is_a_line(runs, folders, tmp_path, monkeypatch):
    test, outputs, out = folders["classification"] / "test.csv", predicting.outputs, tmp_path / "a.jsonl"

    def slow(*args):
        out.write_text("theirs")
        return outputs(*args)

    monkeypatch.setattr(predicting, "outputs", slow)
    with pytest.raises(UserError, match=r"a.jsonl has been written by another process meanwhile; these are") as error:
        predict(runs, "classification", test, out)
    assert out.read_text() == "theirs"
    (aside,) = {path.name for path in tmp_path.iterdir()} - {"a.jsonl"}
    assert aside in str(error.value) and len(written(tmp_path / aside)) == 4

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predicting, "outputs", full)
    with pytest.raises(TryAgainError, match=r"--out=.*/b.jsonl: .*No space left on device"):
        predict(runs, "classification", test, tmp_path / "b.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", aside}


def test_the_command_takes_its_recipe_by_itself(runs, folders, tmp_path):
    arguments = [f"--config.init={runs / 'ner'}", f"--config.data_dir={folders['ner'] / 'test.txt'}"]
    done = helpers.run_module("sctd_jax.main", "--mode=predict", *arguments, f"--out={tmp_path / 'a.jsonl'}")
    assert done.returncode == 0, done.stderr
    assert len(written(tmp_path / "a.jsonl")) == 4
    for more, expected in (
        ((), "--mode=predict needs --out, such as --out=predicted.jsonl"),
        (("--out=a.jsonl", "--workdir=x"), "--workdir is not for --mode=predict: --config.init names the run"),
    ):
        done = helpers.run_module("sctd_jax.main", "--mode=predict", *arguments, *more)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
    for mode, expected in (("predict", "is no recipe for --mode=predict"), ("train", "--out is for --mode=predict")):
        done = helpers.run_module("sctd_jax.main", "--config=configs/tiny.py", f"--mode={mode}", "--out=x")
        assert done.returncode == 2 and expected in done.stderr, done.stderr
