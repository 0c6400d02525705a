"""The records of each task as examples: which field is what, which text comes first, and where marked words stand.

Sources: GLUE and SuperGLUE for the fields of their files (wsc and copa as in SuperGLUE's baseline),
Devlin et al. (2019), 4.2 to 4.4, for the order of SQuAD's and SWAG's texts.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator

from sctd_jax.errors import UserError, printable
from sctd_jax.tasks.examples import Answer, Example, Span
from sctd_jax.tasks.records import Note, Record


@dataclasses.dataclass(frozen=True)
class FileSettings:
    """What the user says of a file of his own."""

    text_field: str = "text"
    pair_field: str = ""  # '' for single texts
    label_field: str = "label"
    heldout_share: float = 0.1  # of a single file, which becomes the dev set
    seed: int = 0  # of that share


@dataclasses.dataclass(frozen=True)
class Context:
    """What holds for all records of a split."""

    where: str  # the file, for messages
    split: str  # train, dev... or test...
    labels: tuple[str, ...]
    settings: FileSettings
    note: Note

    @property
    def hidden(self) -> bool:
        """Of a test split the labels are not read, and none of its rows may be left out."""
        return self.split.startswith("test")


Builder = Callable[[Record, Context], Iterable[Example]]

# As read: a row of SuperGLUE's files may hold many questions, one of TFDS's is always one example (or one query).
_IDS = ("index", "idx", "id", "ind")
_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
_PLACEHOLDER = "@placeholder"


def label_text(record: Record, field: str) -> str:
    """A label as text; JSON's true and 1 are 'true' and '1'."""
    value = record.value(field)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and math.isfinite(value):
        return str(value)
    return record.text(field)


def flatten(name: str, record: Record, note: Note) -> Iterator[Record]:
    """A row of an official file -> the records that TFDS would have for it; `note` is told of rows that have none."""
    flat = {"multirc": _flat_multirc, "record": _flat_record, "wsc": _flat_wsc}.get(name)
    found = list(flat(record)) if flat else [record]
    if not found:
        note("passages without a question", record.place)
    yield from found


def _flat_multirc(record: Record) -> Iterator[Record]:
    passage = record.child("passage")
    for question in passage.children("questions", "question"):
        if not question.items("answers"):
            raise UserError(f"{question.place}: a question without answers")
        for answer in question.children("answers", "answer"):
            fields = {
                **answer.fields,
                "paragraph": passage.value("text"),
                "question": question.value("question"),
                "answer": answer.value("text"),
                "idx": {
                    "paragraph": record.value("idx"),
                    "question": question.value("idx"),
                    "answer": answer.value("idx"),
                },
            }
            yield Record(answer.place, answer.number, fields)


def _flat_record(record: Record) -> Iterator[Record]:
    passage = record.child("passage")
    text = passage.text("text")
    entities = [_entity(entity, text) for entity in passage.children("entities", "entity")]
    for query in record.children("qas", "query"):
        fields = {
            "passage": text,
            "query": query.value("query"),
            "entities": list(dict.fromkeys(entities)),
            "idx": {"passage": record.value("idx"), "query": query.value("idx")},
        }
        if "answers" in query.fields:
            fields["answers"] = list(dict.fromkeys(a.text("text") for a in query.children("answers", "answer")))
        yield Record(query.place, query.number, fields)


def _entity(entity: Record, text: str) -> str:
    start, end = entity.integer("start"), entity.integer("end")  # of its first and last character
    if not 0 <= start <= end < len(text):
        raise UserError(f"{entity.place}: {start} .. {end} is outside of the passage ({len(text)} characters)")
    return text[start : end + 1]


def _flat_wsc(record: Record) -> Iterator[Record]:
    yield Record(record.place, record.number, {**record.fields, **record.child("target").fields})


def has_id(record: Record) -> bool:
    """Whether the file numbers this row."""
    return any(field in record.fields for field in _IDS)


def _id(record: Record) -> int:
    """As the file numbers its rows, or else the row's number."""
    return record.integer(next(f for f in _IDS if f in record.fields)) if has_id(record) else record.number


def _text(record: Record, field: str, context: Context) -> str:
    """Where a row counts even without a text, a space keeps the pair a pair."""
    return record.text(field, empty=context.hidden) or " "


def _label(record: Record, field: str, context: Context) -> int | None:
    if context.hidden:
        return None
    found, labels = label_text(record, field), context.labels
    if [label.lower() for label in labels] == ["false", "true"]:  # copies of the data write them in either way
        found, labels = found.lower(), ("false", "true")
    if found not in labels:
        raise UserError(
            f"{record.place}: unknown label {found!r}, expected one of {printable(', '.join(context.labels))}"
            + ("; leave out the rows on which the judges disagreed" if found == "-" else "")
        )
    return labels.index(found)


def _choice(record: Record, field: str, choices: tuple[str, ...], context: Context) -> int | None:
    if context.hidden:
        return None
    found = record.integer(field)
    if not 0 <= found < len(choices):
        raise UserError(f"{record.place}: unknown label {found}, expected 0 to {len(choices) - 1}")
    return found


def _texts(first: str, second: str, label: str, some_empty: bool = False) -> Builder:
    """Of one text or two, by their fields; with `some_empty` training rows without one of the texts are left out."""

    def build(record: Record, context: Context) -> Iterator[Example]:
        fields = [field for field in (first, second) if field]
        if some_empty:
            texts = [record.text(field, empty=True).strip() or " " for field in fields]
            if context.split == "train" and " " in texts:
                context.note("rows without a text left out", record.place)
                return
        else:
            texts = [_text(record, field, context) for field in fields]
        yield Example(_id(record), *texts, label=_label(record, label, context))

    return build


