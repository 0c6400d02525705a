"""Linear probes on the frozen encoder's sentence vectors, after the embeddings and after every layer.

Shapes: B rows, N sequence length, D width, E examples, C classes, S = L + 1 states: the embeddings',
then those of layers 0 .. L-1.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError
from sctd_jax.finetune import batches
from sctd_jax.finetune.batches import TaskBatch
from sctd_jax.finetune.encode import encode
from sctd_jax.hf import hub
from sctd_jax.model.encoder import Encoder
from sctd_jax.models import Model
from sctd_jax.objective import losses
from sctd_jax.plot import names
from sctd_jax.probing.models import POOLINGS, check_batch, full_precision, open_pretrained
from sctd_jax.tasks import scoring
from sctd_jax.tasks.examples import Example, FileSettings
from sctd_jax.tasks.splits import TaskData, open_task
from sctd_jax.tasks.table import TASKS
from sctd_jax.tasks.task import Task

_HEADS = ("classification", "regression")
_STRENGTH = 0.1  # C of the logistic regression and 1 / alpha of the ridge, on features of unit variance
_ITERATIONS = 10_000  # far more than L-BFGS takes
_ROUNDING = 1e-5  # relative: features that differ by less are constant


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the probes."""

    task: str  # a key of `tasks.table.TASKS`
    data_dir: str  # folder or tfds: name, as in fine-tuning
    examples: int  # size of a seeded sample of the training set, at most
    max_length: int  # N, tokens of a row at most; 0: the task's
    batch_size: int
    seed: int
    files: FileSettings  # fields in files of the user's tasks


def measure(paths: Sequence[str], settings: Settings, log: Callable[[str], None]) -> dict[str, Any]:
    """The dev score of a linear probe by model, pooling and layer: what `layers.json` holds.

    The paths are workdirs of runs and folders of transformers. For each model and pooling there are lists over the S
    states by metric; 'score' is the task's, and 'after' names the states.
    """
    task = _probed_task(settings.task)
    called, opened = names(paths), [open_pretrained(path, log) for path in paths]
    data = open_task(task, settings.data_dir, settings.files)
    for note in data.notes:
        log(note)
    chosen = np.random.default_rng(settings.seed).permutation(len(data.train))[: settings.examples]
    train = [data.train[i] for i in np.sort(chosen)]
    constant = {split: [_constant(task, examples)] * len(examples) for split, examples in data.dev.items()}
    floor = scoring.measure(task, data.dev, constant)["eval/score"]
    found = []
    for name, path, pretrained in zip(called, paths, opened, strict=True):
        values = _probe(name, pretrained, train, data, settings, log)
        found.append({"model": name, "path": hub.pinned(path, log), **values})
        log(_line(name, values, floor))
    return {
        "settings": dataclasses.asdict(settings),
        "metrics": list(task.score or task.metrics),
        "training_examples": len(train),
        "dev_examples": {split: len(examples) for split, examples in data.dev.items()},
        "majority": floor,
        "models": found,
    }


def _probed_task(name: str) -> Task:
    usable = [key for key, task in TASKS.items() if task.head in _HEADS and not task.marked]
    if name not in TASKS:
        raise UserError(f"--task must be one of {', '.join(usable)}; found {name!r}")
    if name not in usable:
        what = "marked words" if TASKS[name].marked else f"a {TASKS[name].head} head"
        raise UserError(f"--task {name} has {what}; a vector of the whole row can be probed for {', '.join(usable)}")
    return TASKS[name]


def _constant(task: Task, examples: Sequence[Example]) -> float:
    """Prediction of a probe that sees nothing: a dev set's most frequent label, or always the same score."""
    return 0.0 if task.head == "regression" else int(np.bincount([e.label for e in examples]).argmax())


