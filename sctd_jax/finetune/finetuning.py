"""finetune: read the task, encode, set up, restore, loop, predict."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from contextlib import closing

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.errors import UserError
from sctd_jax.finetune import batches, report
from sctd_jax.finetune.config import FinetuneConfig, check_length, run_config
from sctd_jax.finetune.encode import Feature, encode
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
from sctd_jax.finetune.workdir import Origin, check_workdir, claim_workdir, followed
from sctd_jax.models import HIGHEST_SCORE, Model, open_model
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.tasks import scoring, submission
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.reading import FileSettings, TaskData, open_task
from sctd_jax.tasks.tasks import TASKS
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.signals import stop_requests
from sctd_jax.train.state import TrainState
from sctd_jax.train.trainer import Job, Result, run
from sctd_jax.train.workdir import held, write

RESULT_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples and their features."""

    examples: tuple[Example, ...]
    features: list[Feature]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a fine-tuning needs, checked and read."""

    settings: FinetuneConfig
    config: Config
    shape: Shape
    mesh: Mesh
    pretrained: Model
    start: int | None  # its checkpoint that is taken; None of a folder of transformers
    data: TaskData
    train: batches.TrainBatches
    features: list[Feature]  # of the training examples
    dev: dict[str, Split]
    test: dict[str, Split]
    origin: Origin
    logits: Callable  # (params, batch) -> the network's outputs


def finetune(settings: FinetuneConfig, workdir: str | os.PathLike, log: Callable[[str], None] = print) -> Result:
    """Fine-tune a pretrained encoder on a task, resuming from the workdir's newest checkpoint.

    At the end, predictions of the best checkpoint (by the task's metric on its dev set) are in `predictions/`, in the
    official submission format, and what it reached in `result.json`.

    Args:
      settings: the run.
      workdir: its own; not the pretraining run's.
      log: receives the lines.

    Raises:
      UserError: anything a person can put right; checkpoints that were saved stay.
    """
    workdir, log = storage.as_path(workdir), hosts.only_first(log)
    with held(workdir, "fine-tuning", log) as check:
        return _finetune(settings, workdir, check, log)


def _finetune(settings: FinetuneConfig, workdir: epath.Path, check: Callable, log: Callable) -> Result:
    made = prepare(settings, workdir, log)
    settings, config, mesh, shape = made.settings, made.config, made.mesh, made.shape
    keep = config.train.keep_checkpoints
    with closing(Checkpoints(workdir, keep, best=HIGHEST_SCORE, check=check)) as checkpoints:
        state = checkpoints.restore(state_shape(config, shape, mesh), log)
        if state is None:
            state = _new_state(made, log)
        else:
            checkpoints.set_aside(after_step=int(state.step), log=log)
            log(f"resuming at step {int(state.step)}")
        claim_workdir(workdir, settings, config, made.origin, made.pretrained.tokenizer_file)
        for line in report.start_table(settings, config, mesh, made.data, made.train.per_epoch):
            log(line)
        with stop_requests() as stop:
            result = run(_job(made), workdir, checkpoints, state, stop, log)
        if result.stopped_by is not None:
            log(f"stopped by signal {result.stopped_by} after step {result.step}; saved in {workdir}. "
                "Run the same command to resume")  # fmt: skip
            return result
        best = checkpoints.best_step()
        state = checkpoints.restore(state_shape(config, shape, mesh), log, best)
    _finish(made, workdir, state, log)
    return dataclasses.replace(result, state=state)


def prepare(settings: FinetuneConfig, workdir: epath.Path, log: Callable[[str], None]) -> Prepared:
    """Check and read all that a fine-tuning needs, each check before the longer work that follows it.

    Raises:
      UserError: as `finetune`.
    """
    settings = followed(workdir, settings, log)
    task = TASKS[settings.task]
    pretrained = open_model(settings.init, log, "config.init")
    start = pretrained.chosen_step()
    check_length(settings, pretrained.config.model)
    # Its own seed: what is held out of a single file must not depend on that of the training.
    files = FileSettings(settings.text_field, settings.pair_field, settings.label_field, settings.heldout_share)
    data = open_task(settings.task, settings.data_dir, files)
    for note in data.notes:
        log(note)
    per_epoch = -(-len(data.train) // settings.batch_size)
    config = run_config(settings, pretrained.config, per_epoch)
    mesh = meshes.make_mesh(config)
    origin = Origin(data.labels, _digest(data), pretrained.identity(start))
    check_workdir(workdir, settings, config, origin)
    hosts.check_same({"the config": settings, "the task's data and the start": origin})

    def split(name: str, examples: tuple[Example, ...]) -> Split:
        def say(line: str) -> None:
            log(f"{name}: {line}")

        try:
            return Split(examples, encode(pretrained.tokenizer, examples, task.head, settings.max_length, say))
        except UserError as error:
            raise UserError(f"{settings.data_dir}, {name}: {error}") from error

    train = split("train", data.train)
    dev, test = ({name: split(name, examples) for name, examples in part.items()} for part in (data.dev, data.test))
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
    return Prepared(
        settings, config, shape, mesh, pretrained, start, data, ordered, train.features, dev, test, origin, logits
    )


def _digest(data: TaskData) -> str:
    found = hashlib.sha256(repr(data.labels).encode())
    for example in itertools.chain(data.train, *data.dev.values()):
        found.update(repr(example).encode())
    return found.hexdigest()


def _new_state(made: Prepared, log: Callable[[str], None]) -> TrainState:
    config, shape = made.config, made.shape
    laid_out = state_shape(config, shape, made.mesh)
    state = meshes.jit_init(lambda: initial_state(config, shape), laid_out)()
    if made.settings.random_init:
        return state
    found = made.pretrained.params(made.start, made.mesh)
    # Where the head has one, and the pretrained model too: BERT's own has, token dropping trains none.
    taken = {name: found[name] for name in ("encoder", "pooler") if name in found and name in state.params}
    random = ", ".join(sorted(state.params.keys() - taken))
    log(f"taken from {made.settings.init}: {' and '.join(taken)}; random: {random}")
    params = jax.device_put(taken, {name: meshes.shardings(laid_out.params[name]) for name in taken})
    return state.replace(params={**state.params, **params})


def _job(made: Prepared) -> Job:
    config, mesh, train = made.config, made.mesh, made.train
    count = config.train.batch_size
    mine = meshes.host_rows(mesh, count)
    pad_id = made.pretrained.tokenizer.special["pad"]

    def batch(step: int):
        return _put(mesh, made.features, train.group(step), mine, count, pad_id)

    def work(step: int) -> tuple[int, float]:
        rows, length = count * made.shape.rows, train.group(step).length
        return rows * length, step_flops(config, rows, length)

    def evaluate(state: TrainState) -> dict[str, float]:
        return _measure(made, _predict(made, state, made.dev))

    return Job(
        config=config,
        mesh=mesh,
        compile=lambda: compile_steps(config, made.shape, mesh, train.lengths(config.train.steps)),
        program=lambda step: program_name(train.group(step).length),
        batch=batch,
        work=work,
        evaluate=evaluate,
        evaluation_lines=report.evaluation_lines,
        advice="Fine-tune with a lower config.learning_rate, in another --workdir",
        evaluate_first=False,
        evaluate_when_stopping=True,
    )


def _put(mesh: Mesh, features: list[Feature], group: batches.Group, mine: np.ndarray, count: int, pad_id: int):
    weights = (np.arange(count) < group.count)[mine]
    members = [features[i] for i in group.members[mine]]
    host_batch = batches.assemble(members, weights, group.length, pad_id)
    return jax.tree.map(lambda rows: meshes.put_batch(mesh, count, rows), host_batch)


def _outputs(made: Prepared, state: TrainState, features: list[Feature]) -> list[np.ndarray]:
    """The logits of features, in their order, in batches of the training's size."""
    mesh, count = made.mesh, made.config.train.batch_size
    mine, pad_id = meshes.host_rows(mesh, count), made.pretrained.tokenizer.special["pad"]
    order = np.argsort([feature.length for feature in features], kind="stable")
    found: dict[int, np.ndarray] = {}
    for group in batches.group(features, order, count, made.settings.max_length):
        rows = np.asarray(made.logits(state.params, _put(mesh, features, group, mine, count, pad_id)))
        for i, row in zip(group.members[: group.count], rows, strict=False):
            found[int(i)] = row[: features[i].length] if made.shape.head == "span" else row
    return [found[i] for i in range(len(features))]


def _predict(made: Prepared, state: TrainState, splits: dict[str, Split]) -> dict[str, list]:
    return {
        split: scoring.predict(made.settings.task, part.examples, part.features, _outputs(made, state, part.features))
        for split, part in splits.items()
    }


def _measure(made: Prepared, predictions: dict[str, list]) -> dict[str, float]:
    """The task's metrics from the predictions of its dev splits."""
    name, dev = made.settings.task, made.dev
    return scoring.summarize(
        name, {split: scoring.measure(name, part.examples, predictions[split]) for split, part in dev.items()}
    )


def _finish(made: Prepared, workdir: epath.Path, state: TrainState, log: Callable) -> None:
    """Write the best checkpoint's predictions and result."""
    settings, data, splits = made.settings, made.data, made.dev | made.test
    predictions = _predict(made, state, splits)
    metrics = _measure(made, predictions)
    if not hosts.is_first():
        return
    for split, found in predictions.items():
        submission.write(settings.task, split, splits[split].examples, found, workdir / "predictions", data.labels)
    result = {
        "task": settings.task, "init": settings.init, "learning_rate": settings.learning_rate, "seed": settings.seed,
        "step": int(state.step), "seconds": read_metrics(workdir)[-1]["seconds"], **metrics,
    }  # fmt: skip
    write(workdir / RESULT_FILE, (json.dumps(result, indent=1) + "\n").encode())
    for line in report.summary(workdir, settings, data, result, made.config.train.steps):
        log(line)
