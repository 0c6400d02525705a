"""Labels of words: the tasks `ner`, named entities scored as `seqeval` does, and `tagging`, such as parts of speech.

Shapes: W words of a sentence, w those of them that have a token, K labels.
"""

import collections
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sctd_jax import storage
from sctd_jax.errors import UserError, printable
from sctd_jax.tasks import own
from sctd_jax.tasks.examples import Context, Example, FileSettings
from sctd_jax.tasks.files import Note, Record, read_jsonl, text_lines
from sctd_jax.tasks.splits import Notes, Split
from sctd_jax.tasks.task import Task

_COLUMNS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".tsv", ".txt")
_DOCUMENT = "-DOCSTART-"
OUTSIDE = "O"
NOT_READ = -1  # prediction for a word without a token
_ENTITY = r"[BIESLU]-.+"
_OTHER_NAMES = {"L": "E", "U": "S"}  # prefixes of BILOU -> those of IOBES


class Tagged(NamedTuple):
    """Outputs of the network for a sentence."""

    logits: np.ndarray  # f32[w, K]
    words: np.ndarray  # i32[w], numbers of the words


def read_columns(path: str, hidden: bool, settings: FileSettings, note: Note) -> Iterator[Record]:
    """The sentences of a column file as CoNLL's: one word on a line, an empty line after each sentence.

    Tabs separate the columns if the first word's line has any, else spaces. The word is in the first column and the
    label in the last one, in a .conllu file in the 2nd and 4th; `settings` may give other numbers. Lines with
    -DOCSTART- are passed over and noted, as are lines at a sentence's beginning that begin with # and have another
    number of columns; `_without_comments` sees to the others. Comments of CoNLL-U, its lines of several words in one
    and of omitted words are passed over.
    """
    conllu = path.endswith(".conllu")
    word_at = _column("tokens_field", settings.tokens_field, 1 if conllu else 0)
    tag_at = _column("tags_field", settings.tags_field, 3 if conllu else -1)
    lines = ((line, text.rstrip("\r\n")) for line, text in text_lines(path))
    before, first = [], ""
    for line, text in lines:  # the others are read as they are asked for
        before.append((line, text))
        if text.strip() and not text.startswith(("#", _DOCUMENT)):
            first = text
            break
    separator = re.compile(r"\t" if "\t" in first else r"[ \t]+")
    columns, number = len(separator.split(first.rstrip(" "))), 0
    place, words, tags = path, [], []
    for line, text in itertools.chain(before, lines, [(0, "")]):
        if not text.strip():
            if words:
                yield Record(place, number, {"tokens": words, "tags": tags})
                number, words, tags = number + 1, [], []
            continue
        here = f"{path}, line {line}"
        if conllu and text.startswith("#"):
            continue
        values = separator.split(text.rstrip(" "))
        if values[0] == _DOCUMENT:
            note("lines that begin a document passed over", here)
            continue
        if text.startswith("#") and not words and len(values) != columns:
            note("comments passed over", here)
            continue
        if conllu and not values[0].isdecimal():
            continue
        if len(values) != columns:
            raise UserError(f"{here}: {len(values)} columns, expected {columns} as in the first line")
        if word_at >= columns or (not hidden and (tag_at >= columns or columns == 1)):
            raise UserError(
                f"{here}: {columns} columns ({printable(text)[:80]}), expected a word in column {word_at + 1} and its "
                f"label in {'the last one' if tag_at < 0 else f'column {tag_at + 1}'} (config.tokens_field and "
                "config.tags_field may give their numbers)"
            )
        if hidden and values[0] == "#" and not words:
            note("lines of # at a sentence's beginning taken as words", here)
        place = place if words else here
        words.append(values[word_at])
        tags.append("" if hidden else values[tag_at])


def _column(setting: str, value: str, otherwise: int) -> int:
    if value == getattr(FileSettings, setting):
        return otherwise
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise UserError(
            f"config.{setting} must be the number of a column from 1 on in a column file, found {value!r:.80}"
        )
    return int(value) - 1


