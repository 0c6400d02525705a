"""Fill-mask: the newest checkpoints of pretrainings guess hidden words, all of them those of the same sentences.

Shapes: B sentences, N tokens of a row, M masked pieces of one, V vocabulary.
"""

import dataclasses
import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sctd_jax import storage
from sctd_jax.config import ModelConfig
from sctd_jax.data.rows import HELD_OUT, METADATA_FILE, Rows, on_disk, read_metadata
from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError, say
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.pretrain.evaluation import eval_rows
from sctd_jax.pretrain.workdir import check_rows
from sctd_jax.probing.models import full_precision
from sctd_jax.probing.perplexity import read_lines
from sctd_jax.reporting.runs import Run
from sctd_jax.train.workdir import ROWS_FILE

GUESSES = 3
_SEED = 20230705
_DRAWN_PIECES, _MOST_PIECES = 3, 8  # most pieces of a drawn word; the same for another tokenizer than drew it
_WANTED = f"a word of up to {_DRAWN_PIECES} pieces between others"
_SHOWN = 110  # characters beside the hidden word
_MASK = re.compile(r"\[MASK\]|<mask>")
_STAND_IN = "the"  # stands where a text of the user's has its mask, for a tokenizer to see a word there


class Sentence(NamedTuple):
    """A text with a hidden word."""

    text: str
    start: int  # the word is text[start:end]
    end: int
    is_known: bool  # whether it is the truth, and not a stand-in

    @property
    def shown(self) -> tuple[str, str, str]:
        """Text before it, the word ('' if unknown) and text after it, long ones cut off between words."""
        before, after = self.text[: self.start], self.text[self.end :]
        if len(before) > _SHOWN:
            before = "…" + re.sub(r"^\S*", "", before[-_SHOWN:])
        if len(after) > _SHOWN:
            after = re.sub(r"\S*$", "", after[:_SHOWN]) + "…"
        return before, self.text[self.start : self.end] if self.is_known else "", after


class Hidden(NamedTuple):
    """A sentence as a tokenizer has it."""

    ids_n: np.ndarray  # i32, [CLS] ... [SEP]
    at_m: np.ndarray  # i32, places of the word's pieces, which are masked
    truth_m: np.ndarray  # i32, those pieces


class Guess(NamedTuple):
    """A word in the place of the hidden one."""

    word: str
    chance: float
    is_right: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """Guesses of one run for one sentence."""

    guesses: tuple[Guess, ...]  # likeliest first
    chance: float | None  # probability of the truth, where it is known
    pieces: int  # number that the hidden word has; 1 where it is not known


@dataclasses.dataclass(frozen=True)
class Group:
    """Sentences, and the answers of the runs that were asked."""

    source: str
    sentences: tuple[Sentence, ...]
    answers: dict[str, tuple[Answer | None, ...]]  # answers by run; None: no whole word of its tokenizer's
    steps: dict[str, int | None]  # step of the checkpoint, by run


def ask(runs: Sequence[Run], text: str, count: int, log: Callable[[str], None]) -> list[Group]:
    """Groups of at most `count` sentences: the lines of the file `text`, or where it is '' the runs' own held-out rows.

    Runs with the same held-out rows and tokenizer are in one group. `log` is told of runs without rows or weights.
    """
    able = []
    for run in runs:
        if run.model.steps:
            able.append(run)
        else:
            log(f"{run.name}: no fill-mask examples: it has no checkpoint")
    groups = [_from_file(able, text, count, log)] if text and able else []
    if not text:
        together: dict[str, list[Run]] = {}
        for run in able:
            together.setdefault(_rows_of(run), []).append(run)
        for members in together.values():
            groups += _from_rows(members, count, log)
    return [group for group in groups if group.answers]


