"""Fine-tuning through its entry point, on small files in the official layouts."""

import dataclasses
import json
import os
import shutil
import signal
import threading
from contextlib import closing

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from sctd_jax.data import tokenizer
from sctd_jax.errors import DivergedError, UserError
from sctd_jax.finetune import finetuning
from sctd_jax.interop.exporting import export
from sctd_jax.models import open_init, open_run
from sctd_jax.parallel.mesh import make_mesh
from sctd_jax.pretrain.model import initial_state
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.tasks.table import TASKS
from sctd_jax.train.checkpoint import Checkpoints, RemovedError
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.step import state_shape
from tests import helpers, task_files
from tests.finetuning import CONFIG, run, settings

SPECIAL = helpers.SPECIAL
PREDICTIONS = {
    "mnli": {"MNLI-m.tsv": 5, "MNLI-mm.tsv": 5, "AX.tsv": 4, "dev-MNLI-m.tsv": 7, "dev-MNLI-mm.tsv": 7},
    "superglue_rte": {"RTE.jsonl": 4, "AX-b.jsonl": 3, "AX-g.jsonl": 3, "dev-RTE.jsonl": 6},
    "squad1": {"dev-SQuAD.json": 1},
    "squad2": {"dev-SQuAD2.json": 1},
}
LABELS = {
    "classification": "labels  2, training rows: negative 6, positive 6",
    "ner": "labels  4, training words: B-LOC 12, B-PER 12, I-PER 12, O 36",
    "tagging": "labels  5, training words: AUX 12, PART 12, PROPN 12, PUNCT 12, VERB 12",
}


def saved_shape():
    """State that `pretrained` holds."""
    return state_shape(lambda: initial_state(CONFIG, SPECIAL), make_mesh(CONFIG.mesh))


@pytest.fixture(scope="module")
def tuned(pretrained, folders, tmp_path_factory):
    """A workdir after one epoch of RTE on all devices, which the tests leave as it is."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    run(pretrained, workdir, "rte", folders["rte"], epochs=1, mesh={"data": -1, "fsdp": 1, "tensor": 1})
    return workdir


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_from_its_official_layout(name, pretrained, folders, tmp_path):
    # The marked words must be in the row; the other texts are cut.
    result, lines = run(pretrained, tmp_path / "run", name, folders[name], max_length=64 if TASKS[name].marked else 32)
    assert result.stopped_by is None
    (found,) = [json.loads((tmp_path / "run" / "result.json").read_text())]
    assert found["task"] == name
    for metric in TASKS[name].metrics:
        assert -1 <= found[f"eval/{metric}"] <= 1
    scores = [found[f"eval/{metric}"] for metric in TASKS[name].score or TASKS[name].metrics]
    assert found["eval/score"] == pytest.approx(np.mean(scores))
    evaluated = [line for line in read_metrics(tmp_path / "run") if "eval/score" in line]
    assert len(evaluated) == 2  # one for each epoch
    best = max(evaluated, key=lambda line: (line["eval/score"], line["step"] == found["step"]))
    assert (found["step"], found["eval/score"]) == (best["step"], pytest.approx(best["eval/score"]))
    assert np.isfinite([line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]).all()
    written = {path.name for path in (tmp_path / "run" / "predictions").iterdir()}
    file = f"{TASKS[name].folder or name}{TASKS[name].suffix}"
    assert written == set(PREDICTIONS.get(name, (file, f"dev-{file}")))
    assert any(f"best checkpoint: step {found['step']}" in line for line in lines)
    assert (
        ("test/accuracy" in found) == any("on the test set: accuracy" in line for line in lines) == TASKS[name].scored
    )
    labels = [line.strip() for line in lines if line.strip().startswith("labels  ")]
    assert labels == ([LABELS[name]] if name in LABELS else [])
    if name == "classification":
        assert " ".join(" ".join(lines).split()).count("6 of 6 dev rows stand in the training rows too") == 2


def test_a_marked_word_that_is_cut_off_is_said_with_its_split_before_anything_runs(pretrained, folders, tmp_path):
    with pytest.raises(UserError, match=rf"{folders['wic']}, train: example \d+: the marked text .* is cut off"):
        run(pretrained, tmp_path / "run", "wic", folders["wic"], max_length=16)
    assert not list(tmp_path.rglob("config.json"))


def test_it_learns_and_starts_from_the_pretrained_weights(pretrained, folders, tmp_path):
    """The words decide: after some epochs the training sentences' dev twins are all right."""
    folder = task_files.write_task(tmp_path / "more", "sst2", {"train": 64, "dev": 16})
    _, lines = run(pretrained, tmp_path / "run", "sst2", folder, epochs=12, learning_rate=3e-3)
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["eval/accuracy"] > 0.9
    assert any("majority  0.500" in line for line in lines)