def _find(task: Task, data_dir: str, settings: FileSettings, notes: Notes) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits of the user's files or dataset, and the labels of the words of training and dev."""
    if settings.tokens_field == settings.tags_field:
        raise UserError(
            f"config.tokens_field and config.tags_field must be different, found {printable(settings.tags_field)}"
        )
    if data_dir.startswith("tfds:"):
        fields = {settings.tokens_field: "tokens", settings.tags_field: "tags"}
        splits = own.dataset(task, data_dir, settings.tags_field, fields)
    else:
        kinds = (*_COLUMNS, ".jsonl")
        paths = (
            {"train": data_dir} if storage.as_path(data_dir).is_file() else own.files(task.name, data_dir, kinds, notes)
        )
        splits = {split: Split(path, read(path, split, settings, notes.of(path))) for split, path in paths.items()}
    splits = {name: Split(split.where, list(split.records)) for name, split in splits.items()}
    columns = {name: split for name, split in splits.items() if split.where.endswith(_COLUMNS)}
    splits |= _without_comments(columns, notes)
    for name in columns:
        where, records = splits[name].where, list(splits[name].records)
        if len(records) == 1 and (count := len(records[0].fields["tokens"])) > 1:
            what = f"{where}: its {count:,} words are one sentence; an empty line ends a sentence"
            if "dev" not in splits:
                raise UserError(f"{what}, and of several config.heldout_share = {settings.heldout_share} is held out")
            notes.remarks.append(what)
    splits = own.with_dev(splits, settings, notes)
    found = {
        tag: record.place
        for name in ("dev", "train")
        for record in splits[name].records
        for tag in _texts(record, "tags")
    }
    if len(found) < 2:
        raise UserError(
            f"{splits['train'].where}: {len(found)} different labels of words ({printable(', '.join(found))}), "
            "expected at least 2"
        )
    if task.name == NER.name:
        own.check_labels(found)
        for tag, place in found.items():
            if tag != OUTSIDE and not re.fullmatch(_ENTITY, tag):
                raise UserError(
                    f"{place}: the label {printable(repr(tag))} is none of an entity, expected {OUTSIDE}, or B- or I- "
                    f"(E-, S-, L-, U-) before its type; other labels of words are config.task={TAGGING.name}"
                )
    return splits, tuple(sorted(found))


def _without_comments(splits: Mapping[str, Split], notes: Notes) -> dict[str, Split]:
    """The splits of column files without comments that have as many columns as words have.

    A line of # at a sentence's beginning is a word only where its label is one of entities, or stands at other words
    too. Either is noted.
    """

    def leading(record: Record) -> int:
        return sum(1 for _ in itertools.takewhile("#".__eq__, record.fields["tokens"]))

    known = {tag for s in splits.values() for record in s.records for tag in record.fields["tags"][leading(record) :]}
    known.add("")  # hidden: a row that is predicted is not left out
    found = {}
    for name, split in splits.items():
        note, records = notes.of(split.where), []
        for record in split.records:
            words, tags = record.fields.values()
            run = tags[: leading(record)]
            are_words = (tag in known or re.fullmatch(f"{OUTSIDE}|{_ENTITY}", tag) for tag in run)
            comments = next((number for number, is_word in enumerate(are_words) if is_word), len(run))
            for _ in range(comments):
                note("lines of # passed over as comments: no other word has their label", record.place)
            if comments < len(run) and run[comments]:  # '' where labels are hidden
                note("lines of # taken as words: their labels are entities' or other words' too", record.place)
            if words[comments:]:
                fields = {"tokens": words[comments:], "tags": tags[comments:]}
                records.append(Record(record.place, record.number, fields))
        found[name] = Split(split.where, records)
    return found


def read(path: str, split: str, settings: FileSettings, note: Note) -> Iterator[Record]:
    """Sentences of a column file or of JSON lines as records with `tokens` and, unless a test split's, `tags`."""
    hidden = split.startswith("test")
    if path.endswith(_COLUMNS):
        yield from read_columns(path, hidden, settings, note)
    elif path.endswith(".jsonl"):
        for record in read_jsonl(path):
            words, *labels = (
                own.field_of(record, setting, settings)
                for setting in (("tokens_field",) if hidden else ("tokens_field", "tags_field"))
            )
            tags = _labels(record, *labels) if labels else []
            yield Record(record.place, record.number, {"tokens": record.items(words), "tags": tags})
    else:
        raise UserError(f"{path}: unknown kind of file, expected {', '.join((*_COLUMNS, '.jsonl'))}")


