"""Faults of the machine: kills and signals at any moment, closed outputs, full and read-only disks, hosts, a bucket."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sctd_jax.errors import TRY_AGAIN_STATUS
from tests import fake_gcs, helpers
from tests.fire.case import Case, arguments, contents
from tests.test_hosts import IMPATIENT, until
from tests.test_main import lines, saved

ALL = os.environ.get("FIRE") == "all"  # `make fire`; a part of the moments and commands without it

# A command, and what happens to it: `delay` seconds after the call number `call` of the function `place` (at the start
# where there is none) it gets `numbers`, all but the first 20 ms after the one before.
_STRUCK = """
import json, os, pkgutil, runpy, signal, sys, threading, time
from sctd_jax import errors
signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `-m` has it
errors.ONE_REQUEST_SECONDS = 0.0
del sys.argv[0]
fault = json.loads(sys.argv.pop(0))

def strike():
    for number in fault["numbers"]:
        os.kill(os.getpid(), number)
        time.sleep(0.02)

def later():
    threading.Timer(fault["delay"], strike).start()

for name, value in fault["settings"].items():
    place, _, name = name.rpartition(".")
    setattr(pkgutil.resolve_name(place), name, value)
if fault["place"]:
    place, _, name = fault["place"].rpartition(".")
    holder = pkgutil.resolve_name(place)
    real, left = getattr(holder, name), [fault["call"]]
    def hooked(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            later()
        return real(*args, **kwargs)
    setattr(holder, name, hooked)
else:
    later()
sys.orig_argv = [sys.executable, "-m", *sys.argv]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def struck(module, *args, place="", call=1, delay=0.0, numbers=(), settings=None):
    """The end of `python -m module args` that gets signals at a moment."""
    fault = {"place": place, "call": call, "delay": delay, "numbers": [int(number) for number in numbers]}
    fault = json.dumps(fault | {"settings": settings or {}})
    return helpers.run_fork(["-c", _STRUCK, fault, module, *map(str, args)])


def assert_stopped(done, numbers):
    """It ended as a stopped program does, which a shell calls 128 + the signal, with a line at most."""
    said = done.stdout + done.stderr
    number = -done.returncode if done.returncode < 0 else done.returncode - 128
    assert number in numbers, said
    assert any(f"stopped by signal {int(number)}" in said for number in numbers), said
    assert "Traceback" not in said, said
    assert done.stderr.count("\n") <= 1, done.stderr


STEPS = 24
SETTINGS = (
    *helpers.ONE_LAYER, "--config.model.hidden_dropout=0.1", f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=3", "--config.train.eval_every=3", "--config.train.log_every=1",
    "--config.train.eval_rows=8",
)  # fmt: skip


def train_arguments(workdir, rows):
    return ("--config=tests/small.py", f"--workdir={workdir}", f"--config.data.rows={rows}", *SETTINGS)


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """Workdir and seconds of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = helpers.run_module("sctd_jax.main", *train_arguments(workdir, rows))
    assert done.returncode == 0, done.stderr
    return workdir, done.used["seconds"]


def assert_same_run(workdir, whole):
    """Every bit of the end and every number on the way are those of the run that nothing happened to."""
    expected, found = saved(whole, STEPS), saved(workdir, STEPS)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(expected[name], found[name], err_msg=name)
    of_the_machine = ("seconds", "per_second", "wait_share")
    numbers = [
        [{name: value for name, value in line.items() if not name.endswith(of_the_machine)} for line in lines(folder)]
        for folder in (whole, workdir)
    ]
    assert numbers[0] == numbers[1]
    for part in ("", "checkpoints"):
        assert {path.name for path in (workdir / part).iterdir()} == {path.name for path in (whole / part).iterdir()}


def test_ten_kills_at_random_moments_cost_no_bit(rows, whole, tmp_path):
    """Three in ten while a run starts, the others up to 60 ms after a step: in steps, evaluations and saves.

    Three of the ten without FIRE=all.
    """
    drawn, killed, kills = random.Random(21), 0, 10 if ALL else 3
    for number in range(kills):
        if number % 3 == 2:
            moment = {"delay": drawn.uniform(0, whole[1])}
        else:
            moment = {"place": "sctd_jax.train.trainer.StepMetrics.take", "call": drawn.randint(1, 6)}
            moment["delay"] = drawn.uniform(0, 0.06)
        done = struck("sctd_jax.main", *train_arguments(tmp_path / "run", rows), **moment, numbers=[signal.SIGKILL])
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        killed += done.returncode != 0
    done = helpers.run_module("sctd_jax.main", *train_arguments(tmp_path / "run", rows))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "damaged" not in done.stdout
    assert killed >= kills // 2
    assert_same_run(tmp_path / "run", whole[0])


MOMENTS = {
    "restore": "sctd_jax.train.checkpoint.Checkpoints.restore",
    "compile": "sctd_jax.pretrain.pretraining.compile_programs",
    "step": "sctd_jax.train.trainer.StepMetrics.take",
    "evaluation": "sctd_jax.pretrain.evaluation.summarize",
    "save": "sctd_jax.train.checkpoint.Checkpoints.save",
}
TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


def test_signals_once_and_twice_at_every_moment_of_a_run_cost_no_bit(rows, whole, tmp_path):
    """One of each in steps is in test_main.py; the first four without FIRE=all."""
    workdir = tmp_path / "run"
    struck_at = (
        ("compile", TERM), ("evaluation", HUP), ("save", INT, INT), ("restore", HUP),
        ("compile", INT, INT), ("step", TERM, TERM), ("evaluation", INT, INT), ("save", TERM), ("step", HUP, TERM),
        ("restore", INT, INT),
    )  # fmt: skip
    for moment, *numbers in struck_at if ALL else struck_at[:4]:
        before = sorted(int(path.name) for path in workdir.glob("checkpoints/[0-9]*"))
        done = struck("sctd_jax.main", *train_arguments(workdir, rows), place=MOMENTS[moment], numbers=numbers)
        assert_stopped(done, numbers)
        if len(numbers) == 1 and moment != "restore":
            step = int(done.stdout.split(" after step ")[1].split(";")[0])
            assert (workdir / "checkpoints" / str(step)).is_dir()
        after = sorted(int(path.name) for path in workdir.glob("checkpoints/[0-9]*"))
        assert not before or after[-1] >= before[-1]
    done = helpers.run_module("sctd_jax.main", *train_arguments(workdir, rows))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "damaged" not in done.stdout
    assert_same_run(workdir, whole[0])


def test_signals_while_a_model_is_fine_tuned_cost_nothing(pretrained, folders, tmp_path):
    """Encoding comes before anything is saved; an epoch's evaluation decides which checkpoint is the best."""
    workdir = tmp_path / "run"
    arguments = (
        "--mode=finetune", "--config=configs/finetune.py", "--config.task=cb", f"--config.init={pretrained}",
        f"--config.data_dir={folders['cb'].parent}", "--config.max_length=64", "--config.batch_size=8",
        "--config.epochs=2", f"--workdir={workdir}",
    )  # fmt: skip
    for place, call, *numbers in (
        ("sctd_jax.finetune.finetuning.encode", 1, INT, INT),
        ("sctd_jax.finetune.finetuning.scoring.measure", 1, TERM, TERM),
        ("sctd_jax.finetune.finetuning.scoring.measure", 1, HUP),
    ):
        assert_stopped(struck("sctd_jax.main", *arguments, place=place, call=call, numbers=numbers), numbers)
    resumed = helpers.run_module("sctd_jax.main", *arguments)
    alone = helpers.run_module("sctd_jax.main", *arguments[:-1], f"--workdir={tmp_path / 'alone'}")
    assert resumed.returncode == alone.returncode == 0, resumed.stderr + alone.stderr
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "alone")]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("run", "alone")] == []