def _rows_of(run: Run) -> str:
    """Text that is the same for runs with the same held-out rows."""
    folder = run.model.path
    if not storage.exists(folder / METADATA_FILE):
        return ""
    metadata, split = read_metadata(folder), None
    if storage.exists(folder / ROWS_FILE):
        split = storage.read_json(folder / ROWS_FILE).get(HELD_OUT)
    return f"{metadata.tokenizer_sha256} {json.dumps(split, sort_keys=True) if split else metadata}"


def _from_rows(runs: Sequence[Run], count: int, log: Callable[[str], None]) -> list[Group]:
    called, problem = ", ".join(run.name for run in runs), ""
    for run in runs:
        try:
            rows = Rows(_rows_folder(run), HELD_OUT)
            sentences = list(itertools.islice(_held_out_sentences(rows, run.model.tokenizer), count))
        except UserError as error:
            problem = problem or str(error)
            continue
        if not sentences:
            problem = f"the held-out rows in {rows.folder} lack {_WANTED}"
            continue
        return [_answered(runs, f"held-out rows in {rows.folder}", sentences, log)]
    log(f"{called}: no fill-mask examples: {problem}; --text FILE takes sentences of yours")
    return []


def _rows_folder(run: Run) -> Path:
    """The rows that a run was trained on; they are looked for and, unlike in a training, never made."""
    data, began = run.config.data, read_metadata(run.model.path)
    places = [storage.as_path(folder) for folder in run.config.rows_folders]
    if not data.rows:
        root = storage.as_path(data.prepared_dir)
        with storage.reaching(root):
            places = sorted(path.parent for path in root.glob(f"*/{METADATA_FILE}"))
    for place in places:
        try:
            same = read_metadata(place) == began
        except UserError:
            continue  # a damaged one is not the run's
        if same:
            found = on_disk(place, say, whole=False)
            check_rows(run.model.path, found)
            return found
    raise UserError(f"the rows that it was trained on are not in {data.rows or data.prepared_dir}")


