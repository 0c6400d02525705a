"""finetune: read the task, encode, set up, restore, loop, predict."""

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.errors import UserError
from sctd_jax.finetune import batches, report, scoring, submission
from sctd_jax.finetune.encode import Feature, encode
from sctd_jax.finetune.examples import Example
from sctd_jax.finetune.finetuned import HIGHEST_SCORE
from sctd_jax.finetune.pretrained import Pretrained, open_pretrained
from sctd_jax.finetune.reading import FileSettings, TaskData, open_task
from sctd_jax.finetune.settings import FinetuneConfig, run_config
from sctd_jax.finetune.step import (
    Shape,
    compile_steps,
    initial_state,
    jit_logits,
    program_name,
    shape_of,
    state_shape,
    step_flops,
)
from sctd_jax.finetune.tasks import TASKS
from sctd_jax.finetune.workdir import check_workdir, claim_workdir
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.train.checkpoint import Checkpoints, write
from sctd_jax.train.job import Job, Result, run
from sctd_jax.train.signals import stop_requests
from sctd_jax.train.state import TrainState

RESULT_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class _Split:
    """Examples and their features."""

    examples: tuple[Example, ...]
    features: list[Feature]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a fine-tuning needs, checked and read."""

    settings: FinetuneConfig
    config: Config
    shape: Shape
    mesh: Mesh
    pretrained: Pretrained
    data: TaskData
    train: batches.TrainBatches
    features: list[Feature]  # of the training examples
    dev: dict[str, _Split]
    test: dict[str, _Split]
    digest: str  # of the labelled examples
    logits: Callable  # (params, batch) -> the network's outputs


def finetune(
    settings: FinetuneConfig, workdir: str | os.PathLike, recipe: Mapping, log: Callable[[str], None] = print
) -> Result:
    """Fine-tune a pretrained encoder on a task, resuming from the workdir's newest checkpoint.

    At the end, predictions of the best checkpoint (by the task's metric on its dev set) are in `predictions/`, in the
    official submission format, and what it reached in `result.json`.

    Args:
      settings: the run.
      workdir: its own; not the pretraining run's.
      recipe: sections of a config, for what a folder of transformers does not say.
      log: receives the lines.

    Raises:
      UserError: anything a person can put right; checkpoints that were saved stay.
    """
    workdir, log = storage.as_path(workdir), hosts.only_first(log)
    job_run = _open(settings, workdir, recipe, log)
    config, mesh, shape = job_run.config, job_run.mesh, job_run.shape
    with closing(Checkpoints(workdir, config.train.keep_checkpoints, best=HIGHEST_SCORE)) as checkpoints:
        state = checkpoints.restore(state_shape(config, shape, mesh), log)
        if state is None:
            state = _new_state(job_run)
        else:
            checkpoints.set_aside(after_step=int(state.step))
            log(f"resuming at step {int(state.step)}")
        claim_workdir(workdir, settings, config, job_run.data.labels, job_run.digest, job_run.pretrained.tokenizer_file)
        for line in report.start_table(settings, config, mesh, job_run.data, job_run.train.per_epoch):
            log(line)
        began = time.monotonic()
        with stop_requests() as stop:
            result = run(_job(job_run), workdir, checkpoints, state, stop, log)
        if result.stopped_by is not None:
            log(f"stopped by signal {result.stopped_by} after step {result.step}; saved in {workdir}. "
                "Run the same command to resume")  # fmt: skip
            return result
        best = checkpoints.best_step()
        state = checkpoints.restore(state_shape(config, shape, mesh), log, best)
    _finish(job_run, workdir, state, time.monotonic() - began, log)
    return dataclasses.replace(result, state=state)


def _open(settings: FinetuneConfig, workdir: epath.Path, recipe: Mapping, log: Callable[[str], None]) -> _Run:
    """Each check before the longer work that follows it."""
    task = TASKS[settings.task]
    pretrained = open_pretrained(settings.init, recipe, log)
    data = read_data(settings)
    for note in data.notes:
        log(note)
    per_epoch = -(-len(data.train) // settings.batch_size)
    config = run_config(settings, pretrained.config, per_epoch)
    mesh = meshes.make_mesh(config)
    digest = _digest(data)
    check_workdir(workdir, settings, config, data.labels, digest)
    hosts.check_same({"the config": settings, "the task's data": digest})

    def split(examples: tuple[Example, ...]) -> _Split:
        return _Split(examples, encode(pretrained.tokenizer, examples, task.head, settings.max_length))

    train = split(data.train)
    dev, test = ({name: split(examples) for name, examples in part.items()} for part in (data.dev, data.test))
    counts = {len(part.features[0].rows) for part in (train, *dev.values(), *test.values())}
    if len(counts) > 1:
        raise UserError(f"the splits of {settings.task} have different numbers of choices: {sorted(counts)}")
    ordered = batches.TrainBatches(
        train.features, batch_size=settings.batch_size, seed=settings.seed, max_length=settings.max_length
    )
    # Windows make more features than examples; the schedule's length follows from them.
    config = run_config(settings, pretrained.config, ordered.per_epoch)
    shape = shape_of(task, data.labels, len(train.features[0].rows))
    logits = jit_logits(config, shape, mesh)
    return _Run(settings, config, shape, mesh, pretrained, data, ordered, train.features, dev, test, digest, logits)


def read_data(settings: FinetuneConfig) -> TaskData:
    """The task's examples.

    Raises:
      UserError: files are missing or malformed.
    """
    # Its own seed: what is held out of a single file must not depend on that of the training.
    files = FileSettings(settings.text_field, settings.pair_field, settings.label_field, settings.heldout_share)
    return open_task(settings.task, settings.data_dir, files)


def _digest(data: TaskData) -> str:
    found = hashlib.sha256(repr(data.labels).encode())
    for example in itertools.chain(data.train, *data.dev.values()):
        found.update(repr(example).encode())
    return found.hexdigest()


def _new_state(job_run: _Run) -> TrainState:
    config, shape = job_run.config, job_run.shape
    laid_out = state_shape(config, shape, job_run.mesh)
    state = meshes.jit_init(lambda: initial_state(config, shape), laid_out)()
    if job_run.settings.random_init:
        return state
    encoder = jax.device_put(job_run.pretrained.encoder(job_run.mesh), meshes.shardings(laid_out.params["encoder"]))
    return state.replace(params={**state.params, "encoder": encoder})


def _job(job_run: _Run) -> Job:
    config, mesh, train = job_run.config, job_run.mesh, job_run.train
    count = config.train.batch_size
    mine = meshes.host_rows(mesh, count)
    pad_id = job_run.pretrained.tokenizer.special["pad"]

    def batch(step: int):
        return _put(mesh, job_run.features, train.group(step), mine, count, pad_id)

    def work(step: int) -> tuple[int, float]:
        rows, length = count * job_run.shape.rows, train.group(step).length
        return rows * length, step_flops(config, rows, length)

    def evaluate(state: TrainState) -> dict[str, float]:
        return _measure(job_run, _predict(job_run, state, job_run.dev))

    return Job(
        config=config,
        mesh=mesh,
        compile=lambda: compile_steps(config, job_run.shape, mesh, train.lengths(config.train.steps)),
        program=lambda step: program_name(train.group(step).length),
        batch=batch,
        work=work,
        evaluate=evaluate,
        evaluation_line=report.evaluation_line,
        evaluate_first=False,
    )


def _put(mesh: Mesh, features: list[Feature], group: batches.Group, mine: np.ndarray, count: int, pad_id: int):
    weights = (np.arange(count) < group.count)[mine]
    members = [features[i] for i in group.members[mine]]
    host_batch = batches.assemble(members, weights, group.length, pad_id)
    return jax.tree.map(lambda rows: meshes.put_batch(mesh, count, rows), host_batch)


def _outputs(job_run: _Run, state: TrainState, features: list[Feature]) -> list[np.ndarray]:
    """The logits of features, in their order, in batches of the training's size."""
    mesh, count = job_run.mesh, job_run.config.train.batch_size
    mine, pad_id = meshes.host_rows(mesh, count), job_run.pretrained.tokenizer.special["pad"]
    order = np.argsort([feature.length for feature in features], kind="stable")
    found: dict[int, np.ndarray] = {}
    for group in batches.group(features, order, count, job_run.settings.max_length):
        rows = np.asarray(job_run.logits(state.params, _put(mesh, features, group, mine, count, pad_id)))
        for i, row in zip(group.members[: group.count], rows, strict=False):
            found[int(i)] = row[: features[i].length] if job_run.shape.head == "span" else row
    return [found[i] for i in range(len(features))]


def _predict(job_run: _Run, state: TrainState, splits: dict[str, _Split]) -> dict[str, list]:
    return {
        split: scoring.predict(
            job_run.settings.task, part.examples, part.features, _outputs(job_run, state, part.features)
        )
        for split, part in splits.items()
    }


def _measure(job_run: _Run, predictions: dict[str, list]) -> dict[str, float]:
    """The task's metrics from the predictions of its dev splits."""
    name, dev = job_run.settings.task, job_run.dev
    return scoring.summarize(
        name, {split: scoring.measure(name, part.examples, predictions[split]) for split, part in dev.items()}
    )


def _finish(job_run: _Run, workdir: epath.Path, state: TrainState, seconds: float, log: Callable) -> None:
    """Write the best checkpoint's predictions and result."""
    settings, data, splits = job_run.settings, job_run.data, job_run.dev | job_run.test
    predictions = _predict(job_run, state, splits)
    metrics = _measure(job_run, predictions)
    if not hosts.is_first():
        return
    for split, found in predictions.items():
        submission.write(settings.task, split, splits[split].examples, found, workdir / "predictions", data.labels)
    result = {
        "task": settings.task, "init": settings.init, "learning_rate": settings.learning_rate, "seed": settings.seed,
        "step": int(state.step), "seconds": round(seconds, 1), **metrics,
    }  # fmt: skip
    write(workdir / RESULT_FILE, (json.dumps(result, indent=1) + "\n").encode())
    for line in report.summary(workdir, settings, data, result, job_run.config.train.steps):
        log(line)
