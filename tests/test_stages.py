"""Masking rate, length of the rows and batch that change at steps that the config names."""

import dataclasses
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune
from sctd_jax import storage
from sctd_jax.data import prepare
from sctd_jax.data.loader import Loader
from sctd_jax.data.rows import TRAIN, Rows, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.finetune.config import from_dict as finetune_from_dict
from sctd_jax.finetune.config import run_config
from sctd_jax.interop.exporting import export
from sctd_jax.models import open_run
from sctd_jax.objective.masking import mask_tokens, rate_at
from sctd_jax.pretrain.model import on_devices
from sctd_jax.pretrain.pretraining import open_job, train_and_evaluate
from sctd_jax.pretrain.rows import open_data
from sctd_jax.pretrain.step import program_at, programs_needed, variant_at
from sctd_jax.train.metrics import read_metrics
from tests import helpers

STAGES = {
    "dropping__method": "drop", "data__seq_len_schedule": "0:16,3:32", "train__batch_schedule": "0:8,2:16",
    "train__batch_size": 16, "train__accumulation": 2, "masking__rate_schedule": "0:0.3,4:0.15",
}  # fmt: skip
# What a run has besides: kept tokens by step, and a learning rate that all of them bend.
KEPT = {"dropping__keep_schedule": "0:8,3:16,4:24", "optimizer__schedule_by": "layer_tokens"}


def quiet(line):
    del line


@pytest.fixture(scope="module")
def text(speeches):
    return {"data__input": ",".join(speeches[:12]), "data__documents": "paragraph", "data__heldout_share": 0.02}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


def config(text, prepared, **changes):
    recipe = {"train__checkpoint_every": 1, "train__eval_every": 1, "train__keep_checkpoints": 9, "train__eval_rows": 8}
    return helpers.config(**text, data__prepared_dir=str(prepared), **recipe | STAGES | KEPT | changes)


@pytest.fixture(scope="module")
def whole(text, prepared, tmp_path_factory):
    """(workdir, state, lines) of a run of six steps: batch at 2, length at 3, rate and kept tokens at 4."""
    workdir, lines = tmp_path_factory.mktemp("runs") / "whole", []
    result = train_and_evaluate(config(text, prepared), workdir, lines.append)
    return workdir, result.state, lines


def test_a_step_has_the_values_of_its_stages():
    of = helpers.config(**STAGES, train__steps=20)
    steps = [of.at(step) for step in range(6)]
    assert [step.data.seq_len for step in steps] == [16, 16, 16, 32, 32, 32]
    assert [step.num_kept for step in steps] == [8, 8, 8, 16, 16, 16]  # by drop_rate
    assert [step.train.batch_size for step in steps] == [8, 8, 16, 16, 16, 16]
    assert [step.train.accumulation for step in steps] == [1, 1, 2, 2, 2, 2]  # microbatches of eight rows
    assert [step.num_predicted for step in steps] == [5, 5, 5, 10, 10, 10]  # of the highest rate
    after = [of.after(step) for step in (0, 3, 6)]
    assert all(evaluation == helpers.config(**{
        **dict.fromkeys(("data__seq_len_schedule", "train__batch_schedule", "masking__rate_schedule"), ""),
        **{name: value for name, value in STAGES.items() if "schedule" not in name}, "train__steps": 20,
    }) for evaluation in after)  # fmt: skip
    both = helpers.config(**STAGES | {"dropping__keep_schedule": "0:8,3:24"})
    assert [both.after(step).num_kept for step in (0, 3, 4)] == [16, 16, 24]  # half of the row, then three quarters


def test_programs_are_those_of_the_steps_and_each_is_named_by_what_changes():
    for changes in (
        STAGES, STAGES | {"dropping__method": "full"},
        STAGES | {"dropping__method": "sctd", "dropping__sc_interval": 4},
        STAGES | {"dropping__full_steps_first": 4, "dropping__full_steps_last": 9},
        STAGES | {"dropping__full_steps_first": 1, "dropping__keep_schedule": "0:8,3:20,7:32"},
        {"train__batch_schedule": "0:4,2:8,9:4", "dropping__full_steps_last": 3},
    ):  # fmt: skip
        of = helpers.config(**changes, train__steps=20)
        names = {program_at(of, step) for step in range(20)}
        needed = programs_needed(of)
        assert set(needed) == names
        for step in range(20):
            stage, variant = needed[program_at(of, step)]
            assert variant == variant_at(of, step)
            now = of.at(step)
            assert (stage.data.seq_len, stage.train) == (now.data.seq_len, now.train)
            assert variant == "full" or stage.num_kept == now.num_kept
    assert set(programs_needed(helpers.config(**STAGES))) == {
        "drop of 8 of 16 x 8 rows", "drop of 8 of 16 x 16 rows", "drop of 16 of 32 x 16 rows",
    }  # fmt: skip
    rates = helpers.config(masking__rate_schedule="0:0.3,3:0.15", dropping__method="full")
    assert set(programs_needed(rates)) == {"full"}  # the rate is a number in the program


