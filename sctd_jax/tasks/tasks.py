"""The table of tasks: head, labels, metrics and hyperparameters of each.

Labels are in the order of the official files (the index is the class). The score of a task, which chooses the best
checkpoint and enters a benchmark's average, is the mean of the metrics in `score`.

Sources: GLUE (Wang et al., ICLR 2019) and SuperGLUE (Wang et al., NeurIPS 2019) for fields, metrics and averages;
Devlin et al. (2019), 4 and A.3, for the hyperparameters of GLUE, SQuAD and SWAG; for SuperGLUE's those of its baselines
in jiant (at most 10 epochs, which are taken).
"""

import dataclasses
from typing import Literal

Head = Literal["classification", "regression", "multiple_choice", "span"]

_NOT_ENTAILED = ("entailment", "not_entailment")
_ENTAILED = ("not_entailment", "entailment")
_THREE = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task; what its files look like is in `reading`."""

    head: Head
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the labels, for people, where the files have numbers; used on export
    score: tuple[str, ...] = ()  # of the metrics; () for all of them
    benchmark: Literal["glue", "superglue", ""] = ""
    folder: str = ""  # its name in the official download
    marked: Literal["", "mean", "attention"] = ""  # how the classifier reads two marked spans, see model.heads
    learning_rate: float = 2e-5
    batch_size: int = 32
    epochs: int = 3
    max_length: int = 128


def _glue(folder: str, metrics: tuple[str, ...], labels: tuple[str, ...], **other) -> Task:
    return Task(other.pop("head", "classification"), metrics, labels, benchmark="glue", folder=folder, **other)


def _superglue(folder: str, metrics: tuple[str, ...], labels: tuple[str, ...], **other) -> Task:
    settings = {
        "head": "classification",
        "learning_rate": 1e-5,
        "batch_size": 4,
        "epochs": 10,
        "max_length": 256,
        **other,
    }
    return Task(metrics=metrics, labels=labels, benchmark="superglue", folder=folder, **settings)


TASKS: dict[str, Task] = {
    "cola": _glue("CoLA", ("mcc",), ("0", "1"), names=("unacceptable", "acceptable")),
    "sst2": _glue("SST-2", ("accuracy",), ("0", "1"), names=("negative", "positive")),
    "mrpc": _glue("MRPC", ("accuracy", "f1"), ("0", "1"), names=("not_equivalent", "equivalent")),
    "stsb": _glue("STS-B", ("pearson", "spearman"), (), head="regression"),
    "qqp": _glue("QQP", ("accuracy", "f1"), ("0", "1"), names=("not_duplicate", "duplicate")),
    "mnli": _glue("MNLI", ("accuracy", "accuracy_mm"), _THREE),
    "qnli": _glue("QNLI", ("accuracy",), _NOT_ENTAILED),
    "rte": _glue("RTE", ("accuracy",), _NOT_ENTAILED),
    "wnli": _glue("WNLI", ("accuracy",), ("0", "1"), names=_ENTAILED),
    "boolq": _superglue("BoolQ", ("accuracy",), ("false", "true")),
    "cb": _superglue("CB", ("accuracy", "macro_f1"), ("entailment", "contradiction", "neutral")),
    "copa": _superglue("COPA", ("accuracy",), (), head="multiple_choice"),
    "multirc": _superglue("MultiRC", ("f1a", "em"), ("0", "1"), names=("false", "true")),
    "record": _superglue("ReCoRD", ("f1", "em"), ("0", "1"), names=("false", "true"), batch_size=8),
    "superglue_rte": _superglue("RTE", ("accuracy",), _NOT_ENTAILED),
    "wic": _superglue("WiC", ("accuracy",), ("false", "true"), marked="mean"),
    "wsc": _superglue("WSC", ("accuracy",), ("False", "True"), marked="attention"),
    "squad1": Task("span", ("em", "f1"), score=("f1",), folder="SQuAD", learning_rate=5e-5, max_length=384),
    "squad2": Task(
        "span",
        ("em", "f1"),
        score=("f1",),
        folder="SQuAD2",
        learning_rate=5e-5,
        batch_size=48,
        epochs=2,
        max_length=384,
    ),
    "swag": Task("multiple_choice", ("accuracy",), folder="SWAG", batch_size=16),
    "hellaswag": Task("multiple_choice", ("accuracy",), folder="HellaSwag", batch_size=16),
    # Files of the user's; the labels of a classification are those that its training file has.
    "classification": Task("classification", ("accuracy", "macro_f1"), score=("accuracy",)),
    "regression": Task("regression", ("pearson", "spearman")),
}