def _similarity(record: Record, context: Context) -> Iterator[Example]:
    score = None if context.hidden else record.real("score")
    if score is not None and not 0 <= score <= 5:
        raise UserError(f"{record.place}: the score {score:g} is outside of 0 to 5")
    texts = [_text(record, field, context) for field in ("sentence1", "sentence2")]
    yield Example(_id(record), *texts, label=score)


def _copa(record: Record, context: Context) -> Iterator[Example]:
    asked = record.text("question")
    if asked not in _COPA_QUESTIONS:
        raise UserError(f"{record.place}: unknown question {asked!r}, expected one of {', '.join(_COPA_QUESTIONS)}")
    texts = (_text(record, field, context) for field in ("choice1", "choice2"))
    choices = tuple(f"{_COPA_QUESTIONS[asked]} {text}" for text in texts)
    yield Example(
        _id(record),
        _text(record, "premise", context),
        label=_choice(record, "label", choices, context),
        choices=choices,
    )


def _multirc(record: Record, context: Context) -> Iterator[Example]:
    index = record.child("idx")
    ids = tuple(index.integer(field) for field in ("paragraph", "question", "answer"))
    second = f"{_text(record, 'question', context)} {_text(record, 'answer', context)}"
    label = _label(record, "label", context)
    yield Example(ids, _text(record, "paragraph", context), second, label, group=f"{ids[0]}-{ids[1]}")


def _record(record: Record, context: Context) -> Iterator[Example]:
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


def _wic(record: Record, context: Context) -> Iterator[Example]:
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
    yield Example(_id(record), *texts, label=_label(record, "label", context), marked=tuple(spans))


def _wsc(record: Record, context: Context) -> Iterator[Example]:
    spans = tuple(_words(record, name, context) for name in ("span1", "span2"))
    yield Example(_id(record), record.text("text"), label=_label(record, "label", context), marked=spans)


def _words(record: Record, name: str, context: Context) -> Span:
    """Where a span stands in the text: near the word with its index, upper and lower case being the same.

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


def _impossible(record: Record) -> bool:
    return "is_impossible" in record.fields and record.flag("is_impossible")


def _squad1(record: Record, context: Context) -> Iterator[Example]:
    if _impossible(record):
        raise UserError(f"{record.place}: a question without an answer; SQuAD 2.0 is the task squad2")
    yield from _squad(record, context)


def _squad(record: Record, context: Context) -> Iterator[Example]:
    passage = record.text("context")
    given, impossible = record.child("answers"), _impossible(record)
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


def _swag(record: Record, context: Context) -> Iterator[Example]:
    start = record.text("sent2", empty=True)
    endings = [record.text(f"ending{number}") for number in range(4)]
    yield _completion(record, record.number, "sent1", start, endings, context)


def _hellaswag(record: Record, context: Context) -> Iterator[Example]:
    # TFDS has it at the end of ctx_a; a file, which has the whole `ctx` besides, must have it.
    start = record.text("ctx_b", empty=True) if {"ctx_b", "ctx"} & record.fields.keys() else ""
    endings = [Record(record.place, 0, {"endings": ending}).text("endings") for ending in record.items("endings")]
    if len(endings) != 4:
        raise UserError(f"{record.place}: {len(endings)} endings, expected 4")
    yield _completion(record, _id(record), "ctx_a", start, endings, context)


def _completion(record: Record, number: int, first: str, start: str, endings: list[str], context: Context) -> Example:
    choices = tuple(f"{start} {ending}" if start else ending for ending in endings)
    return Example(number, record.text(first), label=_choice(record, "label", choices, context), choices=choices)


def _own(record: Record, setting: str, context: Context) -> str:
    """The user's field of a setting."""
    field = getattr(context.settings, setting)
    if field not in record.fields:
        raise UserError(
            f"{record.place}: no field {field!r} (config.{setting}); found {printable(', '.join(record.fields))}"
        )
    return field


def own_label(record: Record, context: Context) -> str:
    """The label's text in a file of the user's."""
    return label_text(record, _own(record, "label_field", context))


def _own_texts(record: Record, context: Context) -> list[str]:
    settings = ["text_field", "pair_field"] if context.settings.pair_field else ["text_field"]
    return [_text(record, _own(record, setting, context), context) for setting in settings]


def _classification(record: Record, context: Context) -> Iterator[Example]:
    label = None if context.hidden else _label(record, _own(record, "label_field", context), context)
    yield Example(record.number, *_own_texts(record, context), label=label)


def _regression(record: Record, context: Context) -> Iterator[Example]:
    score = None if context.hidden else record.real(_own(record, "label_field", context))
    yield Example(record.number, *_own_texts(record, context), label=score)


BUILDERS: dict[str, Builder] = {
    "cola": _texts("sentence", "", "label"),
    "sst2": _texts("sentence", "", "label"),
    "mrpc": _texts("#1 String", "#2 String", "Quality"),
    "stsb": _similarity,
    # Official files of these two hold a few empty questions and hypotheses.
    "qqp": _texts("question1", "question2", "is_duplicate", some_empty=True),
    "mnli": _texts("sentence1", "sentence2", "gold_label", some_empty=True),
    "qnli": _texts("question", "sentence", "label"),
    "rte": _texts("sentence1", "sentence2", "label"),
    "wnli": _texts("sentence1", "sentence2", "label"),
    "boolq": _texts("question", "passage", "label"),
    "cb": _texts("premise", "hypothesis", "label"),
    "copa": _copa,
    "multirc": _multirc,
    "record": _record,
    "superglue_rte": _texts("premise", "hypothesis", "label"),
    "wic": _wic,
    "wsc": _wsc,
    "squad1": _squad1,
    "squad2": _squad,
    "swag": _swag,
    "hellaswag": _hellaswag,
    "classification": _classification,
    "regression": _regression,
}
