"""Word frequencies alone, and what a run says that stands no lower."""

import dataclasses
import json
import math
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

from sctd_jax.data import frequencies
from sctd_jax.data.rows import HELD_OUT, TRAIN, Rows, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.pretrain import evaluation, pretraining
from sctd_jax.pretrain.pretraining import train_and_evaluate
from sctd_jax.train.metrics import read_metrics
from tests import helpers

UNMASKABLE = {helpers.SPECIAL.pad, helpers.SPECIAL.cls, helpers.SPECIAL.sep, helpers.SPECIAL.mask}


def tokens(rows, split):
    """Tokens of a split that can be predicted, one after the other."""
    split = Rows(rows, split)
    return [token for token in split.read(range(len(split))).ravel().tolist() if token not in UNMASKABLE]


def losses_by_hand(rows, vocab_size=512):
    """Piece -> its loss by the training rows' counts, each one more than it is; in Python alone."""
    counts = Counter(tokens(rows, TRAIN))
    total = sum(counts.values()) + vocab_size - len(UNMASKABLE)
    return {piece: math.log(total / (counts[piece] + 1)) for piece in range(vocab_size) if piece not in UNMASKABLE}


def test_preparation_writes_the_held_out_loss_of_word_frequencies_by_a_count(rows):
    losses, heldout = losses_by_hand(rows), tokens(rows, HELD_OUT)
    assert sum(math.exp(-loss) for loss in losses.values()) == pytest.approx(1.0)
    assert read_metadata(rows).unigram_loss == pytest.approx(np.mean([losses[token] for token in heldout]), abs=1e-9)


def test_a_piece_that_training_never_shows_has_a_finite_loss():
    class Few(list):
        folder = "few"

        def read(self, numbers):
            return np.array([self[i] for i in numbers])

    train, heldout = Few([[2, 5, 5, 5, 6, 3]]), Few([[2, 5, 7, 3, 0, 0]])
    logs_V = frequencies.log_frequencies(train, 8, helpers.SPECIAL)
    # [UNK] and pieces 5 to 7 can be predicted: 4 + 4 counts, of which piece 5 has 4 and piece 7 one.
    assert np.exp(logs_V[[1, 5, 6, 7]]) == pytest.approx([1 / 8, 4 / 8, 2 / 8, 1 / 8])
    expected = (math.log(8 / 4) + math.log(8 / 1)) / 2
    assert frequencies.cross_entropy(heldout, logs_V, helpers.SPECIAL) == pytest.approx(expected)
    with pytest.raises(UserError, match="the rows in few are damaged: ids that a vocabulary of 6 has not"):
        frequencies.counts(train, 6, helpers.SPECIAL)


def test_a_part_of_many_rows_says_the_same_to_a_hundredth(rows, monkeypatch):
    train, heldout = (Rows(rows, split) for split in (TRAIN, HELD_OUT))
    monkeypatch.setattr(frequencies, "_ROWS", 2)
    monkeypatch.setattr(frequencies, "_TOKENS_OF_A_PIECE", 64)
    some = frequencies.counts(train, 512, helpers.SPECIAL)
    assert 0.5 < some.sum() / len(tokens(rows, TRAIN)) < 0.7  # 64 tokens for each of 512 pieces, of 54,656
    monkeypatch.setattr(frequencies, "_AT_ONCE", 7)
    np.testing.assert_array_equal(frequencies.counts(train, 512, helpers.SPECIAL), some)
    loss = frequencies.cross_entropy(heldout, frequencies.log_frequencies(train, 512, helpers.SPECIAL), helpers.SPECIAL)
    assert loss == pytest.approx(read_metadata(rows).unigram_loss, abs=0.01)


def run(workdir, rows, steps, **fields):
    """What a run says that can learn nothing, for its rate is 0."""
    fields = {"train__steps": steps, "train__eval_every": 1, "train__checkpoint_every": 1, **fields}
    config = helpers.config(
        data__rows=str(rows), mesh__data=1, dropping__method="full", model__num_layers=1, optimizer__learning_rate=0.0,
        **fields,
    )  # fmt: skip
    lines = []
    train_and_evaluate(config, workdir, lines.append)
    return lines


@pytest.fixture(scope="module")
def stuck(rows, tmp_path_factory):
    """(workdir, lines, what its console said) of a run of six steps that stays above word frequencies."""
    said, workdir = [], tmp_path_factory.mktemp("runs") / "stuck"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sctd_jax.train.metrics.say", said.append)
        lines = run(workdir, rows, 6)
    return workdir, lines, said


