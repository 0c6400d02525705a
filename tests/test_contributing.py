"""CONTRIBUTING.md is tried: its blocks are run as they stand there."""

import inspect
import re

from sctd_jax.finetune.finetuning import finetune
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.train.metrics import Writer, read_metrics
from tests import helpers


def block(heading):
    """The block of code under a heading."""
    text = (helpers.ROOT / "CONTRIBUTING.md").read_text()
    (section,) = (part for part in text.split("\n## ") if part.startswith(heading + "\n"))
    return re.search(r"```\w+\n(.*?)```", section, re.S)[1]


def test_a_tracker_is_told_what_metrics_jsonl_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("Add a tracker"), names)
    writer = Writer(tmp_path, 0, track=names["track"])
    writer.write(10, {"train/loss": 2.5})
    writer.write(20, {"eval/loss": 2.25, "eval/accuracy": 0.5})
    writer.close()
    lines = (tmp_path / "losses.csv").read_text().splitlines()
    assert lines == ["10,train/loss,2.5", "20,eval/loss,2.25", "20,eval/accuracy,0.5"]
    assert len(read_metrics(tmp_path)) == 2
    assert all("track" in inspect.signature(train).parameters for train in (train_and_evaluate, finetune))