PREPARE = ("--documents=paragraph", "--seq-len=32", "--vocab-size=512", "--heldout-share=0.02")


@pytest.mark.parametrize(
    ("place", "call", "numbers"),
    [
        ("sctd_jax.data.survey.together", 1, (INT, INT)),
        ("sentencepiece.SentencePieceTrainer.train", 1, (INT,)),
        ("sentencepiece.SentencePieceTrainer.train", 1, (HUP, TERM)),
        ("multiprocessing.connection.wait", 1, (TERM,)),
        ("multiprocessing.connection.wait", 1, (INT, INT)),
        ("sctd_jax.data.shards.ShardWriter.add", 3, (TERM, TERM)),
        ("sctd_jax.data.frequencies.log_of", 1, (HUP,)),
    ],
)
def test_signals_while_rows_are_prepared_leave_nothing_or_what_the_next_run_goes_on_with(
    place, call, numbers, speeches, tmp_path
):
    """Where the parent waits, a tokenizer is trained in a process of its own, as on a large text."""
    settings = {"sctd_jax.data.plan._LONG_TRAINING": 0} if "wait" in place else {}
    arguments = (*PREPARE, *(f"--input={path}" for path in speeches[:4]), f"--out={tmp_path / 'rows'}")
    done = struck("sctd_jax.data.prepare", *arguments, place=place, call=call, numbers=numbers, settings=settings)
    assert_stopped(done, numbers)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= ({".rows.lease", "rows.incomplete"} if numbers[1:] or "frequencies" in place else set())
    done = helpers.run_module("sctd_jax.data.prepare", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


# A command whose standard output nobody reads, nor standard error where it is told so.
_UNREAD = """
import os, runpy, sys
from sctd_jax import errors
there, here = os.pipe()
os.close(there)
for descriptor in map(int, sys.argv[1]):
    os.dup2(here, descriptor)
errors.keep_output_from_ending_work()  # as `-m` does when it imports the package
sys.argv = sys.argv[2:]
sys.orig_argv = [sys.executable, "-m", *sys.argv]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def fork(*arguments):
    return helpers.run_fork(arguments)


@pytest.fixture(scope="module")
def base(rows, whole, pretrained, folders, speeches, tmp_path_factory):
    """What the commands below read: `rows`, a `run`, a model fit for fine-tuning, its task, a fine-tuned run."""
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(rows, base / "rows")
    shutil.copytree(whole[0], base / "run")
    shutil.copytree(pretrained, base / "pretrained")
    shutil.copytree(folders["classification"], base / "task")
    (base / "text.txt").write_text("".join(Path(path).read_text() for path in speeches[:4]))
    for line in (COMMANDS["finetune"].replace("$out", "$base/tuned"), COMMANDS["export"].replace("$out", "$base/made")):
        done = fork("-m", *arguments(Case("", line), base, base))
        assert done.returncode == 0, done.stderr
    return base


COMMANDS = {
    "prepare": "sctd_jax.data.prepare --input=$base/text.txt --out=$out " + " ".join(PREPARE),
    "inspect": "sctd_jax.data.inspect $base/rows --out=$out.png",
    "train": "sctd_jax.main --config=tests/small.py --config.data.rows=$base/rows --workdir=$out "
    + " ".join((*helpers.ONE_LAYER, "--config.train.steps=3")),
    "finetune": "sctd_jax.main --mode=finetune --config=configs/finetune.py --config.task=classification "
    "--config.epochs=1 --config.init=$base/pretrained --config.data_dir=$base/task --config.max_length=64 "
    "--config.batch_size=8 --workdir=$out",
    "predict": "sctd_jax.main --mode=predict --config.init=$base/tuned --config.data_dir=$base/task/test.csv "
    "--out=$out.jsonl",
    "plot": "sctd_jax.plot $base/run --out=$out.png",
    "report": "sctd_jax.report $base/run --out=$out.html",
    "probe": "sctd_jax.probe perplexity $base/run --rows=8 --out=$out",
    "export": "sctd_jax.interop.huggingface export --workdir=$base/run --out=$out",
    "import": "sctd_jax.interop.huggingface import --from=$base/made --workdir=$out",
    "sweep": "sctd_jax.main --mode=sweep --config=configs/sweep.py --config.tasks=classification --config.epochs=1 "
    "--config.inits=$base/pretrained --config.data_dir=$base/task --config.learning_rates=1e-3 --config.seeds=1 "
    "--config.max_length=64 --config.batch_size=8 --workdir=$out",
    "arena": "sctd_jax.arena --config=tests/small_arena.py:$base/rows --workdir=$out",
}
CHOSEN = list(COMMANDS) if ALL else list(COMMANDS)[::4]
BEGUN = ("train", "finetune", "probe", "sweep", "arena")  # a workdir or folder is made at once, and may stay
PRODUCTS = {"inspect": "out.png", "plot": "out.png", "predict": "out.jsonl", "report": "out.html"}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_closed_output_ends_no_work(name, base, tmp_path):
    """`| head -1`: what the command makes is there all the same, and one line says that nobody reads."""
    line = COMMANDS[name].replace("$out", "$here/out")
    done = fork("-c", _UNREAD, "1", *arguments(Case("", line), tmp_path, base))
    expected = "note: standard output cannot be written (Broken pipe): the command goes on without it\n"
    assert (done.returncode, done.stderr) == (0, expected)
    assert (tmp_path / PRODUCTS.get(name, "out")).exists()


def test_commands_start_with_outputs_that_may_close(whole, tmp_path):
    """Both closed, and one closed before the start; `--help` is printed before any other code runs."""
    there, here = os.pipe()
    os.close(there)
    picture = f"{whole[0]} --out={tmp_path}"
    for number, (command, output, error) in enumerate((
        ("sctd_jax.main --help", here, subprocess.PIPE),
        ("sctd_jax.plot --help", here, here),
        (f"sctd_jax.plot {picture}/2.png", here, here),
        (f"sctd_jax.plot {picture}/3.png >&-", here, subprocess.PIPE),
    )):  # fmt: skip
        done = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m {command}"], cwd=helpers.ROOT, env=helpers.environment(), text=True,
            stdout=output, stderr=error,
        )  # fmt: skip
        assert (done.returncode, "Traceback" in (done.stderr or "")) == (0, False), done.stderr
        assert number < 2 or (tmp_path / f"{number}.png").stat().st_size > 10_000
    os.close(here)


@contextlib.contextmanager
def disk(folder, options):
    """A file system of its own in a folder; the test is skipped where none can be mounted."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def read_only(folder):
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_disk_that_is_full_or_read_only_is_one_line_and_nothing_is_lost(name, base, tmp_path):
    """Full: 75, for there may be room another time. An older picture or page stays; nothing that was begun does."""
    out = PRODUCTS.get(name, "out")
    with disk(tmp_path / "disk", "size=8k") as here:
        if name in ("inspect", "plot"):
            (here / out).write_bytes(b"older")
        if name in ("predict", "probe"):  # write little
            (here / "others").write_bytes(bytes(8 << 10))
        before = contents(here)
        command = arguments(Case("", COMMANDS[name].replace("$out", "$here/out")), here, base)
        for status, reason in ((TRY_AGAIN_STATUS, "No space left"), (2, "Read-only file system")):
            done = fork("-m", *command)
            assert done.returncode == status, done.stdout + done.stderr
            assert done.stderr.startswith("error: ") and reason in done.stderr and "/disk/out" in done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
            left = {path for path in contents(here) if not (name in BEGUN and path.startswith("out"))}
            assert {path: digest for path, digest in contents(here).items() if path in left} == before
            shutil.rmtree(here / "out", ignore_errors=True)
            read_only(here)


def test_what_is_only_read_may_lie_on_a_read_only_disk(base, tmp_path):
    """Rows, a run and data for fine-tuning."""
    with disk(tmp_path / "disk", "size=50m") as here:
        shutil.copytree(base, here / "base")
        read_only(here)
        for name in ("inspect", "train", "predict", "export"):
            done = fork(
                "-m",
                *arguments(Case("", COMMANDS[name].replace("$out", f"{tmp_path}/{name}")), tmp_path, here / "base"),
            )
            assert done.returncode == 0, (name, done.stderr)


def test_a_host_that_comes_late_is_waited_for_and_a_frozen_one_ends_the_others(rows, tmp_path):
    """Killed ones, a signal to one and other settings are in test_hosts.py."""
    processes = helpers.start_pair(
        tmp_path / "run", rows, *helpers.ONE_LAYER, "--config.train.steps=100000", "--config.train.eval_every=6",
        "--config.train.checkpoint_every=6", program=("-c", IMPATIENT),
    )  # fmt: skip
    try:
        processes[1].send_signal(signal.SIGSTOP)
        time.sleep(3)
        processes[1].send_signal(signal.SIGCONT)
        until(processes[0], "step 20/")
        processes[1].send_signal(signal.SIGSTOP)
        said = processes[0].communicate(timeout=240)[0]
        assert processes[0].returncode not in (0, None)
        assert "another process of this run ended" in said or "heartbeat" in said or "another task died" in said, said
        processes[1].send_signal(signal.SIGCONT)
        processes[1].communicate(timeout=240)
        assert processes[1].returncode not in (0, None)
    finally:
        for process in processes:
            process.kill()
    assert any(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def bucket(rows, tmp_path_factory):
    """(store, a function that trains six steps in it), with rows."""
    with fake_gcs.serve("bucket") as (store, address):
        for path in rows.iterdir():
            store.put("bucket", f"rows/{path.name}", path.read_bytes())
        cache = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
        env = {**helpers.environment(), **address, **cache}

        def train(name, *args):
            where = ("--config.data.rows=gs://bucket/rows", f"--workdir=gs://bucket/{name}")
            return helpers.run_module(
                "sctd_jax.main", "--config=tests/small.py", *where, *helpers.ONE_LAYER, *args, env=env
            )

        yield store, train


def test_a_bucket_that_fails_and_stalls_for_a_while_costs_time_alone(bucket, monkeypatch):
    """The first save meets three errors and an answer that takes two seconds; all is saved, the run is what it is."""
    (store, train), met = bucket, []

    def fault(method, path):
        if "checkpoints" in path and method != "GET" and len(met) < 4:
            met.append(path)
            if len(met) < 4:
                return 503
            time.sleep(2)
        return 0

    expected = train("calm")
    monkeypatch.setattr(store, "fault", fault)
    done = train("troubled")
    assert (done.returncode, len(met)) == (0, 4), done.stderr
    assert "done: 6 steps" in done.stdout and "Traceback" not in done.stderr
    losses = [
        [line["eval/loss"] for line in map(json.loads, store.objects["bucket", f"{name}/metrics.jsonl"][0].splitlines())
         if "eval/loss" in line]
        for name in ("calm", "troubled")
    ]  # fmt: skip
    assert expected.returncode == 0 and losses[0] == losses[1]


def test_objects_that_a_bucket_loses_are_passed_over_or_named(bucket):
    """One of a checkpoint: the one before is taken. One of the rows or of the workdir: one line says which."""
    store, train = bucket
    assert train("lossy").returncode == 0
    numbers = [name for name in store.names("bucket") if name.startswith("lossy/checkpoints/6/state/")]
    del store.objects["bucket", max(numbers, key=lambda name: len(store.objects["bucket", name][0]))]
    done = train("lossy", "--config.train.steps=7")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "checkpoints/6 is damaged and passed over" in done.stdout and "resuming at step 3" in done.stdout
    for lost, words in (("lossy/prepared.json", "lossy/prepared.json is missing"), ("rows/prepared.json", "rows")):
        kept = store.objects.pop(("bucket", lost))
        done = train("lossy", "--config.train.steps=8")
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
        store.objects["bucket", lost] = kept
