"""SQuAD: its files, its metrics, and the answer to a question from the logits of the windows over its passage.

Shapes: N tokens of a window, S and E candidate starts and ends. Sources: evaluate-v1.1.py and evaluate-v2.0.py
(Rajpurkar et al.) for the metrics; run_squad.py (Devlin et al., 2019) for extraction and hyperparameters.
"""

import dataclasses
import functools
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sctd_jax.errors import UserError, printable
from sctd_jax.tasks.examples import Answer, Context, Example
from sctd_jax.tasks.files import Note, Record, read_json
from sctd_jax.tasks.task import SplitNames, Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only, as in the official scripts


def normalize(text: str) -> str:
    """Text in lower case without punctuation and articles, its words joined by single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same after `normalize`."""
    return normalize(prediction) == normalize(answer)


def f1(prediction: str, answer: str) -> float:
    """F1 of the words that both have, as often as both have them; 0 where either normalises to nothing."""
    predicted, wanted = Counter(normalize(prediction).split()), Counter(normalize(answer).split())
    return 2 * (predicted & wanted).total() / max(predicted.total() + wanted.total(), 1)


def evaluate(
    answers: Mapping[str, Sequence[str]], predictions: Mapping[str, str], *, null_answer: bool
) -> dict[str, float]:
    """`em` and `f1`, shares from 0 to 1: the mean over questions of the best over their answers.

    A question without a prediction counts 0 (evaluate-v1.1's rule; v2.0's leaves it out of the mean).

    Args:
      answers: the accepted ones of every question, by the question's id.
      predictions: answers by the question's id; "" says that there is none.
      null_answer: score as evaluate-v2.0 does. Answers that normalise to nothing ("A") are dropped; a question that has
        none (left) gets 1 for a prediction that normalises to nothing, else 0. Without it, as evaluate-v1.1 does: such
        answers can be matched exactly, with F1 0, and every question needs an answer.

    Raises:
      ValueError: a question without answers, and no `null_answer`.
    """

    def best(credit: Callable[[str, str], float], prediction: str, accepted: Sequence[str]) -> float:
        if null_answer and not (accepted := [answer for answer in accepted if normalize(answer)]):
            return float(not normalize(prediction))
        return float(max(credit(prediction, answer) for answer in accepted))

    given = [(predictions[key], accepted) for key, accepted in answers.items() if key in predictions]
    credits = {"em": exact_match, "f1": f1}
    return {name: sum(best(credit, *pair) for pair in given) / len(answers) for name, credit in credits.items()}


@dataclasses.dataclass(frozen=True)
class Window:
    """Outputs of the network for one window over the passage of a question; token 0 is [CLS]."""

    start_N: np.ndarray  # logits
    end_N: np.ndarray  # logits
    spans: np.ndarray  # i32[N, 2], characters of each token in the passage; (-1, -1) outside of it
    best: np.ndarray  # bool[N], whether no other window gives the token more context


def extract(
    windows: Sequence[Window], passage: str, *, null_answer: bool, n_best: int = 20, max_answer_tokens: int = 30
) -> tuple[str, float]:
    """The answer to one question, and by how much "no answer" beats it.

    A span scores the logits of its first and last token; among the spans of the best starts and ends of each window
    the highest wins, the first one on ties. "No answer" scores those of [CLS], in the window where they are lowest.

    Args:
      windows: windows of this question, at least one.
      passage: the text that the windows' spans count in.
      null_answer: whether there may be no answer (SQuAD 2.0): "" if that scores higher.
      n_best: starts and ends of a window that are tried.
      max_answer_tokens: longest answer.

    Returns:
      A piece of the passage as it stands there, or "", also where no span is possible; and the score of "no answer"
      minus the answer's, 0.0 without `null_answer`. Where no span is possible, the answer scores 0, as in run_squad.
    """
    found = [span for window in windows if (span := _best_span(window, n_best, max_answer_tokens))]
    score, start, end = max(found, key=lambda span: span[0], default=(0.0, 0, 0))
    answer = passage[start:end]
    if not null_answer:
        return answer, 0.0
    margin = min(float(window.start_N[0]) + float(window.end_N[0]) for window in windows) - score
    return "" if margin > 0 else answer, margin


def _best_span(window: Window, n_best: int, max_answer_tokens: int) -> tuple[float, int, int] | None:
    """Score, first character and the one after the last; None where no span is possible."""
    start_N, end_N = np.asarray(window.start_N, np.float64), np.asarray(window.end_N, np.float64)
    starts_S, ends_E = (np.argsort(-logits_N, kind="stable")[:n_best] for logits_N in (start_N, end_N))
    inside_N = window.spans[:, 1] > window.spans[:, 0]  # nor can a token without characters begin or end an answer
    length_SE = ends_E - starts_S[:, None] + 1
    allowed_SE = (inside_N & window.best)[starts_S][:, None] & inside_N[ends_E]
    allowed_SE &= (length_SE >= 1) & (length_SE <= max_answer_tokens)
    score_SE = np.where(allowed_SE, start_N[starts_S][:, None] + end_N[ends_E], -np.inf)
    s, e = np.unravel_index(np.argmax(score_SE), score_SE.shape)
    if not allowed_SE[s, e]:
        return None
    return float(score_SE[s, e]), int(window.spans[starts_S[s], 0]), int(window.spans[ends_E[e], 1])