def test_training_starts_from_the_pretrained_encoder_or_from_random_weights(pretrained, folders, tmp_path):
    pre, random = (
        run(pretrained, tmp_path / name, "sst2", folders["sst2"], epochs=1, learning_rate=1e-30, random_init=flag)[0]
        for name, flag in (("pretrained", False), ("random", True))
    )
    checkpoints = Checkpoints(pretrained, read_only=True)
    saved = checkpoints.restore(saved_shape(), print)
    for theirs, ours, drawn in zip(
        *(jax.tree.leaves(state.params["encoder"]) for state in (saved, pre.state, random.state)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
        assert np.abs(np.asarray(drawn) - theirs).max() > 1e-3


def test_it_starts_from_a_fine_tuned_model_too(pretrained, folders, tmp_path):
    first, _ = run(pretrained, tmp_path / "mnli", "mnli", folders["mnli"], epochs=1, max_length=32)
    second, _ = run(
        tmp_path / "mnli", tmp_path / "rte", "rte", folders["rte"], epochs=1, max_length=32, learning_rate=1e-30
    )
    ours, theirs = (result.state.params["encoder"] for result in (second, first))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    with pytest.raises(UserError, match="holds a fine-tuned model; expected the workdir of a pretraining run"):
        open_init(helpers.config(train__init=str(tmp_path / "mnli")), print)


def params_of(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.state.params)]


def test_the_same_seed_gives_the_same_bits_and_another_one_others(pretrained, folders, tmp_path):
    one, two, other = (
        run(pretrained, tmp_path / name, "rte", folders["rte"], seed=seed)[0]
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert all((a == b).all() for a, b in zip(params_of(one), params_of(two), strict=True))
    assert not all((a == b).all() for a, b in zip(params_of(one), params_of(other), strict=True))


def test_a_stopped_run_resumes_with_the_same_bits(pretrained, folders, tmp_path):
    whole, _ = run(pretrained, tmp_path / "whole", "rte", folders["rte"], keep_checkpoints=5)

    def stopping(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    stopped, lines = run(pretrained, tmp_path / "cut", "rte", folders["rte"], stopping, keep_checkpoints=5)
    assert stopped.stopped_by == signal.SIGTERM
    assert "Run the same command to resume" in lines[-1]
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed, lines = run(pretrained, tmp_path / "cut", "rte", folders["rte"], keep_checkpoints=5)
    assert "resuming at step 3" in lines
    assert all((a == b).all() for a, b in zip(params_of(whole), params_of(resumed), strict=True))


def test_a_workdir_keeps_to_its_fine_tuning(pretrained, tuned, folders, tmp_path):
    with pytest.raises(UserError, match=r"belongs to another fine-tuning: learning_rate \(0.001 there, 0.002 now\)"):
        run(pretrained, tuned, "rte", folders["rte"], epochs=1, learning_rate=2e-3)
    with pytest.raises(UserError, match="is a pretraining run's: fine-tune in another --workdir"):
        run(pretrained, pretrained, "rte", folders["rte"])
    other = task_files.write_task(tmp_path / "data", "rte", {"train": 20, "dev": 6})
    with pytest.raises(UserError, match="was trained on other examples than those in"):
        run(pretrained, tuned, "rte", other, epochs=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        run(pretrained, tmp_path / "other", "rte", folders["rte"])
    for number, (name, expected) in enumerate(
        {"predictions": "is a file, a folder is expected", "result.json": "is a folder, a file is expected"}.items()
    ):
        workdir = shutil.copytree(tuned, tmp_path / f"run{number}")
        where = workdir / name
        (shutil.rmtree(where), where.touch()) if where.is_dir() else (where.unlink(), where.mkdir())
        with pytest.raises(UserError, match=f"{name} {expected}"):
            run(pretrained, workdir, "rte", folders["rte"], epochs=1, mesh={"data": -1, "fsdp": 1, "tensor": 1})


def test_pretraining_does_not_touch_a_fine_tuned_workdir(tuned, rows):
    config = helpers.config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=str(rows)))
    with pytest.raises(UserError, match="holds a fine-tuned model: pretrain in another --workdir"):
        train_and_evaluate(config, tuned, print)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sst3"}, "config.task must be one of cola, .*; found 'sst3'"),
        ({"init": ""}, "config.init is missing"),
        ({"data_dir": ""}, "config.data_dir is missing"),
        ({"epochs": -1}, "config.epochs must not be negative, found -1"),
        ({"warmup_share": 1.0}, "config.warmup_share must be at least 0 and below 1, found 1.0"),
        ({"accumulation": 3}, r"config.batch_size \(8\) must be divisible by config.accumulation \(3\)"),
        ({"max_length": 8}, "config.max_length must be at least 16, found 8"),
        ({"learning_rate": "fast"}, "config.learning_rate must be of type float, found 'fast'"),
        ({"speed": 1}, "config.speed is unknown"),
    ],
)
def test_a_bad_field_is_named(change, message):
    with pytest.raises(UserError, match=message):
        settings("run", "rte", "folder", **change)


