"""The network's outputs -> predictions -> a task's metrics."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sctd_jax.errors import DivergedError, UserError, printable
from sctd_jax.fields import read_float
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.metrics import METRICS
from sctd_jax.tasks.splits import TaskData
from sctd_jax.tasks.task import Part, Task


def predict(task: Task, examples: Sequence[Example], outputs: Sequence[Any]) -> list[Any]:
    """One prediction for each example of a split.

    `outputs` holds for each example its logits, one-dimensional; in span tasks its windows, each a `squad.Window`; in
    token classification a `tokens.Tagged`.

    Returns:
      Classes and choices as int, scores as float, answers as text; for ReCoRD each row's chance of being the answer;
      in token classification a label's number for each word, -1 for one without a token.

    Raises:
      DivergedError: outputs are not finite; they would count as the first class or an empty answer.
    """
    numbers = outputs
    if task.head == "span":
        numbers = [(window.start_N, window.end_N) for windows in outputs for window in windows]
    elif task.head == "token_classification":
        numbers = [tagged.logits for tagged in outputs]
    if bad := sum(not np.isfinite(row).all() for row in numbers):
        raise DivergedError(
            f"{bad:,} of {len(numbers):,} outputs of the network are not finite, so that they predict nothing. "
            "Fine-tune with a lower config.learning_rate, in another --workdir; if no step was good, look at the "
            "parameters of config.init"
        )
    if task.predict:
        return [task.predict(example, output) for example, output in zip(examples, outputs, strict=True)]
    return [float(row[0]) if task.head == "regression" else int(np.argmax(row)) for row in outputs]


def measure(
    task: Task,
    dev: Mapping[str, Sequence[Example]],
    predictions: Mapping[str, Sequence[Any]],
    labels: Sequence[str] = (),
) -> dict[str, float]:
    """The task's metrics as shares (correlations as they are) under 'eval/', and their 'eval/score'.

    Those of MNLI's mismatched split end in '_mm'.
    """
    found = {}
    for split, examples in dev.items():
        if task.measure:
            values = task.measure(examples, predictions[split], labels)
        else:
            pair = np.array([e.label for e in examples]), np.array(predictions[split])
            # A name with the suffix of a part is no metric of its own.
            values = {name: METRICS[name](*pair) for name in task.metrics if name in METRICS}
        part = task.parts.get(split.partition("_")[2], Part())
        found |= {f"{metric}{part.metric}": value for metric, value in values.items()}
    score = float(np.mean([found[metric] for metric in task.score or task.metrics]))
    return {f"eval/{metric}": found[metric] for metric in task.metrics} | {"eval/score": score}


def label_weights(task: Task, given: str, data: TaskData) -> tuple[float, ...]:
    """Weight of each label in the loss, as `config.class_weights` gives them; () where it is empty.

    'balanced' divides the number of examples, or of labelled words, by that of the label's times the number of labels,
    as scikit-learn does; a label without any has 0.
    """
    if not given:
        return ()
    if task.head not in ("classification", "token_classification"):
        raise UserError(f"config.class_weights = {given!r}: {task.name} has no classes, give ''")
    if given == "balanced":
        found = [tag for e in data.train for tag in (e.tags if e.tags is not None else (e.label,))]
        counts_K = np.bincount(np.array(found, int), minlength=len(data.labels))
        return tuple((len(found) / len(data.labels) / np.where(counts_K, counts_K, np.inf)).tolist())
    weights, named = dict.fromkeys(data.labels, 1.0), set()
    for part in re.findall(r"(?s).+?=[^=,]*(?:,|$)|.+", given):  # a label may hold commas
        label, _, text = part.removesuffix(",").rpartition("=")
        try:
            weight = read_float(text)
        except ValueError:
            weight = -1.0
        if label not in weights or not 0 <= weight < np.inf:
            raise UserError(
                f"config.class_weights has {part!r}, expected 'balanced' or LABEL=WEIGHT with a weight from 0 on and a "
                f"label among {printable(', '.join(data.labels))}"
            )
        if label in named:
            raise UserError(f"config.class_weights names the label {label!r} twice")
        named.add(label)
        weights[label] = weight
    if not any(weights.values()):
        raise UserError(f"config.class_weights = {given!r} gives no label a weight above 0")
    return tuple(weights.values())


def majority(examples: Sequence[Example]) -> float:
    """Share of the most frequent label: what a classifier that reads nothing gets."""
    _, counts = np.unique([e.label for e in examples], return_counts=True)
    return float(counts.max() / counts.sum())


def floors(task: Task, data: TaskData) -> dict[str, float]:
    """Score of one who counts labels and reads nothing around, of each dev split by name; none where nobody can.

    Accuracy by `majority` in tasks of classes, the score of `Task.floor` where there is one.
    """
    if task.floor:
        counted = {split: task.floor(data.train, part) for split, part in data.dev.items()}
        scores = (measure(task, {split: data.dev[split]}, counted, data.labels) for split in counted)
        return {split: score["eval/score"] for split, score in zip(counted, scores, strict=True)}
    if task.head != "classification" or "accuracy" not in task.metrics:
        return {}
    return {split: majority(examples) for split, examples in data.dev.items()}
