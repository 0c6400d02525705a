import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from sctd_jax import lease, storage
from sctd_jax.errors import UserError
from sctd_jax.finetune import sweep
from sctd_jax.finetune.finetuning import finetune
from sctd_jax.pretrain.pretraining import train_and_evaluate
from tests import fake_gcs, finetuning, helpers

HOLDER = """
import sys, time
from etils import epath
from sctd_jax import lease
with lease.hold(epath.Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    for name, seconds in {"RENEW": 0.05, "STALE": 0.6, "SETTLE": 0.02}.items():
        monkeypatch.setattr(lease, name, seconds)


def record(path, **fields):
    """Record as another host's process writes it."""
    other = {"what": "training", "host": "node7", "pid": 12, "machine": "k n", "since": "then", "token": "t"}
    with open(path, "r+" if path.exists() else "w") as file:  # in place: never empty before a reader's eyes
        file.write(json.dumps(other | fields))
        file.truncate()


def take(folder, **kwargs):
    lines = []
    with lease.hold(epath.Path(folder), "training", lines.append, **kwargs):
        pass
    return lines


def test_a_second_process_is_refused_and_a_killed_ones_successor_takes_over_at_once(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, cwd=helpers.ROOT)
    try:
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=rf"run is in use by process {owner.pid} on .* \(training, since 20.* UTC"):
            take(tmp_path / "run")
    finally:
        owner.kill()
        owner.communicate()
    assert (tmp_path / "run" / lease.LEASE_FILE).exists()
    assert take(tmp_path / "run") == []
    assert not list((tmp_path / "run").iterdir())
    assert take(tmp_path / "new") == []
    assert not (tmp_path / "new").exists()  # nothing was written into it


def test_one_process_may_hold_a_folder_twice_in_a_row_but_not_at_once(tmp_path):
    with lease.hold(epath.Path(tmp_path), "training"):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            take(tmp_path)
        assert (tmp_path / lease.LEASE_FILE).exists()
    with pytest.raises(ZeroDivisionError), lease.hold(epath.Path(tmp_path), "training"):
        raise ZeroDivisionError
    assert take(tmp_path) == []


def test_a_lease_beside_a_folder_does_not_make_it(tmp_path):
    with lease.hold(epath.Path(tmp_path / "rows"), "preparing", beside=True) as check:
        check()
        assert [path.name for path in tmp_path.iterdir()] == [".rows.lease"]
        with pytest.raises(UserError, match=r"rows is in use by .*preparing"):
            take(tmp_path / "rows", beside=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locks", [True, False])
def test_another_hosts_lease_is_taken_over_only_when_nobody_renews_it(tmp_path, monkeypatch, locks):
    if not locks:

        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    record(tmp_path / lease.LEASE_FILE)
    assert [line for line in take(tmp_path) if "was left by process 12 on node7" in line]

    record(tmp_path / lease.LEASE_FILE)
    threading.Timer(0.1, lambda: record(tmp_path / lease.LEASE_FILE, renewed=1)).start()
    with pytest.raises(UserError, match="in use by process 12 on node7"):
        take(tmp_path)
    assert json.loads((tmp_path / lease.LEASE_FILE).read_text())["host"] == "node7"


def test_without_locks_a_living_owner_is_noticed_and_one_that_stood_still_stops(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lease.hold(epath.Path(tmp_path), "training") as check:
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            take(tmp_path)
        for _ in range(20):  # the thread may stand between its reading and its writing; then the other writes again
            record(tmp_path / lease.LEASE_FILE, host="node8\n\x1b[31merror")
            time.sleep(0.12)  # it leaves the other's record alone
            if "node8" in (tmp_path / lease.LEASE_FILE).read_text():
                break
        with pytest.raises(UserError, match=r"taken over by process 12 on node8\\n\\x1b"):
            check()
    assert (tmp_path / lease.LEASE_FILE).exists()


def test_a_folder_that_cannot_be_written_and_a_file_in_its_place_are_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written"):
        take(tmp_path / "file")


def test_in_a_bucket_a_living_owner_refuses_and_a_dead_one_is_followed(monkeypatch):
    monkeypatch.setattr(lease, "_machine", lambda: "")  # pretends another host
    with fake_gcs.serve("bucket") as (store, address):
        for name, value in address.items():
            monkeypatch.setenv(name, value)
        folder, name = storage.as_path("gs://bucket/run"), "run/.lease"
        with lease.hold(folder, "training") as check:
            with pytest.raises(UserError, match=f"run is in use by process {os.getpid()} on"):
                take(folder)
            check()
            mine = store.objects["bucket", name][0]
        assert store.names("bucket") == []
        store.put("bucket", name, mine)
        assert "looking for" in take(folder)[0]
        assert store.names("bucket") == []


def test_training_fine_tuning_and_sweeps_refuse_a_workdir_in_use_before_they_read_anything(tmp_path):
    def quiet(line):
        raise AssertionError(line)

    settings = finetuning.settings(tmp_path, "cola", tmp_path)
    with lease.hold(epath.Path(tmp_path), "training"):
        for command in (
            lambda: train_and_evaluate(helpers.config(), tmp_path, quiet),
            lambda: finetune(settings, tmp_path, quiet),
            lambda: sweep.run_sweep(sweep.Sweep((), False), str(tmp_path), quiet),
        ):
            with pytest.raises(UserError, match=rf"{tmp_path} is in use by process {os.getpid()} on .* \(training"):
                command()
