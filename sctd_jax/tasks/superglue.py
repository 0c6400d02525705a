"""SuperGLUE (Wang et al., NeurIPS 2019): files, metrics, submissions; hyperparameters of its baselines in jiant.

Those train for at most 10 epochs, which are taken. wsc and copa are read as in SuperGLUE's baseline.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sctd_jax.errors import UserError
from sctd_jax.tasks import squad
from sctd_jax.tasks.examples import Answer, Builder, Context, Example, Span, classify
from sctd_jax.tasks.files import Note, Record, read_jsonl
from sctd_jax.tasks.submission import jsonl
from sctd_jax.tasks.task import Part, SplitNames, Task

_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
_PLACEHOLDER = "@placeholder"


def _flattened(flatten: Callable[[Record], Iterable[Record]]) -> Callable[[str, str, Note], Iterator[Record]]:
    """A reader of files whose rows hold several of the records that TFDS has; `flatten` gives those of a row."""

    def read(path: str, split: str, note: Note) -> Iterator[Record]:
        for row in read_jsonl(path):
            found = list(flatten(row))
            if not found:
                note("passages without a question", row.place)
            yield from found

    return read


def _submit(examples: Sequence[Example], predictions: Sequence[int], labels: Sequence[str]) -> str:
    pairs = zip(examples, predictions, strict=True)
    return jsonl({"idx": e.id, "label": labels[int(number)] if labels else int(number)} for e, number in pairs)


def _build_copa(record: Record, context: Context) -> Iterator[Example]:
    asked = record.text("question")
    if asked not in _COPA_QUESTIONS:
        raise UserError(f"{record.place}: unknown question {asked!r}, expected one of {', '.join(_COPA_QUESTIONS)}")
    texts = (context.text(record, field) for field in ("choice1", "choice2"))
    choices = tuple(f"{_COPA_QUESTIONS[asked]} {text}" for text in texts)
    label = context.choice(record, len(choices))
    yield Example(record.id, context.text(record, "premise"), label=label, choices=choices)


def _build_rte(record: Record, context: Context) -> Iterable[Example]:
    """RTE and AX-g have premise and hypothesis, AX-b two sentences."""
    fields = ("sentence1", "sentence2") if "sentence1" in record.fields else ("premise", "hypothesis")
    return classify(*fields)(record, context)


def _flat_multirc(row: Record) -> Iterator[Record]:
    passage = row.child("passage")
    for question in passage.children("questions", "question"):
        if not question.items("answers"):
            raise UserError(f"{question.place}: a question without answers")
        for answer in question.children("answers", "answer"):
            index = {"paragraph": row.value("idx"), "question": question.value("idx"), "answer": answer.value("idx")}
            texts = {
                "paragraph": passage.value("text"),
                "question": question.value("question"),
                "answer": answer.value("text"),
            }
            yield Record(answer.place, answer.number, {**answer.fields, **texts, "idx": index})


def _build_multirc(record: Record, context: Context) -> Iterator[Example]:
    index = record.child("idx")
    ids = tuple(index.integer(field) for field in ("paragraph", "question", "answer"))
    second = f"{context.text(record, 'question')} {context.text(record, 'answer')}"
    label = context.label(record)
    yield Example(ids, context.text(record, "paragraph"), second, label, group=f"{ids[0]}-{ids[1]}")


def _numbered_multirc(record: Record, example: Example) -> dict[Any, str]:
    passage, question, _ = example.id
    return {passage: example.first, (passage, question): record.value("question")}


def measure_multirc(examples: Sequence[Example], predictions: Sequence[int], labels: Sequence[str]) -> dict[str, float]:
    """`f1a`, the F1 over all options, and `em`, the share of questions whose options are all right."""
    golds, predictions = np.array([e.label for e in examples]), np.asarray(predictions)
    questions = {e.group for e in examples}
    wrong = {e.group for e, prediction in zip(examples, predictions, strict=True) if e.label != prediction}
    f1a = 2 * (golds * predictions).sum() / max(golds.sum() + predictions.sum(), 1)
    return {"f1a": float(f1a), "em": len(questions - wrong) / len(questions)}


def _submit_multirc(examples: Sequence[Example], predictions: Sequence[int], labels: Sequence[str]) -> str:
    passages: dict[int, dict[int, list[dict]]] = {}
    for example, number in zip(examples, predictions, strict=True):
        passage, question, answer = example.id
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": int(number)})
    return jsonl(
        {"idx": passage, "passage": {"questions": [{"idx": q, "answers": answers} for q, answers in questions.items()]}}
        for passage, questions in passages.items()
    )


def _flat_queries(row: Record) -> Iterator[Record]:
    passage = row.child("passage")
    text = passage.text("text")
    entities = [_entity(entity, text) for entity in passage.children("entities", "entity")]
    for query in row.children("qas", "query"):
        fields = {
            "passage": text,
            "query": query.value("query"),
            "entities": list(dict.fromkeys(entities)),
            "idx": {"passage": row.value("idx"), "query": query.value("idx")},
        }
        if "answers" in query.fields:
            fields["answers"] = list(dict.fromkeys(a.text("text") for a in query.children("answers", "answer")))
        yield Record(query.place, query.number, fields)


def _entity(entity: Record, text: str) -> str:
    start, end = entity.integer("start"), entity.integer("end")  # first and last character
    if not 0 <= start <= end < len(text):
        raise UserError(f"{entity.place}: {start} .. {end} is outside of the passage ({len(text)} characters)")
    return text[start : end + 1]


def _build_queries(record: Record, context: Context) -> Iterator[Example]:
    index = record.child("idx")
    passage, query, entities = record.text("passage"), record.text("query"), record.items("entities")
    answers = () if context.hidden else tuple(record.items("answers"))
    if _PLACEHOLDER not in query:
        raise UserError(f"{record.place}: no {_PLACEHOLDER} in the query {query!r:.80}")
    if not entities or not (answers or context.hidden):
        raise UserError(f"{record.place}: a query without {'answers' if entities else 'entities'}")
    if answers and not set(answers) & set(entities):
        context.note("queries none of whose entities is an answer", record.place)
    number = index.integer("query")
    for entity in entities:
        yield Example(
            id=number,
            first=passage,
            second=query.replace(_PLACEHOLDER, entity),
            label=None if context.hidden else int(entity in answers),
            group=f"{index.integer('passage')}-{number}",
            candidate=entity,
            answers=tuple(Answer(answer) for answer in answers),
        )


def best_candidates(examples: Sequence[Example], chances: Sequence[float]) -> dict[str, str]:
    """The answer to each query: the entity of the row that is most probable, the first one on ties."""
    best: dict[str, tuple[float, str]] = {}
    for example, chance in zip(examples, chances, strict=True):
        if example.group not in best or chance > best[example.group][0]:
            best[example.group] = (chance, example.candidate)
    return {query: candidate for query, (_, candidate) in best.items()}


def measure_record(examples: Sequence[Example], chances: Sequence[float], labels: Sequence[str]) -> dict[str, float]:
    """ReCoRD's `em` and `f1`: its script has SQuAD 1.1's rules."""
    golds = {e.group: [answer.text for answer in e.answers] for e in examples}
    return squad.evaluate(golds, best_candidates(examples, chances), null_answer=False)


def _submit_queries(examples: Sequence[Example], chances: Sequence[float], labels: Sequence[str]) -> str:
    ids = {example.group: example.id for example in examples}
    return jsonl({"idx": ids[query], "label": text} for query, text in best_candidates(examples, chances).items())


def _build_wic(record: Record, context: Context) -> Iterator[Example]:
    texts = record.text("sentence1"), record.text("sentence2")
    spans = []
    for number, text in enumerate(texts):
        start, end = (record.integer(f"{field}{number + 1}") for field in ("start", "end"))
        if not 0 <= start < end <= len(text):
            raise UserError(
                f"{record.place}: start{number + 1} .. end{number + 1} = {start} .. {end} is outside of "
                f"sentence{number + 1} ({len(text)} characters)"
            )
        if re.match(r"\w\w", text[start - 1 : start + 1]) or re.match(r"\w\w", text[end - 1 : end + 1]):
            context.note("marked words that begin or end inside of a word", record.place)
        spans.append(Span(number, start, end))
    yield Example(record.id, *texts, label=context.label(record), marked=tuple(spans))


def _build_wsc(record: Record, context: Context) -> Iterator[Example]:
    spans = tuple(_words(record, name, context) for name in ("span1", "span2"))
    yield Example(record.id, record.text("text"), label=context.label(record), marked=spans)


def _words(record: Record, name: str, context: Context) -> Span:
    """Place of a span in the text: near the word with its index, upper and lower case being the same.

    In the official files some indices are off by a word, and some span texts differ from the text in case, in a final
    full stop or in more; such spans are counted.
    """
    text, index = record.text("text"), record.integer(f"{name}_index")
    wanted = record.text(f"{name}_text")
    wanted = (wanted.rstrip(" .,;:!?") or wanted).split()
    words = [match.span() for match in re.finditer(r"\S+", text)]
    if not 0 <= index < len(words):
        raise UserError(f"{record.place}: {name}_index {index} is outside of the text ({len(words)} words)")
    start, end = words[index]
    pattern = r"\s+".join(map(re.escape, wanted))
    found = [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)]
    nearest = min(found, key=lambda span: abs(span[0] - start), default=None)
    if nearest is None or not start <= nearest[0] < end:
        context.note(
            "marked spans whose text does not stand at their word index: the nearest such text is taken", record.place
        )
    if nearest is None:
        nearest = start, words[min(index + len(wanted), len(words)) - 1][1]
    return Span(0, *nearest)


def _superglue(name: str, folder: str, metrics: tuple[str, ...], build: Builder, **other: Any) -> Task:
    fields = {"head": "classification", "batch_size": 4, "submission": _submit, **other}
    return Task(
        name=name,
        folder=folder,
        metrics=metrics,
        build=build,
        learning_rate=1e-5,
        epochs=10,
        max_length=256,
        benchmark="superglue",
        home="https://super.gluebenchmark.com/tasks",
        hub=("aps/super_glue", name.removeprefix("superglue_")),
        files=SplitNames("train.jsonl", {"dev": "val.jsonl"}, {"test": "test.jsonl"}),
        suffix=".jsonl",
        **fields,
    )


SUPERGLUE = (
    _superglue("boolq", "BoolQ", ("accuracy",), classify("question", "passage"), labels=("false", "true")),
    _superglue("cb", "CB", ("accuracy", "macro_f1"), classify("premise", "hypothesis"),
               labels=("entailment", "contradiction", "neutral")),
    _superglue("copa", "COPA", ("accuracy",), _build_copa, head="multiple_choice"),
    _superglue("multirc", "MultiRC", ("f1a", "em"), _build_multirc, labels=("0", "1"), names=("false", "true"),
               read=_flattened(_flat_multirc), grouped=True, numbered=_numbered_multirc,
               measure=measure_multirc, submission=_submit_multirc),
    _superglue("record", "ReCoRD", ("f1", "em"), _build_queries, labels=("0", "1"), names=("false", "true"),
               batch_size=8, read=_flattened(_flat_queries), grouped=True,
               # The probability that the entity of a row is the answer.
               predict=lambda example, logits: float(1 / (1 + np.exp(logits[0] - logits[1]))),
               measure=measure_record, submission=_submit_queries),
    _superglue("superglue_rte", "RTE", ("accuracy",), _build_rte, labels=("entailment", "not_entailment"),
               # Diagnostics, to which the leaderboard applies the model of RTE.
               parts={"axb": Part("_axb", "", "AX-b"), "axg": Part("_axg", "", "AX-g")},
               diagnostics={"test_axb": ("AX-b/AX-b.jsonl",), "test_axg": ("AX-g/AX-g.jsonl",)}),
    _superglue("wic", "WiC", ("accuracy",), _build_wic, labels=("false", "true"), marked="mean"),
    _superglue("wsc", "WSC", ("accuracy",), _build_wsc, labels=("False", "True"), marked="attention",
               read=_flattened(lambda row: [Record(row.place, row.number, row.fields | row.child("target").fields)])),
)  # fmt: skip