def _labels(record: Record, field: str) -> list[str]:
    """The labels of a JSON list, numbers as text; null or a list in it is an error."""
    named = ((f"{field}, number {number}", tag) for number, tag in enumerate(record.items(field), 1))
    return [tag if isinstance(tag, str) else Record(record.place, 0, {name: tag}).label(name) for name, tag in named]


def _texts(record: Record, field: str) -> list[str]:
    """The texts of a list; each holds more than white space and no end of a line."""
    texts = record.items(field)
    try:
        if all(text.strip() for text in texts):
            joined = "".join(texts)
            joined.encode()
            if not re.search(r"[\t\r\n]", joined):
                return texts
    except (AttributeError, TypeError, UnicodeEncodeError):
        pass
    for number, text in enumerate(texts, 1):
        name = f"{field}, number {number}"
        if re.search(r"[\t\r\n]", Record(record.place, 0, {name: text}).text(name)):
            raise UserError(f"{record.place}: {name} is {text!r}, expected a word without tabs and line ends")
    raise AssertionError(record)


def _build(record: Record, context: Context) -> Iterator[Example]:
    words = tuple(_texts(record, "tokens"))
    if not words:
        if not context.hidden:
            context.note("sentences without a word left out", record.place)
            return
        raise UserError(f"{record.place}: a sentence without a word")
    tags = None
    if not context.hidden:
        numbers = {label: number for number, label in enumerate(context.labels)}
        tags = tuple(numbers[tag] for tag in _texts(record, "tags"))
        if len(tags) != len(words):
            raise UserError(f"{record.place}: {len(words)} words and {len(tags)} labels, expected one for each word")
    yield Example(record.number, " ".join(words), words=words, tags=tags)


def _review(where: str, labels: Sequence[str], train: Sequence[Example], dev: Sequence[Example]) -> Iterator[str]:
    """Oddities of the sentences as a whole."""
    of_train = {tag for e in train for tag in e.tags or ()}
    if unseen := [label for number, label in enumerate(labels) if number not in of_train]:
        yield f"{where}: {len(unseen)} labels without a word in training: {printable(', '.join(unseen))}"
    known = {e.first for e in train}
    if copies := sum(e.first in known for e in dev):
        yield f"{where}: {copies:,} of {len(dev):,} dev sentences stand in the training ones too: the score is too good"


def _review_entities(
    where: str, labels: Sequence[str], train: Sequence[Example], dev: Sequence[Example]
) -> Iterator[str]:
    yield from _review(where, labels, train, dev)
    name = scheme(labels, [e.tags or () for e in train])
    types = sorted({label[2:] for label in labels if label != OUTSIDE})
    yield f"{where}: entities are marked by {name}; {len(types)} types: {printable(', '.join(types))}"
    if name == "IOB2":
        tags = [["", *names(labels, e.tags or ())] for e in (*train, *dev)]
        pairs = [pair for sentence in tags for pair in itertools.pairwise(sentence)]
        if odd := sum(tag[0] == "I" and before[1:] != tag[1:] for before, tag in pairs):
            yield f"{where}: {odd:,} entities begin with I-: they count in f1, not in strict_f1"


def scheme(labels: Sequence[str], sentences: Sequence[Sequence[int]]) -> str:
    """Name of the scheme by which labels mark entities, as `seqeval.scheme` has it.

    Prefixes tell most of them. B and I are IOB1 where B- stands after an entity of its type only, else IOB2.
    """
    prefixes = {label[0] for label in labels} - {OUTSIDE}
    if prefixes & {"L", "U"}:
        return "BILOU"
    if prefixes & {"S"} or {"B", "E"} <= prefixes:
        return "IOBES"
    if "E" in prefixes:
        return "IOE2"
    for tags in sentences:
        previous = OUTSIDE
        for tag in names(labels, tags):
            if tag[0] == "B" and previous[1:] != tag[1:]:
                return "IOB2"
            previous = tag
    return "IOB1"


