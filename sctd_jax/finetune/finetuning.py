"""Fine-tuning from settings to predictions and a result."""

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
from sctd_jax.finetune.encode import Feature, by_example, encode
from sctd_jax.finetune.step import (
    Shape,
    compile_programs,
    initial_state,
    jit_logits,
    program_name,
    shape_of,
    step_flops,
)
from sctd_jax.finetune.workdir import Origin, check_workdir, claim_workdir, followed
from sctd_jax.model.attention import choose, platform_of
from sctd_jax.models import HIGHEST_SCORE, Model, open_model
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.tasks import scoring, submission
from sctd_jax.tasks.examples import Example, FileSettings
from sctd_jax.tasks.splits import TaskData, open_task
from sctd_jax.tasks.table import TASKS
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import Track, ignore, read_metrics
from sctd_jax.train.state import TrainState
from sctd_jax.train.step import state_shape
from sctd_jax.train.trainer import Job, Result, fit
from sctd_jax.train.workdir import held, write

RESULT_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples and their features."""

    examples: tuple[Example, ...]
    features: list[Feature]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a fine-tuning needs, checked and read."""

    settings: FinetuneConfig
    config: Config
    settled: Config  # config with the choice of attention, which the programs compute
    shape: Shape
    mesh: Mesh
    pretrained: Model
    step: int | None  # the checkpoint of `pretrained` to start from; None for a folder of transformers
    data: TaskData
    train: batches.TrainBatches
    dev: dict[str, Split]
    test: dict[str, Split]
    origin: Origin
    logits: Callable  # (params, batch) -> the network's outputs


def finetune(
    settings: FinetuneConfig,
    workdir: str | os.PathLike,
    log: Callable[[str], None] = print,
    on_step: Callable[[int], None] = lambda step: None,
    track: Track = ignore,
) -> Result:
    """Fine-tune a pretrained encoder on a task, resuming from the workdir's newest checkpoint.

    At the end, predictions of the best checkpoint (by the task's metric on its dev set) are in `predictions/`, in the
    official submission format, and what it reached in `result.json`.

    Args:
      settings: the run.
      workdir: its own; not the pretraining run's.
      log: receives the lines.
      on_step: called with the number of each step that was dispatched.
      track: called with each line of `metrics.jsonl`: the number of updates done, and values by name.
    """
    workdir, log = storage.as_path(workdir), hosts.on_first(log)
    with held(workdir, "fine-tuning", log) as check:
        made = prepare(settings, workdir, log)
        settings, config, mesh, shape, data, train = (
            made.settings, made.config, made.mesh, made.shape, made.data, made.train
        )  # fmt: skip

        def start(state: TrainState) -> TrainState:
            if settings.random_init:
                return state
            found = made.pretrained.params(made.step, mesh)
            # The pooler, if both have one: BERT's own has, token dropping trains none.
            taken = {name: found[name] for name in ("encoder", "pooler") if name in found and name in state.params}
            random = ", ".join(sorted(state.params.keys() - taken))
            log(f"taken from {settings.init}: {' and '.join(taken)}; random: {random}")
            params = jax.device_put(taken, {name: meshes.shardings(state.params[name]) for name in taken})
            return state.replace(params={**state.params, **params})

        def cost(step: int) -> tuple[int, float]:
            rows, length = settings.batch_size * shape.rows, train.group(step).length
            return rows * length, step_flops(config, rows, length)

        job = Job(
            config=config.train,
            mesh=mesh,
            init=lambda: initial_state(config, shape),
            layout=state_shape(lambda: initial_state(config, shape), mesh),
            start=start,
            describe=lambda state: report.start_table(settings, config, mesh, data, train.per_epoch),
            claim=lambda: claim_workdir(workdir, settings, config, made.origin, made.pretrained.tokenizer_file),
            compile=lambda: compile_programs(made.settled, shape, mesh, train.lengths(config.train.steps)),
            program=lambda step: program_name(train.group(step).length),
            batch=lambda step: _put(made, train.features, train.group(step)),
            cost=cost,
            evaluate=lambda state: _measure(made, _predict(made, state, made.dev)),
            evaluation_lines=report.evaluation_lines,
            advice="Fine-tune with a lower config.learning_rate, in another --workdir",
            best=HIGHEST_SCORE,
            evaluate_first=False,
            evaluate_when_stopping=True,
            on_step=on_step,
            track=track,
        )
        result = fit(job, workdir, check, log)
        if result.stopped_by is not None:
            return result

        with closing(Checkpoints(workdir, best=HIGHEST_SCORE, read_only=True)) as checkpoints:
            state = checkpoints.restore(job.layout, log, result.best_step)
        splits = made.dev | made.test
        predictions = _predict(made, state, splits)
        metrics = _measure(made, predictions)
        if hosts.is_first():
            for split, found in predictions.items():
                folder = workdir / "predictions"
                submission.write(TASKS[settings.task], split, splits[split].examples, found, folder, data.labels)
            reached = {
                "task": settings.task, "init": settings.init, "learning_rate": settings.learning_rate,
                "seed": settings.seed, "step": int(state.step), "seconds": read_metrics(workdir)[-1]["seconds"],
                **metrics,
            }  # fmt: skip
            write(workdir / RESULT_FILE, (json.dumps(reached, indent=1) + "\n").encode())
            for line in report.summary(workdir, settings, data, reached, config.train.steps):
                log(line)
        return dataclasses.replace(result, state=state)


