"""Writers of metrics (console, JSONL, TensorBoard), and speed."""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar
from tqdm import tqdm

from sctd_jax import storage, stored
from sctd_jax.errors import UserError, say, shown

METRICS_FILE = "metrics.jsonl"
_FLUSH_SECONDS = 30  # delay of what TensorBoard shows
Track = Callable[[int, dict[str, float]], None]  # (updates done, values by name)


def ignore(step: int, values: dict[str, float]) -> None:
    """Track nothing."""


class Writer:
    """`metrics.jsonl` and TensorBoard files in the workdir; one JSON object a line.

    Every line has `step` (updates done) and `seconds` (of training so far, restarts added up). Steps after `start` will
    be trained again: their lines are cut off. Nothing can be appended to a file in a bucket: for a workdir there they
    are written to a temporary folder, which `upload` copies; `check` raises before that where the bucket is no longer
    this process's. `track` is called with all that `write` records, too.
    """

    def __init__(
        self,
        workdir: epath.Path,
        start: int,
        log: Callable[[str], None] = say,
        check: Callable[[], None] = lambda: None,
        track: Track = ignore,
    ):
        self._workdir, self._folder, self._check, self._track = workdir, Path(workdir), check, track
        if storage.is_remote(workdir):
            self._folder = Path(tempfile.mkdtemp(prefix="sctd_jax-metrics-"))
            with storage.reaching(workdir):
                if (workdir / METRICS_FILE).exists():
                    (self._folder / METRICS_FILE).write_bytes((workdir / METRICS_FILE).read_bytes())
        path = self._folder / METRICS_FILE
        lines, damaged = _read(path)
        kept = [line for line in _last_of_each(lines) if start > 0 and line["step"] <= start]
        if len(kept) < len(lines) or damaged:
            again, left = len(lines) - len(kept), f"{damaged} damaged ones left out" if damaged else ""
            cut = f"{again} lines cut off, for their steps after {start} are trained again" if again else ""
            log(f"{workdir / METRICS_FILE}: {', '.join(filter(None, [cut, left]))}")
        if path.exists():
            rewritten = path.with_name(f".claim-{METRICS_FILE}")
            rewritten.write_text("".join(json.dumps(line) + "\n" for line in kept))
            rewritten.replace(path)
        self._jsonl = path.open("a", buffering=1)
        self._began = time.monotonic() - max((line["seconds"] for line in kept), default=0.0)
        # tensorboardX's SummaryWriter writes in a thread: where a full disk ends that, the run waits for it for ever.
        (self._folder / "tensorboard").mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(self._folder / "tensorboard" / "events"))
        self._flushed = time.monotonic()
        if start:  # TensorBoard hides events of earlier files from here on
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._tensorboard.write_event(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=session))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record values under the number of updates done."""
        seconds = round(time.monotonic() - self._began, 3)
        # JSON knows no NaN and no infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._jsonl.write(json.dumps({"step": step, "seconds": seconds, **finite}) + "\n")
        for name, value in values.items():
            event = event_pb2.Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._tensorboard.write_event(event)
        if time.monotonic() > self._flushed + _FLUSH_SECONDS:
            self._tensorboard.flush()
            self._flushed = time.monotonic()
        self._track(step, values)

    def upload(self) -> None:
        """Copy what was written to a workdir in a bucket; on a disk it is there already."""
        if storage.is_remote(self._workdir):
            self._tensorboard.flush()
            storage.upload(self._folder, self._workdir)

    def close(self) -> None:
        """Flush and close both files."""
        try:
            self._jsonl.close()
        finally:
            self._tensorboard.close()
        if storage.is_remote(self._workdir):
            try:
                self._check()
                storage.upload(self._folder, self._workdir)
            except UserError as error:  # must not hide what ended the run
                say(f"warning: {error}; the newest metrics are in {self._folder}")
            else:
                shutil.rmtree(self._folder)


class Silent:
    """Stand-in for `Writer` and `Console` in all processes but the first."""

    def __getattr__(self, name: str):
        """Any of their methods, doing nothing."""
        return lambda *_: None


def read_metrics(workdir: epath.Path | Path, log: Callable[[str], None] = say) -> list[dict[str, Any]]:
    """Lines of a run's metrics file, by step; of a step that was trained twice the last ones.

    `log` receives how many lines are damaged and left out, but for a last one that a kill cut short.
    """
    with storage.reaching(workdir):
        lines, damaged = _read(workdir / METRICS_FILE)
    if damaged:
        log(f"warning: {workdir / METRICS_FILE}: {damaged} damaged lines are left out")
    return _last_of_each(lines)


def _read(path: epath.Path | Path) -> tuple[list[dict[str, Any]], int]:
    """The lines as they stand there, by today's names, and how many are damaged."""
    try:
        content = storage.regular_file(path).read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    lines: list[dict[str, Any]] = []
    damaged = 0
    *whole, last = content.split(b"\n")
    for raw in (*whole, last):
        text = raw.strip(b"\0 \r")  # holes of two writers at once, or of a crash of the machine
        damaged += len(text) < len(raw.strip())
        try:
            line: dict[str, Any] = json.loads(text)
            if not (isinstance(line, dict) and type(line.get("step")) is int):
                raise ValueError(line)
            if line["seconds"] is None or not all(type(value) in (int, float, type(None)) for value in line.values()):
                raise ValueError(line)
        except (ValueError, KeyError, RecursionError):
            damaged += bool(text) and raw is not last
        else:
            lines.append({stored.METRICS.get(name, name): value for name, value in line.items()})
    return lines, damaged


