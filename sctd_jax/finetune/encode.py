"""Examples -> token rows: [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with segments 0 and 1, as BERT builds them.

RoBERTa has two [SEP] between the texts, and one segment.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sctd_jax.data.tokenizer import Tokenizer, separators
from sctd_jax.errors import UserError
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.squad import Window, max_context
from sctd_jax.tasks.task import EACH_TOKEN
from sctd_jax.tasks.tokens import Tagged

_QUESTION_TOKENS, _STRIDE = 64, 128  # SQuAD's (Devlin et al., 2019; run_squad)
_MUCH_UNKNOWN = 0.01  # share of the characters
_EXAMPLES, _UNKNOWN, _CHARACTERS = "examples", "unknown characters", "characters"  # counted beside the losses


class Row(NamedTuple):
    """n tokens of one sequence."""

    ids: np.ndarray  # i32[n]
    second: int  # position at which the second text begins, and segment 1; n for a single text


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """Rows of an example that the network sees at once. SQuAD has one for each window of the passage."""

    example: int  # number of the example
    rows: tuple[Row, ...]  # one row; in multiple choice one for each choice
    label: float = 0.0  # class, number of the right choice, or score
    marked: tuple[tuple[int, int], ...] = ()  # first and last token of each marked span
    answer: tuple[int, int] = (0, 0)  # first and last token; [CLS] if it is not in this window
    spans: np.ndarray | None = None  # SQuAD: those of `squad.Window`, with n tokens
    best: np.ndarray | None = None
    # Token classification, i32[n]: number of the word that is read at a token, and the label that the token learns; -1
    # where there is none.
    words: np.ndarray | None = None
    tags: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return max(len(row.ids) for row in self.rows)


def encode(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    head: str,
    max_length: int,
    say: Callable[[str], None] = lambda line: None,
    *,
    segments: int = 2,
    lost: Counter[str] | None = None,
    later: Sequence[int] = (),
) -> list[Feature]:
    """The features of examples, in their order, for a model of so many segments (`type_vocab_size`).

    Pairs that are too long lose tokens at the end of the longer text, one at a time; SQuAD's passages are cut into
    windows that begin every 128 tokens, sentences of token classification into windows that overlap by half. A marked
    word that is cut off is a UserError. `say` receives a line for each kind of loss, with its count: what is cut off,
    without a token or unknown; with `lost` they are only added up there, for `loss_lines`. `later` has for each label
    of a word the one that its later tokens learn, -1 for none; () where none do.
    """
    counts_only, lost = lost is not None, Counter() if lost is None else lost
    texts = list(dict.fromkeys(text for e in examples for text in (e.first, e.second, *e.choices) if text))
    pieces = dict(zip(texts, tokenizer.encode_spans(texts), strict=True))
    counts = {len(example.choices) for example in examples}
    if len(counts) > 1:
        raise UserError(f"all examples of a task must have the same number of choices, found {sorted(counts)}")
    between = separators(tokenizer, segments)
    sentences = functools.partial(_sentences, later_K=np.array(later, np.int32))
    build = {"span": _windows, "token_classification": sentences}.get(head, _rows)
    built = (
        build(tokenizer, number, example, pieces, max_length, between, lost) for number, example in enumerate(examples)
    )
    features = list(itertools.chain.from_iterable(built))
    for text in pieces.values():
        lengths_n = text.spans_n2[:, 1] - text.spans_n2[:, 0]
        lost[_UNKNOWN] += int(lengths_n[text.ids_n == tokenizer.special.unk].sum())
        lost[_CHARACTERS] += int(lengths_n.sum())
    lost[_EXAMPLES] += len(examples)
    for line in () if counts_only else loss_lines(lost):
        say(line)
    return features


def loss_lines(lost: Mapping[str, int]) -> Iterator[str]:
    """A line for each kind of loss that `encode` has counted."""
    for what, count in lost.items():
        if count and what not in (_EXAMPLES, _UNKNOWN, _CHARACTERS):
            yield f"{count:,} of {lost[_EXAMPLES]:,} {what}"
    if lost[_UNKNOWN] > _MUCH_UNKNOWN * lost[_CHARACTERS]:
        share = lost[_UNKNOWN] / lost[_CHARACTERS]
        yield f"warning: {share:.1%} of the characters are unknown to the tokenizer"


def _rows(
    tokenizer: Tokenizer, number: int, example: Example, pieces: dict, max_length: int, between: int, lost: Counter
) -> Iterable[Feature]:
    first = pieces[example.first].ids_n
    rows, lengths, cut = [], (0, 0), False
    for text in example.choices or (example.second,):
        second = [pieces[text].ids_n] if text else []
        sizes = len(first), sum(map(len, second))
        lengths = _lengths(*sizes, max_length - 2 - between * len(second))
        cut |= lengths != sizes
        rows.append(_row(tokenizer, between, first[: lengths[0]], *(ids_n[: lengths[1]] for ids_n in second)))
    lost[f"rows are longer than {max_length} tokens: cut at the end of the longer text"] += cut
    texts = (example.first, example.second, *example.choices)
    lost["rows have a text without any token"] += any(text.strip() and not len(pieces[text].ids_n) for text in texts)
    marked = tuple(_marked(example, span, pieces, lengths, between) for span in example.marked)
    yield Feature(number, tuple(rows), 0.0 if example.label is None else float(example.label), marked)


def _row(tokenizer: Tokenizer, between: int, first: np.ndarray, *second: np.ndarray) -> Row:
    cls, sep = [tokenizer.special.cls], [tokenizer.special.sep]
    parts = [cls, first, *(part for ids_n in second for part in (sep * between, ids_n)), sep]
    return Row(np.concatenate(parts).astype(np.int32), 1 + len(first) + (between if second else 1))


def _lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that are left of a pair: the longer one is cut first, the second one where they are equal."""
    if first + second <= room:
        return first, second
    kept = min(second, max(room // 2, room - first))
    return room - kept, kept


def _marked(example: Example, span, pieces: dict, lengths: tuple[int, int], between: int) -> tuple[int, int]:
    text = (example.first, example.second)[span.text]
    inside = _tokens_of(pieces[text].spans_n2, span.start, span.end)
    if inside is None or inside[1] >= lengths[span.text]:
        raise UserError(
            f"example {example.id}: the marked text {text[span.start : span.end]!r} is cut off or has no token; "
            "raise config.max_length"
        )
    offset = 1 if span.text == 0 else 1 + lengths[0] + between
    return inside[0] + offset, inside[1] + offset


def _tokens_of(spans_n2: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """First and last token that overlap the characters start .. end - 1."""
    inside = np.flatnonzero((spans_n2[:, 0] < end) & (spans_n2[:, 1] > start))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _windows(
    tokenizer: Tokenizer, number: int, example: Example, pieces: dict, max_length: int, between: int, lost: Counter
) -> Iterable[Feature]:
    longest = min(_QUESTION_TOKENS, max_length // 2)
    question = pieces[example.first].ids_n[:longest]
    lost[f"questions are longer than {longest} tokens: cut"] += len(pieces[example.first].ids_n) > longest
    passage = pieces[example.second]
    room, count = max_length - len(question) - 2 - between, len(passage.ids_n)
    starts = [0]
    while starts[-1] + room < count:
        starts.append(starts[-1] + min(_STRIDE, room))
    sizes = [min(room, count - start) for start in starts]
    answer = None
    if example.answers:
        wanted = example.answers[0]
        answer = _tokens_of(passage.spans_n2, wanted.start, wanted.start + len(wanted.text))
        shown = answer and any(s <= answer[0] and answer[1] < s + n for s, n in zip(starts, sizes, strict=True))
        lost["answers are whole in no window of the passage: learned as no answer"] += not shown
    for start, size, best in zip(starts, sizes, max_context(starts, sizes), strict=True):
        row = _row(tokenizer, between, question, passage.ids_n[start : start + size])
        around = (row.second, 1)  # [CLS] question [SEP], and the last [SEP]
        spans_n2 = np.pad(passage.spans_n2[start : start + size], (around, (0, 0)), constant_values=-1)
        inside = answer is not None and start <= answer[0] and answer[1] < start + size
        at = (answer[0] - start + row.second, answer[1] - start + row.second) if inside else (0, 0)
        yield Feature(number, (row,), answer=at, spans=spans_n2, best=np.pad(best, around))


def _sentences(
    tokenizer: Tokenizer,
    number: int,
    example: Example,
    pieces: dict,
    max_length: int,
    between: int,
    lost: Counter,
    *,
    later_K: np.ndarray,
) -> Iterable[Feature]:
    """Windows over a sentence; each word is read at its first token, in the window where that has most context."""
    ids_n, spans_n2 = pieces[example.first]
    ends_W = np.cumsum([len(word) + 1 for word in example.words]) - 1
    starts_W = ends_W - [len(word) for word in example.words]
    real_r = np.flatnonzero(spans_n2[:, 1] > spans_n2[:, 0])  # others stand for no character
    at_W = np.searchsorted(spans_n2[real_r, 1], starts_W, side="right")
    first_W = np.append(real_r, -1)[at_W]
    has_W = (first_W >= 0) & (spans_n2[first_W, 0] < ends_W) if len(ids_n) else np.zeros(len(ends_W), bool)
    has_W[1:] &= ~(has_W[:-1] & (first_W[1:] == first_W[:-1]))  # else its first token begins another word
    lost["sentences have words without a token of their own, which are given no label"] += not has_W.all()
    word_n = np.full(len(ids_n), -1, np.int32)
    word_n[first_W[has_W]] = np.flatnonzero(has_W)
    tag_n = np.full(len(ids_n), -1, np.int32)
    if example.tags is not None and len(ids_n):
        tags_W, of_n = np.array(example.tags), np.searchsorted(starts_W, spans_n2[:, 0], side="right") - 1
        tag_n[first_W[has_W]] = tags_W[has_W]
        if len(later_K):
            inside_n = (spans_n2[:, 1] > spans_n2[:, 0]) & (spans_n2[:, 0] < ends_W[of_n])
            later_n = inside_n & has_W[of_n] & (np.arange(len(ids_n)) > first_W[of_n])
            tag_n[later_n] = later_K[tags_W[of_n[later_n]]]
    room = max_length - 2
    starts = [0]
    while starts[-1] + room < len(ids_n):
        starts.append(starts[-1] + room // 2)
    lost[f"sentences are longer than {max_length} tokens: cut into windows"] += len(starts) > 1
    sizes = [min(room, len(ids_n) - start) for start in starts]
    for start, size, best in zip(starts, sizes, max_context(starts, sizes), strict=True):
        words = np.pad(np.where(best, word_n[start : start + size], -1), 1, constant_values=-1)
        tags = np.pad(np.where(best, tag_n[start : start + size], -1), 1, constant_values=-1)
        yield Feature(number, (_row(tokenizer, between, ids_n[start : start + size]),), words=words, tags=tags)


def by_example(head: str, features: Sequence[Feature], logits: Sequence[np.ndarray]) -> list[Any]:
    """Outputs for `scoring.predict` from the logits of each feature, which are f32[n, K] where a head has each token's.

    Those are span tasks, with K = 2, and token classification.
    """
    if head not in EACH_TOKEN:
        return list(logits)
    pairs = itertools.groupby(zip(features, logits, strict=True), key=lambda pair: pair[0].example)
    if head == "span":
        return [[Window(*row_n2.T, f.spans, f.best) for f, row_n2 in windows] for _, windows in pairs]
    return [_tagged(list(windows)) for _, windows in pairs]


def _tagged(windows: Sequence[tuple[Feature, np.ndarray]]) -> Tagged:
    words = [np.array(feature.words) for feature, _ in windows]
    rows = [row_nK[words_n >= 0] for words_n, (_, row_nK) in zip(words, windows, strict=True)]
    return Tagged(np.concatenate(rows), np.concatenate([words_n[words_n >= 0] for words_n in words]))