def _probe(
    name: str, pretrained: Model, train: Sequence[Example], data: TaskData, settings: Settings,
    log: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Fit all probes of a model and score them. Dev states are not kept: those of a large task do not fit in memory."""
    task, config = TASKS[settings.task], pretrained.config.model
    max_length = min(settings.max_length or task.max_length, config.max_positions)
    check_batch(pretrained, settings.batch_size, min(batches.LENGTHS[0], max_length))
    params = pretrained.params()["encoder"]
    pooled_states = jit_pooled_states(config)

    def read(split: str, examples: Sequence[Example]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        tokenizer = pretrained.tokenizer
        features = encode(
            tokenizer, examples, task.head, max_length, lambda line: log(f"{name}, {split}: {line}"),
            segments=config.type_vocab_size,
        )  # fmt: skip
        for group in batches.by_length(features, settings.batch_size, max_length):
            members, weights = [features[i] for i in group.members], np.ones(settings.batch_size)
            batch = batches.assemble(members, weights, group.length, tokenizer.special.pad)
            found = np.asarray(pooled_states(params, batch))[:, :, : group.count]
            if not np.isfinite(found).all():
                raise UserError(f"{name}: numbers that are not finite among its states")
            yield group.members[: group.count], found

    labels_E = np.array([e.label for e in train], np.float64)
    if task.head == "classification" and len(np.unique(labels_E)) < 2:
        raise UserError(f"--examples {settings.examples}: all {len(train)} training examples have the same label")
    states = np.empty((config.num_layers + 1, len(POOLINGS), len(train), config.hidden_size), np.float32)
    for members, found in read("train", train):
        states[:, :, members] = found
    # Keys are (layer, pooling).
    fitted = {at: fit(states[at], labels_E, task.head, len(data.labels)) for at in np.ndindex(states.shape[:2])}
    shape = states.shape[:2]
    del states  # those of a large task and the dev states do not fit in memory together
    predictions: dict[tuple[int, ...], dict[str, list]] = {at: {} for at in fitted}
    for split, examples in data.dev.items():
        logits = np.empty((*shape, len(examples), len(data.labels) or 1))
        for members, found in read(split, examples):
            for at, probe in fitted.items():
                logits[at][members] = probe(found[at])
        for at in fitted:
            predictions[at][split] = scoring.predict(task, examples, logits[at])
    scores = {at: scoring.measure(task, data.dev, one) for at, one in predictions.items()}
    return {
        "layers": config.num_layers,
        "after": ["embeddings", *(f"layer {number}" for number in range(config.num_layers))],
        "max_length": max_length,
        **{
            pooling: {
                metric.removeprefix("eval/"): [scores[layer, i][metric] for layer in range(shape[0])]
                for metric in scores[0, i]
            }
            for i, pooling in enumerate(POOLINGS)
        },
    }


def jit_pooled_states(config: ModelConfig) -> Callable[[Any, TaskBatch], jax.Array]:
    """Jitted (parameters of an encoder, batch of single rows) -> f32[S, 2, B, D], by POOLINGS, on the first device."""
    encoder = Encoder(full_precision(config), 0, 0)

    def states(bound: Encoder, batch: TaskBatch) -> jax.Array:
        ids_BN, mask_BN, segment_ids_BN = batch.input_ids_BCN[:, 0], batch.mask_BCN[:, 0], batch.segment_ids_BCN[:, 0]
        x_BND, _ = bound.prefix(ids_BN, mask_BN, segment_ids_BN)
        _, after = bound.suffix(x_BND, mask_BN)
        return jnp.stack([jnp.stack([losses.pool(x, mask_BN, how) for how in POOLINGS]) for x in (x_BND, *after)])

    return jax.jit(lambda params, batch: encoder.apply({"params": params}, batch, method=states))


def fit(x_ED: np.ndarray, labels_E: np.ndarray, head: str, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """A linear probe on standardised features: a function from vectors [n, D] to logits [n, C], or to scores [n, 1].

    The labels are classes, or scores where the task's head is 'regression'.
    """
    # [CLS] after the embeddings is the same in all examples but for rounding, which must not become unit variance.
    varies_D = np.ptp(x_ED, axis=0) > _ROUNDING * np.abs(x_ED).max()

    def features(x_ED: np.ndarray) -> np.ndarray:
        return np.where(varies_D[None], x_ED, 0.0).astype(np.float64)

    if head == "regression":
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=1 / _STRENGTH, random_state=0))
        ridge.fit(features(x_ED), labels_E)
        return lambda x_ED: ridge.predict(features(x_ED))[:, None]
    logistic = LogisticRegression(C=_STRENGTH, max_iter=_ITERATIONS, random_state=0)
    probe = make_pipeline(StandardScaler(), logistic).fit(features(x_ED), labels_E.astype(int))

    def logits(x_ED: np.ndarray) -> np.ndarray:
        chances = np.zeros((len(x_ED), classes))  # a sample may lack a rare class
        chances[:, probe.classes_] = probe.predict_proba(features(x_ED))
        return np.log(np.maximum(chances, 1e-300))

    return logits


def _line(name: str, values: Mapping[str, Any], floor: float) -> str:
    parts = []
    for pooling in POOLINGS:
        scores = values[pooling]["score"]
        best = int(np.argmax(scores))
        parts.append(f"{pooling} {scores[best]:.3f} after {values['after'][best]}, {scores[-1]:.3f} after the last")
    return f"{name}: {'; '.join(parts)}; majority {floor:.3f}"