def inside(labels: Sequence[str]) -> tuple[int, ...]:
    """Label that the later tokens of a word learn, by the word's: I- after B- and I-, O after O, -1 (none) else.

    So the tokens of an entity are one for the pipeline of `transformers`, which reads all of them.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    later = [label if label == OUTSIDE else f"I{label[1:]}" if label[0] in "BI" else "" for label in labels]
    return tuple(numbers.get(label, -1) for label in later)


def names(labels: Sequence[str], tags: Sequence[int]) -> list[str]:
    """Labels of words by name; a word without a token is outside of entities, or _ among other labels."""
    if NOT_READ not in tags:
        return [labels[tag] for tag in tags]
    unread = OUTSIDE if any(re.match(_ENTITY, label) for label in labels) else "_"
    return [labels[tag] if tag != NOT_READ else unread for tag in tags]


def _predict(example: Example, outputs: Tagged) -> tuple[int, ...]:
    tags = np.full(len(example.words), NOT_READ)
    tags[outputs.words] = outputs.logits.argmax(axis=-1)
    return tuple(tags.tolist())


def measure_entities(
    examples: Sequence[Example], predictions: Sequence[Sequence[int]], labels: Sequence[str]
) -> dict[str, float]:
    """`f1`, `precision` and `recall` of whole entities, as conlleval counts them, and `strict_f1`.

    That is seqeval's strict mode, in which an entity counts only if the scheme of the labels allows it.
    """
    import seqeval.metrics
    import seqeval.scheme

    golds = [e.tags or () for e in examples]
    pair = [names(labels, tags) for tags in golds], [names(labels, tags) for tags in predictions]
    # The default mode knows the ends and the single words of BILOU by their other names alone.
    plain = [[[_OTHER_NAMES.get(tag[0], tag[0]) + tag[1:] for tag in tags] for tags in part] for part in pair]
    strict = getattr(seqeval.scheme, scheme(labels, golds))
    return {
        "f1": float(seqeval.metrics.f1_score(*plain, zero_division=0)),
        "precision": float(seqeval.metrics.precision_score(*plain, zero_division=0)),
        "recall": float(seqeval.metrics.recall_score(*plain, zero_division=0)),
        "strict_f1": float(seqeval.metrics.f1_score(*pair, mode="strict", scheme=strict, zero_division=0)),
    }


def measure_words(
    examples: Sequence[Example], predictions: Sequence[Sequence[int]], labels: Sequence[str]
) -> dict[str, float]:
    """`accuracy` over all words; one without a token counts as wrong."""
    golds = np.concatenate([np.array(e.tags, int) for e in examples])
    return {"accuracy": float(np.mean(golds == np.concatenate([np.array(tags, int) for tags in predictions])))}


def most_frequent(train: Sequence[Example], examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Each word's most frequent label in training, of a new word the most frequent one of all: no context is read."""
    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for example in train:
        for word, tag in zip(example.words, example.tags or (), strict=True):
            counts[word][tag] += 1
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    other = sum(counts.values(), collections.Counter()).most_common(1)[0][0]
    return [tuple(best.get(word, other) for word in example.words) for example in examples]


def submit(
    examples: Sequence[Example], predictions: Sequence[Sequence[int]], labels: Sequence[str], separator: str = ""
) -> str:
    """Columns as conlleval reads them: word, label if it is known, prediction; an empty line after each sentence.

    Without a `separator` they are separated by spaces, or by tabs where words hold spaces.
    """
    separator = separator or ("\t" if any(" " in word for e in examples for word in e.words) else " ")
    lines = []
    for example, tags in zip(examples, predictions, strict=True):
        golds = () if example.tags is None else (names(labels, example.tags),)
        lines += [separator.join(row) for row in zip(example.words, *golds, names(labels, tags), strict=True)]
        lines.append("")
    return "".join(f"{line}\n" for line in lines)


def _task(name: str, **other: Any) -> Task:
    return Task(
        name=name, head="token_classification", single=True, learning_rate=5e-5, build=_build, find=_find,
        rows=lambda path, settings, note: read(path, "test", settings, note),
        predict=_predict, floor=most_frequent, submission=submit, suffix=".conll", **other,
    )  # fmt: skip


NER = _task("ner", metrics=("f1", "precision", "recall", "strict_f1"), score=("f1",), measure=measure_entities,
            review=_review_entities, later=inside)  # fmt: skip
TAGGING = _task("tagging", metrics=("accuracy",), measure=measure_words, review=_review)
TOKENS = (NER, TAGGING)
