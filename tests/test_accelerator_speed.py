"""The part of benchmarks.accelerator that times steps."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.accelerator import speed
from benchmarks.accelerator.part import Bench
from sctd_jax.errors import UserError
from sctd_jax.model import attention as model_attention
from tests import helpers
from tests.test_interop import needs_peer


def bench(tmp_path, seconds=100.0, smoke=True):
    return Bench(smoke, tmp_path, time.monotonic() + seconds, print)


def timing(seconds, peer=""):
    """Figures of drop steps of 4 rows of 32, and of other kinds with seconds."""
    config = speed.config_of(speed.Setting("BERT-base", 32, 4), "sctd", smoke=True)
    return train_step.Timing(
        title="", config=config, seconds={kind: np.array(values) for kind, values in seconds.items()},
        flops=dict.fromkeys(seconds, 8e9), memory={"drop": 2**30}, compile_seconds={"drop": 5.0}, peer=peer,
    )  # fmt: skip


def test_figures_of_a_step_by_hand():
    drop = timing({"drop": [3.0, 1.0, 2.0]})
    found = speed.figures([drop, drop], 1e10)
    assert list(found) == ["drop", "random-LTD"]
    assert (found["drop"]["seconds"], found["drop"]["tokens_per_second"], found["drop"]["mfu"]) == (2.0, 64.0, 0.4)
    assert speed.line("drop", found["drop"]).split() == [
        "drop", "2000.0", "ms", "64", "tokens/s", "MFU", "40.0%", "1.00", "GiB,", "compiled", "in", "5", "s",
    ]  # fmt: skip


def test_ours_is_told_as_so_many_times_the_peers_speed():
    with_peer = timing({"drop": [2.0], train_step.PEER: [3.0]}, "PyTorch 9")
    found = speed.figures([with_peer, timing({"drop": [4.0]})], None)
    assert {kind: values["times_peer"] for kind, values in found.items()} == {
        "drop": 1.5, train_step.PEER: 1.0, "random-LTD": 0.75,
    }  # fmt: skip
    assert "1.50 x PyTorch" in speed.line("drop", found["drop"])


def test_rows_that_do_not_fit_are_halved_and_another_error_is_not_swallowed(monkeypatch):
    tried = []

    def measure(title, config, kinds, repeats, peer, steps):
        tried.append(config.train.batch_size)
        if config.train.batch_size > limit:
            raise jax.errors.JaxRuntimeError(message)
        return title

    monkeypatch.setattr(train_step, "measure", measure)
    setting, limit, message = speed.Setting("BERT-base", 32, 8), 3, "RESOURCE_EXHAUSTED: Out of memory"
    fits, timings, _ = speed.measure(setting, smoke=True)
    assert (fits.rows, len(timings)) == (2, 2)
    assert tried == [8, 4, 2, 2]
    limit = 0
    assert speed.measure(setting, smoke=True) == (None, [], None)
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        speed.measure(setting, smoke=True)


def test_ours_is_measured_without_a_peer_that_fails_which_the_table_says(tmp_path, monkeypatch):
    asked = []

    def measure(title, config, kinds, repeats, peer, steps):
        asked.append(peer)
        if peer:
            raise UserError("the peer ended with status 1: out of memory")
        return timing({"drop": [2.0]})

    monkeypatch.setattr(train_step, "measure", measure)
    monkeypatch.setattr(train_step, "peer_python", lambda: Path("python"))
    assert "  PyTorch: the peer ended with status 1: out of memory" in list(speed.run(bench(tmp_path)))
    assert asked == [Path("python"), None, None]
    (setting,) = json.loads((tmp_path / "speed.json").read_text())["settings"]
    assert setting["peer"] == "the peer ended with status 1: out of memory"
    assert setting["steps"]["drop"]["times_peer"] is None


def test_a_setting_of_which_no_row_fits_is_said_in_table_and_json(tmp_path, monkeypatch):
    def measure(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(train_step, "measure", measure)
    *_, last = speed.run(bench(tmp_path))
    assert last.endswith("not even one row fits in the device's memory")
    assert len(json.loads((tmp_path / "speed.json").read_text())["does_not_fit"]) == 1


def test_dropout_inside_cudnn_is_timed_beside_plain_attentions_and_left_out_where_it_cannot_be(tmp_path, monkeypatch):
    sizes = {(setting.model, setting.length) for setting in speed.SETTINGS}
    for dropout, attention in ((0.0, "auto"), (0.1, "cudnn")):
        asked = [s for s in speed.SETTINGS if (s.attention_dropout, s.attention) == (dropout, attention)]
        assert {(setting.model, setting.length) for setting in asked} == sizes
    on_gpu = speed.Setting("BERT-base", 512, 4, 0.1, "cudnn")
    with monkeypatch.context() as gpu:
        gpu.setattr(speed, "platform_of", lambda device: "gpu")
        gpu.setattr(model_attention.binding, "check_cudnn_version", lambda: 91_200)
        assert speed.refused(on_gpu, smoke=False) is None
        assert speed.config_of(on_gpu, "sctd", smoke=False).model.attention == "cudnn"
        auto = dataclasses.replace(on_gpu, attention="auto")
        assert speed.config_of(auto, "sctd", smoke=False).model.attention == "plain"
    monkeypatch.setattr(speed, "SETTINGS", (on_gpu,))
    monkeypatch.setattr(train_step, "peer_python", lambda: None)
    *_, last = speed.run(bench(tmp_path, smoke=False))
    assert last.startswith(f"{on_gpu.title}: not run: config.model.attention is cudnn, but it runs on GPUs")
    (found,) = json.loads((tmp_path / "speed.json").read_text())["refused"]
    assert found["setting"] == "BERT-base N 512, 4 rows, attention dropout 0.1 in cudnn"


def test_an_error_of_ours_is_not_taken_for_the_peers(monkeypatch):
    def measure(*args):
        raise UserError("config.train.batch_size is wrong")

    monkeypatch.setattr(train_step, "measure", measure)
    with pytest.raises(UserError, match="batch_size is wrong"):
        speed.measure(speed.Setting("BERT-base", 32, 8), True, Path("python"))


def test_a_machine_without_torch_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(train_step, "measure", lambda *args: timing({"drop": [2.0]}))
    monkeypatch.setattr(train_step, "peer_python", lambda: None)
    lines = list(speed.run(bench(tmp_path)))
    assert [line for line in lines if "PyTorch" in line] == [
        "PyTorch: not compared: no torch and transformers are here; make peer, or make interop"
    ]
    assert "torch" in json.loads((tmp_path / "speed.json").read_text())["peer"]


def pretended_peer(folder, monkeypatch, body):
    """A peer without PyTorch in the place of benchmarks/peer_pytorch.py; it has read its sizes and rows."""
    (folder / "benchmarks").mkdir()
    start = "import json, sys\nimport numpy as np\nsizes = json.loads(sys.argv[1])\nrows = np.load(sizes['batch'])\n"
    (folder / "benchmarks" / "peer_pytorch.py").write_text(start + body)
    monkeypatch.setattr(train_step, "ROOT", folder)


def test_the_peer_takes_our_masked_rows_and_is_timed_in_turn(tmp_path, monkeypatch):
    body = """
