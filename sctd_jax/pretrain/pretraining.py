"""train_and_evaluate: set up, restore, loop."""

import os
import time
from collections.abc import Callable
from contextlib import closing

from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data.rows import METADATA_FILE, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.model import attention
from sctd_jax.model.token_dropping import check_selector
from sctd_jax.models import check_init
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain import report, setup
from sctd_jax.pretrain.compiling import state_shape
from sctd_jax.pretrain.flops import step_flops
from sctd_jax.pretrain.step import step_name, variant_at
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.signals import stop_requests
from sctd_jax.train.state import TrainState
from sctd_jax.train.trainer import Job, Result, run
from sctd_jax.train.workdir import (
    check_rows,
    check_workdir,
    claim_workdir,
    followed,
    has_checkpoints,
    held,
    read_config,
)


def train_and_evaluate(config: Config, workdir: str | os.PathLike, log: Callable[[str], None] = print) -> Result:
    """Train a config in a workdir up to `train.steps`, resuming from its newest checkpoint.

    Raises:
      UserError: anything a person can put right; checkpoints that were saved stay.
    """
    workdir, log = storage.as_path(workdir), hosts.only_first(log)
    with held(workdir, "training", log) as check:
        return _train(config, workdir, check, log)


def _train(config: Config, workdir: epath.Path, check: Callable[[], None], log: Callable[[str], None]) -> Result:
    config, mesh, data = _open(config, workdir, log)
    with closing(Checkpoints(workdir, config.train.keep_checkpoints, check=check)) as checkpoints:
        state = _restore(config, data, mesh, checkpoints, log)
        before = read_config(workdir) if state.step > 0 else config
        claim_workdir(workdir, config, data.folder, log)
        for line in report.start_table(config, mesh, data, state):
            log(line)
        if before != config:
            for line in report.schedule_lines(config, before, workdir, int(state.step)):
                log(line)
        started = time.monotonic()
        with stop_requests() as stop:
            if state.step < config.train.steps:
                for line in report.cpu_warning(config):
                    log(line)
            result = run(_job(config, mesh, data), workdir, checkpoints, state, stop, log)
        for line in _end(config, workdir, data, mesh, checkpoints, result, time.monotonic() - started):
            log(line)
        return result


def _open(config: Config, workdir: epath.Path, log: Callable[[str], None]) -> tuple[Config, Mesh, setup.Data]:
    """Config, mesh and rows of a run, each check before the longer work that follows it."""
    config = followed(workdir, config, log)
    check_selector(config.dropping.selector)
    mesh = meshes.make_mesh(config)
    attention.choose(config, attention.platform_of(mesh.devices.flat[0]))  # an impossible one ends the run here
    check_workdir(workdir, config)
    if config.train.init and not has_checkpoints(workdir):
        check_init(config)
    began = read_metadata(workdir) if (workdir / METADATA_FILE).is_file() else None
    data = setup.open_data(config, log, began)
    check_rows(workdir, data.folder)
    hosts.check_same({"the config": config, "the prepared rows": data.metadata})
    return config, mesh, data


def _restore(config: Config, data: setup.Data, mesh, checkpoints: Checkpoints, log: Callable) -> TrainState:
    state = checkpoints.restore(state_shape(config, data.special, mesh), log)
    if state is None:
        return setup.new_state(config, data, mesh, log)
    step = int(state.step)
    checkpoints.set_aside(after_step=step, log=log)
    if step > config.train.steps:
        raise UserError(f"config.train.steps is {config.train.steps}, but the workdir has trained {step} already")
    log(f"resuming at step {step}")
    return state


def _job(config: Config, mesh: Mesh, data: setup.Data) -> Job:
    loader = setup.train_loader(config, data, mesh)
    tokens = config.train.batch_size * config.data.seq_len
    return Job(
        config=config,
        mesh=mesh,
        compile=lambda: setup.compile_steps(config, data, mesh),
        program=lambda step: step_name(config, step),
        batch=lambda step: meshes.put_batch(mesh, config.train.batch_size, loader.batch(step)),
        work=lambda step: (tokens, step_flops(config.at(step), variant_at(config, step))),
        evaluate=setup.make_evaluate(config, data, mesh),
        evaluation_lines=report.evaluation_lines,
        advice=f"Lower optimizer.learning_rate ({config.optimizer.learning_rate}) or lengthen the warm-up, and run "
        "again in this workdir",
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
    config, mesh, data = _open(config, workdir, log)
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        state = checkpoints.restore(state_shape(config, data.special, mesh), log)
    if state is None:
        raise UserError(f"workdir {workdir} has no checkpoints to evaluate")
    metrics = setup.make_evaluate(config, data, mesh)(state)
    for line in report.evaluation_lines(int(state.step), metrics):
        log(line)
    return metrics
