"""The part of benchmarks.accelerator that times steps."""

import json
import time

import jax
import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.accelerator import speed
from benchmarks.accelerator.part import Bench


def bench(tmp_path, seconds=100.0, smoke=True):
    return Bench(smoke, tmp_path, time.monotonic() + seconds, print)


def test_figures_of_a_step_by_hand():
    config = speed.config_of(speed.Setting("BERT-base", 32, 4), "sctd", smoke=True)
    timing = train_step.Timing(
        title="", config=config, seconds={"drop": np.array([3.0, 1.0, 2.0])}, flops={"drop": 8e9},
        memory={"drop": 2**30}, compile_seconds={"drop": 5.0}, peer="",
    )  # fmt: skip
    found = speed.figures([timing, timing], 1e10)
    assert list(found) == ["drop", "random-LTD"]
    assert (found["drop"]["seconds"], found["drop"]["tokens_per_second"], found["drop"]["mfu"]) == (2.0, 64.0, 0.4)
    assert speed.line("drop", found["drop"]).split() == [
        "drop", "2000.0", "ms", "64", "tokens/s", "MFU", "40.0%", "1.00", "GiB,", "compiled", "in", "5", "s",
    ]  # fmt: skip


def test_rows_that_do_not_fit_are_halved_and_another_error_is_not_swallowed(monkeypatch):
    tried = []

    def measure(title, config, kinds, repeats, peer):
        tried.append(config.train.batch_size)
        if config.train.batch_size > limit:
            raise jax.errors.JaxRuntimeError(message)
        return title

    monkeypatch.setattr(train_step, "measure", measure)
    setting, limit, message = speed.Setting("BERT-base", 32, 8), 3, "RESOURCE_EXHAUSTED: Out of memory"
    fits, timings = speed.measure(setting, smoke=True)
    assert (fits.rows, len(timings)) == (2, 2)
    assert tried == [8, 4, 2, 2]
    limit = 0
    assert speed.measure(setting, smoke=True) == (None, [])
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        speed.measure(setting, smoke=True)


def test_what_there_is_no_time_for_is_said(tmp_path):
    lines = list(speed.run(bench(tmp_path, seconds=30.0, smoke=False)))
    assert [line for line in lines if line.endswith("left out for time")] == lines[-4:]
    left = json.loads((tmp_path / "speed.json").read_text())["left_out_for_time"]
    assert left[0] == "BERT-base N 512, 64 rows, attention dropout 0"
