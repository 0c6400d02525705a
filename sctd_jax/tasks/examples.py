"""Labelled row of a task, whatever file it came from, and functions that build it."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from sctd_jax.errors import UserError, printable
from sctd_jax.tasks.files import Note, Record


@dataclasses.dataclass(frozen=True, slots=True)  # slots, for ReCoRD has a million of them
class Example:
    """Texts as they stand in the file, and what is known of them."""

    id: str | int | tuple[int, ...]  # name of the row in the submission; MultiRC: (paragraph, question, answer)
    first: str
    second: str = ""  # second text of a pair; SQuAD: the passage
    label: int | float | None = None  # index into Task.labels, number of the right choice, or a score; None if hidden
    choices: tuple[str, ...] = ()  # multiple choice: each is the second text of a row of its own
    marked: tuple["Span", ...] = ()  # WiC, WSC
    group: str = ""  # MultiRC, ReCoRD: the question that rows share
    candidate: str = ""  # ReCoRD: the entity that this row tries
    answers: tuple["Answer", ...] = ()  # SQuAD, ReCoRD: the accepted ones; none: SQuAD 2.0's no answer, or hidden
    # Not in the repr, by whose digest a workdir knows its examples: those of the other tasks stay as they were.
    words: tuple[str, ...] = dataclasses.field(default=(), repr=False)  # token classification; `first` has them joined
    tags: tuple[int, ...] | None = dataclasses.field(default=None, repr=False)  # label of each word; None if hidden


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Characters start .. end - 1 of an example's text."""

    text: Literal[0, 1]  # first or second
    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A piece of the passage; `start` counts characters, -1 where only its text is known."""

    text: str
    start: int = -1


@dataclasses.dataclass(frozen=True)
class FileSettings:
    """Settings of files of the user's own."""

    text_field: str = "text"
    pair_field: str = ""  # '' for single texts
    label_field: str = "label"
    tokens_field: str = "tokens"  # a column's number in column files
    tags_field: str = "tags"
    language: str = "en"  # XNLI's
    heldout_share: float = 0.1  # share of a single file that becomes the dev set
    seed: int = 0  # chooses that share

    @classmethod
    def of(cls, source: Any) -> "FileSettings":
        """Those that a configuration or a command has, but for a training's seed, which must not choose dev."""
        names = [
            field.name for field in dataclasses.fields(cls) if field.name != "seed" and hasattr(source, field.name)
        ]
        return cls(**{name: getattr(source, name) for name in names})


@dataclasses.dataclass(frozen=True)
class Context:
    """Facts that hold for all records of a split."""

    where: str  # the file, for messages
    split: str  # train, dev... or test...
    labels: tuple[str, ...]
    settings: FileSettings
    note: Note
    scored: bool = False  # whether labels of a test split are read

    @property
    def hidden(self) -> bool:
        """Whether this is a test split without labels: none are read, and none of its rows may be left out."""
        return self.split.startswith("test") and not self.scored

    def text(self, record: Record, field: str) -> str:
        """A text; where a row counts even without one, a space keeps the pair a pair."""
        text = record.text(field, empty=self.hidden)
        if not text.strip():
            self.note(f"rows whose field {field!r} is empty, predicted all the same", record.place)
        return text or " "

    def label(self, record: Record, field: str = "label") -> int | None:
        """The class that a label names; None where labels are hidden."""
        if self.hidden:
            return None
        found, labels = record.label(field), self.labels
        if [label.lower() for label in labels] == ["false", "true"]:  # copies of the data write them in either way
            found, labels = found.lower(), ("false", "true")
        if found not in labels:
            raise UserError(
                f"{record.place}: unknown label {found!r}, expected one of {printable(', '.join(self.labels))}"
                + ("; leave out the rows on which the judges disagreed" if found == "-" else "")
            )
        return labels.index(found)

    def choice(self, record: Record, count: int) -> int | None:
        """The number of the right choice among `count`; None where labels are hidden."""
        found = None if self.hidden else record.integer("label")
        if found is not None and not 0 <= found < count:
            raise UserError(f"{record.place}: unknown label {found}, expected 0 to {count - 1}")
        return found


Builder = Callable[[Record, Context], Iterable[Example]]


def classify(*fields: str, label: str = "label", some_empty: bool = False) -> Builder:
    """A builder of rows that classify a text or a pair, which one or two `fields` hold.

    With `some_empty`, training rows without one of the texts are left out, other rows kept, and both noted; else they
    are an error.
    """

    def build(record: Record, context: Context) -> Iterator[Example]:
        if some_empty:
            texts = [record.text(field, empty=True).strip() or " " for field in fields]
            if " " in texts:
                left_out = context.split == "train"
                context.note(f"rows without a text {'left out' if left_out else 'kept'}", record.place)
                if left_out:
                    return
        else:
            texts = [context.text(record, field) for field in fields]
        yield Example(record.id, *texts, label=context.label(record, label))

    return build