def test_evaluations_say_how_far_the_loss_lies_above_word_frequencies_over_the_same_predictions(stuck, rows):
    workdir, lines, said = stuck
    config, heldout, losses = helpers.config(), Rows(rows, HELD_OUT), losses_by_hand(rows)
    numbers = evaluation.eval_rows(config.train.eval_rows, len(heldout))
    key = jax.random.key(evaluation.EVAL_SEED)
    batch = evaluation.mask_batch(config, helpers.SPECIAL, key, heldout.read(numbers), None, numbers)
    predicted = np.asarray(batch.targets_BP)[np.asarray(batch.weights_BP) > 0]
    expected = np.mean([losses[int(token)] for token in predicted])
    assert abs(expected - read_metadata(rows).unigram_loss) > 0.01  # or else the test holds nothing
    for line in (line for line in read_metrics(workdir) if "eval/loss" in line):
        assert line["eval/unigram_loss"] == pytest.approx(expected, abs=1e-5)
        assert line["eval/below_unigram"] == pytest.approx(expected - line["eval/loss"], abs=1e-6)
    above = f"{line['eval/loss'] - expected:.2f} nats above word frequencies"
    assert sum(line.startswith("eval at step") and line.endswith(above) for line in said) == 7
    assert any(line.startswith("held-out loss") and line.endswith(above) for line in lines)
    over_all = f" frequencies  {read_metadata(rows).unigram_loss:.3f} nats: held-out loss of word frequencies alone"
    assert any(line.startswith(over_all) for line in lines)


NO_CONTEXT = "the model has learned nothing from context"


def warned(lines):
    return [line for line in lines if NO_CONTEXT in line]


def test_a_run_above_word_frequencies_says_so_after_a_quarter_of_its_steps_and_at_its_end(stuck):
    _, lines, said = stuck
    (during,), (end,) = warned(said), warned(lines)
    assert said.index(during) == next(i for i, line in enumerate(said) if line.startswith("eval at step 2:")) + 1
    assert during.startswith("warning: after 2 of 6 steps") and end.startswith("warning: after 6 of 6 steps")
    cure = "a lower optimizer.learning_rate (0.0), a longer optimizer.warmup_steps (2), more train.steps"
    assert during.endswith(cure) and end.endswith(cure)


def test_a_resumed_run_and_one_that_starts_from_another_say_it_once(stuck, rows, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("sctd_jax.train.metrics.say", said.append)
    resumed = shutil.copytree(stuck[0], tmp_path / "resumed")
    lines = run(resumed, rows, 9)
    assert [line.split(" steps")[0] for line in warned([*said, *lines])] == [
        "warning: after 7 of 9", "warning: after 9 of 9"
    ]  # fmt: skip
    said.clear()
    run(tmp_path / "started", rows, 4, train__init=str(stuck[0]))
    assert [line.split(" steps")[0] for line in warned(said)] == ["warning: after 1 of 4"]


@pytest.mark.parametrize(("below", "during", "end"), [(1.5, 0, 0), (-0.1, 1, 1), (math.nan, 0, 0), (None, 0, 0)])
def test_a_run_below_word_frequencies_says_nothing(rows, tmp_path, monkeypatch, below, during, end):
    said = []
    known = {} if below is None else {"eval/below_unigram": below}
    metrics = {"eval/loss": 4.0, "eval/perplexity": 54.6, "eval/accuracy": 0.3} | known
    monkeypatch.setattr("sctd_jax.train.metrics.say", said.append)
    monkeypatch.setattr(pretraining, "make_evaluate", lambda *_: lambda state: metrics)
    lines = run(tmp_path / "run", rows, 4)
    assert (len(warned(said)), len(warned(lines))) == (during, end)
    sides = {line.rpartition(", ")[2] for line in said if line.startswith("eval at step")}
    named = {1.5: "1.50 nats below word frequencies", -0.1: "0.10 nats above word frequencies"}
    assert sides == {named.get(below, "accuracy 30.0%")}


def test_rows_of_earlier_code_open_and_their_loss_is_counted_when_a_run_starts(rows, tmp_path):
    folder = shutil.copytree(rows, tmp_path / "rows")
    values = dataclasses.asdict(read_metadata(rows))
    del values["unigram_loss"]
    (folder / "prepared.json").write_text(json.dumps(values))
    assert read_metadata(folder).unigram_loss == 0.0
    lines = run(tmp_path / "run", folder, 1)
    assert f"{read_metadata(rows).unigram_loss:.3f} nats: held-out loss of word" in "\n".join(lines)
    assert json.loads((folder / "prepared.json").read_text()) == values