def test_rows_come_in_one_order_however_large_the_batch():
    class Numbered:
        def __len__(self):
            return 24

        def read(self, indices):
            return np.array(indices)[:, None]

    of = helpers.config(train__batch_schedule="0:4,2:8", train__batch_size=8)
    loader = Loader(Numbered(), batch_size=8, seed=0)
    staged = [loader.read(of.rows_before(step) + np.arange(of.at(step).train.batch_size)) for step in range(4)]
    np.testing.assert_array_equal(np.concatenate(staged), np.concatenate([loader.batch(step) for step in range(3)]))
    back = helpers.config(**STAGES | {"data__seq_len_schedule": "0:16,3:32,5:16"})
    assert [back.rows_before(step) for step in range(7)] == [
        0,
        8,
        16,
        0,
        16,
        32,
        48,
    ]  # 16 tokens go on where they stood


def test_the_masking_rate_is_that_of_the_step_in_slots_for_the_highest():
    masking = helpers.config(masking__rate_schedule="0:0.3,3:0.25,5:0.15").masking
    assert [float(jax.jit(lambda step: rate_at(masking, step))(step)) for step in (0, 2, 3, 4, 5, 99)] == pytest.approx(
        [0.3, 0.3, 0.25, 0.25, 0.15, 0.15]
    )
    tokens = helpers.random_rows(16)
    for step, count in ((0, 10), (3, 8), (5, 5)):
        batch = mask_tokens(
            jax.random.key(0), jnp.arange(16), tokens, masking, special=helpers.SPECIAL, vocab_size=512,
            num_predicted=10, step=step,
        )  # fmt: skip
        assert batch.positions_BP.shape == (16, 10)
        assert (batch.weights_BP.sum(1) == count).all()
        shown = (batch.input_ids_BN == helpers.SPECIAL.mask).sum(1)
        assert (shown <= count).all()


def test_a_run_says_its_stages_and_trains_and_counts_by_them(whole, text, prepared):
    workdir, state, lines = whole
    start = "\n".join(lines)
    for said in (
        " rows of 32 tokens, ", " rows of 16 tokens; ", "0 to 6 of 8, then 16 from step 2 rows (",
        " epochs of 16 tokens, ",
        "0.3, then 0.15 from step 4 of the tokens, 0.15 in evaluations",
        "8 of 16, then 16 of 32 from step 3, then 24 of 32 from step 4 in layers 1 to 2",
    ):  # fmt: skip
        assert said in start, said
    job = open_job(config(text, prepared), storage.as_path(workdir), quiet)
    assert [job.cost(step)[0] for step in range(6)] == [128, 128, 256, 512, 512, 512]
    flops = [job.cost(step)[1] for step in range(6)]
    assert flops[2] == 2 * flops[1]
    assert flops[3] > 2 * flops[2]  # attention's share grows with the length
    shapes = [job.batch(step).shape for step in range(6)]
    assert shapes == [(8, 16), (8, 16), (16, 16), (16, 32), (16, 32), (16, 32)]
    predictions = {line["step"]: line["train/predictions"] for line in read_metrics(workdir) if "train/loss" in line}
    # Means of two steps but for the first: rows x rate x N, rounded.
    assert predictions == {1: 8 * 5, 2: 8 * 5, 4: (16 * 5 + 16 * 10) / 2, 6: 16 * 5}
    evaluations = [line["eval/loss"] for line in read_metrics(workdir) if "eval/loss" in line]
    assert len(evaluations) == 7
    assert all(abs(a - b) < 0.2 for a, b in itertools.pairwise(evaluations))  # no step at a boundary
    assert int(state.step) == 6


