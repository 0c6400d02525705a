"""`python -m benchmarks.accelerator`: its frame, and all parts at toy size."""

import json
import subprocess
import sys
import time
from typing import get_args, get_type_hints

import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import comparing, numbers
from benchmarks.accelerator.part import Bench
from sctd_jax.config import DroppingConfig
from sctd_jax.errors import UserError
from sctd_jax.pretrain.step import Variant, variant_at
from tests import helpers

# A part's process, with the statements of its `run(bench)`.
PROGRAM = """
import os, sys
from benchmarks.accelerator import child
sys.modules["benchmarks.accelerator.numbers"] = sys.modules["__main__"]
def run(bench):
    {body}
sys.exit(child.main("numbers", {out!r}, {deadline!r}, "smoke"))
"""


@pytest.fixture
def bench(tmp_path):
    return Bench(True, tmp_path, time.monotonic() + 60, lambda line: None)


def starts(bodies):
    """A start of parts whose `run(bench)` is a text by the part's name."""

    def start(name, bench):
        program = PROGRAM.replace("numbers", name).format(
            body=bodies[name], out=str(bench.out), deadline=str(bench.deadline)
        )
        return subprocess.Popen(
            [sys.executable, "-c", program], cwd=helpers.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    return start


def test_a_part_that_raises_is_reported_and_the_next_one_goes_on(bench):
    bodies = {
        "numbers": 'bench.save("numbers", {"one": 1}); yield "one"; raise ValueError("of the\\nsecond")',
        "study": 'print("chatter"); yield "fine"',
    }
    failed, fine = command.run_parts(["numbers", "study"], bench, starts(bodies))
    assert failed.lines == ["one", "FAILED: ValueError: of the second (traceback in numbers.json)"]
    assert (failed.failed, fine.failed, fine.lines) == (True, False, ["fine"])
    written = json.loads((bench.out / "numbers.json").read_text())
    assert written["one"] == 1
    assert "ValueError: of the\nsecond" in written["error"]
    assert (bench.out / "table.txt").read_text() == command.table([failed, fine])


def test_a_part_that_finds_something_wrong_has_failed(bench):
    body = 'bench.save("kernels", {"wrong": ["R 1, N 2"]}); yield "R 1, N 2: WRONG"'
    (outcome,) = command.run_parts(["kernels"], bench, starts({"kernels": body}))
    assert (outcome.failed, outcome.lines) == (True, ["R 1, N 2: WRONG"])
    assert "error" not in json.loads((bench.out / "kernels.json").read_text())


def test_a_part_that_goes_on_past_its_time_is_ended_with_what_it_started_and_loses_nothing(bench):
    body = (
        'bench.save("numbers", {"one": 1}); yield "one"; import subprocess; '
        'child = subprocess.Popen(["sleep", "600"]); (bench.out / "pid").write_text(str(child.pid)); child.wait()'
    )
    outcome = command.Outcome("numbers", [])
    started = starts({"numbers": body})

    def start(name, bench):
        process = started(name, bench)
        while not ((bench.out / "pid").exists() and (bench.out / "pid").read_text()):
            time.sleep(0.01)
        return process

    command.run_part(outcome, bench, time.monotonic(), start, lambda: None)
    assert outcome.failed
    assert outcome.lines[0] == "one"
    assert "past its time; what it measured is in numbers.json" in outcome.lines[1]
    written = json.loads((bench.out / "numbers.json").read_text())
    assert written["one"] == 1
    assert "past its time" in written["error"]
    child = int((bench.out / "pid").read_text())
    for _ in range(3000):  # it was killed, and is gone when the kernel comes to it; by itself it lives for ten minutes
        if not alive(child):
            break
        time.sleep(0.01)
    assert not alive(child)


def alive(pid):
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_part_that_dies_is_reported(bench):
    body = 'yield "one"; os.kill(os.getpid(), 9)'
    (outcome,) = command.run_parts(["numbers"], bench, starts({"numbers": body}))
    assert outcome.failed
    assert outcome.lines == ["one", "FAILED: ended by signal 9; what it measured is in numbers.json"]
    assert "ended by signal 9" in json.loads((bench.out / "numbers.json").read_text())["error"]


def test_parts_for_which_no_time_is_left_are_named(bench):
    late = Bench(True, bench.out, time.monotonic(), bench.log)
    (outcome,) = command.run_parts(["numbers"], late, starts({}))
    assert (outcome.lines, outcome.failed) == (["left out: no time was left"], False)


def test_without_an_accelerator_only_smoke_goes_on(bench):
    real = Bench(False, bench.out, bench.deadline, bench.log)
    body = 'bench.save("machine", {"platform": "cpu"}); yield "1 x cpu"'
    with pytest.raises(UserError, match="no accelerator on this machine"):
        command.run_parts(["machine"], real, starts({"machine": body}))


def test_every_method_is_compared_with_the_cpu_and_a_modernbert_with_blocks_of_local_attention():
    configs = [numbers.config_of(case, "float32", smoke) for smoke in (True, False) for case in numbers.CASES]
    assert {config.dropping.method for config in configs} == set(get_args(get_type_hints(DroppingConfig)["method"]))
    modern = [config for config in configs if config.model.family == "modernbert"]
    assert [config.data.seq_len > 3 * (config.model.local_attention // 2) for config in modern] == [True, True]
    ran = {variant_at(config, step) for config in configs for step in range(comparing.STEPS)}
    assert ran == set(get_args(Variant))


def test_a_deviation_is_relative_to_its_leaf_and_nan_is_the_largest():
    theirs = {"a": np.array([1.0, 100.0]), "b": np.array([1e-3])}
    ours = {"a": np.array([2.0, 100.0]), "b": np.array([2e-3])}
    assert comparing.largest(ours, theirs) == (1.0, "b")
    ours["a"][0] = float("nan")
    assert comparing.largest(ours, theirs)[1] == "a"
    assert set(comparing.differing(ours, theirs)) == {"a", "b"}
    assert comparing.differing(theirs, theirs) == {}


@pytest.mark.slow
def test_smoke_runs_every_part(tmp_path):
    names = "numbers,kernels,speed,whole_run,batches,study"
    line = [sys.executable, "-m", "benchmarks.accelerator", "--smoke", "--minutes", "30", "--out", str(tmp_path)]
    line += ["--study", "--parts", names]
    done = subprocess.run(line, cwd=helpers.ROOT, env=helpers.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "table.txt").read_text()
    machine, compared, kernels, speed, whole, batches, study = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("machine", *names.split(","))
    )
    assert machine["platform"] == "cpu"
    assert all(compared["bits"]["same"].values())
    assert list(compared["f32"]) == ["sctd", "late_mask modernbert"]
    assert [len(found["losses"]) for found in compared["f32"].values() if found["equal"]] == [3, 3]
    assert (compared["golden"]["status"], compared["golden"]["failed"]) == (0, 0)
    assert len(compared["golden"]["deviations"]) == 3
    assert 0 < compared["bf16 against f32"]["sctd"]["device"]["gradients"]["largest"] < 0.5
    assert whole["bit_equal"]
    assert 50 <= whole["resumed_at_step"] <= whole["killed_at_step"] + 10
    assert whole["losses_before_the_kill"]["equal"]
    assert 0 <= whole["uninterrupted"]["batch_wait_share"] < 1
    curve = study["methods"]["drop"]["curve"]
    assert len(curve) == 5
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert kernels["kernel"] == "splash"
    steps = speed["settings"][0]["steps"]
    peer = [train_step.PEER] if train_step.peer_python() else []
    assert list(steps) == ["plain full", "full", "drop", "consistency", *peer, "ScTD average", "random-LTD"]
    for values in steps.values():
        assert values["tokens_per_second"] == pytest.approx(4 * 32 / values["seconds"])
    assert steps["drop"]["flops"] < steps["full"]["flops"] < steps["plain full"]["flops"]
    (cell,) = batches["cells"]
    assert (cell["fits"], cell["too_many"], cell["finished"]) == (4, None, True)
    found = (machine, compared, kernels, speed, whole, batches, study)
    assert not any("error" in values or values.get("wrong") for values in found)