def _held_out_sentences(rows: Rows, tokenizer: Tokenizer) -> Iterator[Sentence]:
    """A word of each row, drawn among those of the middle half that are few pieces; rows from all over the split."""
    special = tokenizer.special
    numbers = eval_rows(min(len(rows), 256), len(rows))
    stride = max(len(numbers) // 8, 1)
    for number in itertools.chain.from_iterable(numbers[first::stride] for first in range(stride)):
        (ids_N,) = rows.read([number])
        closed = np.flatnonzero(np.isin(ids_N, special.unmaskable))
        longest = max(np.split(ids_N, closed), key=len)
        text = tokenizer.decode(longest[~np.isin(longest, special.unmaskable)].tolist()).strip()
        if found := _draw(text, tokenizer, int(number)):
            yield found


def _draw(text: str, tokenizer: Tokenizer, number: int) -> Sentence | None:
    quarter = len(text) // 4
    places = [(start, end) for start, end in _words(text) if quarter <= start and end <= len(text) - quarter]
    for place in np.random.default_rng((_SEED, number)).permutation(len(places)):
        start, end = places[place]
        sentence = Sentence(text, start, end, is_known=True)
        if (hidden := hide(sentence, tokenizer, 1 << 30)) and len(hidden.at_m) <= _DRAWN_PIECES:
            return sentence
    return None


def _words(text: str) -> Iterator[tuple[int, int]]:
    """Places of words between white space, without the signs around them; no numbers, no single letters."""
    for match in re.finditer(r"\S+", text):
        kinds = "".join(unicodedata.category(letter)[0] for letter in match[0])
        start, end = match.start() + len(kinds) - len(kinds.lstrip("PS")), match.start() + len(kinds.rstrip("PS"))
        # Letters, with marks such as the vowel signs of Devanagari.
        if end - start > 1 and set(kinds.strip("PS")) <= {"L", "M"}:
            yield start, end


def _from_file(runs: Sequence[Run], path: str, count: int, log: Callable[[str], None]) -> Group:
    sentences, passed, lines = [], 0, read_lines(path, count + 1)
    if len(lines) > count:
        log(f"--text {path}: its first {count} lines are asked, more by --examples")
    for number, line in enumerate(lines[:count]):
        masks = list(_MASK.finditer(line))
        if len(masks) > 1:
            raise UserError(f"--text {path}: a line has one mask at most, found {len(masks)} in {line[:60]!r}")
        if masks:
            start, end = masks[0].span()
            text = line[:start] + _STAND_IN + line[end:]
            sentences.append(Sentence(text, start, start + len(_STAND_IN), is_known=False))
        elif found := _draw(line, runs[0].model.tokenizer, number):
            sentences.append(found)
        else:
            passed += 1
    if not sentences:
        raise UserError(f"--text {path}: no line has a [MASK] or {_WANTED}")
    if passed:
        log(f"--text {path}: {passed} lines are passed over, without a [MASK] or {_WANTED}")
    return _answered(runs, path, sentences, log)


def _answered(runs: Sequence[Run], source: str, sentences: Sequence[Sentence], log: Callable[[str], None]) -> Group:
    answers, steps = {}, {}
    for run in runs:
        try:
            steps[run.name], answers[run.name] = answer(run, sentences)
        except UserError as error:  # the other runs are there all the same
            log(f"{run.name}: no fill-mask examples: {error}")
    return Group(source, tuple(sentences), answers, steps)


def hide(sentence: Sentence, tokenizer: Tokenizer, room: int) -> Hidden | None:
    """A sentence with every piece of its word masked; None if it begins or ends within a piece.

    A longer sentence keeps the `room` tokens around the word.
    """
    ((ids_n, spans_n2),) = tokenizer.encode_spans([sentence.text])
    at = np.flatnonzero((spans_n2[:, 0] < sentence.end) & (spans_n2[:, 1] > sentence.start))
    special = tokenizer.special
    if not len(at) or spans_n2[at[0], 0] < sentence.start or spans_n2[at[-1], 1] > sentence.end:
        return None
    first, last = int(at[0]), int(at[-1])
    truth_m = ids_n[first : last + 1]
    if sentence.is_known and (truth_m == special.unk).any():
        return None
    masks = np.full(len(truth_m) if sentence.is_known else 1, special.mask, np.int32)
    ids_n = np.concatenate([ids_n[:first], masks, ids_n[last + 1 :]])
    start = int(np.clip(first - room // 2, 0, max(len(ids_n) - room, 0)))
    row_n = np.array([special.cls, *ids_n[start : start + room], special.sep], np.int32)
    return Hidden(row_n, 1 + first - start + np.arange(len(masks), dtype=np.int32), truth_m[: len(masks)])


def answer(run: Run, sentences: Sequence[Sentence]) -> tuple[int | None, tuple[Answer | None, ...]]:
    """Step of a run's newest checkpoint that is whole, and its answers."""
    model, tokenizer = run.model, run.model.tokenizer
    found = [hide(sentence, tokenizer, run.config.data.seq_len - 2 - _MOST_PIECES) for sentence in sentences]
    found = [hidden if hidden and len(hidden.at_m) <= _MOST_PIECES else None for hidden in found]
    asked = [hidden for hidden in found if hidden]
    step, state = model.read()
    if not asked:
        return step, tuple(None for _ in found)
    most = max(len(hidden.at_m) for hidden in asked)
    # The places that fill up a short word's are those of padding, so that no token of the row is masked for it.
    length = most + max(len(hidden.ids_n) for hidden in asked)
    ids_BN = np.full((len(asked), length), tokenizer.special.pad, np.int32)
    at_BM = np.tile(np.arange(length - most, length, dtype=np.int32), (len(asked), 1))
    truth_BM = np.zeros_like(at_BM)
    for row, hidden in enumerate(asked):
        ids_BN[row, : len(hidden.ids_n)] = hidden.ids_n
        at_BM[row, : len(hidden.at_m)] = hidden.at_m
        truth_BM[row, : len(hidden.at_m)] = hidden.truth_m
    late = run.config.drop_layers[0] if run.config.dropping.method == "late_mask" else None
    logs_BMk, best_BMk, truths_BM = map(
        np.asarray, jit_fill(model.config.model, tokenizer.special.pad, late)(state["params"], ids_BN, at_BM, truth_BM)
    )
    if not np.isfinite(logs_BMk).all():
        raise UserError(f"the outputs of its checkpoint of step {step} are not finite")
    answers = (
        _answer(tokenizer, hidden, sentence, logs_BMk[row], best_BMk[row], truths_BM[row])
        for row, (hidden, sentence) in enumerate((h, s) for h, s in zip(found, sentences, strict=True) if h)
    )
    return step, tuple(next(answers) if hidden else None for hidden in found)


def _answer(
    tokenizer: Tokenizer,
    hidden: Hidden,
    sentence: Sentence,
    logs_Mk: np.ndarray,
    best_Mk: np.ndarray,
    truths_M: np.ndarray,
) -> Answer:
    # The pieces of a word are guessed each for itself: the likeliest words are products.
    words: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for logs_k, ids_k in zip(logs_Mk[: len(hidden.at_m)], best_Mk, strict=False):
        longer = [
            (total + float(log), (*ids, int(i))) for total, ids in words for log, i in zip(logs_k, ids_k, strict=True)
        ]
        words = sorted(longer, reverse=True)[:GUESSES]
    truth = tuple(hidden.truth_m.tolist()) if sentence.is_known else None
    guesses = tuple(Guess(_word(tokenizer, ids), float(np.exp(total)), ids == truth) for total, ids in words)
    chance = float(np.exp(truths_M[: len(hidden.at_m)].sum())) if sentence.is_known else None
    return Answer(guesses, chance, len(hidden.at_m))


def _word(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    """Pieces as a person reads them: a hyphen before one that goes on with the word before it, quotes around signs."""
    text = tokenizer.word(ids[0]) if len(ids) == 1 else tokenizer.decode(ids).strip()
    text = text.removeprefix("##")
    if not any(letter.isalnum() for letter in text):
        return f"“{text or ' '}”"
    return text if tokenizer.word_start_V[ids[0]] else f"-{text}"


@functools.cache
def jit_fill(config: ModelConfig, pad: int, late: int | None) -> Callable[..., Any]:
    """Jitted (parameters, ids_BN, at_BM, truth_BM) -> logs f32[B, M, 3] of the likeliest pieces, those, logs f32[B, M].

    Natural logarithms of probabilities, the last ones those of `truth_BM`; by the full model on the first device.
    `late` is the layer at which late masking lets the masked pieces enter.
    """
    bert = MaskedLm(full_precision(config), late or 0, late or 0)

    def fill(params: Any, ids_BN: jax.Array, at_BM: jax.Array, truth_BM: jax.Array) -> tuple[jax.Array, ...]:
        visible_BK = None
        if late is not None:
            hidden_BN = jax.vmap(lambda row_N, at_M: row_N.at[at_M].set(True))(jnp.zeros(ids_BN.shape, bool), at_BM)
            order_BN = jnp.argsort(hidden_BN, axis=1, stable=True)
            visible_BK = order_BN[:, : ids_BN.shape[1] - at_BM.shape[1]]
        logits: Any = bert.apply({"params": params}, ids_BN, ids_BN != pad, rows_BR=at_BM, visible_BM=visible_BK)
        logs_BMV = jax.nn.log_softmax(logits)
        best_BMk, ids_BMk = jax.lax.top_k(logs_BMV, GUESSES)
        return best_BMk, ids_BMk, jnp.take_along_axis(logs_BMV, truth_BM[..., None], axis=-1)[..., 0]

    return jax.jit(fill)
