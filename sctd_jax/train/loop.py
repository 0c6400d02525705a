"""train_and_evaluate: set up, restore, loop."""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data.loader import prefetch
from sctd_jax.errors import TryAgainError, UserError
from sctd_jax.model import attention
from sctd_jax.parallel import chips, hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.train import report, setup
from sctd_jax.train.checkpoint import Checkpoints, check_rows, check_workdir, claim_workdir, has_checkpoints
from sctd_jax.train.compiling import state_shape
from sctd_jax.train.flops import step_flops
from sctd_jax.train.metrics import Console, Silent, Speed, Writer, read_metrics
from sctd_jax.train.run import check_init
from sctd_jax.train.signals import stop_requests
from sctd_jax.train.state import TrainState
from sctd_jax.train.step import step_name, variant_at


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train_and_evaluate` ended."""

    step: int
    stopped_by: int | None  # a signal number, or None
    state: TrainState


def train_and_evaluate(config: Config, workdir: str | os.PathLike, log: Callable[[str], None] = print) -> Result:
    """Train a config in a workdir up to `train.steps`, resuming from its newest checkpoint.

    Raises:
      UserError: anything a person can put right; checkpoints that were saved stay.
    """
    workdir, log = storage.as_path(workdir), hosts.only_first(log)
    mesh, data = _open(config, workdir, log)
    with closing(Checkpoints(workdir, config.train.keep_checkpoints)) as checkpoints:
        state = _restore(config, data, mesh, checkpoints, log)
        claim_workdir(workdir, config, data.folder)
        for line in report.start_table(config, mesh, data, state):
            log(line)
        started = time.monotonic()
        with stop_requests() as stop:
            result = _loop(config, workdir, mesh, data, checkpoints, state, stop, log)
        for line in _end(config, workdir, data, mesh, checkpoints, result, time.monotonic() - started):
            log(line)
        return result


def _open(config: Config, workdir: epath.Path, log: Callable[[str], None]) -> tuple[Mesh, setup.Data]:
    """Mesh and rows of a run, each check before the longer work that follows it."""
    mesh = meshes.make_mesh(config)
    attention.choose(config, attention.platform_of(mesh.devices.flat[0]))  # an impossible one ends the run here
    check_workdir(workdir, config)
    if config.train.init and not has_checkpoints(workdir):
        check_init(config)
    data = setup.open_data(config, log)
    check_rows(workdir, data.folder)
    hosts.check_same({"the config": config, "the prepared rows": data.metadata})
    return mesh, data


def _restore(config: Config, data: setup.Data, mesh, checkpoints: Checkpoints, log: Callable) -> TrainState:
    state = checkpoints.restore(state_shape(config, data.special, mesh), log)
    if state is None:
        return setup.new_state(config, data, mesh, log)
    step = int(state.step)
    checkpoints.set_aside(after_step=step)
    if step > config.train.steps:
        raise UserError(f"config.train.steps is {config.train.steps}, but the workdir has trained {step} already")
    log(f"resuming at step {step}")
    return state


def _loop(config, workdir, mesh, data, checkpoints, state, stop, log) -> Result:
    start, steps = int(state.step), config.train.steps
    if start == steps:
        return Result(start, None, state)
    for line in report.cpu_warning(config):
        log(line)
    log("compiling ...")
    began = time.monotonic()
    step_fns = setup.compile_steps(config, data, mesh)
    evaluate = setup.make_evaluate(config, data, mesh)
    log(f"compiled {', '.join(step_fns)} in {time.monotonic() - began:.0f} s")

    loader = setup.train_loader(config, data, mesh)
    batches = prefetch(lambda step: meshes.put_batch(mesh, config.train.batch_size, loader.batch(step)), start, steps)
    writer, console = (Writer(workdir, start), Console(start, steps)) if hosts.is_first() else (Silent(), Silent())
    train = _TrainMetrics(config, mesh, writer, console)
    try:
        for step in range(start, steps + 1):
            # The order is fixed: eval -> checkpoint -> next batch -> dispatch -> metrics of the step before.
            stopping, last = stop.at(step), step == steps
            evaluated = None
            if (step % config.train.eval_every == 0 or last) and (step > start or step == 0) and not stopping:
                train.flush()
                evaluated = evaluate(state)
                writer.write(step, evaluated)
                console.log(report.evaluation_line(step, evaluated))
            if stopping or ((step % config.train.checkpoint_every == 0 or last) and step > start):
                train.flush()
                checkpoints.save(state, evaluated)
                writer.upload()
            if last or stopping:
                train.flush()
                break
            tokens = next(batches)
            state, metrics = step_fns[step_name(config, step)](state, tokens)
            train.take(step, metrics)
            if train.bad_streak >= config.train.max_bad_steps:
                _give_up(config, checkpoints, state, train.bad_streak)
        checkpoints.wait()
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


class _TrainMetrics:
    """Reads the metrics of a step after the next one is dispatched, so that the device never waits."""

    def __init__(self, config: Config, mesh: Mesh, writer: Writer, console: Console):
        chip = chips.find(jax.devices()[0].device_kind)
        self._config, self._writer, self._console = config, writer, console
        self._speed = Speed(config.train.batch_size * config.data.seq_len, chip and chip.flops * mesh.size)
        self._unread: tuple[int, Mapping[str, jax.Array]] | None = None
        self._window: dict[str, list[float]] = {}
        self.bad_streak = 0

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
        self._speed.step(step_flops(self._config.at(step), variant_at(self._config, step)))
        skipped = values["skipped"] > 0
        self.bad_streak = self.bad_streak + 1 if skipped else 0
        if skipped:
            self._console.log(f"warning: step {step + 1} had a non-finite loss or gradient and was skipped")
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


def _give_up(config: Config, checkpoints: Checkpoints, state: TrainState, streak: int) -> None:
    checkpoints.save(state, None)
    checkpoints.wait()
    raise UserError(
        f"{streak} steps in a row had a non-finite loss or gradient (train.max_bad_steps); their updates were left "
        f"out, and the last good parameters are saved as step {int(state.step)}. Lower optimizer.learning_rate "
        f"({config.optimizer.learning_rate}) or lengthen the warm-up, and run again in this workdir"
    )


def _end(
    config: Config,
    workdir: epath.Path,
    data: setup.Data,
    mesh: Mesh,
    checkpoints: Checkpoints,
    result: Result,
    seconds: float,
) -> list[str]:
    if result.stopped_by is not None:
        return [f"stopped by signal {result.stopped_by} after step {result.step}; saved in {workdir}. "
                "Run the same command to resume"]  # fmt: skip
    evaluations = [line for line in read_metrics(workdir) if line.get("eval/loss") is not None]
    return [
        *report.summary(config, workdir, evaluations, checkpoints.best_step(), result.state, seconds),
        *report.fill_mask_examples(config, data, mesh, result.state),
    ]


def evaluate_workdir(
    config: Config, workdir: str | os.PathLike, log: Callable[[str], None] = print
) -> dict[str, float]:
    """Held-out metrics of a workdir's newest checkpoint.

    Raises:
      UserError: there is none, or the workdir is another config's.
    """
    workdir, log = storage.as_path(workdir), hosts.only_first(log)
    with storage.reaching(workdir):
        there = (workdir / "checkpoints").is_dir()
    if not there:
        raise UserError(f"workdir {workdir} has no checkpoints to evaluate")
    mesh, data = _open(config, workdir, log)
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        state = checkpoints.restore(state_shape(config, data.special, mesh), log)
    if state is None:
        raise UserError(f"workdir {workdir} has no checkpoints to evaluate")
    metrics = setup.make_evaluate(config, data, mesh)(state)
    log(report.evaluation_line(int(state.step), metrics))
    return metrics
