"""Trackers of a run beside `metrics.jsonl`: each in a process of its own, for which the engine never waits.

A tracker that fails, hangs or dies is switched off with one line, and the run goes on. `tracker_process.py` has the
trackers. `trackers.json` in the workdir keeps the id of each one's run, so that a resumed run goes on with it.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any

from etils import epath
from tqdm import tqdm

from sctd_jax import storage
from sctd_jax.errors import TryAgainError, UserError
from sctd_jax.parallel import hosts
from sctd_jax.sections import tracker_names
from sctd_jax.storage import write
from sctd_jax.train import tracker_process

TRACKERS_FILE = "trackers.json"
FINISH_SECONDS = float(tracker_process.SECONDS)
STOPPED_SECONDS = 10.0  # after a signal or an error; a preempted machine has no more
_MOST_UNSENT = 1 << 22  # bytes that a tracker may be behind


def check(field: str, track: str) -> None:
    """Check, in the first process of the run, that the libraries in a field `track` are there."""
    for name in tracker_names(track) if hosts.is_first() else ():
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a mere folder: wandb leaves one of its name in working folders
            raise UserError(f"config.{field} names {name}, which must be installed here and is not: pip install "
                            f"'.[{name}]', or take it out of the field")  # fmt: skip


class Trackers:
    """The trackers of a run, from the entry of a `with` to its end; called with what `metrics.jsonl` gets.

    There are none in all processes of the run but the first.
    """

    def __init__(self, track: str, workdir: epath.Path, settings: Mapping[str, Any], log: Callable[[str], None]):
        names = tracker_names(track) if hosts.is_first() else []
        self.status = 0  # exit status of the run: 0, or 128 + the signal that stopped it
        self._workdir, self._log, self._step = workdir, log, 0
        self._ids = _read_ids(workdir / TRACKERS_FILE, log) if names else {}
        self._temporary = tempfile.mkdtemp(prefix="sctd_jax-trackers-") if names and storage.is_remote(workdir) else ""
        folder = self._temporary or os.path.abspath(workdir)
        self._open: list[_Process] = []
        for name in names:
            run = {"name": Path(workdir).absolute().name, "id": self._ids.get(name, ""), "folder": folder}
            try:
                self._open.append(_Process(name))
            except OSError as error:
                self._say(f"warning: {name} cannot be started: {error}; the run goes on without it")
            else:
                self._open[-1].send(run | {"settings": settings})

    def __enter__(self) -> "Trackers":
        return self

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Pass values on, and say what the trackers have answered since; never waits."""
        self._step = step
        for process in list(self._open):
            process.send({"step": step, "values": values})
            self._hear(process)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        status = self.status if error is None else 1 if isinstance(error, Exception) else 128 + signal.SIGINT
        seconds = STOPPED_SECONDS if status else FINISH_SECONDS
        end = time.monotonic() + seconds
        try:
            for process in self._open:
                process.send({"status": status})
            while self._open and (left := end - time.monotonic()) > 0:
                connection.wait([process.answers.fileno() for process in self._open], min(left, 0.1))
                for process in list(self._open):
                    process.send()
                    self._hear(process)
            for process in self._open:
                self._say(f"warning: {process.name} has not finished within {seconds:g} s; the run ends without it")
        finally:
            for process in self._open:
                process.end()
            self._open.clear()
        self._upload()

    def _hear(self, process: "_Process") -> None:
        why, patience, step, finished = "", 1.0, self._step, False
        if process.unsent > _MOST_UNSENT:
            why, patience = "it does not take what is sent", 0.0
        for answer in process.hear():
            if "id" in answer:
                self._keep_id(process.name, answer["id"])
            if "says" in answer:
                self._say(f"{process.name}: {answer['says']}")
            why, step = answer.get("failed", why), answer.get("step", step)
            finished = finished or "finished" in answer
        if not (why or finished) and process.ended is not None:
            why = f"its process ended with {process.ended}"
        if why:
            self._say(f"warning: {process.name} failed at step {step}: {why}; the run goes on without it")
        if why or finished:
            process.end(patience)
            self._open.remove(process)

    def _keep_id(self, name: str, own_id: str) -> None:
        if self._ids.get(name) != own_id:
            self._ids[name] = own_id
            try:
                write(self._workdir / TRACKERS_FILE, (json.dumps(self._ids, indent=1) + "\n").encode())
            except Exception as error:  # a full disk's, or one of the cloud's
                self._say(f"warning: {self._workdir / TRACKERS_FILE} cannot be written: {error}; a resumed run begins "
                          f"another run of {name}")  # fmt: skip

    def _say(self, line: str) -> None:
        with tqdm.external_write_mode(sys.stdout):  # beside the bar
            self._log(line)

    def _upload(self) -> None:
        if not self._temporary:
            return
        try:
            storage.upload(Path(self._temporary), self._workdir)
        except Exception as error:
            self._say(f"warning: {error}; the trackers' files stay in {self._temporary}")
        else:
            shutil.rmtree(self._temporary)


class _Process:
    """A tracker's process: what is sent waits here if it cannot be taken at once."""

    def __init__(self, name: str):
        self.name = name
        self.ended: str | None = None  # the way it ended
        self._waiting, self._heard = bytearray(), b""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, the end of the process closes it
        package = str(Path(tracker_process.__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        # A session of its own: Ctrl-C is for the run.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", tracker_process.__name__, name, str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._output, bufsize=0, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        self._input, self.answers = self._process.stdin, self._process.stdout
        for pipe in (self._input, self.answers):
            os.set_blocking(pipe.fileno(), False)

    @property
    def unsent(self) -> int:
        """Bytes that wait here."""
        return len(self._waiting)

    def send(self, message: Mapping[str, Any] | None = None) -> None:
        """Send a message after those that wait, as far as it can be taken now."""
        self._waiting += json.dumps(message).encode() + b"\n" if message else b""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._waiting:
                del self._waiting[: os.write(self._input.fileno(), self._waiting)]

    def hear(self) -> Iterator[dict[str, Any]]:
        """Answers that have come; sets `ended` if there will be no more."""
        with contextlib.suppress(BlockingIOError):
            while self.ended is None:
                if not (read := os.read(self.answers.fileno(), 1 << 16)):
                    self.ended = self._how_it_ended()
                self._heard += read
        *lines, self._heard = self._heard.split(b"\n")
        yield from map(json.loads, lines)

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self._output.seek(max(self._output.seek(0, os.SEEK_END) - 4096, 0))
        printed = self._output.read().decode(errors="replace").split("\n")
        last = next((tracker_process.clean(line) for line in reversed(printed) if line.strip()), "")
        return f"status {self._process.returncode}" + (f" ({last})" if last else "")

    def end(self, patience: float = 0.0) -> None:
        """Kill it and what it has started, unless it ends by itself within seconds, as one does that has answered."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for file in (self._input, self.answers, self._output):
            file.close()


def _read_ids(path: epath.Path, log: Callable[[str], None]) -> dict[str, str]:
    try:
        found = storage.read_json(path) if storage.exists(path) else {}
    except TryAgainError:  # the run could not go on there either
        raise
    except UserError as error:
        log(f"warning: {error}; its trackers begin new runs")
        return {}
    return {name: own_id for name, own_id in found.items() if isinstance(own_id, str)}
