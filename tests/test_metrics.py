import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from sctd_jax.errors import DivergedError, UserError
from sctd_jax.train import trainer as jobs
from sctd_jax.train.metrics import Writer, read_metrics
from tests import helpers


def line(step, kind="train", **more):
    return json.dumps({"step": step, "seconds": step / 2, f"{kind}/loss": 1.0, **more}).encode() + b"\n"


def steps(folder):
    return [(found["step"], "eval" if "eval/loss" in found else "train") for found in read_metrics(folder)]


def test_what_lies_past_the_resumed_step_is_cut_off_and_said(tmp_path):
    path, lines = tmp_path / "metrics.jsonl", []
    path.write_bytes(line(1) + line(10) + line(10, "eval") + line(12) + line(14) + b'{"step": 16, "sec')
    writer = Writer(tmp_path, 10, lines.append)
    writer.write(12, {"train/loss": 3.0})
    writer.close()
    assert steps(tmp_path) == [(1, "train"), (10, "train"), (10, "eval"), (12, "train")]
    assert lines == [f"{path}: 2 lines cut off, for their steps after 10 are trained again"]
    assert read_metrics(tmp_path)[-1]["seconds"] >= 5
    assert path.read_bytes().count(b"\n") == 4


def test_a_run_that_begins_again_keeps_no_line(tmp_path):
    lines = []
    (tmp_path / "metrics.jsonl").write_bytes(line(0, "eval") + line(1))
    writer = Writer(tmp_path, 0, lines.append)
    writer.write(0, {"eval/loss": 2.0})
    writer.close()
    assert steps(tmp_path) == [(0, "eval")]
    assert "2 lines cut off" in lines[0]


def test_readers_take_the_last_of_two(tmp_path):
    """Runs that were resumed with another `log_every` left it so before lines were cut off."""
    lives = [line(2), line(4), line(4, "eval"), line(5), line(6), line(7), line(6, x=1), line(6, "eval"), line(9)]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lives))
    assert steps(tmp_path) == [
        (2, "train"), (4, "train"), (4, "eval"), (5, "train"), (6, "train"), (6, "eval"), (9, "train")
    ]  # fmt: skip
    assert read_metrics(tmp_path)[4]["x"] == 1


def test_a_metric_of_another_name_then_is_one_curve_and_resuming_writes_it_by_todays(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line(1) + line(2, "eval", **{"eval/drift_local": 0.5}))
    assert read_metrics(tmp_path)[-1]["eval/cosine_local"] == 0.5
    writer = Writer(tmp_path, 2)
    writer.write(3, {"eval/loss": 1.0, "eval/cosine_local": 0.75})
    writer.close()
    assert [found.get("eval/cosine_local") for found in read_metrics(tmp_path)] == [None, 0.5, 0.75]
    assert "drift" not in (tmp_path / "metrics.jsonl").read_text()


def test_damaged_lines_are_counted_and_the_others_read(tmp_path):
    path, lines = tmp_path / "metrics.jsonl", []
    damaged = [
        b"\xff\xfe\n",
        b"null\n",
        b"[1]\n",
        b'{"step": "x"}\n',
        b'{"step": 3}\n',
        b'{"step": 3, "seconds": "s"}\n',
        b'{"step": 3, "seconds": null}\n',
    ]
    path.write_bytes(line(1) + b"".join(damaged) + b"\0" * 4096 + line(2) + b'{"step": 3, "se')
    assert [found["step"] for found in read_metrics(tmp_path, lines.append)] == [1, 2]
    assert lines == [f"warning: {path}: 8 damaged lines are left out"]
    Writer(tmp_path, 2, lines.append).close()
    assert lines[1:] == [f"{path}: 8 damaged ones left out"]
    assert [found["step"] for found in read_metrics(tmp_path, lines.append)] == [1, 2]
    assert len(lines) == 2


def test_a_folder_in_the_place_of_the_metrics_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl is a folder, a file is expected"):
        read_metrics(tmp_path)


def test_tensorboard_hides_what_is_trained_again(tmp_path):
    """Its files are records of length u64, crc u32, content, crc u32."""
    (tmp_path / "metrics.jsonl").write_bytes(line(10))
    Writer(tmp_path, 10).close()
    content = next((tmp_path / "tensorboard").glob("events.*")).read_bytes()
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    assert [event.step for event in found if event.session_log.status] == [11]


def run(tmp_path, skipped, before=b"", done=0, lost=0):
    """A run of as many steps as `skipped`, of which each says whether it was skipped, by programs that do nothing."""
    (tmp_path / "metrics.jsonl").write_bytes(before)
    start = done or (1 if before else 0)
    config = helpers.config(train__steps=start + len(skipped), train__log_every=1, train__max_bad_steps=9).train

    def program(state, step):
        bad = skipped[step - start]
        metrics = {"loss": jnp.nan if bad else 1.0, "skipped": float(bad), "learning_rate": 0.1}
        return SimpleNamespace(step=state.step + 1, skipped=state.skipped + bad), metrics

    job = jobs.Job(
        config=config, mesh=SimpleNamespace(size=1), init=None, layout=None, describe=None, claim=None,
        compile=lambda: {"only": program}, program=lambda step: "only", batch=lambda step: step,
        cost=lambda step: (1, 1.0), evaluate=lambda state: {"eval/loss": 1.0},
        evaluation_lines=lambda step, found: [], advice="Lower it",
    )  # fmt: skip
    saved = []
    checkpoints = SimpleNamespace(
        save=lambda state, metrics: saved.append(state.step), wait=lambda: None, check=lambda: None, steps=lambda: saved
    )
    stop = SimpleNamespace(at=lambda step: False, signum=None)
    return jobs.train(
        job, tmp_path, checkpoints, SimpleNamespace(step=start, skipped=lost), stop, lambda said: None
    ).step


def test_a_run_with_nothing_left_to_do_keeps_no_line_past_its_end(tmp_path):
    assert run(tmp_path, [], before=line(1) + line(2, "eval")) == 1
    assert steps(tmp_path) == [(1, "train")]


def test_a_run_without_one_good_step_fails(tmp_path):
    with pytest.raises(DivergedError, match=r"not one of the steps from 0 to 3 had .* another --workdir"):
        run(tmp_path, [True, True, True])
    with pytest.raises(DivergedError, match="from 0 to 3 had"):
        run(tmp_path, [], done=3, lost=3)  # run again, with nothing left to do
    assert run(tmp_path, [True, False, True]) == 3
    assert run(tmp_path, [True], before=line(1)) == 2
    with pytest.raises(DivergedError, match="not one of the steps from 1 to 2"):
        run(tmp_path, [True], before=line(1, "eval"), lost=1)