def max_context(window_starts: Sequence[int], window_lengths: Sequence[int]) -> list[np.ndarray]:
    """bool[length] for each window of passage tokens: whether it is the one in which a token has most context.

    That is the smaller of the numbers of tokens to its left and right, plus a hundredth of the window's length; the
    first window wins ties.
    """
    windows = list(zip(window_starts, window_lengths, strict=True))
    count = max(start + length for start, length in windows)
    most, winner = np.full(count, -np.inf), np.zeros(count, np.int32)
    for number, (start, length) in enumerate(windows):
        inside, left = slice(start, start + length), np.arange(length)
        context = np.minimum(left, left[::-1]) + 0.01 * length
        winner[inside][context > most[inside]] = number
        most[inside] = np.maximum(most[inside], context)
    return [winner[start : start + length] == number for number, (start, length) in enumerate(windows)]


def _read(path: str, split: str, note: Note) -> Iterator[Record]:
    """The questions of SQuAD's JSON as TFDS has them: with `context`, and `answers` as an object of two lists."""
    number = 0
    for article in read_json(path).children("data", "article"):
        for paragraph in article.children("paragraphs", "paragraph"):
            if not paragraph.items("qas"):
                note("paragraphs without a question", paragraph.place)
            for question in paragraph.children("qas", "question"):
                answers = list(question.children("answers", "answer"))
                fields = {
                    **question.fields,
                    "context": paragraph.value("context"),
                    "answers": {name: [answer.value(name) for answer in answers] for name in ("text", "answer_start")},
                }
                yield Record(f"{question.place} ({printable(question.text('id'))})", number, fields)
                number += 1


def _build(record: Record, context: Context, null_answer: bool) -> Iterator[Example]:
    impossible = "is_impossible" in record.fields and record.flag("is_impossible")
    if impossible and not null_answer:
        raise UserError(f"{record.place}: a question without an answer; SQuAD 2.0 is the task squad2")
    passage, given = record.text("context"), record.child("answers")
    pairs = zip(given.items("text"), given.items("answer_start"), strict=True)
    answers = tuple(_answer(record, text, start, passage) for text, start in pairs)
    if impossible and answers:
        raise UserError(f"{record.place}: is_impossible is true, but there are {len(answers)} answers")
    if not (impossible or answers):
        raise UserError(f"{record.place}: no answer; SQuAD 2.0 says of such a question is_impossible: true")
    yield Example(record.text("id"), record.text("question"), passage, answers=answers)


def _answer(record: Record, text: str, start: int, passage: str) -> Answer:
    answer = Record(record.place, 0, {"text": text, "answer_start": start})
    text, start = answer.text("text"), answer.integer("answer_start")
    if start < 0 or not passage.startswith(text, start):
        found = passage[max(start, 0) :][: len(text)]
        raise UserError(f"{record.place}: the answer {text!r} does not stand at character {start}, found {found!r}")
    return Answer(text, start)


def _submit(examples: Sequence[Example], predictions: Sequence[str], labels: Sequence[str]) -> str:
    return json.dumps(dict(zip((e.id for e in examples), predictions, strict=True))) + "\n"


def _squad(name: str, version: str, null_answer: bool, **other: Any) -> Task:
    def predict(example: Example, windows: Sequence[Window]) -> str:
        return extract(windows, example.second, null_answer=null_answer)[0]

    def measure(examples: Sequence[Example], predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
        golds = {e.id: [answer.text for answer in e.answers] for e in examples}
        texts = {e.id: text for e, text in zip(examples, predictions, strict=True)}
        return evaluate(golds, texts, null_answer=null_answer)

    return Task(
        name=name,
        head="span",
        learning_rate=5e-5,
        max_length=384,
        home="https://rajpurkar.github.io/SQuAD-explorer",
        files=SplitNames(f"train-v{version}.json", {"dev": f"dev-v{version}.json"}),
        read=_read,
        build=functools.partial(_build, null_answer=null_answer),
        grouped=True,
        metrics=("em", "f1"),
        score=("f1",),
        predict=predict,
        measure=measure,
        submission=_submit,
        suffix=".json",
        **other,
    )


SQUAD = (
    _squad("squad1", "1.1", False, folder="SQuAD", hub=("rajpurkar/squad", "")),
    _squad("squad2", "2.0", True, folder="SQuAD2", hub=("rajpurkar/squad_v2", ""), batch_size=48, epochs=2),
)
