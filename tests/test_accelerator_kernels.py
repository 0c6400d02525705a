"""Part of benchmarks.accelerator on kernels, at toy size."""

import dataclasses
import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator import kernels
from benchmarks.accelerator.part import Bench
from sctd_jax.model import attention

ONE = {"errors": {"out": 0.0}, "seconds": 1.0}
RIGHT = {"rows": 1, "context": 1, "reach": None, "kernel": ONE, "plain": ONE}


def bench(folder, seconds):
    return Bench(True, folder, time.monotonic() + seconds, print)


def test_the_kernel_of_this_machine_is_as_near_to_float32_as_plain_attention(tmp_path):
    assert all("WRONG" not in line for line in kernels.run(bench(tmp_path, 60)))
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert report["wrong"] == []
    whole, near = report["shapes"]
    assert (whole["reach"], near["reach"]) == (None, 16)
    for found in (whole, near):
        assert 0 < found["kernel"]["errors"]["value"] < 0.02


def test_what_is_left_out_for_time_is_said(tmp_path):
    assert all("left out for time" in line or "dropout" in line for line in kernels.run(bench(tmp_path, 0)))
    assert json.loads((tmp_path / "kernels.json").read_text())["left_out_for_time"] == [
        "R 128, N 128", "R 128, N 128, 16 tokens on either side",
    ]  # fmt: skip


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_a_wrong_kernel_is_seen(tmp_path, monkeypatch, factor):
    """One whose output is right and whose gradient of the queries is not."""

    @jax.custom_vjp
    def scaled(query):
        return query

    scaled.defvjp(lambda query: (query, None), lambda _, gradient: (gradient * jnp.bfloat16(factor),))

    def kernel(query, *rest):
        return attention.plain(scaled(query), *rest)

    monkeypatch.setattr(kernels, "kernel_of", lambda device: ("splash", kernel))
    assert "in query" in next(line for line in kernels.run(bench(tmp_path, 60)) if "WRONG" in line)
    assert json.loads((tmp_path / "kernels.json").read_text())["wrong"] == ["R 128, N 128"]


def test_a_window_that_is_too_wide_is_seen(tmp_path, monkeypatch):
    def kernel(query, key, value, mask, rate, _, window=None):
        wider = window and dataclasses.replace(window, reach=window.reach + 1)
        return attention.plain(query, key, value, mask, rate, _, wider)

    monkeypatch.setattr(kernels, "kernel_of", lambda device: ("splash", kernel))
    (wrong,) = (line for line in kernels.run(bench(tmp_path, 60)) if "WRONG" in line)
    assert wrong.startswith("R 128, N 128, 16 tokens on either side: splash")
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["wrong"] == ["R 128, N 128, 16 tokens on either side"]


def dropout(draw):
    """A kernel by seed whose probabilities are dropped by draw(seed, number of the execution, shape)."""

    def make(seed):
        numbers = itertools.count()

        def attend(query, key, value, mask, rate, _):
            shape = query.shape[0], query.shape[2], query.shape[1], key.shape[1]
            kept = jax.pure_callback(lambda: draw(seed, next(numbers), shape), jax.ShapeDtypeStruct(shape, bool))
            weights = jnp.where(kept, 1 / shape[-1] / (1 - rate), 0).astype(value.dtype)
            return jnp.einsum("bhrn,bnhd->brhd", weights, value)

        return attend

    return make


@pytest.mark.parametrize(
    ("draw", "wrong"),
    [
        (lambda seed, number, shape: np.random.default_rng([seed, number]).random(shape) > 0.1, []),
        (lambda seed, number, shape: np.random.default_rng([seed, number]).random(shape) > 0.2,
         ["the share of zeros is 0.1", "the mean stays"]),
        (lambda seed, number, shape: np.random.default_rng(number).random(shape) > 0.1, ["other seed, other bits"]),
        (lambda seed, number, shape: np.random.default_rng(seed).random(shape) > 0.1, ["next execution, other bits"]),
        (lambda seed, number, shape: np.random.default_rng().random(shape) > 0.1, ["same seed, same bits"]),
    ],
)  # fmt: skip
def test_dropout_that_a_seed_does_not_decide_is_seen(tmp_path, monkeypatch, draw, wrong):
    monkeypatch.setattr(kernels, "kernel_of", lambda device: ("cudnn", attention.plain))
    monkeypatch.setattr(attention, "cudnn", dropout(draw))
    monkeypatch.setattr(kernels, "compare", lambda *args: RIGHT)
    *_, last = kernels.run(bench(tmp_path, 60))
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["wrong"] == [f"dropout: not so: {what}" for what in wrong]
    assert ("WRONG" in last) == bool(wrong)
