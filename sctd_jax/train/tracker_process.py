"""One tracker in a process of its own, which `trackers.py` starts: Weights & Biases, MLflow or trackio.

Their libraries wait for a network, put hooks into `sys` and `atexit`, start threads and print: none of it reaches the
run. They find in their environment variables where to write and with which key; this code reads no key.

A line of JSON on stdin is the run, then each is a step's values, the last one the exit status. Lines on stdout are
answers: `says` to a person, `id` of the tracker's run, `failed` or `finished`. Only the standard library is imported.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

PROJECT = "sctd_jax"  # name of the project or experiment where no environment variable has one
SECONDS = 30  # time for a tracker to end its run in
_WARNINGS = 3  # warnings of a library that are shown; each text once


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to track."""

    name: str
    id: str  # the tracker's own name for it; '': it is new there
    folder: str  # folder for files of a tracker that keeps each run by itself
    settings: dict[str, Any]


class Tracker(Protocol):
    """Calls of a tracker; whatever one of them raises switches it off, and the run goes on."""

    def start(self, run: Run) -> tuple[str, str]:
        """Begin a run, or go on with that of `run.id`; returns its id, and where a person finds it."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values under the number of updates done; after a resume a step can come again."""

    def finish(self, status: int) -> None:
        """End the run: 0, 128 + the signal that stopped it, or 1 after an error."""


class WandB:
    """Weights & Biases; of a step that is trained again it keeps what came first."""

    def start(self, run: Run) -> tuple[str, str]:
        """Each start has a folder of its own in `wandb` within `run.folder`; the server joins those of one id."""
        import wandb

        self._wandb = wandb
        os.environ.setdefault("WANDB__STATS_PID", str(os.getppid()))  # the process to measure is the one that trains
        ours = {"project": PROJECT, "name": run.name, "dir": run.folder}
        ours = {name: value for name, value in ours.items() if f"WANDB_{name.upper()}" not in os.environ}
        # The address of a git remote can hold a key, which wandb leaves in where it stands for the user's name.
        settings = wandb.Settings(console="off", disable_git=True)
        own_id = run.id or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            id=own_id, config=run.settings, resume="allow", allow_val_change=True, settings=settings, **ours
        )
        where = self._run.url or f"{self._run.settings.mode}, in {self._run.settings.sync_dir}"
        lost = run.id and self._run.url and not self._run.resumed
        return own_id, where + (" (new: there was none of this id)" if lost else "")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add to the step's row; steps before the last are ignored with a warning in wandb's own log."""
        self._run.log(values, step=step)

    def finish(self, status: int) -> None:
        """Upload the rest."""
        if status > 128:
            self._run.mark_preempting()
        self._run.finish(exit_code=status)
        self._wandb.teardown()


class MLflow:
    """MLflow; a step that is trained again has both values, the later one last."""

    def start(self, run: Run) -> tuple[str, str]:
        """Settings are parameters, which MLflow never changes: those of a run that goes on stay as they were."""
        import mlflow

        self._mlflow = mlflow
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            mlflow.set_experiment(PROJECT)
        begun = mlflow.start_run(run_id=run.id or None, run_name=None if run.id else run.name)
        settings, there = {name: str(value) for name, value in _flat(run.settings)}, begun.data.params
        mlflow.log_params({name: value for name, value in settings.items() if name not in there})
        stay = [f"{name} {there[name]}" for name, value in settings.items() if there.get(name, value) != value]
        noted = f" (its parameters stay those of its beginning: {', '.join(stay)})" if stay else ""
        return begun.info.run_id, mlflow.get_tracking_uri() + noted

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each metric's history."""
        self._mlflow.log_metrics(values, step=step)

    def finish(self, status: int) -> None:
        """Give the run its state."""
        self._mlflow.end_run("FINISHED" if status == 0 else "KILLED" if status > 128 else "FAILED")


class Trackio:
    """trackio; a step that is trained again has both rows, and the run no state at its end."""

    def start(self, run: Run) -> tuple[str, str]:
        """The name is what trackio resumes by, so each run has a name of its own."""
        import trackio

        self._trackio, name = trackio, run.id or f"{run.name}-{uuid.uuid4().hex[:8]}"
        resume = "must" if run.id else "never"
        trackio.init(PROJECT, name, config=run.settings, resume=resume, embed=False)
        server = "a server of its own" if os.environ.get("TRACKIO_SERVER_URL") else ""  # its address can hold the key
        return name, os.environ.get("TRACKIO_SPACE_ID") or server or str(trackio.utils.TRACKIO_DIR)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add a row."""
        self._trackio.log(values, step=step)

    def finish(self, status: int) -> None:
        """Write the rest."""
        self._trackio.finish()


LIBRARIES: dict[str, type[Tracker]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def main(name: str, parent: int) -> None:
    """Track what comes on stdin, until its end or the end of the process `parent`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they stop the run, and this when the run is saved
        signal.signal(number, signal.SIG_IGN)
    # The pipes move away from where a library reads and prints.
    lines, answers = os.fdopen(os.dup(0)), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def answer(**said: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the run was killed, and nobody listens
            os.write(answers, (json.dumps(said) + "\n").encode())

    shown: set[str] = set()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if issubclass(category, UserWarning) and str(message) not in shown and len(shown) < _WARNINGS:
            shown.add(str(message))
            answer(says=f"warning: {clean(message)}")

    warnings.showwarning = show  # trackio has no other way to say what it could not record
    step, status, tracker = 0, 128 + signal.SIGKILL, LIBRARIES[name]()
    try:
        run = Run(**json.loads(lines.readline()))
        try:
            own_id, where = tracker.start(run)
        except Exception as error:
            if not run.id:
                raise
            answer(says=f"its run {run.id} cannot be gone on with ({clean(error)}); a new one begins")
            own_id, where = tracker.start(dataclasses.replace(run, id=""))
        answer(id=own_id, says=f"{'goes on with' if own_id == run.id else 'begins'} run {own_id}, {clean(where)}")
        for line in lines:
            message = json.loads(line)
            if "status" in message:
                status = message["status"]
                break
            step = message["step"]
            tracker.log(step, message["values"])
        tracker.finish(status)
        answer(finished=True)
    except BaseException as error:  # whatever it is, an exit of the library's too
        answer(failed=clean(error), step=step)
    finally:
        os._exit(0)  # past hooks that could wait


def clean(text: object) -> str:
    """The first line of a message, without what could be a key in it."""
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), repr(text))
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name) and len(value) > 5:
            line = line.replace(value, "...")
    line = re.sub(r"://[^/\s@]+@", "://", line)
    return re.sub(r"(?i)((?:key|token|secret|password)=)[^&\s]+", r"\1...", line)[:400]


def _flat(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flat = []
    for name, value in values.items():
        inner = _flat(value) if isinstance(value, dict) else [("", value)]
        flat += [(f"{name}.{below}".rstrip("."), one) for below, one in inner]
    return flat


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(SECONDS)  # time for all that the run had sent before it was killed
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
