"""Trackers: real ones offline, one that fails in each way, and none that is not there."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from types import SimpleNamespace

import psutil
import pytest
from etils import epath

from sctd_jax.config import from_dict
from sctd_jax.errors import UserError
from sctd_jax.finetune import config as finetune_settings
from sctd_jax.parallel import hosts
from sctd_jax.sections import TRACKERS
from sctd_jax.train import tracker_process, trackers
from sctd_jax.train.metrics import read_metrics
from tests import fake_gcs, finetuning, helpers, test_trainer

LIBRARIES = helpers.ROOT / ".venv-trackers"  # made by .ci/run or `make trackers`
# What it has for another Python cannot be imported.
THERE = any((LIBRARIES / "pydantic_core").glob(f"*{EXTENSION_SUFFIXES[0]}")) and (LIBRARIES / "installed").exists()
MISSING = pytest.mark.skipif(not THERE, reason="no wandb, mlflow and trackio for this Python: make trackers")
KEYS = {
    "WANDB_API_KEY": "deadbeef" * 5,
    "MLFLOW_TRACKING_PASSWORD": "badc0ffee" * 4,
    "HF_TOKEN": "hf_" + "feedface" * 4,
}


def with_libraries(test):
    return pytest.mark.slow(MISSING(test))


def line(track, steps=6, **functions):
    """The job of test_trainer.py with trackers."""
    job = test_trainer.line(steps, settings={"train": {"steps": steps}}, **functions)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, track=track, log_every=1))


def measured(workdir):
    """Lines of metrics.jsonl without what a clock has measured."""
    clock = r"seconds$|per_second$|batch_wait_share$"
    return [{k: v for k, v in found.items() if not re.search(clock, k)} for found in read_metrics(workdir)]


def warnings(lines):
    return [line for line in lines if line.startswith("warning: ")]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A library `wandb` that does what it is told; returns its records."""
    (tmp_path / "fakes").mkdir()
    shutil.copy(helpers.ROOT / "tests" / "fake_tracker.py", tmp_path / "fakes" / "wandb.py")
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    monkeypatch.setenv("FAKE_RECORD", str(tmp_path / "record"))
    monkeypatch.setattr(trackers, "STOPPED_SECONDS", 120.0)  # no test is about how fast this machine is
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 120.0)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return lambda: [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """Lines of metrics.jsonl of a run without trackers."""
    folder = tmp_path_factory.mktemp("untracked")
    test_trainer.run(folder, line(""))
    assert not (folder / "trackers.json").exists()
    return measured(folder)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("", None),
        ("start raises", r"failed at step 0: no route to http://host/\?api_key=\.\.\.; the run goes on without it"),
        ("log raises", r"failed at step 4: no route to .*; the run goes on without it"),
        ("finish raises", r"failed at step 6: no route to .*; the run goes on without it"),
        (
            "log exits",
            r"failed at step \d: its process ended with status 3 \(its last ones\); the run goes on without it",
        ),
        ("start hangs", r"has not finished within 1 s; the run ends without it"),
        ("log hangs", r"has not finished within 1 s; the run ends without it"),
        ("finish hangs", r"has not finished within 1 s; the run ends without it"),
    ],
)
def test_a_tracker_that_fails_changes_nothing_but_one_line(does, says, tmp_path, fake, monkeypatch, untracked, capfd):
    monkeypatch.setenv("FAKE_DOES", does or " ")
    if "hangs" in does:
        monkeypatch.setattr(trackers, "FINISH_SECONDS", 1.0)
    result, lines = test_trainer.run(tmp_path / "run", line("wandb"))
    assert (result.step, result.stopped_by) == (6, None)
    assert measured(tmp_path / "run") == untracked
    assert [bool(re.fullmatch(f"warning: wandb {says}", line)) for line in warnings(lines)] == ([True] if says else [])
    assert "wandb" not in sys.modules and "own words" not in "".join(capfd.readouterr())
    if not does:
        begun, *told, end = fake()
        assert {"project": "sctd_jax", "name": "run", "dir": str(tmp_path / "run")}.items() <= begun.items()
        assert begun["config"] == {"train": {"steps": 6}}
        assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"wandb": begun["id"]}
        assert [found["step"] for found in told] == [found["step"] for found in read_metrics(tmp_path / "run")]
        assert end == {"status": 0}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (None, 1)])
