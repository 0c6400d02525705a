"""The command as a user runs it: processes, files, messages."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sctd_jax.errors import TRY_AGAIN_STATUS
from tests import helpers

SMALL = "--config=tests/small.py"


def run(workdir, rows, *args, code=0):
    done = helpers.run_module("sctd_jax.main", SMALL, f"--workdir={workdir}", f"--config.data.rows={rows}", *args)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir, step):
    """Every array of a checkpoint, by path, read with Orbax alone."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir / "checkpoints" / str(step) / "state")
    tree["key"] = jax.random.key_data(tree["key"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def finished(rows, tmp_path_factory):
    """(workdir, what the command printed) of a run of six steps with dropout."""
    workdir = tmp_path_factory.mktemp("runs") / "a"
    done = run(workdir, rows, *DROPOUT)
    return workdir, done.stdout


DROPOUT = ["--config.model.hidden_dropout=0.1", "--config.model.attention_dropout=0.1"]


@pytest.fixture(scope="module")
def one_layer(rows, tmp_path_factory):
    """Workdir of a run of six steps of one program, where what it trains is not the point."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    run(workdir, rows, *helpers.ONE_LAYER)
    return workdir


def test_a_run_trains_evaluates_saves_and_says_so(finished):
    workdir, printed = finished
    for text in [
        "devices  1 x cpu", "mesh  data 1 x fsdp 1 x tensor 1", "4 layers x 32", "0 to 6 of 8 rows", "ScTD",
        "16 of 32 in layers 1 to 2 of 0 to 3, selector importance", "of a plain full-token step",
        "eval at step 0: held-out loss", "eval at step 6", "step 6/6  loss", "tokens/s", "done: 6 steps",
        "held-out loss", "(step 0) ->",
        "fill-mask on held-out text", "[MASK]", "(was: ",
    ]:  # fmt: skip
        assert text in printed, text
    assert "MFU" not in printed  # the peak of this CPU is not known
    records = lines(workdir)
    evaluations = [record for record in records if "eval/loss" in record]
    assert [record["step"] for record in evaluations] == [0, 3, 6]
    for record in evaluations:
        assert record["eval/perplexity"] == pytest.approx(np.exp(record["eval/loss"]), rel=1e-4)
        assert {"eval/accuracy", "eval/drop_loss", "eval/cosine_local", "eval/cosine_global"} <= record.keys()
    train = [record for record in records if "train/loss" in record]
    assert [record["step"] for record in train] == [1, 2, 4, 6]
    assert all({"train/mlm_loss", "train/grad_norm", "train/learning_rate", "seconds"} <= r.keys() for r in train)
    assert any("train/sc_global" in record for record in train)
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()) == [3, 6]
    assert list((workdir / "tensorboard").glob("events.*"))
    assert {"config.json", "tokenizer.model", "prepared.json"} <= {path.name for path in workdir.iterdir()}


def test_evaluation_alone_gives_the_same_numbers(finished, rows):
    workdir, _ = finished
    before = (workdir / "config.json").read_bytes()
    done = run(workdir, rows, "--mode=eval", "--config.train.steps=7", *DROPOUT)
    assert (workdir / "config.json").read_bytes() == before
    last = [record for record in lines(workdir) if "eval/loss" in record][-1]
    assert f"eval at step 6: held-out loss {last['eval/loss']:.3f}" in done.stdout
    assert len([record for record in lines(workdir) if record["step"] == 6 and "eval/loss" in record]) == 1


def test_the_same_command_again_has_nothing_to_do_and_more_steps_resume(one_layer, rows, tmp_path):
    workdir = shutil.copytree(one_layer, tmp_path / "run")
    before = saved(workdir, 6)
    again = run(workdir, rows, *helpers.ONE_LAYER)
    assert "resuming at step 6" in again.stdout
    assert re.search(r"to be left behind; at step 6 \d\.\d{3}, \d\.\d\d nats \w+ word frequencies\n", again.stdout)
    assert "done: 6 steps" in again.stdout
    longer = run(workdir, rows, *helpers.ONE_LAYER, "--config.train.steps=8")
    assert "resuming at step 6" in longer.stdout
    assert "warning: the learning rate goes from 0.00025 (25.0% of the peak) at step 6 to 0.000333" in longer.stdout
    assert "done: 8 steps" in longer.stdout
    after = saved(workdir, 6)
    assert all((before[name] == after[name]).all() for name in before)
    assert int(saved(workdir, 8)["['step']"]) == 8


def test_kill_and_resume_is_bit_for_bit_the_uninterrupted_run(finished, rows, tmp_path):
    """kill -9 after the checkpoint of step 3; consistency steps are 0, 3: the resume is off their interval too."""
    workdir = tmp_path / "killed"
    code = """
import functools, os, sys
from sctd_jax.pretrain import pretraining
def dying(step):
    if step == 4:
        while not os.path.isdir(os.path.join(sys.argv[1].split("=")[1], "checkpoints", "3")):
            pass
        os.kill(os.getpid(), 9)
pretraining.train_and_evaluate = functools.partial(pretraining.train_and_evaluate, on_step=dying)
from absl import app, flags
from sctd_jax import main
app.run(main._main)
"""
    arguments = [f"--workdir={workdir}", SMALL, f"--config.data.rows={rows}", *DROPOUT]
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=helpers.environment(), cwd=helpers.ROOT, capture_output=True
    )
    assert killed.returncode == -9, killed.stderr
    assert not (workdir / "checkpoints" / "6").exists()
    done = run(workdir, rows, *DROPOUT)
    assert "resuming at step 3" in done.stdout
    whole, resumed = saved(finished[0], 6), saved(workdir, 6)
    assert whole.keys() == resumed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_leaves_with_a_message(rows, tmp_path, number):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "sctd_jax.main", SMALL, f"--workdir={workdir}", f"--config.data.rows={rows}"]
    command += [*helpers.ONE_LAYER, "--config.train.steps=100000"]
    command += ["--config.train.eval_every=99999", "--config.train.checkpoint_every=99999"]
    process = subprocess.Popen(
        command, env=helpers.environment(), cwd=helpers.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(number)
                break
        rest, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    message = next(line for line in rest.splitlines() if "stopped by signal" in line)
    assert "resume" in message
    step = int(message.split("after step ")[1].split(";")[0])
    assert int(saved(workdir, step)["['step']"]) == step


def test_too_many_bad_steps_stop_the_run_with_the_last_good_state_saved(rows, tmp_path):
    high = "--config.optimizer.learning_rate=1e38"
    done = run(tmp_path / "run", rows, *helpers.ONE_LAYER, high, "--config.train.steps=50", code=2)
    assert "error: 3 steps in a row had a non-finite loss or gradient" in done.stderr
    assert "learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert "was skipped" in done.stdout
    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    state = saved(tmp_path / "run", step)
    assert all(np.isfinite(x).all() for name, x in state.items() if "params" in name)
    # The message says to lower the rate and run again here: that works.
    low = "--config.optimizer.learning_rate=1e-5"
    again = run(tmp_path / "run", rows, *helpers.ONE_LAYER, low, f"--config.train.steps={step}")
    assert f"resuming at step {step}" in again.stdout


def test_a_full_disk_ends_the_run_with_one_message_and_older_checkpoints_stay(one_layer, rows, tmp_path):
    """A limit on the size of files stands in for a disk that is full."""
    workdir = shutil.copytree(one_layer, tmp_path / "run")
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from absl import app
from sctd_jax import main
app.run(main._main)
"""
    arguments = [f"--workdir={workdir}", SMALL, f"--config.data.rows={rows}", *helpers.ONE_LAYER]
    arguments.append("--config.train.steps=8")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=helpers.environment(), cwd=helpers.ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == TRY_AGAIN_STATUS, done.stdout + done.stderr
    assert "error: " in done.stderr
    assert str(workdir) in done.stderr
    assert "can be resumed: [" in done.stderr
    assert int(saved(workdir, 6)["['step']"]) == 6


def test_rows_are_prepared_when_they_are_missing(speeches, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for i, path in enumerate(speeches[:8]):
        os.symlink(path, text / f"{i}.txt")
    args = [
        SMALL,
        *helpers.ONE_LAYER,
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.input={text}",
        "--config.data.documents=paragraph",
    ]
    args += [f"--config.data.prepared_dir={tmp_path / 'prepared'}", "--config.train.steps=1"]
    first = helpers.run_module("sctd_jax.main", *args)
    assert first.returncode == 0, first.stderr
    assert "training a unigram tokenizer" in first.stdout
    assert "trial corpus" not in first.stdout
    second = helpers.run_module("sctd_jax.main", *args)
    assert "training a unigram tokenizer" not in second.stdout
    assert len(list((tmp_path / "prepared").iterdir())) == 1


BAD_INPUT = [
    (["--config.model.max_positions=64", "--config.data.seq_len=64"], ["config.data.seq_len is 64", "with 32"]),
    (["--config.model.vocab_size=600"], ["config.model.vocab_size is 600", "with 512"]),
    (["--config.mesh.data=3"], ["config.mesh.data x fsdp x tensor is 3 x 1 x 1 = 3", "1 devices"]),
    (["--config.data.rows=/nowhere"], ["/nowhere", "prepared.json"]),
    (["--config.data.rows=", "--config.data.input=/nowhere/*.txt"], ["/nowhere/*.txt", "no file found"]),
    (["--config.data.rows=", "--config.data.tokenizer=/no.model"], ["data.tokenizer /no.model"]),
    (["--mode=eval"], ["no checkpoints"]),
]


def test_bad_input_is_one_message_before_any_work(rows, tmp_path):
    """Errors of the command line or the recipe alone are in test_command_line.py."""
    for number, (args, words) in enumerate(BAD_INPUT):
        done = run(tmp_path / str(number), rows, *args, code=2)
        assert [word for word in words if word not in done.stderr] == [], done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert "compiling" not in done.stdout
    assert not list(tmp_path.glob("*/checkpoints"))


def test_a_workdir_of_another_config_is_refused_and_left_alone(one_layer, rows):
    workdir = one_layer
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    done = run(workdir, rows, *helpers.ONE_LAYER, "--config.optimizer.weight_decay=0.5", code=2)
    assert "belongs to another config" in done.stderr
    assert "optimizer.weight_decay (0.01 there, 0.5 now)" in done.stderr
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_main_starts_again_with_huge_pages_unless_told_otherwise():
    """The variable is read by glibc when a process starts; what a user has set stays."""
    code = "import os; from sctd_jax import huge_pages as h; h.restart_with_huge_pages(); "
    code += "print(os.environ['GLIBC_TUNABLES'])"
    environment = {name: value for name, value in helpers.environment().items() if name != "GLIBC_TUNABLES"}
    for given, expected in (({}, "glibc.malloc.hugetlb=1"), ({"GLIBC_TUNABLES": ""}, "")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | given, cwd=helpers.ROOT, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("kilobytes", [200, 500])
def test_a_full_disk_is_one_line_whatever_meets_it_first(rows, tmp_path, kilobytes):
    """At 200 kB what the workdir holds before training, at 500 the metrics, in a log of every step."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        often = ["--config.train.log_every=1", "--config.train.eval_every=9999", "--config.train.checkpoint_every=9999"]
        done = run(disk / "run", rows, *helpers.ONE_LAYER, "--config.train.steps=5000", *often, code=TRY_AGAIN_STATUS)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.stderr.startswith(("error: workdir", "error: cannot write workdir")) and f" {disk}/run: " in done.stderr
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1
