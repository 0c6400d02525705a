"""Predictions as the benchmarks' servers want them, one file for each test set.

Sources: the FAQs of gluebenchmark.com and super.gluebenchmark.com with their sample submissions; SQuAD's evaluation
scripts. SWAG, HellaSwag and files of the user's have the layout of GLUE.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.metrics import best_candidates
from sctd_jax.tasks.tasks import TASKS

_MNLI = {"": "", "matched": "-m", "mismatched": "-mm"}


def write(
    task_name: str,
    split: str,
    examples: Sequence[Example],
    predictions: Sequence,
    folder: Path,
    labels: Sequence[str] = (),
) -> Path:
    """Write the predictions of a split into `folder`, which is made if missing; an old file is overwritten.

    Args:
      task_name: in TASKS.
      split: 'test', 'dev' or another name, for MNLI followed by '_matched' or '_mismatched'. The test split has the
        official file name; others have their own in front of it, as in dev-MNLI-mm.tsv.
      examples: of the split.
      predictions: one for each example: the class or choice, a score for regression, a probability for ReCoRD, the
        text for a span.
      folder: where to.
      labels: of a classification by a file of the user's, in the order of its classes.

    Returns:
      The file.
    """
    task = TASKS[task_name]
    part, _, set_name = split.partition("_")
    if task.head == "span":
        suffix, text = ".json", json.dumps(dict(zip((e.id for e in examples), predictions, strict=True))) + "\n"
    elif task.benchmark == "superglue":
        rows = _JSONL.get(task_name, _labelled)(examples, predictions, task.labels)
        suffix, text = ".jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    else:
        suffix, text = ".tsv", _tsv(examples, _words(task_name, predictions, labels or task.labels))
    prefix = "" if part == "test" else f"{part}-"
    path = folder / f"{prefix}{task.folder or task_name}{_MNLI[set_name]}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _tsv(examples: Sequence[Example], words: Iterable[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(("index", "prediction"))
    writer.writerows(zip((example.id for example in examples), words, strict=True))
    return text.getvalue()


def _words(task_name: str, predictions: Sequence, labels: Sequence[str]) -> list[str]:
    if task_name == "stsb":
        return [f"{min(max(0.0, float(score)), 5.0):.3f}" for score in predictions]
    if TASKS[task_name].head == "regression":  # as few digits as tell float32 scores apart
        return [np.format_float_positional(np.float32(score), trim="-") for score in predictions]
    return [labels[int(number)] if labels else str(int(number)) for number in predictions]


def _labelled(examples: Sequence[Example], predictions: Sequence, labels: Sequence[str]) -> Iterator[dict]:
    for example, number in zip(examples, predictions, strict=True):
        yield {"idx": example.id, "label": labels[int(number)] if labels else int(number)}


def _multirc(examples: Sequence[Example], predictions: Sequence, labels: Sequence[str]) -> list[dict]:
    passages: dict[int, dict[int, list[dict]]] = {}
    for example, number in zip(examples, predictions, strict=True):
        passage, question, answer = example.id
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": int(number)})
    return [
        {"idx": passage, "passage": {"questions": [{"idx": q, "answers": answers} for q, answers in questions.items()]}}
        for passage, questions in passages.items()
    ]


def _record(examples: Sequence[Example], predictions: Sequence, labels: Sequence[str]) -> list[dict]:
    groups, candidates = [example.group for example in examples], [example.candidate for example in examples]
    best = best_candidates(groups, candidates, predictions)
    ids = {example.group: example.id for example in examples}
    return [{"idx": ids[group], "label": text} for group, text in best.items()]


_JSONL: dict[str, Callable[..., Iterable[dict]]] = {"multirc": _multirc, "record": _record}
