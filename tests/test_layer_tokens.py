"""The learning rate by layer-tokens (docs/method.md 7; Yao et al., 2022)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sctd_jax.pretrain import report
from sctd_jax.pretrain.layer_tokens import progress, rate_at, step_layer_tokens
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.pretrain.step import make_train_step, variant_at
from sctd_jax.train.metrics import read_metrics
from tests import helpers

BY = {"optimizer__schedule_by": "layer_tokens"}
STAGES = {"dropping__keep_schedule": "0:8,6:16,15:32"}


def counted(config, step):
    """Layer-tokens of one step of 4 layers on rows of N, by hand."""
    stage, variant = config.at(step), variant_at(config, step)
    n, k, p, rows = stage.data.seq_len, stage.num_kept, stage.num_predicted, stage.train.batch_size
    return rows * {
        "full": 4 * n, "drop": 2 * n + 2 * k, "consistency": n + 2 * k + n + 3 * n, "late": 2 * (n - p) + 2 * n,
    }[variant]  # fmt: skip


@pytest.mark.parametrize("method", ["full", "drop", "random", "random_ltd", "sctd", "full_every", "late_mask"])
@pytest.mark.parametrize(
    "schedules",
    [
        {},
        STAGES,
        {"data__seq_len_schedule": "0:16,5:32", "train__batch_schedule": "0:2,4:4,19:8"},
        {"dropping__full_steps_first": 3, "dropping__full_steps_last": 4, "dropping__sc_interval": 4},
        STAGES | {"dropping__full_steps_first": 7, "dropping__full_steps_last": 6, "dropping__sc_interval": 2},
    ],
)
def test_the_share_is_what_the_steps_before_have_seen(method, schedules):
    config = helpers.config(**schedules, dropping__method=method, train__steps=24)
    tokens = [counted(config, step) for step in range(24)]
    assert tokens == [step_layer_tokens(config.at(step), variant_at(config, step)) for step in range(24)]
    expected = np.concatenate([[0], np.cumsum(tokens)]) / sum(tokens)
    shares = jax.jit(jax.vmap(lambda step: progress(config, step)))(jnp.arange(26))
    np.testing.assert_allclose(shares, [*expected, 1], rtol=1e-6)


def test_fewer_tokens_from_some_layer_on_and_two_prefixes_count():
    narrow = helpers.config(model__num_layers=6, dropping__keep_by_layer="3:12,4:9")
    assert step_layer_tokens(narrow, "drop") == 8 * (3 * 32 + 16 + 12 + 9)
    apart = helpers.config(dropping__sc_share_prefix=False)
    assert step_layer_tokens(apart, "consistency") == 8 * (4 * 32 + 2 * 32 + 2 * 16)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_where_all_steps_see_as_many_it_is_the_schedule_by_steps_and_otherwise_slower_while_few_are_kept(schedule):
    values = {"optimizer__schedule": schedule, "optimizer__warmup_steps": 4, "train__steps": 24}
    values |= {"optimizer__decay_steps": 10} if schedule == "wsd" else {}
    for method in ("full", "random_ltd"):
        by_steps, by_tokens = (helpers.config(**values, dropping__method=method, **by) for by in ({}, BY))
        rates = [[float(rate_at(config, step)) for step in range(25)] for config in (by_steps, by_tokens)]
        np.testing.assert_allclose(*rates, rtol=1e-4, atol=1e-9)
    staged = helpers.config(**values, **STAGES, **BY, dropping__method="random_ltd")
    slow = [float(rate_at(staged, step)) for step in range(25)]
    assert slow[0] == pytest.approx(rates[0][0], rel=1e-6)  # 1 / warm-up of the peak
    assert slow[1] < rates[0][1] and slow[12] >= rates[0][12] and slow[24] == pytest.approx(0, abs=1e-9)
    seen = np.cumsum([0, *[counted(staged, step) for step in range(24)]])
    at = 24 * seen[3] / seen[24]  # within the warm-up
    assert slow[3] == pytest.approx(staged.optimizer.learning_rate * (at + 1) / 4, rel=1e-5)


def test_a_run_has_these_rates_in_each_of_its_programs_and_after_a_resume(rows, tmp_path):
    config = helpers.config(
        **BY, dropping__method="random_ltd", dropping__keep_schedule="0:8,2:32", train__steps=6, data__rows=str(rows),
        train__log_every=1, train__eval_every=3, train__checkpoint_every=3, mesh__data=1,
    )  # fmt: skip

    def stop(step):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / "run", lambda line: None, on_step=stop)
    log = []
    train_and_evaluate(config, tmp_path / "run", log.append)
    assert any(line.startswith("resuming at step") for line in log)
    assert not any(line.startswith("warning: the learning rate") for line in log)
    found = {line["step"]: line["train/learning_rate"] for line in read_metrics(tmp_path / "run")
             if "train/learning_rate" in line}  # fmt: skip
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    for step, rate in found.items():
        assert rate == pytest.approx(float(rate_at(config, step - 1)), rel=1e-6)
    by_steps = helpers.config(train__steps=6)
    assert found[2] < 0.9 * float(rate_at(by_steps, 1))


def test_more_steps_that_move_the_schedule_are_said(tmp_path):
    before = helpers.config(**BY, **STAGES, dropping__method="random_ltd", train__steps=24, data__rows="rows")
    now = helpers.config(**BY, **STAGES, dropping__method="random_ltd", train__steps=48, data__rows="rows")
    jump = report.schedule_lines(now, before, tmp_path, 20)[0]
    rate = float(rate_at(now, 20))
    assert f"to {rate:.3g} " in jump and "train.steps was 24 and is 48" in jump


def test_a_stage_alone_is_no_run():
    config = helpers.config(**BY, **STAGES, dropping__method="random_ltd")
    with pytest.raises(ValueError, match="whole run"):
        make_train_step(config.at(0), helpers.SPECIAL, "drop")
