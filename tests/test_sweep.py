"""Sweeps: cells, resume after a kill, the report by hand."""

import json
import subprocess
import sys
import types

import pytest
from etils import epath

from configs import sweep as recipe
from sctd_jax.errors import DivergedError, UserError
from sctd_jax.finetune import sweep, sweep_report
from sctd_jax.finetune.config import sweep_from_dict
from sctd_jax.finetune.workdir import check_sweep
from sctd_jax.tasks.table import TASKS
from tests import finetuning, helpers, task_files


def cells(**overrides):
    values = recipe.get_config().to_dict() | {
        "tasks": "rte,stsb", "inits": "runs/a", "learning_rates": "1e-3,3e-3", "seeds": 2, "data_dir": "glue",
        "max_length": 32, "batch_size": 8, "epochs": 1,
    }  # fmt: skip
    return sweep_from_dict(values | overrides)


def test_cells_are_checkpoints_tasks_seeds_and_rates():
    found = cells(inits="runs/a, gs://bucket/b/")
    assert [cell.name for cell in found.cells[:5]] == [
        "a/rte/0.001-seed0", "a/rte/0.003-seed0", "a/rte/0.001-seed1", "a/rte/0.003-seed1", "a/stsb/0.001-seed0",
    ]  # fmt: skip
    assert len(found.cells) == 16
    last = found.cells[-1]
    assert last.name == "b/stsb/0.003-seed1"
    assert (last.settings.task, last.settings.learning_rate, last.settings.seed) == ("stsb", 3e-3, 1)
    assert last.settings.init == "gs://bucket/b/"


def test_each_task_may_have_a_data_dir_of_its_own():
    found = cells(data_dir="tfds:glue/{task}").cells
    assert {cell.settings.data_dir for cell in found} == {"tfds:glue/rte", "tfds:glue/stsb"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ""}, "config.tasks is missing"),
        ({"tasks": "rte,rte"}, "config.tasks names one twice"),
        ({"tasks": "rte,sst3"}, "config.task must be one of .*; found 'sst3'"),
        ({"inits": "x/a,y/a"}, "config.inits must end in different folder names, found a, a"),
        ({"inits": "x/a,x/../x/a/"}, "config.inits names one twice: x/../x/a/ is x/a"),
        ({"learning_rates": "1e-3,fast"}, "config.learning_rates must be numbers separated by commas"),
        ({"learning_rates": "1e-5,\uff13e-5"}, "config.learning_rates .*commas: .* digits 0 to 9"),
        ({"learning_rates": "1e-5,0.00001"}, "config.learning_rates names one twice"),
        ({"learning_rates": "1e-5,1.0000001e-5"}, "config.learning_rates names one twice"),
        ({"learning_rates": "1_0e-5"}, "config.learning_rates .*commas: .* digits 0 to 9"),
        ({"learning_rates": "0"}, "config.learning_rates must be positive, found 0"),
        ({"seeds": 0}, "config.seeds must be at least 1, found 0"),
        ({"speed": 1}, "config.speed is unknown"),
    ],
)
def test_a_bad_field_is_named(change, message):
    with pytest.raises(UserError, match=message):
        cells(**change)


TASKS_OF_ONE_PROGRAM = "rte,wnli"


def go(pretrained, folders, workdir, **overrides):
    lines = []
    values = {"tasks": TASKS_OF_ONE_PROGRAM, "learning_rates": "1e-3", **overrides}
    found = cells(inits=str(pretrained), data_dir=str(folders["rte"].parent), **values)
    assert sweep.run_sweep(found, workdir, lines.append) is None
    return lines


