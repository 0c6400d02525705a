"""A run that starts from another one's checkpoint."""

import json
import shutil

import jax
import numpy as np
import pytest

from sctd_jax.errors import UserError
from sctd_jax.pretrain.pretraining import train_and_evaluate
from tests import helpers

STABLE = {
    "optimizer__schedule": "wsd", "dropping__method": "drop", "train__keep_checkpoints": 3, "train__eval_rows": 8,
    "model__hidden_dropout": 0.1,
}  # fmt: skip


def train(workdir, rows, lines=None, **changes):
    config = helpers.config(**STABLE, data__rows=str(rows), **changes)
    return train_and_evaluate(config, workdir, (lambda line: None) if lines is None else lines.append)


@pytest.fixture(scope="module")
def printed():
    """What the run `stable` said."""
    return []


@pytest.fixture(scope="module")
def stable(rows, printed, tmp_path_factory):
    """A run of six steps at its peak, with checkpoints of steps 3 and 6."""
    workdir = tmp_path_factory.mktemp("stable") / "run"
    train(workdir, rows, printed)
    return workdir


def assert_same(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def test_a_stable_run_decayed_from_a_checkpoint_elsewhere_is_one_that_decayed_in_its_place(stable, rows, tmp_path):
    """Hu et al., 2024: one stable run, and a decay from any of its checkpoints. Bit for bit."""
    decay = {"optimizer__decay_steps": 3}
    whole = train(tmp_path / "whole", rows, **decay)
    lines, begins = [], {"train__init": str(stable), "train__init_takes": "state", "train__init_step": 3}
    decayed = train(tmp_path / "decayed", rows, lines, **decay, **begins)
    assert_same(whole.state, decayed.state)
    (taken,) = (line for line in lines if line.startswith("going on from"))
    assert taken == (
        f"going on from step 3 of {stable}: its parameters, optimizer state, importance table and random key"
    )
    assert "the rows go on where that run stood, at row 24 of the same order" in lines
    assert any("steps  3 to 6 of 8 rows" in line for line in lines)
    assert not any(line.startswith("warning") and "from context" not in line for line in lines)
    longer = []
    train(tmp_path / "decayed", rows, longer, **decay, **begins)  # the same command again
    assert "resuming at step 6" in longer


def test_a_stable_run_says_how_it_is_ended(stable, printed):
    (line,) = (line for line in printed if line.startswith("to train longer"))
    for word in (f"--config.train.init={stable} --config.train.init_takes=state", "--config.optimizer.decay_steps"):
        assert word in line


def test_parameters_alone_can_be_those_of_any_checkpoint(stable, rows, tmp_path):
    lines = []
    result = train(tmp_path / "run", rows, lines, train__init=str(stable), train__init_step=3, train__steps=3)
    assert f"starting from the parameters of {stable} at step 3" in lines
    assert result.step == 3
    assert int(result.state.opt_state[1].count) == 3  # its own three steps


def test_rows_may_become_longer_where_positions_are_rotary(rows, tmp_path):
    """ModernBERT's own recipe: rows of 1,024 first, then of 8,192 with another base in its global layers."""
    network = {"model__family": "modernbert", "model__type_vocab_size": 1, "dropping__method": "full"}
    network |= {"data__rows": str(rows), "model__hidden_dropout": 0.0, "train__eval_rows": 8}
    network |= {f"train__{name}": 1 for name in ("steps", "eval_every", "checkpoint_every")}
    first = train_and_evaluate(helpers.config(**network), tmp_path / "first", print)
    lines, changes = [], {"model__max_positions": 64, "model__rope_theta": 1e6, "optimizer__learning_rate": 0.0}
    longer = helpers.config(**network, **changes, train__init=str(tmp_path / "first"))
    assert_same(train_and_evaluate(longer, tmp_path / "longer", lines.append).state.params, first.state.params)
    assert (
        f"starting from {tmp_path / 'first'} with other positions: model.max_positions (32 there, 64 now), "
        "model.rope_theta (160000.0 there, 1000000.0 now)"
    ) in lines


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__batch_size": 16}, "(rows before 48 there, 96 here): rows that it was trained on may come again"),
        ({"train__seed": 1}, "(seed 0 there, 1 here)"),
        ({"data__shuffle": "shards"}, "(shuffle rows there, shards here)"),
    ],
)
def test_another_order_of_the_rows_is_said(stable, rows, tmp_path, changes, said):
    lines = []
    train(tmp_path / "run", rows, lines, train__init=str(stable), train__init_takes="state", train__steps=7, **changes)
    assert any(line.startswith("warning: the order of the rows") and said in line for line in lines)
    assert any("steps  6 to 7" in line for line in lines)


def test_other_rows_and_a_rate_that_jumps_are_said(stable, rows, tmp_path):
    other, lines = shutil.copytree(stable, tmp_path / "other"), []
    digests = json.loads((other / "rows.json").read_text())
    digests["train"]["sha256"] = "0" * 16
    (other / "rows.json").write_text(json.dumps(digests))
    begins = {"train__init": str(other), "train__init_takes": "state", "train__init_step": 3}
    train(tmp_path / "run", rows, lines, **begins, train__steps=4, optimizer__decay_steps=4)
    assert any(line.startswith(f"warning: the rows in {rows} are others than those of {other}") for line in lines)
    assert any("optimizer.decay_steps was 0 and is 4" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train__init_step": 4}, r"train.init_step is 4, but .* has checkpoints of \[3, 6\]"),
        ({"train__init_takes": "state"}, r"train.steps is 6, but .* has trained 6 already"),
        (
            {"train__init_takes": "state", "train__steps": 9, "optimizer__clip_norm": 0.0},
            r"optimizer.clip_norm is 0.0, but .* has 1.0: its optimizer's state does not fit",
        ),
        (
            {"train__init_takes": "state", "train__steps": 9, "optimizer__mu_dtype": "bfloat16"},
            r"optimizer.mu_dtype is bfloat16, but .* has float32",
        ),
    ],
)  # fmt: skip
def test_what_a_run_cannot_start_from_is_refused_before_any_work(stable, rows, tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        train(tmp_path / "run", rows, train__init=str(stable), **changes)
    assert not list((tmp_path / "run").glob("*"))