def test_a_run_that_is_stopped_or_fails_ends_its_tracker_run_as_it_ended(number, status, tmp_path, fake):
    def stopping(step):
        if step == 2 and number:
            os.kill(os.getpid(), number)
        elif step == 2:
            raise UserError("the end")

    try:
        result, lines = test_trainer.run(tmp_path / "run", line("wandb", on_step=stopping))
        assert (result.step, result.stopped_by) == (3, number)
        assert not warnings(lines)
    except UserError:
        assert number is None
    assert fake()[-1] == {"status": status}


def test_a_run_that_is_killed_ends_its_tracker_run_which_a_signal_to_all_does_not(tmp_path, fake):
    command = [sys.executable, "-m", "sctd_jax.train.tracker_process", "wandb", str(os.getpid())]
    path = os.pathsep.join([str(helpers.ROOT), os.environ["PYTHONPATH"]])
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process.stdin.write(json.dumps({"name": "a", "id": "b", "folder": "c", "settings": {}}).encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == "b"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    process.communicate(timeout=60)  # closes the pipe, as a death does
    assert fake()[-1] == {"status": 137}


def test_one_that_takes_nothing_is_given_up_before_much_is_kept_for_it(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("FAKE_DOES", "start hangs")
    monkeypatch.setattr(trackers, "_MOST_UNSENT", 1 << 16)
    lines = []
    with trackers.Trackers("wandb", epath.Path(tmp_path), {}, lines.append) as tracked:
        for step in range(100):
            tracked(step, {f"train/{i}": 1.0 for i in range(100)})
    assert len(lines) == 1
    assert re.fullmatch(r"warning: wandb failed at step \d+: it does not take .*; the run goes on without it", lines[0])


def test_only_the_first_process_tracks(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", None)
    trackers.check("train.track", "wandb")
    with trackers.Trackers("wandb", epath.Path(tmp_path), {}, None) as tracked:
        tracked(1, {"train/loss": 1.0})


def test_a_damaged_file_of_ids_is_one_line_and_a_new_run(tmp_path, fake):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trackers.json").write_text("{")
    _, lines = test_trainer.run(tmp_path / "run", line("wandb", steps=2))
    (warning,) = warnings(lines)
    assert re.search(r"trackers.json is damaged: .*; its trackers begin new runs$", warning)
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"wandb": fake()[0]["id"]}


def test_names_are_checked_before_any_work(tmp_path, monkeypatch):
    assert set(TRACKERS) == tracker_process.LIBRARIES.keys()
    values = dataclasses.asdict(helpers.config())
    values["train"]["track"] = "wandb,mlfow"
    says = "track must be names of wandb, mlflow, trackio, separated by commas; found 'wandb,mlfow'"
    with pytest.raises(UserError, match=rf"^config\.train\.{says}$"):
        from_dict(values)
    mine = {**finetuning.recipe.get_config().to_dict(), "task": "boolq", "init": "a", "data_dir": "b"}
    with pytest.raises(UserError, match=rf"^config\.{says}$"):
        finetune_settings.from_dict(mine | {"track": "wandb,mlfow"})
    (tmp_path / "wandb").mkdir()  # wandb's own folder in the working folder is not the library
    monkeypatch.syspath_prepend(tmp_path)
    missing = r"names {}, which must be installed here and is not: pip install '\.\[{}\]', or take it out of the field$"
    for name in TRACKERS:
        if name != "wandb":
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"^config\.train\.track " + missing.format(name, name)):
            trackers.check("train.track", f" {name} ")
    with pytest.raises(UserError, match=r"^config\.track names wandb"):
        finetuning.run(tmp_path / "nothing", tmp_path / "run", "boolq", tmp_path, track="wandb")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_fine_tuning_is_tracked_with_its_settings(pretrained, folders, tmp_path, fake):
    result, lines = finetuning.run(
        pretrained, tmp_path / "run", "classification", folders["classification"], track="wandb"
    )
    assert result.step > 0 and not warnings(lines)
    begun, *told, end = fake()
    assert (begun["config"]["task"], begun["config"]["model"]["num_layers"]) == ("classification", 1)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["track"] == "wandb"
    assert [found["step"] for found in told] == [found["step"] for found in read_metrics(tmp_path / "run")]
    assert end == {"status": 0}


# The libraries.


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """Folder and environment of a person who has keys, and whose trackers write to this machine."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "home").mkdir()
    env = {
        **KEYS, "HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "TRACKIO_DIR": str(folder / "trackio"),
        "PYTHONPATH": f"{helpers.ROOT}{os.pathsep}{LIBRARIES}", "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true", "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        for name in ("STOPPED_SECONDS", "FINISH_SECONDS"):
            monkeypatch.setattr(trackers, name, 120.0)
        yield SimpleNamespace(folder=folder, env=env)


def stored(*args):
    """What the trackers' own readers find."""
    command = [sys.executable, "tests/read_trackers.py", *map(str, args)]
    done = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kept(user):
    """What they keep of a run that lost its last steps and was resumed; its lines of both lives, and all it said."""
    workdir, track = user.folder / "run", ",".join(TRACKERS)
    said = [test_trainer.run(workdir, line(track, steps=4))[1]]
    first = read_metrics(workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    said.append(test_trainer.run(workdir, line(track, steps=6))[1])
    ids, last = json.loads((workdir / "trackers.json").read_text()), read_metrics(workdir)
    stopping = line("wandb,mlflow", on_step=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    stopped = test_trainer.run(user.folder / "stopped", stopping)
    found = stored(user.folder, "--delete")
    said.append(test_trainer.run(workdir, line("mlflow,trackio", steps=7))[1])
    return SimpleNamespace(workdir=workdir, lives=(first, last), ids=ids, said=said, stopped=stopped, **found)


def of(runs, name):
    return [run for run in runs if run["name"] == name]


@with_libraries
def test_offline_trackers_keep_what_metrics_jsonl_has_and_go_on_with_their_run(kept):
    first, last = kept.lives
    lives = [first, [line for line in last if line["step"] > 2]]  # steps 3 and 4 were trained twice
    told = [(line["step"], line["eval/slope"]) for life in lives for line in life if "eval/slope" in line]
    assert [step for step, _ in told] == [0, 2, 4, 4, 6]
    losses = [(line["step"], line["train/loss"]) for life in lives for line in life if "train/loss" in line]

    for run, life, steps in zip(of(kept.wandb, "run"), lives, (4, 6), strict=True):
        assert (run["id"], run["project"], run["status"], run["git"]) == (kept.ids["wandb"], "sctd_jax", 0, False)
        assert run["config"]["train"] == {"steps": steps}
        rows = {}
        for line in life:  # one row a step
            rows.setdefault(line["step"], {}).update(line)
        assert [row.pop("_step") for row in run["history"]] == list(rows)
        assert run["history"] == [{k: v for k, v in row.items() if "/" in k} for row in rows.values()]

    (run,) = of(kept.mlflow, "run")
    assert (run["id"], run["status"]) == (kept.ids["mlflow"], "FINISHED")
    assert run["params"] == {"train.steps": "4"}
    assert sorted(map(tuple, run["metrics"]["eval/slope"])) == sorted(told)
    assert sorted(map(tuple, run["metrics"]["train/loss"])) == sorted(losses)

    (run,) = kept.trackio
    assert run["name"] == kept.ids["trackio"]
    assert sorted((row["step"], row["eval/slope"]) for row in run["rows"] if "eval/slope" in row) == sorted(told)
    assert len(run["rows"]) == sum(map(len, lives))


@with_libraries
def test_what_becomes_of_a_tracker_run_is_said_in_one_line(kept):
    ids, now = kept.ids, json.loads((kept.workdir / "trackers.json").read_text())
    begun, resumed, deleted = ("\n".join(lines) for lines in kept.said)
    assert [warnings(lines) for lines in kept.said] == [[], [], []]
    for name in TRACKERS:
        assert f"{name}: begins run {ids[name]}, " in begun
        assert f"{name}: goes on with run {ids[name]}, " in resumed
    assert "(its parameters stay those of its beginning: train.steps 4)" in resumed
    for name in ("mlflow", "trackio"):
        assert re.search(rf"{name}: its run {ids[name]} cannot be gone on with \(.*\); a new one begins", deleted)
        assert f"{name}: begins run {now[name]}, " in deleted and now[name] != ids[name]
    assert now["wandb"] == ids["wandb"]


@with_libraries
def test_a_signal_ends_real_trackers_after_the_run_is_saved(kept):
    result, lines = kept.stopped
    assert (result.step, result.stopped_by, warnings(lines)) == (3, signal.SIGTERM, [])
    assert [run["status"] for run in of(kept.wandb, "stopped")] == [143]
    assert [run["status"] for run in of(kept.mlflow, "stopped")] == ["KILLED"]


@with_libraries
def test_servers_that_never_answer_do_not_hold_a_run(user, monkeypatch, untracked):
    with socket.create_server(("localhost", 0)) as server:
        monkeypatch.setenv("WANDB_MODE", "online")
        for name in ("WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
            monkeypatch.setenv(name, f"http://localhost:{server.getsockname()[1]}")
        monkeypatch.setattr(trackers, "FINISH_SECONDS", 2.0)
        result, lines = test_trainer.run(user.folder / "silent", line("wandb,mlflow"))
    assert (result.step, measured(user.folder / "silent")) == (6, untracked)
    ends = [f"warning: {name} has not finished within 2 s; the run ends without it" for name in ("wandb", "mlflow")]
    assert warnings(lines) == ends
    children = psutil.Process().children(recursive=True)
    started = [" ".join(child.cmdline()) for child in children if child.status() != psutil.STATUS_ZOMBIE]
    assert not [command for command in started if "tracker_process" in command or "wandb-core" in command]


AGAIN = """
from sctd_jax import storage
from sctd_jax.train.trackers import Trackers
with Trackers("wandb", storage.as_path("gs://bucket/run"), {}, print) as tracked:
    tracked(2, {"train/loss": 1.0})
"""


@with_libraries
def test_a_run_in_a_bucket_goes_on_with_its_tracker_run_and_has_its_files(user, rows):
    """Its end is the command's, and is one without a failure."""
    with fake_gcs.serve("bucket") as (store, address):
        env = helpers.environment() | user.env | address
        with helpers.forking(sys.executable, ("sctd_jax.pretrain.pretraining",), env) as run:
            where = [
                "--workdir=gs://bucket/run",
                f"--config.data.rows={rows}",
                f"--config.train.track={','.join(TRACKERS)}",
            ]
            done = run(
                ["-m", "sctd_jax.main", "--config=tests/small.py", *where, *helpers.ONE_LAYER, "--config.train.steps=1"]
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert not re.search(f"warning: ({'|'.join(TRACKERS)})", done.stdout)
            ids = json.loads(store.objects["bucket", "run/trackers.json"][0])
            assert all(f"{name}: begins run {ids[name]}, " in done.stdout for name in TRACKERS)
            again = run(["-c", AGAIN])
        assert again.stdout.startswith(f"wandb: goes on with run {ids['wandb']}"), again.stderr
        names = store.names("bucket")
        content = {name: store.objects["bucket", name][0] for name in names}
    runs = [name for name in names if re.fullmatch(r"run/wandb/offline-run-\S+\.wandb", name)]
    assert len(runs) == 2 and all(name.endswith(f"run-{ids['wandb']}.wandb") for name in runs)
    for name, value in content.items():
        path = user.folder / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)


@with_libraries
def test_no_key_is_written_anywhere(user, kept):
    """After all that the tests above have let them write, in the bucket too."""
    content = {str(path): path.read_bytes() for path in user.folder.rglob("*") if path.is_file()}
    assert len([name for name in content if name.endswith(".wandb")]) >= 3
    assert [name for name, text in content.items() if any(key.encode() in text for key in KEYS.values())] == []