def prepare(settings: FinetuneConfig, workdir: epath.Path, log: Callable[[str], None]) -> Prepared:
    """Check and read all that a fine-tuning needs, each check before the longer work that follows it."""
    settings = followed(workdir, settings, log)
    task = TASKS[settings.task]
    pretrained = open_model(settings.init, log, "config.init")
    step = pretrained.chosen_step()
    check_length(settings, pretrained.config.model)
    # Its own seed: what is held out of a single file must not depend on that of the training.
    files = FileSettings(settings.text_field, settings.pair_field, settings.label_field, settings.heldout_share)
    data = open_task(task, settings.data_dir, files)
    for note in data.notes:
        log(note)
    per_epoch = -(-len(data.train) // settings.batch_size)
    config = run_config(settings, pretrained.config, per_epoch)
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_sizes(mesh, config.model, config.train)
    digest = hashlib.sha256(repr(data.labels).encode())
    for example in itertools.chain(data.train, *data.dev.values()):
        digest.update(repr(example).encode())
    origin = Origin(data.labels, digest.hexdigest(), pretrained.identity(step))
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
    lengths = [("config.max_length", settings.max_length)]
    model, _ = choose(config.model, lengths, platform_of(mesh.devices.flat[0]))
    settled = dataclasses.replace(config, model=model)
    shape = shape_of(task, data.labels, len(train.features[0].rows))
    logits = jit_logits(settled, shape, mesh)
    return Prepared(settings, config, settled, shape, mesh, pretrained, step, data, ordered, dev, test, origin, logits)


def _put(made: Prepared, features: list[Feature], group: batches.Group) -> batches.TaskBatch:
    """A batch of features on the mesh; those that fill it up have weight 0."""
    mesh, count = made.mesh, made.settings.batch_size
    mine = meshes.host_rows(mesh, count)
    weights = (np.arange(count) < group.count)[mine]
    members = [features[i] for i in group.members[mine]]
    host_batch = batches.assemble(members, weights, group.length, made.pretrained.tokenizer.special.pad)
    return jax.tree.map(lambda rows: meshes.put_batch(mesh, count, rows), host_batch)


def _predict(made: Prepared, state: TrainState, splits: dict[str, Split]) -> dict[str, list]:
    """Predictions for the examples of each split, in batches of the training's size."""

    def outputs(features: list[Feature]) -> list[np.ndarray]:
        order = np.argsort([feature.length for feature in features], kind="stable")
        found: dict[int, np.ndarray] = {}
        for group in batches.group(features, order, made.settings.batch_size, made.settings.max_length):
            rows = np.asarray(made.logits(state.params, _put(made, features, group)))
            for i, row in zip(group.members[: group.count], rows, strict=False):
                found[int(i)] = row[: features[i].length] if made.shape.head == "span" else row
        return [found[i] for i in range(len(features))]

    task = TASKS[made.settings.task]
    return {
        split: scoring.predict(task, part.examples, by_example(task.head, part.features, outputs(part.features)))
        for split, part in splits.items()
    }


def _measure(made: Prepared, predictions: dict[str, list]) -> dict[str, float]:
    """The task's metrics from the predictions of its dev splits."""
    task, dev = TASKS[made.settings.task], made.dev
    return scoring.summarize(
        task, {split: scoring.measure(task, part.examples, predictions[split]) for split, part in dev.items()}
    )
