"""The network's outputs -> predictions -> a task's metrics."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sctd_jax.errors import DivergedError
from sctd_jax.finetune.encode import Feature
from sctd_jax.tasks import metrics, squad
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.tasks import TASKS


def predict(name: str, examples: Sequence[Example], features: Sequence[Feature], found: Sequence[np.ndarray]) -> list:
    """One prediction for each example of a task.

    Args:
      name: of the task.
      examples: of one split.
      features: of them, in their order.
      found: the logits of each feature; of span tasks f32[n, 2] for each of its tokens.

    Returns:
      Classes and choices as int, scores as float, answers as text; for ReCoRD each row's chance of being the answer.

    Raises:
      DivergedError: outputs are not finite; they would count as the first class or an empty answer.
    """
    if bad := sum(not np.isfinite(row).all() for row in found):
        raise DivergedError(
            f"{bad:,} of {len(found):,} outputs of the network are not finite, so that they predict nothing. Fine-tune "
            "with a lower config.learning_rate, in another --workdir; if no step was good, look at the parameters of "
            "config.init"
        )
    task = TASKS[name]
    if task.head == "span":
        return _answers(name, examples, features, found)
    if task.head == "regression":
        return [float(row[0]) for row in found]
    if name == "record":
        return [float(1 / (1 + np.exp(row[0] - row[1]))) for row in found]
    return [int(np.argmax(row)) for row in found]


def _answers(name: str, examples: Sequence[Example], features: Sequence[Feature], found: Sequence[np.ndarray]) -> list:
    windows = zip(features, found, strict=True)
    answers = []
    for number, group in itertools.groupby(windows, key=lambda pair: pair[0].example):
        shown = [squad.Window(row[:, 0], row[:, 1], f.passage.spans, f.passage.best) for f, row in group]
        text, _ = squad.extract(shown, examples[number].second, null_answer=name == "squad2")
        answers.append(text)
    return answers


def measure(name: str, examples: Sequence[Example], predictions: Sequence[Any]) -> dict[str, float]:
    """The task's metrics of one split, as shares (correlations as they are)."""
    if TASKS[name].head == "span":
        golds = {e.id: [answer.text for answer in e.answers] for e in examples}
        texts = {e.id: text for e, text in zip(examples, predictions, strict=True)}
        return squad.evaluate(golds, texts, null_answer=name == "squad2")
    if name == "record":
        golds = {e.group: [answer.text for answer in e.answers] for e in examples}
        groups, candidates = [e.group for e in examples], [e.candidate for e in examples]
        return metrics.record(golds, metrics.best_candidates(groups, candidates, predictions))
    labels, predictions = np.array([e.label for e in examples]), np.array(predictions)
    if name == "multirc":
        return metrics.multirc([e.group for e in examples], labels, predictions)
    names = [metric for metric in TASKS[name].metrics if not metric.endswith("_mm")]
    return {metric: metrics.METRICS[metric](labels, predictions) for metric in names}


def summarize(name: str, by_split: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics of all dev splits under 'eval/', those of MNLI's mismatched one with '_mm', and their 'eval/score'."""
    task = TASKS[name]
    found = {}
    for split, values in by_split.items():
        suffix = "_mm" if split.endswith("_mismatched") else ""
        found |= {f"{metric}{suffix}": value for metric, value in values.items()}
    score = float(np.mean([found[metric] for metric in task.score or task.metrics]))
    return {f"eval/{metric}": found[metric] for metric in task.metrics} | {"eval/score": score}


def majority(examples: Sequence[Example]) -> float:
    """Share of the most frequent label: what a classifier that reads nothing gets."""
    _, counts = np.unique([e.label for e in examples], return_counts=True)
    return float(counts.max() / counts.sum())