@pytest.mark.parametrize("killed_after", [2, 3, 4])
def test_a_run_killed_around_a_boundary_ends_with_the_same_bits(whole, text, prepared, tmp_path, killed_after):
    """The checkpoint before the length changes, at it, and after it, where the rate and the kept tokens do."""
    workdir, state, _ = whole
    left, lines = shutil.copytree(workdir, tmp_path / "left"), []
    for folder in (left / "checkpoints").iterdir():
        if int(folder.name) > killed_after:
            shutil.rmtree(folder)
    resumed = train_and_evaluate(config(text, prepared), left, lines.append).state
    assert f"resuming at step {killed_after}" in lines
    for name in ("params", "opt_state", "importance_V", "step"):
        for a, b in zip(*(jax.tree.leaves(getattr(of, name)) for of in (state, resumed)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_each_length_has_rows_of_the_same_documents_and_tokens(whole, text, prepared):
    data = open_data(config(text, prepared), quiet)
    longer, shorter = data.by_length()[32].metadata, data.by_length()[16].metadata
    assert (data.metadata, list(data.by_length())) == (longer, [32, 16])
    assert longer.tokenizer_sha256 == shorter.tokenizer_sha256
    assert longer.heldout_documents == shorter.heldout_documents
    assert longer.tokens == shorter.tokens
    assert shorter.rows > 1.8 * longer.rows
    assert Rows(data.by_length()[16].folder, TRAIN).read([0]).shape == (1, 16)


def test_rows_that_were_prepared_before_are_given_as_folders(whole, text, prepared, tmp_path):
    folders = {
        length: str(rows.folder) for length, rows in open_data(config(text, prepared), quiet).by_length().items()
    }
    given = {name: value for name, value in text.items() if name != "data__input"}
    both = config(given, prepared, data__rows=f"{folders[16]},{folders[32]}")
    assert [str(rows.folder) for rows in open_data(both, quiet).by_length().values()] == [folders[32], folders[16]]
    with pytest.raises(UserError, match=r"asks for rows of 16 tokens, but those in config.data.rows have \[32\]"):
        open_data(config(given, prepared, data__rows=folders[32]), quiet)

    # Its own tokenizer; and fewer held-out documents than the longer rows need.
    for name, changes, said in (
        ("own", {"tokenizer_type": "bpe"}, "have different tokenizers: prepare both with --tokenizer "),
        ("few", {"heldout_share": 0.001, "tokenizer": f"{folders[32]}/tokenizer.model"}, "with --heldout-share 0."),
    ):
        made = helpers.data(**{k.partition("__")[2]: v for k, v in text.items()} | {"seq_len": 16} | changes)
        prepare.prepare(made, 512, storage.as_path(tmp_path / name), quiet)
        with pytest.raises(UserError, match=said):
            open_data(config(given, prepared, data__rows=f"{tmp_path / name},{folders[32]}"), quiet)
    lines = []
    other = dataclasses.replace(made, input=made.input.rpartition(",")[0], heldout_share=0.02)
    prepare.prepare(other, 512, storage.as_path(tmp_path / "other"), quiet)
    open_data(config(given, prepared, data__rows=f"{tmp_path / 'other'},{folders[32]}"), lines.append)
    assert any("are of another text than those in" in line for line in lines)


def test_a_workdir_knows_the_rows_of_each_length(whole, text, prepared, tmp_path):
    workdir, *_ = whole
    assert read_metadata(workdir).seq_len == 32
    folders = {length: rows.folder for length, rows in open_data(config(text, prepared), quiet).by_length().items()}
    made = helpers.data(
        **{k.partition("__")[2]: v for k, v in text.items()} | {"seq_len": 16, "heldout_share": 0.1},
        tokenizer=f"{folders[32]}/tokenizer.model",
    )
    prepare.prepare(made, 512, storage.as_path(tmp_path / "more"), quiet)
    given = {name: value for name, value in text.items() if name != "data__input"}
    others = config(given, prepared, data__rows=f"{tmp_path / 'more'},{folders[32]}")
    with pytest.raises(UserError, match=r"was trained on other rows than .*: train of 16 tokens is"):
        open_job(others, storage.as_path(workdir), quiet)


def test_a_larger_batch_from_the_step_on_at_which_another_run_ended_keeps_its_order(whole, rows, tmp_path):
    begin = {"data__rows": str(rows), "dropping__method": "full", "model__num_layers": 1, "train__eval_rows": 8}
    train_and_evaluate(helpers.config(**begin, train__steps=3), tmp_path / "first", quiet)
    lines, takes = [], {"train__init": str(tmp_path / "first"), "train__init_takes": "state", "train__steps": 4}
    larger = {"train__batch_size": 16, "train__batch_schedule": "0:8,3:16"}
    train_and_evaluate(helpers.config(**begin, **takes, **larger), tmp_path / "second", lines.append)
    assert "the rows go on where that run stood, at row 24 of the same order" in lines


def test_the_card_of_an_exported_run_has_its_stages(whole, tmp_path):
    workdir, *_ = whole
    export(storage.as_path(workdir), tmp_path / "exported", step=None, force=False, log=quiet)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "rows of at most 32 (0:16,3:32 as STEP:VALUE)" in card
    assert "Steps: 6 of at most 16 (0:8,2:16 as STEP:VALUE) rows" in card


def test_a_run_with_stages_is_fine_tuned_without_them(whole):
    workdir, *_ = whole
    values = finetune.get_config().to_dict() | {
        "task": "classification", "init": str(workdir), "data_dir": "labels.csv", "max_length": 24, "batch_size": 4,
    }  # fmt: skip
    settings = finetune_from_dict(values)
    of = run_config(settings, open_run(storage.as_path(workdir), quiet).config, 3)
    assert of.at(0) is of
    assert of.data.seq_len == 24


def test_each_stage_must_fit_the_mesh():
    of = {"mesh__data": 8, "train__batch_size": 16, "train__batch_schedule": "0:12,2:16", "train__steps": 4}
    with pytest.raises(UserError, match=r"train.batch_schedule / accumulation \(12\) must be divisible by .* \(8\)"):
        on_devices(helpers.config(**of))
