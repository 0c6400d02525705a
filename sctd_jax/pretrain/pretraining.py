"""Pretraining from a config to a finished workdir, and the evaluation of one."""

import dataclasses
import os
from collections.abc import Callable
from contextlib import closing

import jax
from etils import epath

from sctd_jax import schedules, storage
from sctd_jax.config import Config
from sctd_jax.data import frequencies
from sctd_jax.data.rows import HELD_OUT, TRAIN, Rows
from sctd_jax.errors import UserError
from sctd_jax.fields import unread
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain import report
from sctd_jax.pretrain.evaluation import make_evaluate
from sctd_jax.pretrain.flops import step_flops
from sctd_jax.pretrain.model import initial_state, make_model, on_devices, state_layout
from sctd_jax.pretrain.rows import open_loaders
from sctd_jax.pretrain.start import first_state, open_start
from sctd_jax.pretrain.step import compile_programs, program_at, programs_needed
from sctd_jax.pretrain.workdir import check_workdir, claim_workdir, folders, followed, open_rows
from sctd_jax.train import trackers
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import Track, ignore, read_metrics
from sctd_jax.train.state import TrainState
from sctd_jax.train.trainer import Job, Result, fit
from sctd_jax.train.workdir import CHECKPOINTS, held, read_config

_COUNTED = 4  # shards in a bucket whose pieces are counted where preparation has not


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
    trackers.check("train.track", config.train.track)
    with held(workdir, "training", log) as check:
        job = dataclasses.replace(open_job(config, workdir, log), on_step=on_step, track=track)
        return fit(job, workdir, check, log)


def open_job(config: Config, workdir: epath.Path, log: Callable[[str], None]) -> Job:
    """A config's training in a workdir, opened and checked: each check before the longer work that follows it."""
    config = followed(workdir, config, log)
    settled, attention, mesh = on_devices(config)
    check_workdir(workdir, config)
    train = config.train
    meshes.check_memory(mesh, settled.model, train, min(length for _, length in config.length_stages))
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        begins = not checkpoints.steps()
    init = open_start(config, log) if train.init and begins else None
    data = open_rows(workdir, config, log)
    metadata = [rows.metadata for rows in data.by_length().values()]
    hosts.check_same({"the config": config, "the prepared rows": metadata})
    cache_bytes = int(config.data.cache_gb * 1e9)
    rows = {length: Rows(of.folder, TRAIN, cache_bytes, log) for length, of in data.by_length().items()}
    loaders = open_loaders(config, rows, mesh, log)
    special = data.tokenizer.special
    counted = rows[config.data.seq_len].some(_COUNTED)
    logs_V = frequencies.log_frequencies(counted, config.model.vocab_size, special)
    counted.keep(())  # closes its shards
    # Rows of earlier code do not say it.
    unigram_loss = data.metadata.unigram_loss or frequencies.cross_entropy(Rows(data.folder, HELD_OUT), logs_V, special)
    warned: list[int] = []  # the evaluation after a quarter of the steps, which alone is warned of
    layout, programs = state_layout(settled, special, mesh), programs_needed(settled)
    flops = {name: step_flops(stage, variant) for name, (stage, variant) in programs.items()}

    def batch(step: int) -> jax.Array:
        stage = config.at(step)
        mine = meshes.host_rows(mesh, stage.train.batch_size)
        tokens_BN = loaders[stage.data.seq_len].read(config.rows_before(step) + mine)
        return meshes.put_batch(mesh, stage.train.batch_size, tokens_BN)

    def cost(step: int) -> tuple[int, float]:
        stage = config.at(step)
        return stage.train.batch_size * stage.data.seq_len, flops[program_at(config, step)]

    def start(state: TrainState) -> TrainState:
        return state if init is None else first_state(init, config, data, mesh, state, log)

    def evaluation_lines(step: int, metrics: dict[str, float]) -> list[str]:
        lines = report.evaluation_lines(step, metrics)
        if 4 * step < train.steps or step == train.steps or warned:  # the summary judges the last one
            return lines
        warned.append(step)
        return lines + report.no_context(config, step, metrics)

    def describe(state: TrainState) -> list[str]:
        step = int(state.step)
        past = read_metrics(workdir, lambda line: None) if step else []
        lines = report.start_table(config, attention, mesh, data, unigram_loss, state, past)
        lines += unread("config", config)
        lines += [*report.without_peak(config), *report.without_effect(config)]
        for field, schedule in (
            ("dropping.keep_schedule", config.dropping.keep_schedule if config.drops else ""),
            ("masking.rate_schedule", config.masking.rate_schedule),
            ("data.seq_len_schedule", config.data.seq_len_schedule),
            ("train.batch_schedule", train.batch_schedule),
        ):
            lines += schedules.beyond(f"config.{field}", schedule, train.steps)
        if step > 0 and (before := init.config if init else read_config(workdir)) != config:
            lines += report.schedule_lines(config, before, workdir, step)
        return lines + (report.cpu_warning(flops) if step < train.steps else [])

    return Job(
        config=train,
        mesh=mesh,
        init=lambda: initial_state(config, special),
        layout=layout,
        start=start,
        describe=describe,
        claim=lambda: claim_workdir(workdir, config, data.folder, log, folders(data)[1:]),
        compile=lambda: compile_programs(programs, special, mesh, layout, data.word_start_V, run=settled),
        program=lambda step: program_at(config, step),
        batch=batch,
        cost=cost,
        evaluate=make_evaluate(settled, data, mesh, layout, logs_V),
        evaluation_lines=evaluation_lines,
        advice=f"Lower optimizer.learning_rate ({config.optimizer.learning_rate}) or lengthen the warm-up, and run "
        "again in this workdir",
        blank=report.blank,
        settings=dataclasses.asdict(config),
        summary=lambda result, seconds: [
            *report.summary(config, workdir, result, seconds),
            *report.fill_mask_examples(
                make_model(config), data, mesh, result.state, late=config.dropping.method == "late_mask"
            ),
        ],
    )


def evaluate_workdir(
    config: Config, workdir: str | os.PathLike, log: Callable[[str], None] = print
) -> dict[str, float]:
    """Held-out metrics of a workdir's newest checkpoint."""
    folder, log = storage.as_path(workdir), hosts.on_first(log)
    state = None
    if storage.exists(folder / CHECKPOINTS):
        job = open_job(config, folder, log)
        with closing(Checkpoints(folder, read_only=True)) as checkpoints:
            state = checkpoints.restore(job.layout, log)
    if state is None:
        raise UserError(f"workdir {workdir} has no checkpoints to evaluate")
    metrics = job.evaluate(state)
    for line in job.evaluation_lines(int(state.step), metrics):
        log(line)
    return metrics