def test_fields_that_the_task_does_not_read_are_told(pretrained, folders, tmp_path, monkeypatch):
    lines, given = [], {"language": "de", "tokens_field": "x", "text_field": "text", "heldout_share": 0.2}

    def stop(*_):
        raise UserError("far enough")

    monkeypatch.setattr(finetuning, "open_model", stop)
    for task, other in (("classification", {}), ("cola", {}), ("xnli", {"tags_field": "3", "pair_field": "b"})):
        with pytest.raises(UserError, match="far enough"):
            finetuning.prepare(settings("run", task, "folder", **given, **other), epath.Path(tmp_path), lines.append)
    assert [line.partition(" ")[0].removeprefix("config.") for line in lines] == [
        *("tokens_field", "language"),
        *("tokens_field", "language", "heldout_share"),
        *("pair_field", "tokens_field", "tags_field", "heldout_share"),
    ]
    assert lines[0] == (
        "config.tokens_field (x) is not used: config.task is classification, and only ner or tagging reads it"
    )


def test_zeros_are_the_tasks_values():
    found = settings("run", "squad2", "folder", max_length=0, epochs=0, batch_size=0, learning_rate=0.0)
    assert (found.max_length, found.epochs, found.batch_size, found.learning_rate) == (384, 2, 48, 5e-5)


def test_bad_starts_are_said(pretrained, folders, tmp_path):
    with pytest.raises(UserError, match="expected the workdir of a run or a folder of transformers "):
        run(tmp_path, tmp_path / "run", "rte", folders["rte"])
    with pytest.raises(UserError, match=r"config.max_length \(128\) must not exceed the 64 positions of"):
        run(pretrained, tmp_path / "run", "rte", folders["rte"], max_length=128)
    assert not (tmp_path / "run").exists()
    (tmp_path / "swept").mkdir()
    for name in ("config.json", "command.txt", tokenizer.find(pretrained).name):
        (tmp_path / "swept" / name).write_bytes((pretrained / name).read_bytes())
    with pytest.raises(UserError, match="swept has no checkpoint"):
        run(tmp_path / "swept", tmp_path / "run", "rte", folders["rte"])
    with pytest.raises(UserError, match="s3://bucket/rte: a folder on a disk or in a gs:// bucket is expected"):
        run(pretrained, tmp_path / "run", "rte", "s3://bucket/rte")


