"""Task, with all that the package asks of one. Each family's file defines its tasks; `table` lists them all."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sctd_jax.tasks.examples import Builder, Example, FileSettings
from sctd_jax.tasks.files import Note, Record, read_file

Head = Literal["classification", "regression", "multiple_choice", "span", "token_classification"]

EACH_TOKEN = ("span", "token_classification")  # heads with outputs for every token of a row


@dataclasses.dataclass(frozen=True)
class SplitNames:
    """The file, or the split of a TFDS dataset, of each split of ours; train and dev must be there."""

    train: str
    dev: Mapping[str, str]
    test: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def required(self) -> dict[str, str]:
        """All but the test splits."""
        return {"train": self.train, **self.dev}


class Part(NamedTuple):
    """One of several dev and test sets."""

    metric: str = ""  # ends the names of its metrics
    file: str = ""  # ends the name of its submission
    folder: str = ""  # name of the submission, where it is not the task's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    name: str  # value of config.task
    head: Head
    labels: tuple[str, ...] = ()  # labels in the order of the official files: the index is the class
    names: tuple[str, ...] = ()  # labels for people, where the files have numbers; used on export
    single: bool = False  # whether a row is always one text
    marked: Literal["", "mean", "attention"] = ""  # way in which the classifier reads two marked spans, see model.heads
    learning_rate: float = 2e-5
    batch_size: int = 32
    epochs: int = 3
    max_length: int = 128

    # Origin.
    benchmark: Literal["glue", "superglue", ""] = ""
    folder: str = ""  # name in the official download, and of the submission; '' for files of the user's
    home: str = ""  # address at which its files are given away
    hub: tuple[str, str] = ("", "")  # dataset on Hugging Face's hub, and the config there

    # Way from files to examples.
    files: SplitNames | None = None
    # Further test splits, with the places of their file below the folder that holds the task's folder.
    diagnostics: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    scored: bool = False  # whether its test set has labels: it is scored by the best checkpoint
    tfds_splits: SplitNames = SplitNames("train", {"dev": "validation"}, {"test": "test"})
    tfds_fields: Mapping[str, str] = dataclasses.field(default_factory=dict)  # TFDS's name -> the official file's
    read: Callable[[str, str, Note], Iterator[Record]] = read_file  # (path, split, note) -> records as TFDS has them
    build: Builder  # record -> examples
    # labels of words -> for each the label that a word's later tokens learn, -1 for none; they are never read by us
    later: Callable[[Sequence[str]], tuple[int, ...]] | None = None
    grouped: bool = False  # whether its metric groups rows by their ids
    # (record, example) -> numbers that several rows share, with the text that each must stand for
    numbered: Callable[[Record, Example], Mapping[Hashable, str]] = lambda record, example: {}
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)  # parts by what follows dev_ or test_
    # Finds the splits and the labels, where they are neither official files nor a TFDS dataset: see `own`.
    find: Callable[..., tuple[dict[str, Any], tuple[str, ...]]] | None = None
    # (path, settings, note) -> rows of a file without labels; None: `read` as of a test split
    rows: Callable[[str, FileSettings, Note], Iterator[Record]] | None = None
    review: Callable[..., Iterator[str]] | None = None  # (where, labels, train, dev) -> what is odd about them

    # Way from outputs of the network to numbers and submissions; None: as the head's tasks usually have it.
    metrics: tuple[str, ...]
    score: tuple[str, ...] = ()  # the metrics whose mean chooses the best checkpoint; () for all of them
    predict: Callable[[Example, Any], Any] | None = None  # (example, outputs) -> prediction
    # (examples, predictions, labels) -> metrics of one split
    measure: Callable[[Sequence[Example], Sequence[Any], Sequence[str]], dict[str, float]] | None = None
    # (train, examples) -> predictions of one who counts, and reads no context
    floor: Callable[[Sequence[Example], Sequence[Example]], list[Any]] | None = None
    submission: Callable[[Sequence[Example], Sequence[Any], Sequence[str]], str] | None = None  # text of its file
    suffix: str = ".tsv"  # ends the name of that file
