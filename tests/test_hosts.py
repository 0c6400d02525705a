"""Two real processes on this machine: the same numbers as one, one set of checkpoints, one end."""

import functools
import json
import os
import shutil
import signal
import time
from contextlib import closing

import jax
import numpy as np
import pytest
from etils import epath

from sctd_jax.errors import TryAgainError, UserError
from sctd_jax.models import open_run
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.model import initial_state
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.step import state_shape
from sctd_jax.train.workdir import read_config
from tests import finetuning, helpers


def until(process, words):
    """Read a process's output up to a line with these words."""
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"ended without {words!r}")


def assert_killing_ends_the_other(processes, killed):
    """They end with a message, within a bounded time."""
    processes[killed].kill()
    began = time.monotonic()
    statuses, outputs = helpers.end(processes)
    assert time.monotonic() - began < 80
    other = 1 - killed
    assert statuses[other] not in (0, None)
    assert "another task died" in outputs[other] or "another process of this run ended" in outputs[other]


def one(workdir, rows, **overrides):
    """The end of the same run in one process, on one device or up to eight."""
    config = helpers.config(data__rows=str(rows), **{"mesh__data": 1, **overrides})
    return train_and_evaluate(config, workdir, lambda line: None).state


# What moves is the state; `helpers.ONE_LAYER` has each kind of leaf.
ONE_LAYER = {"dropping__method": "full", "model__num_layers": 1}


