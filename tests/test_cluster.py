"""Tasks on a Ray cluster of two node processes on this machine."""

import contextlib
import functools
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from sctd_jax.data import cluster, plan, prepare, ranges
from sctd_jax.errors import TryAgainError, UserError
from tests import cluster_tasks, helpers

pytest.importorskip("ray", reason="ray has no wheel for this Python and machine")


def children(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return []


def kill(processes):
    """kill -9 of all processes of some nodes; returns when they are gone."""
    everything = [child for process in processes for child in children(process)]
    for process in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for process in processes:
        process.wait()
    psutil.wait_procs(everything, timeout=20)


class Nodes:
    """Processes of `ray start`, by their order."""

    def __init__(self, folder):
        self.folder, self.processes, self.address = folder, [], ""

    def add(self):
        log = self.folder / f"node-{len(self.processes)}"
        where = [f"--address={self.address}"]
        if not self.processes:
            # Ray waits 15 seconds, and more, for a node that does not answer.
            soon = '{"health_check_period_ms": 1000, "health_check_failure_threshold": 3}'
            where = ["--head", "--port=0", "--include-dashboard=false", f"--system-config={soon}"]
        command = [
            Path(sys.executable).with_name("ray"), "start", *where, "--block", "--num-cpus=2", "--disable-usage-stats",
            "--object-store-memory=80000000", f"--temp-dir={self.folder}/t", "--include-log-monitor=false",
        ]  # fmt: skip
        with log.open("w") as file:
            env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=env | {"PYTHONPATH": str(helpers.ROOT)}
            )
        self.processes.append(process)
        end = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        if not self.address:
            self.address = re.search(r"ray start --address='([^']+)'", log.read_text())[1]


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes, of which the second may be killed; short paths, for those of sockets have a limit."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(Path(folder))
        try:
            nodes.add()
            nodes.add()
            yield nodes
        finally:
            kill(nodes.processes)


@pytest.fixture
def tasks(nodes, tmp_path):
    """A function that runs `cluster_tasks.square` of numbers; the lines it logs are in `tasks.log`."""

    def run(numbers, errors=None, seconds=0.02):
        function = functools.partial(cluster_tasks.square, folder=tmp_path, errors=errors or {}, seconds=seconds)
        return cluster.on_ray(nodes.address, function, numbers, name="range", log=run.log.append)

    run.log = []
    return run


def take(results, found):
    for number, result in results:
        found[number] = result


def begun(folder):
    return {int(path.name.partition("-")[0]) for path in folder.iterdir()}


def test_results_are_those_of_this_process_and_ray_says_one_line(tasks, capfd):
    read = []
    numbers = (read.append(i) or i for i in range(150))
    most, found = 0, {}
    for number, result in tasks(numbers):
        assert number not in found
        found[number] = result
        most = max(most, len(read) - len(found))
    assert found == {i: i * i for i in range(150)}
    assert 30 < most <= cluster._LEAST_WINDOW
    assert tasks.log == ["Ray: 2 nodes, 4 CPUs"]
    assert capfd.readouterr() == ("", "")


def test_the_code_is_that_of_the_command_and_not_a_nodes_own(nodes):
    ((_, path),) = cluster.on_ray(nodes.address, cluster_tasks.code, [0], name="range", log=print)
    assert path.startswith(str(nodes.folder))


@pytest.mark.parametrize("kind", [UserError, TryAgainError])
def test_an_error_for_the_user_ends_all_with_its_message_after_what_had_finished(tasks, tmp_path, kind):
    results, found = tasks(range(1000), {30: kind("text/a.jsonl: line 7: no field text")}), {}
    with pytest.raises(UserError) as error:
        take(results, found)
    assert type(error.value) is kind
    assert str(error.value) == "text/a.jsonl: line 7: no field text"
    assert len(found) >= 20 and found.items() <= {i: i * i for i in range(1000)}.items()
    at_end = begun(tmp_path)
    assert len(at_end) <= 31 + cluster._LEAST_WINDOW
    time.sleep(0.5)
    assert begun(tmp_path) == at_end


def test_another_exception_names_the_number_and_the_place(tasks):
    with pytest.raises(UserError, match=r"^range 3: KeyError: 'body' \(node [\d.]+, cluster_tasks.py:\d+\)$") as error:
        list(tasks(range(4), {3: KeyError("body")}))
    assert type(error.value) is UserError


def test_a_package_that_a_node_lacks_is_named_with_the_cure(nodes):
    function = functools.partial(cluster_tasks.take, something=cluster_tasks.Missing())
    with pytest.raises(UserError, match=r"^range 0: ModuleNotFoundError: .*no_such_package.*pip install '\.\[ray\]'"):
        list(cluster.on_ray(nodes.address, function, [0], name="range", log=print))


def test_a_task_that_ends_its_worker_each_time_is_given_up(nodes, monkeypatch, capfd):
    monkeypatch.setattr(cluster, "MAX_RETRIES", 1)
    log = []
    with pytest.raises(TryAgainError, match=r"^range 5: lost with its worker or node 2 times \(WorkerCrashedError: "):
        list(cluster.on_ray(nodes.address, cluster_tasks.die, [5], name="range", log=log.append))
    assert log[0] == "Ray: 2 nodes, 4 CPUs"
    assert len(log) <= 4 and all(len(line) < 200 and "\n" not in line for line in log), log
    assert capfd.readouterr() == ("", "")