def times(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/*/result.json")}


DYING = """
import functools, os
from sctd_jax.finetune import sweep
steps = []
def dying(step):
    steps.append(step)
    if len(steps) == 4:  # two steps a cell: in the middle of the second
        os.kill(os.getpid(), 9)
sweep.finetune = functools.partial(sweep.finetune, on_step=dying)
from absl import app
from sctd_jax import main
app.run(main._main)
"""


def test_a_killed_sweep_goes_on_and_runs_no_finished_cell_again(pretrained, rows, folders, tmp_path):
    """kill -9, of the command."""
    changes = {
        "tasks": TASKS_OF_ONE_PROGRAM, "inits": pretrained, "learning_rates": "1e-3", "seeds": 2, "max_length": 32,
        "batch_size": 8, "epochs": 1, "data_dir": folders["rte"].parent,
    }  # fmt: skip
    arguments = ["--mode=sweep", f"--config={helpers.ROOT / 'configs' / 'sweep.py'}", f"--workdir={tmp_path}"]
    arguments += [f"--config.{name}={value}" for name, value in changes.items()]
    killed = subprocess.run(
        [sys.executable, "-c", DYING, *arguments], env=helpers.environment(), capture_output=True, text=True
    )
    assert killed.returncode == -9, killed.stderr
    before = times(tmp_path)
    assert len(before) == 1
    assert len(json.loads((tmp_path / "report.json").read_text())["cells"]) == 1
    lines = go(pretrained, folders, tmp_path)
    assert "4 cells, 1 finished before" in lines
    assert "cell 1 of 3: run/rte/0.001-seed1" in lines
    after = times(tmp_path)
    assert len(after) == 4
    assert all(after[path] == written for path, written in before.items())
    # Weights are let go, what they reached stays.
    assert not list(tmp_path.glob("*/*/*/checkpoints"))
    assert len(list(tmp_path.glob("*/*/*/predictions/*.tsv"))) == 2 * 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["task"], row["seeds"]) for row in report["tasks"]] == [("rte", 2), ("wnli", 2)]
    assert [mean["of"] for mean in report["averages"]] == [9]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "| rte | accuracy |" in (tmp_path / "report.md").read_text()
    assert "4 cells, 4 finished before" in go(pretrained, folders, tmp_path)
    assert times(tmp_path) == after
    with pytest.raises(UserError, match=r"belongs to another fine-tuning: epochs \(1 there, 2 now\)"):
        go(pretrained, folders, tmp_path, epochs=2)
    with pytest.raises(UserError, match=r"belongs to another fine-tuning: patience \(0 there, 1 now\)"):
        go(pretrained, folders, tmp_path, patience=1, learning_rates="3e-3")
    # Another checkpoint of the same name, and other data: finished cells are none of theirs.
    (tmp_path / "other").mkdir()
    other = finetuning.write_pretrained(tmp_path / "other" / "run", rows, seed=1)
    with pytest.raises(UserError, match="started from other parameters"):
        go(other, folders, tmp_path)
    task_files.write_task(tmp_path / "more", "rte", {"train": 20, "dev": 6})
    # Nor would the report compare rates that were tried with other settings.
    with pytest.raises(UserError, match=r"belongs to another fine-tuning: epochs \(1 there, 2 now\)"):
        go(pretrained, folders, tmp_path, epochs=2, learning_rates="3e-3")
    with pytest.raises(UserError, match="was trained on other examples than those in"):
        go(pretrained, {"rte": tmp_path / "more" / "RTE"}, tmp_path, tasks="rte")


def test_a_cell_that_diverges_counts_zero_and_does_not_end_the_sweep(pretrained, folders, tmp_path, monkeypatch):
    def finetune(settings, workdir, *others):
        workdir.mkdir(parents=True, exist_ok=True)
        raise DivergedError("20 steps in a row")

    monkeypatch.setattr(sweep, "finetune", finetune)
    lines = go(pretrained, folders, tmp_path, tasks="rte")
    assert lines.count("warning: 20 steps in a row; it counts as score 0") == 2
    assert json.loads((tmp_path / "report.json").read_text())["tasks"][0]["median"] == 0.0


def test_a_pair_that_cannot_run_is_said_before_the_first_cell(pretrained, folders, tmp_path):
    with pytest.raises(UserError, match=r"config.max_length \(256\) must not exceed the 64 positions of"):
        go(pretrained, folders, tmp_path, max_length=256)
    assert not list(tmp_path.rglob("config.json"))


def test_every_task_is_looked_at_before_the_first_cell(pretrained, folders, tmp_path):
    found = cells(inits=str(pretrained), tasks="rte,cola", data_dir=str(folders["rte"]))
    with pytest.raises(UserError, match="line 1: unknown label 'sentence1'"):
        sweep.run_sweep(found, tmp_path, print)
    assert not list(tmp_path.iterdir())


def test_one_checkpoint_under_two_names_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "other").symlink_to("run")
    with pytest.raises(UserError, match=r"config.inits names one twice: .*/other is .*/run"):
        cells(inits=f"{tmp_path}/run,{tmp_path}/other")


def test_a_folder_of_something_else_is_left_alone(pretrained, folders, tmp_path):
    (tmp_path / "report.md").write_text("mine")
    (tmp_path / "a" / "notes" / "1e-3-seed0").mkdir(parents=True)  # no task's
    for workdir, expected in ((tmp_path, "is not empty and has no config.json"), (pretrained, "is a run's, by its")):
        before = sorted(workdir.rglob("*"))
        with pytest.raises(UserError, match=expected):
            go(pretrained, folders, workdir)
        assert sorted(workdir.rglob("*")) == before and (tmp_path / "report.md").read_text() == "mine"
    (tmp_path / "a" / "rte" / "1e-05-seed0").mkdir(parents=True)  # what a kill in the first cell leaves
    check_sweep(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("run/wnli/0.001-seed9/result.json", None, "result.json is a folder, a file is expected"),
        ("run/wnli/0.001-seed9/result.json", "{}", "result.json is damaged: expected task, learning_rate, seed and"),
        ("run/wnli/0.001-seed1/predictions", "x", "predictions is a file, a folder is expected"),
        ("report.md", None, "report.md is a folder, a file is expected"),
    ],
)
def test_what_cannot_be_read_or_written_at_the_end_is_said_first(
    place, content, message, pretrained, folders, tmp_path, monkeypatch
):
    (tmp_path / "run" / "rte" / "0.001-seed0").mkdir(parents=True)
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if content is None else path.write_text(content)
    monkeypatch.setattr(sweep, "finetune", None)
    monkeypatch.setattr(sweep, "prepare", lambda *_: types.SimpleNamespace(origin=None))
    with pytest.raises(UserError, match=message):
        go(pretrained, folders, tmp_path)