assert sizes["device"] == "cpu" and sizes["num_layers"] == 4
shape = [list(rows[name].shape) for name in ("input_ids_BN", "positions_BP", "targets_BP")]
masked = int((rows["input_ids_BN"] == 4).sum())  # [MASK]
print(json.dumps({"versions": f"{shape} {masked > 0}", "compile_seconds": 7.0}), flush=True)
for number, count in enumerate(sys.stdin):
    print(json.dumps({"seconds": number + int(count) / 10, "peak_bytes": 2**20}), flush=True)
"""
    pretended_peer(tmp_path, monkeypatch, body)
    config = speed.config_of(speed.Setting("BERT-base", 32, 4), "sctd", smoke=True)
    found = train_step.measure("", config, ("drop",), 2, Path(sys.executable), 3)
    assert found.peer == "[[4, 32], [4, 5], [4, 5]] True"
    assert found.seconds[train_step.PEER].tolist() == [1.3, 2.3]  # the first is not counted
    assert (found.memory[train_step.PEER], found.compile_seconds[train_step.PEER]) == (2**20, 7.0)


@pytest.mark.parametrize("when", ["before it is ready", "in a step"])
def test_a_peer_that_ends_is_an_error_of_one_line_with_its_last(tmp_path, monkeypatch, when):
    ready = 'print(json.dumps({"versions": "", "compile_seconds": None}), flush=True)\nsys.stdin.readline()\n'
    end = 'sys.exit("first\\nOutOfMemoryError: 3 GiB")\n'
    pretended_peer(tmp_path, monkeypatch, (ready if when == "in a step" else "") + end)
    config = speed.config_of(speed.Setting("BERT-base", 32, 4), "sctd", smoke=True)
    monkeypatch.setattr(train_step, "compile_step", lambda *args: lambda state, tokens: (state, {}))
    with pytest.raises(UserError, match=r"ended with status 1: OutOfMemoryError: 3 GiB$"):
        train_step.measure("", config, ("drop",), 1, Path(sys.executable))


@needs_peer
def test_the_real_peer_without_a_gpu_does_not_pass_for_one_on_a_gpu(monkeypatch):
    """A build of PyTorch for CPUs on a machine with a GPU, say."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(train_step.jax, "default_backend", lambda: "gpu")
    config = speed.config_of(speed.Setting("BERT-base", 32, 4), "sctd", smoke=True)
    with pytest.raises(UserError, match=r"PyTorch \S+ finds no GPU$"):
        train_step.measure("", config, ("drop",), 1, helpers.PEER)


@needs_peer
def test_the_peer_is_of_the_recipes_family(monkeypatch):
    _, config = train_step.file_config("configs/roberta_base.py")
    monkeypatch.setattr(train_step, "compile_step", lambda *args: lambda state, tokens: (state, {}))
    monkeypatch.setattr(train_step, "peak_bytes", lambda program: 0)
    found = train_step.measure("", train_step.toy(config), ("drop",), 1, helpers.PEER)
    assert len(found.seconds[train_step.PEER]) == 1


def test_what_there_is_no_time_for_is_said(tmp_path):
    lines = list(speed.run(bench(tmp_path, seconds=30.0, smoke=False)))
    assert [line for line in lines if line.endswith("left out for time")] == lines[-len(speed.SETTINGS) :]
    left = json.loads((tmp_path / "speed.json").read_text())["left_out_for_time"]
    assert left[0] == "BERT-base N 512, 64 rows, attention dropout 0"
