"""Adding a task is one `Task`: a toy one goes from its files to its submission through what the commands call."""

import ast
import json
from typing import get_args

import numpy as np
import pytest

from configs import finetune
from sctd_jax.finetune.config import from_dict
from sctd_jax.tasks import scoring, submission
from sctd_jax.tasks.examples import Example, classify
from sctd_jax.tasks.table import TASKS
from sctd_jax.tasks.task import Head, SplitNames, Task
from tests import helpers
from tests.reading_helpers import message, open_task

FILES = SplitNames("train.jsonl", {"dev": "dev.jsonl"}, {"test": "test.jsonl"})
PLAIN = Task(
    name="toy",
    head="classification",
    labels=("place", "person"),
    folder="Toy",
    home="https://example.org/toy",
    files=FILES,
    build=classify("question", label="kind"),
    metrics=("accuracy", "f1"),
)


def build_yes_or_no(record, context):
    yield Example(record.text("id"), record.text("question"), label=None if context.hidden else record.flag("yes"))


def sure(example, logits):
    return bool(logits[1] - logits[0] > 1)


def share_of_yes(examples, predictions, labels):
    return {"right": float(np.mean([e.label == p for e, p in zip(examples, predictions, strict=True)]))}


def as_lines(examples, predictions, labels):
    return "".join(f"{e.id} {p}\n" for e, p in zip(examples, predictions, strict=True))


WITH_ITS_OWN = Task(
    name="toy",
    head="classification",
    labels=("no", "yes"),
    folder="Toy",
    files=FILES,
    build=build_yes_or_no,
    predict=sure,
    metrics=("right",),
    measure=share_of_yes,
    submission=as_lines,
    suffix=".txt",
)


@pytest.fixture
def add(monkeypatch, tmp_path):
    """Registers a toy task and writes its files; returns their folder."""

    def register(task, train, dev, test):
        monkeypatch.setitem(TASKS, task.name, task)
        (tmp_path / "Toy").mkdir()
        for name, rows in (("train", train), ("dev", dev), ("test", test)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "Toy" / f"{name}.jsonl").write_text(lines)
        return tmp_path

    return register


def finish(folder, task, data, logits):
    """(what a run reports, name of the submission, its text), from the logits of the dev and test examples."""
    predictions = {
        split: scoring.predict(task, examples, np.array(logits[split], np.float32))
        for split, examples in (data.dev | data.test).items()
    }
    path = submission.write(task, "test", data.test["test"], predictions["test"], folder / "predictions", data.labels)
    return scoring.measure(task, data.dev, predictions), path.name, path.read_text()


def test_a_task_of_few_lines_has_all_that_a_head_usually_has(add):
    rows = [{"question": "Who?", "kind": "person", "idx": 4}, {"question": "Where?", "kind": "place", "idx": 7}]
    folder = add(PLAIN, rows, rows, [{"question": "When?", "idx": 9}])
    values = {**finetune.get_config().to_dict(), "task": "toy", "init": "x", "data_dir": str(folder)}
    assert from_dict(values).learning_rate == 2e-5
    data = open_task("toy", folder)
    assert data.train == (Example(4, "Who?", label=1), Example(7, "Where?", label=0)) == data.dev["dev"]
    found = finish(folder, PLAIN, data, {"dev": [[0, 1], [0, 1]], "test": [[1, 0]]})
    metrics = {"eval/accuracy": 0.5, "eval/f1": pytest.approx(2 / 3), "eval/score": pytest.approx(7 / 12)}
    assert found == (metrics, "Toy.tsv", "index\tprediction\n9\tplace\n")
    (folder / "Toy" / "dev.jsonl").unlink()
    assert message("toy", folder).endswith(
        "expected train.jsonl, dev.jsonl, and test.jsonl for a submission in config.data_dir or its folder Toy, as "
        "https://example.org/toy has them"
    )


def test_a_task_may_bring_its_own_examples_predictions_metric_and_submission(add):
    rows = [{"id": "a", "question": "Is it?", "yes": True}, {"id": "b", "question": "Was it?", "yes": False}]
    folder = add(WITH_ITS_OWN, rows, rows, rows)
    data = open_task("toy", folder)
    assert data.train == (Example("a", "Is it?", label=True), Example("b", "Was it?", label=False))
    found = finish(folder, WITH_ITS_OWN, data, {"dev": [[0, 3], [0, 0.5]], "test": [[0, 0.5], [0, 3]]})
    assert found == ({"eval/right": 1.0, "eval/score": 1.0}, "Toy.txt", "a False\nb True\n")


def test_nothing_asks_for_a_task_by_its_name_outside_of_its_familys_file():
    families = {
        f"sctd_jax/tasks/{name}.py"
        for name in ("glue", "superglue", "squad", "choice", "own", "tokens", "sentiment", "xnli")
    }
    names, found = TASKS.keys() - set(get_args(Head)), []
    for path in sorted((helpers.ROOT / "sctd_jax").rglob("*.py")):
        if str(path.relative_to(helpers.ROOT)) not in families:
            nodes = ast.walk(ast.parse(path.read_text()))
            found += [(path, n.value) for n in nodes if isinstance(n, ast.Constant) and n.value in names]
    assert found == []