def _last_of_each(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep one line of training and one of evaluation for each step: a resumed run trained what followed again."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1]["step"] > line["step"]:
            kept.pop()
        at = len(kept)
        while at and kept[at - 1]["step"] == line["step"]:
            at -= 1
        kept[at:] = [other for other in kept[at:] if _evaluates(other) != _evaluates(line)]
        kept.append(line)
    return kept


def _evaluates(line: dict[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in line)


class Console:
    """A tqdm line on a terminal, plain lines elsewhere."""

    def __init__(self, start: int, steps: int):
        self._steps = steps
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=None, dynamic_ncols=True, file=sys.stdout)

    def log(self, line: str) -> None:
        """Print a line without breaking the bar."""
        self._bar.write(shown(line)) if not self._bar.disable else say(line)

    def advance(self, step: int) -> None:
        """Move the bar; where there is none, nothing."""
        self._bar.update(step - self._bar.n)

    def progress(self, step: int, train: dict[str, float]) -> None:
        """Show the latest training metrics."""
        parts = [f"loss {train['train/loss']:.3f}", f"lr {train['train/learning_rate']:.2e}"]
        if "train/tokens_per_second" in train:
            parts.append(f"{train['train/tokens_per_second']:,.0f} tokens/s")
        if "train/mfu" in train:
            parts.append(f"MFU {train['train/mfu']:.1%}")
        if self._bar.disable:
            eta = f"ETA {duration(train['train/eta_seconds'])}" if "train/eta_seconds" in train else ""
            print(f"step {step}/{self._steps}  " + "  ".join([*parts, eta]).rstrip(), flush=True)
        else:
            self._bar.set_postfix_str(", ".join(parts))

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._bar.close()


class Speed:
    """Throughput between reports, not counting evaluation, saving and compilation."""

    def __init__(self, peak_flops: float | None):
        self._peak = peak_flops
        self._seconds, self._steps, self._tokens, self._flops, self._waited = 0.0, 0, 0, 0.0, 0.0
        self._since: float | None = None

    def pause(self) -> None:
        """The next step's time does not count."""
        self._since = None

    def wait(self, seconds: float) -> None:
        """The loop has waited so long for its next batch, within the time of the step that is to finish next."""
        if self._since is not None:
            self._waited += seconds

    def step(self, tokens: int, flops: float) -> None:
        """A step of so many tokens and FLOPs has finished now."""
        now = time.monotonic()
        if self._since is not None:
            self._seconds += now - self._since
            self._steps += 1
            self._tokens += tokens
            self._flops += flops
        self._since = now

    def report(self, steps_left: int) -> dict[str, float]:
        """Metrics since the last report; empty if no step was timed."""
        if not self._steps:
            return {}
        values = {
            "train/tokens_per_second": self._tokens / self._seconds,
            "train/step_seconds": self._seconds / self._steps,
            "train/flops_per_second": self._flops / self._seconds,
            "train/eta_seconds": steps_left * self._seconds / self._steps,
            "train/batch_wait_share": self._waited / self._seconds,
        }
        if self._peak:
            values["train/mfu"] = values["train/flops_per_second"] / self._peak
        self._seconds, self._steps, self._tokens, self._flops, self._waited = 0.0, 0, 0, 0.0, 0.0
        return values


def duration(seconds: float) -> str:
    """E.g. `1d 02:03:04` or `03:04`."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    clock = f"{rest // 60:02d}:{rest % 60:02d}"
    clock = f"{hours:02d}:{clock}" if hours or days else clock
    return f"{days}d {clock}" if days else clock
