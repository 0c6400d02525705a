"""Fine-tuning from settings to predictions and a result."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import jax
from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError, printable, writing
from sctd_jax.fields import require, unread
from sctd_jax.finetune import batches, report
from sctd_jax.finetune.config import FinetuneConfig, run_config
from sctd_jax.finetune.encode import Feature, by_example, encode
from sctd_jax.finetune.predicting import outputs
from sctd_jax.finetune.step import Shape, compile_programs, initial_state, jit_logits, program_name, shape_of
from sctd_jax.finetune.workdir import PREDICTIONS, RESULT_FILE, Origin, check_workdir, claim_workdir, followed
from sctd_jax.model.attention import choose, platform_of
from sctd_jax.model.families import FAMILIES, whole_row_flops
from sctd_jax.models import HIGHEST_SCORE, Model, open_model
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.tasks import scoring, submission
from sctd_jax.tasks.examples import Example, FileSettings
from sctd_jax.tasks.splits import TaskData, open_task
from sctd_jax.tasks.table import TASKS
from sctd_jax.train import trackers
from sctd_jax.train.checkpoint import Checkpoints, RemovedError
from sctd_jax.train.metrics import Track, ignore, read_metrics
from sctd_jax.train.state import TrainState
from sctd_jax.train.step import state_shape
from sctd_jax.train.trainer import Job, Result, fit
from sctd_jax.train.workdir import held


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that a fine-tuning needs, checked and read."""

    settings: FinetuneConfig
    config: Config
    settled: Config  # config with the choice of attention, which the programs compute
    shape: Shape
    mesh: Mesh
    layout: TrainState  # the state's shapes, with its shardings on the mesh
    pretrained: Model
    step: int | None  # the checkpoint of `pretrained` to start from; None for a folder of transformers
    data: TaskData
    features: dict[str, list[Feature]]  # those of each split, 'train' among them
    train: batches.TrainBatches
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
    official submission format, and what it reached in `result.json`. `workdir` is its own, not the pretraining run's.

    `on_step` is called with the number of each step that was dispatched, `track` with each line of `metrics.jsonl`: the
    number of updates done, and values by name.
    """
    workdir, log = storage.as_path(workdir), hosts.on_first(log)
    with held(workdir, "fine-tuning", log) as check:
        made = prepare(settings, workdir, log)
        settings, config, mesh, shape, data, train = (
            made.settings, made.config, made.mesh, made.shape, made.data, made.train
        )  # fmt: skip
        task, origin = TASKS[settings.task], made.origin
        floors = scoring.floors(task, data)

        def start(state: TrainState) -> TrainState:
            nonlocal origin
            if settings.random_init:
                return state
            step, found = made.step, None
            while found is None:
                try:
                    found = made.pretrained.params(step, mesh)
                except RemovedError as error:  # its training goes on beside this one
                    step, identity = made.pretrained.identified()
                    hosts.check_same({"the start": identity})
                    log(f"{error}; starting from step {step}")
                    origin = dataclasses.replace(origin, init_identity=identity)
            # The pooler, if both have one: BERT's own has, token dropping trains none.
            found = {"encoder": found["encoder"], "pooler": FAMILIES[config.model.family].summary_params(found)}
            taken = {name: params for name, params in found.items() if params and name in state.params}
            random = ", ".join(sorted(state.params.keys() - taken))
            log(f"taken from {settings.init}: {' and '.join(taken)}; random: {random}")
            params = jax.device_put(taken, {name: meshes.shardings(state.params[name]) for name in taken})
            return state.replace(params={**state.params, **params})

        def cost(step: int) -> tuple[int, float]:
            rows, length = settings.batch_size * shape.rows, train.group(step).length
            # FLOPs by formula; the head's are left out.
            return rows * length, 3 * rows * whole_row_flops(config.model, range(config.model.num_layers), length)

        job = Job(
            config=config.train,
            mesh=mesh,
            init=lambda: initial_state(config, shape),
            layout=made.layout,
            start=start,
            describe=lambda state: report.start_table(settings, config, mesh, data, train.per_epoch, floors),
            claim=lambda: claim_workdir(workdir, settings, config, origin, made.pretrained.tokenizer_file),
            compile=lambda: compile_programs(made.settled, shape, mesh, made.layout, train.lengths(config.train.steps)),
            program=lambda step: program_name(train.group(step).length),
            batch=lambda step: batches.put(
                mesh, train.features, train.group(step), made.pretrained.tokenizer.special.pad
            ),
            cost=cost,
            evaluate=lambda state: scoring.measure(task, data.dev, _predict(made, state, data.dev), data.labels),
            evaluation_lines=report.evaluation_lines,
            advice="Fine-tune with a lower config.learning_rate, in another --workdir",
            best=HIGHEST_SCORE,
            evaluate_first=False,
            evaluate_when_stopping=True,
            patience=settings.patience,
            on_step=on_step,
            track=track,
            settings=dataclasses.asdict(settings) | {"model": dataclasses.asdict(config.model)},
        )
        result = fit(job, workdir, check, log)
        if result.stopped_by is not None:
            return result

        with closing(Checkpoints(workdir, best=HIGHEST_SCORE, read_only=True)) as checkpoints:
            state = checkpoints.restore(job.layout, log, result.best_step)
        splits = data.dev | data.test
        predictions = _predict(made, state, splits)
        if hosts.is_first():
            with writing(f"workdir {workdir}"):
                for split, found in predictions.items():
                    submission.write(task, split, splits[split], found, workdir / PREDICTIONS, data.labels)
            reached = {
                "task": settings.task, "init": settings.init, "learning_rate": settings.learning_rate,
                "seed": settings.seed, "step": int(state.step), "seconds": read_metrics(workdir)[-1]["seconds"],
                **scoring.measure(task, data.dev, predictions, data.labels), "floor": floors,
            }  # fmt: skip
            if task.scored and "test" in data.test:
                on_test = scoring.measure(task, {"test": data.test["test"]}, predictions, data.labels)
                reached |= {name.replace("eval/", "test/"): value for name, value in on_test.items()}
            with writing(f"workdir {workdir}"):
                storage.write(workdir / RESULT_FILE, (json.dumps(reached, indent=1) + "\n").encode())
            for line in report.summary(workdir, settings, data, reached, result.step):
                log(line)
        return dataclasses.replace(result, state=state)


def prepare(settings: FinetuneConfig, workdir: epath.Path, log: Callable[[str], None]) -> Prepared:
    """Check and read all that a fine-tuning needs, each check before the longer work that follows it."""
    trackers.check("track", settings.track)
    settings = followed(workdir, settings, log)
    for line in unread("config", settings):
        log(line)
    task = TASKS[settings.task]
    pretrained = open_model(settings.init, log, "config.init")
    step, identity = pretrained.identified()
    positions, length = pretrained.config.model.max_positions, settings.max_length
    too_long = f"({length}) must not exceed the {positions} positions of {settings.init}"
    require(length <= positions, "max_length", too_long)
    data = open_task(task, settings.data_dir, FileSettings.of(settings))
    for note in data.notes:
        log(note)
    per_epoch = -(-len(data.train) // settings.batch_size)
    config = run_config(settings, pretrained.config, per_epoch)
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_sizes(mesh, config.model, config.train)
    meshes.check_memory(mesh, config.model, config.train, min(batches.LENGTHS[0], length))
    digest = hashlib.sha256(repr(data.labels).encode())
    for example in itertools.chain(data.train, *data.dev.values()):
        digest.update(repr(example).encode())
        if example.words:
            digest.update(repr((example.words, example.tags)).encode())
    origin = Origin(data.labels, digest.hexdigest(), identity, tokenizer.digest(pretrained.tokenizer_file))
    check_workdir(workdir, settings, config.model, origin)
    hosts.check_same({"the config": settings, "the task's data and the start": origin})

    segments, later = config.model.type_vocab_size, task.later(data.labels) if task.later else ()

    def encoded(name: str, examples: tuple[Example, ...]) -> list[Feature]:
        try:
            tok, said = pretrained.tokenizer, lambda line: log(f"{name}: {line}")
            return encode(tok, examples, task.head, length, said, segments=segments, later=later)
        except UserError as error:
            raise UserError(f"{settings.data_dir}, {name}: {error}") from error

    features = {name: encoded(name, part) for name, part in ({"train": data.train} | data.dev | data.test).items()}
    counts = {len(part[0].rows) for part in features.values()}
    if len(counts) > 1:
        raise UserError(f"the splits of {settings.task} have different numbers of choices: {sorted(counts)}")
    train = batches.TrainBatches(
        features["train"], batch_size=settings.batch_size, seed=settings.seed, max_length=length
    )
    # Windows make more features than examples; the schedule's length follows from them.
    config = run_config(settings, pretrained.config, train.per_epoch)
    model, _ = choose(config.model, [("config.max_length", length)], platform_of(mesh.devices.flat[0]))
    settled = dataclasses.replace(config, model=model)
    shape = shape_of(task, data.labels, *counts, scoring.label_weights(task, settings.class_weights, data))
    if shape.label_weights:
        pairs = zip(data.labels, shape.label_weights, strict=True)
        weights = printable(", ".join(f"{label} {weight:.3g}" for label, weight in pairs))
        log(f"weights of labels in the loss: {weights}")
    layout = state_shape(lambda: initial_state(config, shape), mesh)
    logits = jit_logits(settled, shape, mesh, layout)
    return Prepared(
        settings, config, settled, shape, mesh, layout, pretrained, step, data, features, train, origin, logits
    )


def _predict(made: Prepared, state: TrainState, splits: Mapping[str, Sequence[Example]]) -> dict[str, list]:
    """Predictions for the examples of each split, in batches of the training's size."""
    task, predictions = TASKS[made.settings.task], {}
    for split, examples in splits.items():
        features = made.features[split]
        groups = batches.by_length(features, made.settings.batch_size, made.settings.max_length)
        pad = made.pretrained.tokenizer.special.pad
        rows = outputs(made.logits, state.params, made.mesh, features, groups, pad, task.head)
        predictions[split] = scoring.predict(task, examples, by_example(task.head, features, rows))
    return predictions
