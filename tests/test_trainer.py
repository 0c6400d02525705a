"""The engine trains what is no BERT: a straight line, stopped, resumed and finished."""

import os
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from sctd_jax.errors import UserError
from sctd_jax.parallel import mesh as meshes
from sctd_jax.train import metrics, trainer
from sctd_jax.train.checkpoint import Best
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.optimizer import make_optimizer
from sctd_jax.train.state import first_state
from sctd_jax.train.step import accumulate, compile_ahead, state_shape, update
from sctd_jax.train.trainer import Job, fit
from tests import helpers

ROWS = 8


def line(steps, **functions):
    """A job that fits y = 2 x + 1."""
    config = helpers.config(train__steps=steps, train__eval_every=2, train__checkpoint_every=2, mesh__data=1)
    mesh, optimizer = meshes.make_mesh(config.mesh), make_optimizer(config.optimizer)
    inputs = jax.ShapeDtypeStruct((ROWS, 1), jnp.float32)

    def init():
        params = {"classifier": {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}}
        return first_state(params, config.optimizer, jax.random.key(0))

    def step_fn(state, x_B1):
        def loss_fn(params, x_B1, rows_B, index):
            y_B1 = x_B1 @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]
            return jnp.square(y_B1 - 2 * x_B1 - 1).mean(), ()

        grads, loss, _ = accumulate(loss_fn, state.params, x_B1, 1)
        return update(optimizer, jnp.float32(0.1), state, grads, loss)

    def batch(step):
        rows = np.random.default_rng(step).standard_normal((ROWS, 1)).astype(np.float32)
        return meshes.put_batch(mesh, ROWS, rows)

    def programs():
        return {"line": compile_ahead(step_fn, state_shape(init, mesh), inputs, mesh)}

    job = {
        "config": config.train, "mesh": mesh, "init": init, "layout": state_shape(init, mesh),
        "describe": lambda state: [f"from step {int(state.step)}"], "claim": lambda: None, "compile": programs,
        "program": lambda step: "line", "batch": batch,
        "cost": lambda step: (ROWS, 2.0 * ROWS),
        "evaluate": lambda state: {"eval/slope": float(state.params["classifier"]["kernel"][0, 0])},
        "evaluation_lines": lambda step, found: [], "advice": "", "best": Best("eval/slope", "max"),
    }  # fmt: skip
    return Job(**job | functions)


def run(workdir, job):
    """(result, what it said)."""
    lines = []
    workdir.mkdir(exist_ok=True)
    return fit(job, epath.Path(workdir), lambda: None, lines.append), lines


def numbers(result):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((result.state.params, result.state.opt_state))]


def test_a_job_is_stopped_resumed_and_finished_with_the_same_bits(tmp_path):
    whole, lines = run(tmp_path / "whole", line(6))
    assert (whole.step, whole.stopped_by, whole.best_step) == (6, None, 6)  # the slope grows towards 2
    assert lines[0] == "from step 0"
    lines = read_metrics(tmp_path / "whole")
    evaluated = [(found["step"], found["eval/slope"]) for found in lines if "eval/slope" in found]
    assert [step for step, _ in evaluated] == [0, 2, 4, 6]
    assert evaluated == sorted(evaluated, key=lambda pair: pair[1])

    def stopping(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped, lines = run(tmp_path / "cut", line(6, on_step=stopping))
    assert (stopped.step, stopped.stopped_by) == (3, signal.SIGTERM)
    assert lines[-1].startswith("stopped by signal 15 after step 3; saved in")
    resumed, lines = run(tmp_path / "cut", line(6))
    assert lines[:2] == ["resuming at step 3", "from step 3"]
    assert numbers(resumed) == numbers(whole)
    with pytest.raises(UserError, match=r"config.train.steps is 4, but the workdir has trained 6 already"):
        run(tmp_path / "cut", line(4))


def test_a_job_may_start_from_parameters_trained_before_and_claims_its_workdir_before_it_trains(tmp_path):
    happened = []
    trained = {"classifier": {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.ones(1)}}
    job = line(
        2, start=lambda state: state.replace(params=trained), claim=lambda: happened.append("claimed"),
        on_step=happened.append,
    )  # fmt: skip
    run(tmp_path, job)
    assert happened == ["claimed", 0, 1]
    assert read_metrics(tmp_path)[0]["eval/slope"] == 2.0


def scripted(values, patience, steps=12, **functions):
    """A job whose evaluations have these values, one for every second step."""

    def evaluate(state):
        return {"eval/slope": values[int(state.step) // 2]}

    return line(steps, evaluate=evaluate, evaluate_first=False, patience=patience, **functions)


def test_training_ends_early_where_evaluations_are_not_better_and_a_rerun_knows(tmp_path):
    values = [0.0, 1.0, 3.0, 2.0, 3.0, 2.5, 9.0]  # as good as the best is not better
    early, _ = run(tmp_path / "whole", scripted(values, 2))
    assert (early.step, early.stopped_by) == (8, None)
    steps = [found["step"] for found in read_metrics(tmp_path / "whole") if "eval/slope" in found]
    assert steps == [2, 4, 6, 8]

    def stopping(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped, _ = run(tmp_path / "cut", scripted(values, 2, on_step=stopping))
    assert (stopped.step, stopped.stopped_by) == (7, signal.SIGTERM)
    resumed, _ = run(tmp_path / "cut", scripted(values, 2))
    assert (resumed.step, resumed.stopped_by, numbers(resumed)) == (8, None, numbers(early))
    again, lines = run(tmp_path / "cut", scripted(values, 2))
    assert again.step == 8 and "compiling ..." not in lines
    patient, _ = run(tmp_path / "cut", scripted(values, 3))  # one more
    assert patient.step == 10
    assert run(tmp_path / "cut", scripted(values, 0))[0].step == 12


def test_a_score_of_nothing_counts_in_a_resumed_run_as_in_one_that_was_not_stopped(tmp_path):
    def stopping(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    values = [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]  # the F1 of entities begins so
    assert run(tmp_path, scripted(values, 1, on_step=stopping))[0].step == 3
    assert run(tmp_path, scripted(values, 1))[0].step == 12


def test_a_value_that_is_no_number_is_never_the_best():
    assert trainer.without_better([np.nan, 1.0, np.nan, 1.0], "max") == 2
    assert trainer.without_better([3.0, 2.0, 2.0], "min") == 1
    assert trainer.without_better([], "max") == 0


def test_the_share_of_the_time_that_the_loop_waits_for_batches_is_a_metric(tmp_path, monkeypatch):
    """By a clock that only batches, 3 seconds each, and the rest of a step, 1 second, move."""
    now = [0.0]
    monkeypatch.setattr(trainer, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time))

    def prefetch(make, steps):
        for step in steps:
            now[0] += 3.0
            yield make(step)

    def on_step(step):
        now[0] += 1.0

    monkeypatch.setattr(trainer, "prefetch", prefetch)
    config = helpers.config(train__steps=6, train__eval_every=9, train__checkpoint_every=9, train__log_every=4)
    run(tmp_path, line(6, config=config.train, on_step=on_step))
    found = next(values for values in read_metrics(tmp_path) if values["step"] == 4)
    assert found["train/step_seconds"] == pytest.approx(4.0)
    assert found["train/batch_wait_share"] == pytest.approx(0.75)
