"""Part of benchmarks.accelerator on kernels, at toy size."""

import json
import time

import pytest

from benchmarks.accelerator import kernels
from benchmarks.accelerator.part import Bench


def bench(folder, seconds):
    return Bench(True, folder, time.monotonic() + seconds, print)


def test_the_kernel_of_this_machine_is_as_near_to_float32_as_plain_attention(tmp_path):
    assert all("FAILED" not in line for line in kernels.run(bench(tmp_path, 60)))
    (found,) = json.loads((tmp_path / "kernels.json").read_text())["shapes"]
    assert 0 < found["kernel"]["errors"]["value"] < 0.02


def test_what_is_left_out_for_time_is_said(tmp_path):
    assert "left out for time" in next(iter(kernels.run(bench(tmp_path, 0))))
    assert json.loads((tmp_path / "kernels.json").read_text())["left_out_for_time"] == [[128, 128]]


@pytest.mark.parametrize(("error", "verdict"), [(1e-3, "ok"), (0.5, "FAILED"), (float("nan"), "FAILED")])
def test_a_wrong_kernel_fails(error, verdict):
    one = {"errors": {"out": 0.0, "key": error}, "seconds": 1.0}
    assert kernels.line("splash", {"rows": 1, "context": 1, "kernel": one, "plain": one}).endswith(verdict)