def test_an_iterator_that_is_left_ends_the_tasks_and_gives_sigterm_back(tasks, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    results = tasks(range(1000))
    next(results)
    assert signal.getsignal(signal.SIGTERM) == before
    results.close()
    at_end = begun(tmp_path)
    time.sleep(0.5)
    assert begun(tmp_path) == at_end
    assert signal.getsignal(signal.SIGTERM) == before


def refused(address):
    with pytest.raises(UserError) as error:
        next(cluster.on_ray(address, cluster_tasks.die, [0], name="range", log=print))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_address_is_said(monkeypatch):
    monkeypatch.setattr(cluster, "_REACH_SECONDS", 0.2)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        assert refused(f"127.0.0.1:{port}").startswith(f"--ray=127.0.0.1:{port}: no Ray answers there ([Errno 111]")
        nobody.listen()  # and says nothing
        assert refused(f"127.0.0.1:{port}").startswith(f"--ray=127.0.0.1:{port}: no Ray answers there (timed out)")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as page:
        threading.Thread(target=page.handle_request, daemon=True).start()
        monkeypatch.setattr(cluster, "_REACH_SECONDS", 10)
        assert "what listens there is not Ray" in refused(f"127.0.0.1:{page.server_port}")
    for address in ("localhost", "ray://localhost:10001", "localhost:port", ":6379"):
        assert refused(address).startswith(f"--ray={address}: auto or HOST:PORT is expected")


def test_other_versions_and_no_ray_at_all_are_said_with_the_cure(nodes, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ray._private.utils.compute_version_info", lambda: ("2.59.0", "3.12.1"))
        message = refused(nodes.address)
    assert "Version mismatch" in message and "3.12.1" in message and "pip install '.[ray]' on every node" in message
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install '.[ray]' on every node" in refused("auto")


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Settings of a text of 60 ranges, and what this process makes of it."""
    monkeypatch.setattr(ranges, "BYTES", 2000)
    (tmp_path / "text").mkdir()
    for i in range(60):
        lines = [f"line {j} of file {i} and {i * j} more words to it" for j in range(60)]
        (tmp_path / "text" / f"{i:02d}.txt").write_text("\n".join(lines))
    data = helpers.data(input=str(tmp_path / "text"), documents="line", tokenizer_type="bpe", heldout_share=0.05)
    prepare.prepare(data, 200, tmp_path / "expected", lambda line: None, processes=1)
    return data


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_preparation_gives_the_bytes_of_one_process(nodes, text, tmp_path):
    log = []
    prepare.prepare(text, 200, tmp_path / "rows", log.append, ray=nodes.address)
    assert "Ray: 2 nodes, 4 CPUs" in log
    assert len(contents(tmp_path / "rows")) > 120
    assert contents(tmp_path / "rows") == contents(tmp_path / "expected")


def test_a_range_that_cannot_be_read_ends_a_preparation_and_what_is_finished_stays(nodes, text, tmp_path, monkeypatch):
    """A file that is gone when its range is prepared; back again, the same command goes on."""
    path, gone = tmp_path / "text" / "59.txt", tmp_path / "59.txt"
    make = plan.make

    def made(*arguments):
        found = make(*arguments)
        path.rename(gone)
        return found

    monkeypatch.setattr(plan, "make", made)
    log = []
    with pytest.raises(UserError, match=r"text/59.txt changed while it was read"):
        prepare.prepare(text, 200, tmp_path / "rows", log.append, ray=nodes.address)
    assert log[-1].startswith(f"what is finished stays in {tmp_path}/rows.incomplete")
    gone.rename(path)
    prepare.prepare(text, 200, tmp_path / "rows", log.append, ray=nodes.address)
    assert any(line.startswith("going on with") for line in log)
    assert contents(tmp_path / "rows") == contents(tmp_path / "expected")


def test_a_node_that_is_killed_half_way_changes_nothing(nodes, tasks, tmp_path, capfd):
    found = {}
    for number, result in tasks(range(80), seconds=0.1):  # so that the node has tasks at any time
        found[number] = result
        if len(found) == 40:
            kill(nodes.processes[1:2])
    assert found == {i: i * i for i in range(80)}
    attempts = [int(path.name.partition("-")[0]) for path in tmp_path.iterdir()]
    assert len(attempts) > len(set(attempts)), "the killed node had tasks, which another one has repeated"
    assert capfd.readouterr() == ("", "")


def test_a_node_that_is_killed_half_way_changes_no_byte_of_a_preparation(nodes, text, tmp_path):
    nodes.add()
    killed = []

    def kill_half_way():
        while len(list(tmp_path.glob("rows.incomplete/range-*"))) < 20:
            time.sleep(0.01)
        killed.append(len(list(tmp_path.glob("rows.incomplete/range-*"))))
        kill(nodes.processes[-1:])

    thread = threading.Thread(target=kill_half_way, daemon=True)
    thread.start()
    prepare.prepare(text, 200, tmp_path / "rows", lambda line: None, ray=nodes.address)
    thread.join()
    assert 20 <= killed[0] < 60
    assert contents(tmp_path / "rows") == contents(tmp_path / "expected")