def assert_same_state(a, b):
    """As exactly as a mesh and one device agree: Adam's first steps divide a gradient of rounding's size by itself."""
    states = (jax.tree.map(np.asarray, (s.step, s.params, s.opt_state, s.importance_V)) for s in (a, b))
    for x, y in zip(*(jax.tree.leaves(state) for state in states), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone(rows, tmp_path_factory):
    """Workdir and end of an uninterrupted run of one layer in one process, with checkpoints at 3 and 6."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    return workdir, one(workdir, rows, **ONE_LAYER)


@pytest.fixture(scope="module")
def moved(alone, rows, tmp_path_factory):
    """Workdir, exit statuses and outputs of two processes that go on with that run from 3: its 6 is damaged."""
    workdir = shutil.copytree(alone[0], tmp_path_factory.mktemp("moved") / "run")
    files = [path for path in (workdir / "checkpoints" / "6").rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()
    processes = helpers.start_pair(workdir, rows, *helpers.ONE_LAYER, "--config.mesh.fsdp=4")
    return workdir, *helpers.end(processes)


def stored(workdir):
    """The state of step 6."""
    shape = state_shape(lambda: initial_state(read_config(workdir), helpers.SPECIAL), meshes.one_device())
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return checkpoints.restore(shape, print, 6)


def test_two_processes_do_what_one_does_and_the_first_speaks_for_both(rows, tmp_path):
    """ScTD: consistency steps and those between them are different programs."""
    workdir = tmp_path / "pair"
    (tmp_path / "fakes").mkdir()
    shutil.copy(helpers.ROOT / "tests" / "fake_tracker.py", tmp_path / "fakes" / "wandb.py")
    path, record = f"{helpers.ROOT}{os.pathsep}{tmp_path / 'fakes'}", tmp_path / "record"
    env = helpers.environment() | {"PYTHONPATH": path, "FAKE_RECORD": str(record)}
    pair = helpers.start_pair(workdir, rows, "--config.mesh.tensor=2", "--config.train.track=wandb", env=env)
    statuses, (first, second) = helpers.end(pair)
    assert statuses == [0, 0], first + second
    begun, *told, end = map(json.loads, record.read_text().splitlines())
    assert (begun["name"], len(told), end) == ("pair", len(read_metrics(workdir)), {"status": 0})
    assert_same_state(stored(workdir), one(tmp_path / "run", rows))
    assert "--process_id=0" in (workdir / "command.txt").read_text()
    for words in ("process 0 of 2, 2 devices", "4 x cpu, 2 host(s)", "data 2 x fsdp 1 x tensor 2", "done: 6 steps"):
        assert words in first
    assert "process 1 of 2" in second
    assert "step" not in second
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


def test_two_processes_go_through_the_stages_of_a_run_as_one_does(speeches, tmp_path):
    """The first prepares the rows of each length; each reads its part of batches of two sizes."""
    stages = {
        "data__input": ",".join(speeches[:12]), "data__documents": "paragraph", "data__heldout_share": 0.02,
        "data__prepared_dir": str(tmp_path / "rows"), "data__seq_len_schedule": "0:16,3:32",
        "train__batch_schedule": "0:4,2:8", "masking__rate_schedule": "0:0.3,4:0.15", "dropping__method": "full",
        "model__num_layers": 1,
    }  # fmt: skip
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in stages.items()]
    statuses, outputs = helpers.end(helpers.start_pair(tmp_path / "pair", "", *flags))
    assert statuses == [0, 0], outputs
    assert "0 to 6 of 4, then 8 from step 2 rows" in outputs[0]
    assert_same_state(stored(tmp_path / "pair"), one(tmp_path / "alone", "", **stages))


def test_a_run_moves_from_one_process_to_two_on_another_mesh_past_a_damaged_checkpoint(alone, moved):
    workdir, statuses, (first, second) = moved
    assert statuses == [0, 0], first + second
    assert "is damaged and passed over" in first
    assert "Traceback" not in first + second
    assert "resuming at step 3" in first
    assert_same_state(stored(workdir), alone[1])


def test_a_run_moves_from_two_processes_to_one_with_more_devices(alone, moved, rows, tmp_path):
    for name, workdir in (("alone", alone[0]), ("moved", moved[0])):
        shutil.copytree(workdir, tmp_path / name)
    on_all = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    assert_same_state(
        one(tmp_path / "moved", rows, **ONE_LAYER, train__steps=8, **on_all),
        one(tmp_path / "alone", rows, **ONE_LAYER, train__steps=8),
    )


def test_two_processes_fine_tune_and_predict_as_one_does(pretrained, folders, tmp_path):
    finetuning.run(pretrained, tmp_path / "alone", "ner", folders["ner"], epochs=3, patience=9)
    arguments = [
        "--config=configs/finetune.py", f"--config.init={pretrained}", f"--config.data_dir={folders['ner']}",
        "--mode=finetune", "--config.task=ner", "--config.max_length=64", "--config.batch_size=8", "--config.epochs=3",
        "--config.learning_rate=1e-3", "--config.patience=9", "--config.mesh.fsdp=2",
    ]  # fmt: skip
    statuses, (first, second) = helpers.end(helpers.start_pair(tmp_path / "pair", None, *arguments))
    assert statuses == [0, 0], first + second
    assert "done: 6 steps" in first and "step" not in second
    read = [open_run(epath.Path(tmp_path / name), print).params() for name in ("pair", "alone")]
    for a, b in zip(*map(jax.tree.leaves, read), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    arguments = [f"--config.init={tmp_path / 'pair'}", f"--config.data_dir={folders['ner'] / 'test.txt'}"]
    out = tmp_path / "out.conll"
    processes = helpers.start_pair("", None, "--mode=predict", *arguments, f"--out={out}", "--config.batch_size=8")
    statuses, outputs = helpers.end(processes)
    assert statuses == [0, 0], outputs
    assert out.read_text() == (tmp_path / "pair" / "predictions" / "ner.conll").read_text().replace(" ", "\t")


# The command, but a silent process counts as dead after a sixth of the time.
IMPATIENT = """
from absl import app
from sctd_jax import main
from sctd_jax.parallel import hosts
hosts._HEARTBEAT_SECONDS = 10
app.run(main._main, flags_parser=main._parse)
"""


def test_a_signal_to_one_saves_on_all_and_a_killed_one_ends_the_others(rows, tmp_path):
    arguments = (
        *helpers.ONE_LAYER, "--config.train.steps=100000", "--config.train.eval_every=6",
        "--config.train.checkpoint_every=6",
    )  # fmt: skip
    start = functools.partial(helpers.start_pair, tmp_path / "run", rows, *arguments, program=("-c", IMPATIENT))
    processes = start()
    until(processes[0], "step 8/")
    processes[1].send_signal(signal.SIGTERM)
    statuses, (first, second) = helpers.end(processes)
    assert statuses == [128 + signal.SIGTERM] * 2, first + second
    assert "stopped by signal 15 after step" in first
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"after step {saved};" in first

    processes = start()
    assert f"resuming at step {saved}" in until(processes[0], "resuming")
    until(processes[0], f"step {saved + 8 - saved % 2}/")
    assert_killing_ends_the_other(processes, 0)
    kept = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert kept >= saved

    processes = start()
    assert f"resuming at step {kept}" in until(processes[0], "resuming")
    until(processes[0], f"step {kept + 4 - kept % 2}/")
    assert_killing_ends_the_other(processes, 1)


def test_processes_with_other_arguments_are_told_so(rows, tmp_path):
    statuses, outputs = helpers.end(
        helpers.start_pair(tmp_path / "run", rows, each=lambda i: [f"--config.train.seed={i}"])
    )
    assert statuses == [2, 2], outputs
    assert all("the config differs between the processes of this run" in output for output in outputs)


def test_the_environment_can_say_it_and_has_to_say_all(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="JAX_PROCESS_ID"):
        hosts.join(None, None, None)


@pytest.mark.parametrize("error", [ValueError("coordinator_address should be defined."), RuntimeError("no address")])
def test_on_a_tpu_vm_only_a_slice_of_one_goes_on_alone(monkeypatch, error):
    """JAX finds no cluster there; whatever else fails is the other hosts' business too."""

    def initialize(*args, **kwargs):
        raise error

    monkeypatch.setattr(hosts, "_on_tpu_vm", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    if isinstance(error, ValueError):
        hosts.join(None, None, None)
    else:
        with pytest.raises(TryAgainError, match="the processes of this run cannot join: no address"):
            hosts.join(None, None, None)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "two"}, "variable SLURM_STEP_NUM_TASKS must be a whole number, found 'two'"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "-2", "JAX_PROCESS_ID": "0"},
            "variable JAX_NUM_PROCESSES must be a whole number, found '-2'",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            r"must be host:port, found 'a'",
        ),
    ],
)
def test_what_the_environment_says_is_checked(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        hosts.join(None, None, None)


@pytest.mark.parametrize(
    ("reason", "kind"), [("'x' is not in the list of known backends", UserError), ("the TPU is in use", TryAgainError)]
)
def test_without_devices_there_is_one_line(monkeypatch, reason, kind):
    def devices():
        raise RuntimeError(f"{reason}\nand more")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(kind, match=rf"^JAX has no devices \(JAX_PLATFORMS=cpu\): {reason}$"):
        hosts.join(None, None, None)


def test_the_three_flags_go_together():
    with pytest.raises(UserError, match="--coordinator, --num_processes and --process_id"):
        hosts.join("localhost:1234", None, 0)


def test_rows_of_a_host_are_put_where_they_belong():
    mesh = meshes.make_mesh(helpers.config(mesh__data=4, mesh__tensor=2).mesh)
    rows = np.arange(24).reshape(8, 3)
    np.testing.assert_array_equal(meshes.host_rows(mesh, 8), np.arange(8))
    np.testing.assert_array_equal(meshes.put_batch(mesh, 8, rows), rows)
