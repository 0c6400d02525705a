"""Predictions as the benchmarks' servers want them, one file for each test set.

Sources: the FAQs of gluebenchmark.com and super.gluebenchmark.com with their sample submissions; SQuAD's evaluation
scripts. SWAG, HellaSwag and files of the user's have the layout of GLUE.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.task import Part, Task


def write(
    task: Task,
    split: str,
    examples: Sequence[Example],
    predictions: Sequence[Any],
    folder: Path,
    labels: Sequence[str] = (),
) -> Path:
    """Write what `scoring.predict` says of a split into `folder`, which is made if missing; returns the file.

    `split` is 'test', 'dev' or another name, for MNLI followed by '_matched' or '_mismatched'. The test split has the
    official file name; others have their own in front of it, as in dev-MNLI-mm.tsv. An old file is overwritten.
    `labels` are those of a file of the user's, in the order of its classes.
    """
    name, _, part = split.partition("_")
    labels = labels or task.labels
    if task.submission:
        text = task.submission(examples, predictions, labels)
    elif task.head == "regression":  # the fewest digits that tell float32 scores apart
        text = tsv(examples, [np.format_float_positional(np.float32(score), trim="-") for score in predictions])
    else:
        text = tsv(examples, [labels[int(number)] if labels else str(int(number)) for number in predictions])
    prefix = "" if name == "test" else f"{name}-"
    of_part = task.parts.get(part, Part())
    path = folder / f"{prefix}{of_part.folder or task.folder or task.name}{of_part.file}{task.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def tsv(examples: Sequence[Example], words: Iterable[str]) -> str:
    """GLUE's table: a header, and a row for each example with its prediction as a word."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(("index", "prediction"))
    writer.writerows(zip((example.id for example in examples), words, strict=True))
    return text.getvalue()


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object on each line."""
    return "".join(json.dumps(row) + "\n" for row in rows)