def test_another_start_in_the_same_workdir_is_refused(pretrained, tuned, folders, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    other = shutil.copytree(pretrained, tmp_path / "moved")
    run(other, tmp_path / "run", "rte", folders["rte"], epochs=1)  # the same parameters elsewhere
    state = Checkpoints(other, read_only=True).restore(saved_shape(), print)
    checkpoints = Checkpoints(other)
    checkpoints.save(state.replace(step=state.step + 7), {"eval/loss": 5.0})
    checkpoints.close()
    with pytest.raises(UserError, match=r"started from other parameters \(step 0, digest \d+\) than those of"):
        run(other, tmp_path / "run", "rte", folders["rte"], epochs=1)


def test_a_start_that_its_training_replaces_meanwhile_is_followed(pretrained, folders, tmp_path, monkeypatch):
    """Between the checks and the start a trainer saves another checkpoint, and removes the one that was chosen."""
    start, prepare = shutil.copytree(pretrained, tmp_path / "pretrained"), finetuning.prepare
    model = open_run(epath.Path(start), print)

    def replaced(*arguments):
        made = prepare(*arguments)
        state = Checkpoints(start, read_only=True).restore(saved_shape(), print)
        with closing(Checkpoints(start)) as checkpoints:
            checkpoints.save(state.replace(step=state.step + 7), None)
            checkpoints.wait()
        shutil.rmtree(start / "checkpoints" / "0")
        return made

    monkeypatch.setattr(finetuning, "prepare", replaced)
    _, lines = run(start, tmp_path / "run", "rte", folders["rte"], epochs=1)
    assert f"{start} has no checkpoint of step 0, found [7]; starting from step 7" in lines
    task = json.loads((tmp_path / "run" / "task.json").read_text())
    assert task["init_identity"].startswith("step 7, digest")
    with pytest.raises(RemovedError, match=r"no checkpoint of step 0, found \[7\]"):
        model.read(0)
    assert model.read()[0] == model.chosen_step() == 7


def test_a_workdir_can_be_read_whatever_the_pretraining_was(pretrained, folders, tmp_path):
    """Its last steps on all tokens are more than a fine-tuning has."""
    start = shutil.copytree(pretrained, tmp_path / "start")
    config = dataclasses.asdict(CONFIG)
    config["dropping"]["full_steps_last"], config["train"]["steps"] = 500, 1000
    (start / "config.json").write_text(json.dumps(config))
    run(start, tmp_path / "run", "rte", folders["rte"], epochs=1)
    assert open_run(epath.Path(tmp_path / "run"), print).task["task"] == "rte"


def test_dropout_is_the_recipes(tuned):
    """The tiny model was pretrained without."""
    model = open_run(epath.Path(tuned), print).config.model
    assert (model.hidden_dropout, model.attention_dropout) == (0.1, 0.1)


def test_the_start_is_an_encoder_with_its_pooler_where_it_has_one(pretrained, folders, tmp_path):
    """An export of ours gets the two tensors that BERT's own checkpoints have."""
    out = tmp_path / "bert"
    export(epath.Path(pretrained), out, step=None, force=False, log=lambda line: None)
    tensors = load_file(out / "model.safetensors")
    rng = np.random.default_rng(0)
    tensors["bert.pooler.dense.weight"] = rng.normal(size=(32, 32)).astype(np.float32)
    tensors["bert.pooler.dense.bias"] = rng.normal(size=32).astype(np.float32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    result, lines = run(out, tmp_path / "run", "rte", folders["rte"], epochs=1, learning_rate=1e-30)
    np.testing.assert_array_equal(result.state.params["pooler"]["kernel"], tensors["bert.pooler.dense.weight"].T)
    np.testing.assert_array_equal(result.state.params["pooler"]["bias"], tensors["bert.pooler.dense.bias"])
    assert f"taken from {out}: encoder and pooler; random: classifier" in " ".join(" ".join(lines).split())


def test_a_stop_at_the_end_of_an_epoch_loses_no_evaluation(pretrained, folders, tmp_path):
    def stopping(step):
        if step == 1:  # an epoch has two steps
            os.kill(os.getpid(), signal.SIGTERM)

    stopped, _ = run(pretrained, tmp_path / "run", "rte", folders["rte"], stopping)
    assert (stopped.step, stopped.stopped_by) == (2, signal.SIGTERM)
    run(pretrained, tmp_path / "run", "rte", folders["rte"])
    evaluated = [line["step"] for line in read_metrics(tmp_path / "run") if "eval/score" in line]
    assert evaluated == [2, 4]


def test_a_run_that_diverges_says_what_to_do(pretrained, folders, tmp_path):
    with pytest.raises(DivergedError, match=r"Fine-tune with a lower config.learning_rate, in another --workdir"):
        run(pretrained, tmp_path / "run", "rte", folders["rte"], epochs=40, learning_rate=1e30)


def test_the_command(pretrained, folders, tmp_path):
    arguments = [
        "--mode=finetune", "--config=configs/finetune.py", "--config.task=cb", f"--config.init={pretrained}",
        f"--config.data_dir={folders['cb'].parent}", "--config.max_length=64", "--config.batch_size=8",
        "--config.epochs=1", f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = helpers.run_module("sctd_jax.main", *arguments)
    assert done.returncode == 0, done.stderr
    assert "task  cb, classification; 12 training, 6 dev, 4 test (without labels) examples" in done.stdout
