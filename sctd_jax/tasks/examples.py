"""One labelled row of a task, whatever file it came from. Slots, for ReCoRD has a million of them."""

import dataclasses
from typing import Literal

Label = int | float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """Text as it stands in the file, and what is known of it."""

    id: str | int | tuple[int, ...]  # as the submission names it; MultiRC: (paragraph, question, answer)
    first: str
    second: str = ""  # of a pair; SQuAD: the passage
    label: Label = None  # index into Task.labels, number of the right choice, or a score; None where it is hidden
    choices: tuple[str, ...] = ()  # multiple choice: each is the second text of a row of its own
    marked: tuple["Span", ...] = ()  # WiC, WSC
    group: str = ""  # MultiRC, ReCoRD: rows of one question
    candidate: str = ""  # ReCoRD: the entity that this row tries
    answers: tuple["Answer", ...] = ()  # SQuAD, ReCoRD: the accepted ones; none: SQuAD 2.0's no answer, or hidden


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
