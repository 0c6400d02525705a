"""The engine of pretraining and fine-tuning: `fit` trains a `Job` in a workdir."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sctd_jax.config import TrainConfig
from sctd_jax.data.loader import prefetch
from sctd_jax.errors import DivergedError, TryAgainError, UserError
from sctd_jax.parallel import chips, hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.train.checkpoint import LOWEST_LOSS, Best, Checkpoints
from sctd_jax.train.metrics import Console, Silent, Speed, Track, Writer, ignore, read_metrics
from sctd_jax.train.signals import StopRequest, stop_requests
from sctd_jax.train.state import TrainState
from sctd_jax.train.trackers import Trackers

_BLANK_STEPS = 10  # a run that begins with so many steps without a prediction learns nothing


@dataclasses.dataclass(frozen=True)
class Result:
    """End of a run."""

    step: int
    stopped_by: int | None  # a signal number, or None
    state: TrainState
    best_step: int | None = None  # the best of the checkpoints that are kept


@dataclasses.dataclass(frozen=True)
class Job:
    """Functions that say what is trained. Steps are numbered from 0, and each runs one of the compiled programs."""

    config: TrainConfig
    mesh: Mesh
    init: Callable[[], TrainState]  # the state before the first step; pure
    layout: TrainState  # its shapes, with their shardings on the mesh
    describe: Callable[[TrainState], list[str]]  # lines that tell a person what is about to run
    claim: Callable[[], None]  # makes the workdir this run's
    compile: Callable[[], Mapping[str, Callable]]  # name -> program (state, batch) -> (state, metrics)
    program: Callable[[int], str]  # step -> name of its program
    batch: Callable[[int], Any]  # step -> its batch, on the mesh
    cost: Callable[[int], tuple[int, float]]  # step -> its tokens and FLOPs
    evaluate: Callable[[TrainState], dict[str, float]]
    evaluation_lines: Callable[[int, dict[str, float]], list[str]]
    advice: str  # advice to a person whose run diverged
    start: Callable[[TrainState], TrainState] = lambda state: state  # the first state with parameters trained before
    best: Best = LOWEST_LOSS  # rule for the checkpoint that is kept beside the last ones
    blank: Callable[[Mapping[str, float]], str] = lambda metrics: ""  # name of what a step lacked, or ''
    evaluate_first: bool = True  # whether to evaluate before the first step
    # No checkpoint may be saved without an evaluation where that decides which is the best; where the machine is
    # about to be taken, saving comes first.
    evaluate_when_stopping: bool = False
    patience: int = 0  # evaluations in a row without a better value of `best` after which training ends; 0: never
    summary: Callable[[Result, float], list[str]] = lambda result, seconds: []  # lines at the end of a whole run
    on_step: Callable[[int], None] = lambda step: None  # called when a step has been dispatched; for tests
    track: Track = ignore  # called with what is written to `metrics.jsonl`
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # shown by the trackers of `train.track`


def fit(job: Job, workdir: epath.Path, check: Callable[[], None], log: Callable[[str], None]) -> Result:
    """Train up to `train.steps`, from the newest checkpoint of a workdir that is `held` or from the job's first state.

    `check` raises where the workdir is no longer this process's.
    """
    began = time.monotonic()
    with closing(Checkpoints(workdir, job.config.keep_checkpoints, best=job.best, check=check)) as checkpoints:
        state = checkpoints.restore(job.layout, log)
        if state is None:
            state = job.start(jax.jit(job.init, out_shardings=meshes.shardings(job.layout))())
        else:
            step = int(state.step)
            checkpoints.set_aside(after_step=step, log=log)
            if step > job.config.steps:
                raise UserError(f"config.train.steps is {job.config.steps}, but the workdir has trained {step} already")
            log(f"resuming at step {step}")
        for line in job.describe(state):
            log(line)
        job.claim()
        names = job.config.track if int(state.step) < job.config.steps else ""
        with stop_requests() as stop, Trackers(names, workdir, job.settings, log) as trackers:

            def track(step: int, values: dict[str, float]) -> None:
                job.track(step, values)
                trackers(step, values)

            result = train(dataclasses.replace(job, track=track), workdir, checkpoints, state, stop, log)
            if result.stopped_by is not None:
                trackers.status = 128 + result.stopped_by
                log(f"stopped by signal {result.stopped_by} after step {result.step}; saved in {workdir}. "
                    "Run the same command to resume")  # fmt: skip
        if names:  # the others wait as long as its trackers take: what follows is computed together
            hosts.run_on_first("trackers", lambda: None)
        result = dataclasses.replace(result, best_step=checkpoints.best_step())
    if result.stopped_by is None:
        for line in job.summary(result, time.monotonic() - began):
            log(line)
    return result


def train(
    job: Job,
    workdir: epath.Path,
    checkpoints: Checkpoints,
    state: TrainState,
    stop: StopRequest,
    log: Callable[[str], None],
) -> Result:
    """Train from `state` to `train.steps`, with evaluations and checkpoints, unless `stop` asks for an end.

    Raises:
      DivergedError: `train.max_bad_steps` steps in a row were not finite, or not one step of the run was.
      TryAgainError: another process or the storage failed.
    """
    config, start, steps = job.config, int(state.step), job.config.steps
    scores: list[float] = []  # values of `best` so far, which each process reads before the first one writes
    if job.patience:
        before = [line for line in read_metrics(workdir, lambda line: None) if line["step"] <= start]
        found = [line[job.best.metric] for line in before if job.best.metric in line]
        scores = [math.nan if score is None else score for score in found]
        hosts.check_same({"the evaluations before": scores})
    ended = bool(job.patience) and without_better(scores, job.best.mode) >= job.patience
    if start == steps or ended:
        # Lines of checkpoints that are damaged or were not finished go.
        if hosts.is_first() and any(line["step"] > start for line in read_metrics(workdir, log)):
            Writer(workdir, start, log, checkpoints.check).close()
        _check_trained(state, 0)
        return Result(start, None, state)
    log("compiling ...")
    began = time.monotonic()
    programs = job.compile()
    log(f"compiled {', '.join(programs)} in {time.monotonic() - began:.0f} s")

    writer: Writer | Silent = Silent()
    console: Console | Silent = Silent()
    try:
        with closing(prefetch(job.batch, range(start, steps))) as batches, ExitStack() as files:
            if hosts.is_first():
                writer = files.enter_context(closing(Writer(workdir, start, log, checkpoints.check, job.track)))
                console = files.enter_context(closing(Console(start, steps)))
            metrics = StepMetrics(job, writer, console)
            for step in range(start, steps + 1):
                # The order is fixed: eval -> checkpoint -> next batch -> dispatch -> metrics of the step before.
                stopping, last = stop.at(step), step == steps or ended
                evaluated = None
                if (
                    (step % config.eval_every == 0 or last)
                    and (step > start or (step == 0 and job.evaluate_first))
                    and (job.evaluate_when_stopping or not stopping)
                ):
                    metrics.flush()
                    evaluated = job.evaluate(state)
                    writer.write(step, evaluated)
                    for line in job.evaluation_lines(step, evaluated):
                        console.log(line)
                    scores.append(evaluated.get(job.best.metric, math.nan))
                    ended = bool(job.patience) and without_better(scores, job.best.mode) >= job.patience
                    if ended and step < steps:
                        console.log(f"{job.best.metric} has not been better in {job.patience} evaluations: training "
                                    f"ends at step {step} of {steps}")  # fmt: skip
                    last = last or ended
                if stopping or ((step % config.checkpoint_every == 0 or last) and step > start):
                    metrics.flush()
                    checkpoints.save(state, evaluated)
                    writer.upload()
                if last or stopping:
                    metrics.flush()
                    break
                asked = time.monotonic()
                batch = next(batches)
                metrics.waited(time.monotonic() - asked)
                state, of_step = programs[job.program(step)](state, batch)
                metrics.take(step, of_step)
                job.on_step(step)
                if metrics.bad_streak >= config.max_bad_steps:
                    checkpoints.save(state, None)
                    checkpoints.wait()
                    raise DivergedError(
                        f"{metrics.bad_streak} steps in a row had a non-finite loss or gradient; their updates were "
                        f"left out, and the last good parameters are saved as step {int(state.step)}. {job.advice}"
                    )
            checkpoints.wait()
            if last:
                _check_trained(state, start)
            return Result(step, None if last else stop.signum, state)
    except jax.errors.JaxRuntimeError as error:
        if not hosts.several() or not re.search("UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|Gloo|Connection", str(error)):
            raise
        raise TryAgainError(
            f"step {step} failed, probably because another process of this run ended ({str(error).splitlines()[0]}); "
            f"checkpoints that can be resumed: {checkpoints.steps()}. Run the command again on all hosts"
        ) from error
    except OSError as error:  # a full disk shows in the metrics first
        raise TryAgainError(
            f"workdir {workdir}: {error}; checkpoints that can be resumed: {checkpoints.steps()}"
        ) from error


def without_better(scores: Sequence[float], mode: str) -> int:
    """Number of evaluations since the first best one; one that is not a number is never the best."""
    best, since = None, 0
    for score in scores:
        better = np.isfinite(score) and (best is None or (score > best if mode == "max" else score < best))
        best, since = (score, 0) if better else (best, since + 1)
    return since


def start_lines(mesh: Mesh, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines that say what is about to run: the devices, then a job's own rows of name and text."""
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}, {jax.process_count()} host(s)"
    return [f"{name:>12}  {text}" for name, text in (("devices", devices), ("mesh", meshes.describe(mesh)), *rows)]


