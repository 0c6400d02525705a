"""The loop that pretraining and fine-tuning share."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.data.loader import prefetch
from sctd_jax.errors import DivergedError, TryAgainError, UserError
from sctd_jax.parallel import chips, hosts
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import Console, Silent, Speed, Writer, read_metrics
from sctd_jax.train.signals import StopRequest
from sctd_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done at each step. Steps are numbered from 0; a step may have programs of several kinds, by name."""

    config: Config  # its train section is the loop's
    mesh: Mesh
    compile: Callable[[], Mapping[str, Callable]]  # every program (state, batch) -> (state, metrics), by name
    program: Callable[[int], str]  # of a step
    batch: Callable[[int], Any]  # of a step, on the mesh
    work: Callable[[int], tuple[int, float]]  # tokens and FLOPs of a step
    evaluate: Callable[[TrainState], dict[str, float]]
    evaluation_lines: Callable[[int, dict[str, float]], list[str]]
    advice: str  # to a person whose run diverged
    evaluate_first: bool = True  # before the first step
    # Where an evaluation decides which checkpoint is the best, none may be saved without it; where the machine is
    # about to be taken, saving comes first.
    evaluate_when_stopping: bool = False


_BLANK_STEPS = 10  # a run that begins with so many steps without a prediction learns nothing


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    stopped_by: int | None  # a signal number, or None
    state: TrainState


def run(
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
      UserError: none of the first steps had a prediction.
      TryAgainError: another process or the storage failed.
    """
    config, start, steps = job.config, int(state.step), job.config.train.steps
    if start == steps:
        # Of checkpoints that are damaged or were not finished.
        if hosts.is_first() and any(line["step"] > start for line in read_metrics(workdir, log)):
            Writer(workdir, start, log, checkpoints.check).close()
        _check_trained(state, 0)
        return Result(start, None, state)
    log("compiling ...")
    began = time.monotonic()
    programs = job.compile()
    log(f"compiled {', '.join(programs)} in {time.monotonic() - began:.0f} s")

    batches = prefetch(job.batch, start, steps)
    writer, console = Silent(), Silent()
    try:
        if hosts.is_first():
            writer, console = Writer(workdir, start, log, checkpoints.check), Console(start, steps)
        train = _TrainMetrics(job, writer, console)
        for step in range(start, steps + 1):
            # The order is fixed: eval -> checkpoint -> next batch -> dispatch -> metrics of the step before.
            stopping, last = stop.at(step), step == steps
            evaluated = None
            if (
                (step % config.train.eval_every == 0 or last)
                and (step > start or (step == 0 and job.evaluate_first))
                and (job.evaluate_when_stopping or not stopping)
            ):
                train.flush()
                evaluated = job.evaluate(state)
                writer.write(step, evaluated)
                for line in job.evaluation_lines(step, evaluated):
                    console.log(line)
            if stopping or ((step % config.train.checkpoint_every == 0 or last) and step > start):
                train.flush()
                checkpoints.save(state, evaluated)
                writer.upload()
            if last or stopping:
                train.flush()
                break
            batch = next(batches)
            state, metrics = programs[job.program(step)](state, batch)
            train.take(step, metrics)
            if train.bad_streak >= config.train.max_bad_steps:
                _give_up(job, checkpoints, state, train.bad_streak)
        checkpoints.wait()
        if step == steps:
            _check_trained(state, start)
        return Result(step, stop.signum if step < steps else None, state)
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
    finally:
        batches.close()
        console.close()
        writer.close()


def _check_trained(state: TrainState, start: int) -> None:
    if int(state.skipped) >= int(state.step):
        raise DivergedError(
            f"not one of the steps from {start} to {int(state.step)} had a finite loss and gradient: nothing was "
            "trained. Lower the learning rate or lengthen the warm-up, look at what it starts from, and begin again in "
            "another --workdir"
        )


class _TrainMetrics:
    """Reads the metrics of a step after the next one is dispatched, so that the device never waits."""

    def __init__(self, job: Job, writer: Writer, console: Console):
        chip = chips.find(jax.devices()[0].device_kind)
        self._config, self._work, self._writer, self._console = job.config, job.work, writer, console
        self._speed = Speed(chip and chip.flops * job.mesh.size)
        self._unread: tuple[int, Mapping[str, jax.Array]] | None = None
        self._window: dict[str, list[float]] = {}
        self.bad_streak = 0
        self._steps = self._blank = 0  # read, and of these without a prediction

    def take(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Update `step` has just been dispatched; read the one before."""
        previous, self._unread = self._unread, (step, metrics)
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Wait for the last update and read it; what follows (evaluation, saving) is not timed."""
        previous, self._unread = self._unread, None
        if previous is not None:
            self._read(*previous)
        self._speed.pause()

    def _read(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self._speed.step(*self._work(step))
        skipped = values["skipped"] > 0
        self.bad_streak = self.bad_streak + 1 if skipped else 0
        if skipped:
            self._console.log(f"warning: step {step + 1} had a non-finite loss or gradient and was skipped")
        self._steps += 1
        if values.get("predictions") == 0:  # of pretraining
            self._blank += 1
            cause = "all tokens of its rows are special tokens"
            if self._blank == 1:
                self._console.log(f"warning: step {step + 1} had no prediction ({cause}); later ones are not announced")
            if self._blank == self._steps == min(_BLANK_STEPS, self._config.train.steps):
                raise UserError(f"the first {self._steps} steps had no prediction: {cause}; expected rows of text")
        for name, value in values.items():
            if np.isfinite(value):
                self._window.setdefault(f"train/{name}", []).append(value)
        done = step + 1
        self._console.advance(done)
        if done % self._config.train.log_every == 0 or done == self._config.train.steps or step == 0:
            self._report(done)

    def _report(self, done: int) -> None:
        # Means over the window, but the rate as it is now and the skipped steps as their number.
        reduce: dict[str, Callable] = {"train/skipped": sum, "train/learning_rate": lambda values: values[-1]}
        means = {name: float(reduce.get(name, np.mean)(values)) for name, values in self._window.items()}
        means |= self._speed.report(self._config.train.steps - done)
        self._writer.write(done, means)
        if "train/loss" in means:
            self._console.progress(done, means)
        self._window.clear()


def _give_up(job: Job, checkpoints: Checkpoints, state: TrainState, streak: int) -> None:
    checkpoints.save(state, None)
    checkpoints.wait()
    raise DivergedError(
        f"{streak} steps in a row had a non-finite loss or gradient; their updates were left out, and the last good "
        f"parameters are saved as step {int(state.step)}. {job.advice}"
    )
