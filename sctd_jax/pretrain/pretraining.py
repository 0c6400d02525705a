"""Pretraining from a config to a finished workdir, and the evaluation of one."""

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import closing

from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data.loader import Loader
from sctd_jax.data.rows import METADATA_FILE, TRAIN, Rows, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.model.attention import platform_of
from sctd_jax.model.token_dropping import check_selector
from sctd_jax.models import check_init, open_run
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain import report
from sctd_jax.pretrain.evaluation import make_evaluate
from sctd_jax.pretrain.flops import step_flops
from sctd_jax.pretrain.model import initial_state, settle, state_layout
from sctd_jax.pretrain.rows import Data, open_data
from sctd_jax.pretrain.step import compile_programs, program_at, variant_at
from sctd_jax.pretrain.workdir import check_rows, check_workdir, claim_workdir, followed
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import Track, ignore
from sctd_jax.train.state import TrainState
from sctd_jax.train.trainer import Job, Result, fit
from sctd_jax.train.workdir import CHECKPOINTS, has_checkpoints, held, read_config


def train_and_evaluate(
    config: Config,
    workdir: str | os.PathLike,
    log: Callable[[str], None] = print,
    on_step: Callable[[int], None] = lambda step: None,
    track: Track = ignore,
) -> Result:
    """Train a config in a workdir up to `train.steps`, resuming from its newest checkpoint.

    Args:
      config: config of the run.
      workdir: folder of the run, made if it is not there; checkpoints in it survive whatever ends the run.
      log: receives the lines.
      on_step: called with the number of each step that was dispatched.
      track: called with each line of `metrics.jsonl`: the number of updates done, and values by name.
    """
    workdir, log = storage.as_path(workdir), hosts.on_first(log)
    with held(workdir, "training", log) as check:
        config, settled, attention, mesh, data = _open(config, workdir, log)
        train = config.train
        rows_here = meshes.host_rows(mesh, train.batch_size)
        loader = Loader(Rows(data.folder, TRAIN), batch_size=train.batch_size, seed=train.seed, host_rows=rows_here)

        def start(state: TrainState) -> TrainState:
            if not train.init:
                return state
            step, found = open_run(storage.as_path(train.init), log).read(None, mesh)
            log(f"starting from the parameters of {train.init} at step {step}")
            return dataclasses.replace(state, params=found["params"])

        def describe(state: TrainState) -> list[str]:
            step, lines = int(state.step), report.start_table(config, attention, mesh, data, state)
            if step > 0 and (before := read_config(workdir)) != config:
                lines += report.schedule_lines(config, before, workdir, step)
            return lines + (report.cpu_warning(config) if step < train.steps else [])

        job = Job(
            config=train,
            mesh=mesh,
            init=lambda: initial_state(config, data.tokenizer.special),
            start=start,
            describe=describe,
            claim=lambda: claim_workdir(workdir, config, data.folder, log),
            compile=lambda: compile_programs(settled, data.tokenizer.special, mesh, data.word_start_V),
            program=lambda step: program_at(config, step),
            batch=lambda step: meshes.put_batch(mesh, train.batch_size, loader.batch(step)),
            cost=lambda step: (
                train.batch_size * config.data.seq_len,
                step_flops(config.at(step), variant_at(config, step)),
            ),
            evaluate=make_evaluate(settled, data, mesh),
            evaluation_lines=report.evaluation_lines,
            advice=f"Lower optimizer.learning_rate ({config.optimizer.learning_rate}) or lengthen the warm-up, and run "
            "again in this workdir",
            blank=report.blank,
            on_step=on_step,
            track=track,
        )
        began = time.monotonic()
        result = fit(job, workdir, check, log)
        if result.stopped_by is None:
            summary = report.summary(config, workdir, result, time.monotonic() - began)
            for line in summary + report.fill_mask_examples(config, data, mesh, result.state):
                log(line)
        return result


def _open(config: Config, workdir: epath.Path, log: Callable[[str], None]) -> tuple[Config, Config, str, Mesh, Data]:
    """Config, the same settled with a text on attention, mesh and rows; each check before the longer work after it."""
    config = followed(workdir, config, log)
    check_selector(config.dropping.selector)
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_sizes(mesh, config.model, config.train)
    settled, attention = settle(config, platform_of(mesh.devices.flat[0]))
    check_workdir(workdir, config)
    if config.train.init and not has_checkpoints(workdir):
        check_init(config)
    began = read_metadata(workdir) if (workdir / METADATA_FILE).is_file() else None
    data = open_data(config, log, began)
    check_rows(workdir, data.folder)
    hosts.check_same({"the config": config, "the prepared rows": data.metadata})
    return config, settled, attention, mesh, data


def evaluate_workdir(
    config: Config, workdir: str | os.PathLike, log: Callable[[str], None] = print
) -> dict[str, float]:
    """Held-out metrics of a workdir's newest checkpoint."""
    folder, log = storage.as_path(workdir), hosts.on_first(log)
    state = None
    if storage.exists(folder / CHECKPOINTS):
        _, config, _, mesh, data = _open(config, folder, log)
        with closing(Checkpoints(folder, read_only=True)) as checkpoints:
            state = checkpoints.restore(state_layout(config, data.tokenizer.special, mesh), log)
    if state is None:
        raise UserError(f"workdir {workdir} has no checkpoints to evaluate")
    metrics = make_evaluate(config, data, mesh)(state)
    for line in report.evaluation_lines(int(state.step), metrics):
        log(line)
    return metrics