def _check_trained(state: TrainState, start: int) -> None:
    if int(state.skipped) >= int(state.step):
        raise DivergedError(
            f"not one of the steps from {start} to {int(state.step)} had a finite loss and gradient: nothing was "
            "trained. Lower the learning rate or lengthen the warm-up, look at what it starts from, and begin again in "
            "another --workdir"
        )


class StepMetrics:
    """Reads the metrics of a step after the next one is dispatched, so that the device never waits."""

    def __init__(self, job: Job, writer: Writer | Silent, console: Console | Silent):
        chip = chips.find(jax.devices()[0].device_kind)
        self._job, self._writer, self._console = job, writer, console
        self._speed = Speed(chip.flops * job.mesh.size if chip else None)
        self._unread: tuple[int, Mapping[str, jax.Array]] | None = None
        self._window: dict[str, list[float]] = {}
        self.bad_streak = 0
        self._steps = self._blank = 0  # read, and of these such as lacked something

    def take(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Update `step` has just been dispatched; read the one before."""
        previous, self._unread = self._unread, (step, metrics)
        if previous is not None:
            self._read(*previous)

    def waited(self, seconds: float) -> None:
        """The loop has waited so long for its next batch."""
        self._speed.wait(seconds)

    def flush(self) -> None:
        """Wait for the last update and read it; what follows (evaluation, saving) is not timed."""
        if self._unread is not None:
            self._read(*self._unread)
        self._unread = None
        self._speed.pause()

    def _read(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        done, steps = step + 1, self._job.config.steps
        self._speed.step(*self._job.cost(step))
        skipped = values["skipped"] > 0
        self.bad_streak = self.bad_streak + 1 if skipped else 0
        if skipped:
            self._console.log(f"warning: step {done} had a non-finite loss or gradient and was skipped")
        self._steps += 1
        if lack := self._job.blank(values):
            self._blank += 1
            if self._blank == 1:
                self._console.log(f"warning: step {done} had {lack}; later ones are not announced")
            if self._blank == self._steps == min(_BLANK_STEPS, steps):
                raise UserError(f"the first {self._steps} steps had {lack}: nothing is learnt from such rows")
        for name, value in values.items():
            if np.isfinite(value):
                self._window.setdefault(f"train/{name}", []).append(value)
        self._console.advance(done)
        if done % self._job.config.log_every and done != steps and step > 0:
            return
        # Means over the window, but the rate as it is now and the skipped steps as their number.
        reduce: dict[str, Callable] = {"train/skipped": sum, "train/learning_rate": lambda values: values[-1]}
        means = {name: float(reduce.get(name, np.mean)(values)) for name, values in self._window.items()}
        means |= self._speed.report(steps - done)
        self._writer.write(done, means)
        if "train/loss" in means:
            self._console.progress(done, means)
        self._window.clear()
