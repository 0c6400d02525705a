"""The part of benchmarks.accelerator that looks for the largest batch."""

import itertools
import json
import time

import jax
import pytest

from benchmarks.accelerator import batches
from benchmarks.accelerator.part import Bench


def bench(tmp_path, seconds=100.0):
    return Bench(True, tmp_path, time.monotonic() + seconds, lambda line: None)


@pytest.mark.parametrize(
    ("limit", "tried", "fits", "too_many"),
    [
        (200, [64, 128, 256, 192], 192, 256),
        (130, [64, 128, 256, 192], 128, 192),
        (40, [64, 32, 48], 32, 48),
        (0, [64, 32, 16, 8, 4, 2, 1], 0, 1),
        (1, [64, 32, 16, 8, 4, 2, 1], 1, 2),
        (9999, [64, 128, 256, 512], 512, None),
    ],
)
def test_rows_are_doubled_and_then_halved_in(limit, tried, fits, too_many):
    asked = []
    *_, found = batches.search(lambda rows: asked.append(rows) or rows <= limit, 64, 512, lambda: True)
    assert asked == tried
    assert (found.fits, found.too_many, found.finished) == (fits, too_many, True)


def test_a_search_that_time_ends_says_what_it_knows():
    left = itertools.chain([True, True], itertools.repeat(False))
    *_, found = batches.search(lambda rows: rows <= 100, 64, 512, lambda: next(left))
    assert (found.fits, found.too_many, found.finished) == (64, 128, False)


def test_out_of_memory_is_a_finding_and_another_error_is_not(tmp_path, monkeypatch):
    def compile_train_step(config, *args):
        if config.train.batch_size > 2:
            raise jax.errors.JaxRuntimeError(message)
        return compiled(config, *args)

    compiled = batches.compile_train_step
    monkeypatch.setattr(batches, "compile_train_step", compile_train_step)
    message = "RESOURCE_EXHAUSTED: Out of memory"
    (line,) = batches.run(bench(tmp_path))
    assert line.startswith("BERT-base N 32 full (full step): 2 rows fit, 0.0 GiB, ")
    assert line.endswith("; 3 do not")
    (cell,) = json.loads((tmp_path / "batches.json").read_text())["cells"]
    assert [(trial["rows"], trial["fits"]) for trial in cell["trials"]] == [(4, False), (2, True), (3, False)]
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        list(batches.run(bench(tmp_path)))


def test_without_time_no_trial_is_begun_which_the_line_says(tmp_path):
    (line,) = batches.run(bench(tmp_path, 0.0))
    assert line.endswith("no rows are known to fit; more were not tried; the search was left off for time")
