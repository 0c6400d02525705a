"""The part of benchmarks.accelerator that times steps."""

import json
import time

import jax
import pytest

from benchmarks import train_step
from benchmarks.accelerator import speed
from benchmarks.accelerator.part import Bench
from sctd_jax.parallel import chips


def bench(tmp_path, seconds=100.0, smoke=True):
    return Bench(smoke, tmp_path, time.monotonic() + seconds, print)


@pytest.mark.slow
def test_every_kind_of_step_has_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(speed.chips, "find", lambda kind: chips.Chip(1e12, 1e9))
    lines = list(speed.run(bench(tmp_path)))
    (setting,) = json.loads((tmp_path / "speed.json").read_text())["settings"]
    steps = setting["steps"]
    assert list(steps) == ["plain full", "full", "drop", "consistency", "ScTD average", "random-LTD"]
    for values in steps.values():
        assert values["tokens_per_second"] == pytest.approx(4 * 32 / values["seconds"])
        assert values["mfu"] == pytest.approx(values["flops"] / values["seconds"] / 1e12)
    assert steps["drop"]["flops"] < steps["full"]["flops"] < steps["plain full"]["flops"]
    assert [line.split()[0] for line in lines[1:]] == ["plain", "full", "drop", "consistency", "ScTD", "random-LTD"]
    assert "compiled in" in lines[1] and "compiled in" not in lines[5]


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
