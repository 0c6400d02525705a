"""The network's outputs -> predictions -> a task's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sctd_jax.errors import DivergedError
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.metrics import METRICS
from sctd_jax.tasks.task import Part, Task


def predict(task: Task, examples: Sequence[Example], outputs: Sequence[Any]) -> list[Any]:
    """One prediction for each example of a split.

    `outputs` holds for each example its logits, one-dimensional; in span tasks its windows, each a `squad.Window`.

    Returns:
      Classes and choices as int, scores as float, answers as text; for ReCoRD each row's chance of being the answer.

    Raises:
      DivergedError: outputs are not finite; they would count as the first class or an empty answer.
    """
    numbers = outputs
    if task.head == "span":
        numbers = [(window.start_N, window.end_N) for windows in outputs for window in windows]
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
    task: Task, dev: Mapping[str, Sequence[Example]], predictions: Mapping[str, Sequence[Any]]
) -> dict[str, float]:
    """The task's metrics as shares (correlations as they are) under 'eval/', and their 'eval/score'.

    Those of MNLI's mismatched split end in '_mm'.
    """
    found = {}
    for split, examples in dev.items():
        if task.measure:
            values = task.measure(examples, predictions[split])
        else:
            pair = np.array([e.label for e in examples]), np.array(predictions[split])
            # A name with the suffix of a part is no metric of its own.
            values = {name: METRICS[name](*pair) for name in task.metrics if name in METRICS}
        part = task.parts.get(split.partition("_")[2], Part())
        found |= {f"{metric}{part.metric}": value for metric, value in values.items()}
    score = float(np.mean([found[metric] for metric in task.score or task.metrics]))
    return {f"eval/{metric}": found[metric] for metric in task.metrics} | {"eval/score": score}


def majority(examples: Sequence[Example]) -> float:
    """Share of the most frequent label: what a classifier that reads nothing gets."""
    _, counts = np.unique([e.label for e in examples], return_counts=True)
    return float(counts.max() / counts.sum())


def floors(task: Task, dev: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """`majority` of each dev split, by name; none where the task is not one of classes by accuracy."""
    if task.head != "classification" or "accuracy" not in task.metrics:
        return {}
    return {split: majority(examples) for split, examples in dev.items()}