def result(checkpoint, task, rate, seed, score):
    return {"checkpoint": checkpoint, "task": task, "learning_rate": rate, "seed": seed, "eval/score": score}


RESULTS = [
    *(result("a", "rte", 1e-5, seed, score) for seed, score in enumerate([0.6, 0.5, 0.9])),
    *(result("a", "rte", 2e-5, seed, score) for seed, score in enumerate([0.7, 0.65, 0.1])),
    *(result("a", "rte", 3e-5, seed, score) for seed, score in enumerate([0.99])),  # not finished
    *(result("a", "cola", 1e-5, seed, score) for seed, score in enumerate([0.3, 0.5])),
    *(result("b", "rte", 1e-5, seed, score) for seed, score in enumerate([0.4, 0.2, 0.3])),
]


def test_the_best_rate_is_that_of_the_highest_median():
    first, second, third = sweep_report.summarize(RESULTS)
    assert (first["checkpoint"], first["task"], first["learning_rate"]) == ("a", "rte", 2e-5)
    assert (first["median"], first["lowest"], first["highest"], first["seeds"]) == (0.65, 0.1, 0.7, 3)
    assert first["rates"] == {"1e-05": 0.6, "2e-05": 0.65}
    assert (second["median"], second["seeds"]) == (0.4, 2)
    assert (third["checkpoint"], third["median"]) == ("b", 0.3)


def test_a_benchmarks_average_is_the_plain_mean_of_its_tasks():
    rows = sweep_report.summarize(RESULTS)
    found = sweep_report.averages(rows)
    assert found == [
        {"checkpoint": "a", "benchmark": "glue", "average": pytest.approx((0.65 + 0.4) / 2), "tasks": 2, "of": 9},
        {"checkpoint": "b", "benchmark": "glue", "average": pytest.approx(0.3), "tasks": 1, "of": 9},
    ]
    assert sum(task.benchmark == "superglue" for task in TASKS.values()) == 8


def test_the_table():
    rows = sweep_report.summarize(RESULTS)
    lines = sweep_report.table(rows, sweep_report.averages(rows)).splitlines()
    assert lines[0] == "| task | metric | a | b |"
    assert lines[2] == "| cola | mcc | 40.0 [30.0 to 50.0] at 1e-05 |  |"
    assert lines[3] == "| rte | accuracy | 65.0 [10.0 to 70.0] at 2e-05 | 30.0 [20.0 to 40.0] at 1e-05 |"
    assert lines[4] == "| GLUE average | | 52.5 (2 of 9 tasks) | 30.0 (1 of 9 tasks) |"
    assert lines[-1].endswith("left out because they have fewer seeds: 1.")
    many = [row | {"checkpoint": f"checkpoint-{i}"} for i in range(5) for row in rows[:2]]
    whole, narrow = sweep_report.table(many, []), sweep_report.table(many, [], widest=100)
    assert max(map(len, whole.splitlines())) > 100 >= max(map(len, narrow.splitlines()[:-1]))
    assert all(narrow.count(f"checkpoint-{i} ") == 1 for i in range(5)) and narrow.count("| rte |") == 3
