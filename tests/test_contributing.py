"""CONTRIBUTING.md is tried: its blocks are run as they stand there."""

import inspect
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np

from sctd_jax.finetune.finetuning import finetune
from sctd_jax.model import token_dropping
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.sections import TRACKERS
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.table import TASKS
from sctd_jax.train.metrics import Writer, read_metrics
from sctd_jax.train.tracker_process import LIBRARIES
from tests import helpers
from tests.reading_helpers import open_task


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
    assert tuple(LIBRARIES) == TRACKERS
    assert all("track" in inspect.signature(train).parameters for train in (train_and_evaluate, finetune))


def test_a_selector_keeps_what_it_scores_highest_and_special_tokens(monkeypatch):
    monkeypatch.setattr(token_dropping, "SELECTORS", dict(token_dropping.SELECTORS))
    exec(block("Add a selector"), {})
    token_dropping.check_selector("peak")
    ids_BN = helpers.random_rows(3)
    state_BND = jax.random.normal(jax.random.key(1), (3, 32, 8))
    importance_V = token_dropping.initial_importance(512, 10.0, helpers.SPECIAL.never_drop, helpers.SPECIAL.pad)
    tokens = token_dropping.Candidates(
        importance_V, ids_BN, ids_BN > 0, state_BND, jax.random.split(jax.random.key(2), 3), 0
    )
    kept_BK = token_dropping.keep_highest(token_dropping.SELECTORS["peak"](tokens), tokens.mask_BN, 8)
    for kept, peaks in zip(np.asarray(kept_BK), np.abs(state_BND).max(-1), strict=True):
        inner = 1 + np.argsort(-peaks[1:31])[:6]
        assert set(kept) == {0, 31, *inner}


ALTERNATE = """
import dataclasses
from sctd_jax.config import Config, TrainConfig, DroppingConfig, from_dict
from sctd_jax.fields import unread
from sctd_jax.pretrain import flops, report
from sctd_jax.pretrain.step import programs_needed, variant_at
dropping = DroppingConfig("alternate", selector="norm", drop_rate=0.4, keep_by_layer="7:220", first_layer=6)
config = from_dict(dataclasses.asdict(Config(dropping=dropping, train=TrainConfig(steps=7))))
assert unread("config", config) == [], unread("config", config)
variants = [variant_at(config, step) for step in range(7)]
assert variants == ["drop", "full"] * 3 + ["drop"], variants
assert list(programs_needed(config)) == ["full", "drop"]
mean = sum(flops.step_flops(config, variant) for variant in variants) / 7
assert abs(flops.mean_step_flops(config) / mean - 1) < 1e-6
assert report.method(config.dropping) == "token dropping in every other step"
"""


def test_a_method_is_the_lines_of_the_patch(tmp_path):
    shutil.copytree(helpers.ROOT / "sctd_jax", tmp_path / "sctd_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name, body in re.findall(r"^--- (\S+)\n((?:[-+].*\n)+?)(?=---|\Z)", block("Add a method"), re.M):
        lines = body.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        text = (tmp_path / name).read_text()
        assert text.count(old) == 1, old
        (tmp_path / name).write_text(text.replace(old, new))
    environment = helpers.environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ALTERNATE], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_task_is_read_from_its_files(tmp_path, monkeypatch):
    names = {}
    exec(block("Add a task"), names)
    monkeypatch.setitem(TASKS, "questions", names["TASK"])
    (tmp_path / "Questions").mkdir()
    for split, row in (("train", {"kind": "person"}), ("dev", {"kind": "place"}), ("test", {})):
        (tmp_path / "Questions" / f"{split}.jsonl").write_text(json.dumps({"question": "Who?", "idx": 7, **row}))
    data = open_task("questions", tmp_path)
    assert (data.train, data.dev["dev"]) == ((Example(7, "Who?", label=1),), (Example(7, "Who?", label=0),))
    assert data.test["test"] == (Example(7, "Who?"),)
