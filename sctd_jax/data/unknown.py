"""Share of a text that a tokenizer does not know, in letters: a whole run of unknown letters can be one [UNK]."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError, printable

WARN, REFUSE = 0.01, 0.20  # shares of the letters
_KEPT = 1000  # different unknown letters of one source; the rarest beyond are forgotten, not uncounted
_PART = 256  # letters of a long word that are looked at together
_WORTH_A_NAME = 0.001  # share of unknown letters
_NAMED_SOURCES, _NAMED_LETTERS = 3, 5


@dataclasses.dataclass
class Letters:
    """Letters of a text: its characters without the white space."""

    source: str = ""  # name of what they are from
    total: int = 0
    unknown: int = 0  # letters within an [UNK]
    commonest: Counter = dataclasses.field(default_factory=Counter)  # unknown letters by count

    @property
    def share(self) -> float:
        """Share of the letters that are unknown."""
        return self.unknown / max(self.total, 1)

    def add(self, unknown: Counter) -> None:
        """Count unknown letters in."""
        self.join(Letters(unknown=unknown.total(), commonest=unknown))

    def join(self, more: "Letters") -> None:
        """Count the letters of more text in."""
        self.total += more.total
        self.unknown += more.unknown
        self.commonest.update(more.commonest)
        if len(self.commonest) > 2 * _KEPT:
            self.commonest = Counter(dict(self.commonest.most_common(_KEPT)))


def unknown_letters(tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[np.ndarray]) -> list[Counter]:
    """The letters of each text that the tokenizer does not know.

    Texts without an [UNK] in their `ids`, by `tokenizer.encode`, cost nothing. The different words of the others, long
    ones in parts, are tokenised once more, and the few that have an [UNK] are asked for its place, which is slow.
    """
    expected = [int((piece_ids == tokenizer.special.unk).sum()) for piece_ids in ids]
    found: list[Counter[str]] = [Counter() for _ in texts]
    left = [i for i, count in enumerate(expected) if count]
    for longest in (_PART, sys.maxsize):
        if not left:
            break
        parts = {
            i: Counter(word[at : at + longest] for word in texts[i].split() for at in range(0, len(word), longest))
            for i in left
        }
        odd = _within_unknown(tokenizer, list(dict.fromkeys(part for counts in parts.values() for part in counts)))
        left.clear()
        for i, counts in parts.items():
            here = [(times, *odd[part]) for part, times in counts.items() if part in odd]
            # A WordPiece word that is unknown for its length, or a letter with its accent, is another thing in parts.
            if longest == _PART and sum(times * number for times, number, _ in here) != expected[i]:
                left.append(i)
                continue
            for times, _, letters in here:
                for letter in letters:
                    found[i][letter] += times
    return found


def lost_and_divided(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[Counter], list[Counter]]:
    """The letters of each text that no token stands for, not even [UNK], and those that several tokens stand for.

    A normaliser or a model has left the former out; of the latter byte-level BPE knows the bytes alone.
    """
    lost: list[Counter[str]] = []
    divided: list[Counter[str]] = []
    for text, (_, spans_n2) in zip(texts, tokenizer.encode_spans(texts), strict=True):
        covered = np.zeros(len(text) + 1, np.int64)
        np.add.at(covered, spans_n2[:, 0], 1)
        np.add.at(covered, spans_n2[:, 1], -1)
        times = np.cumsum(covered)[:-1]
        for found, here in ((lost, times == 0), (divided, times > 1)):
            letters = (text[i] for i in np.flatnonzero(here))
            found.append(Counter(letter for letter in letters if not letter.isspace() and letter.isprintable()))
    return lost, divided


def _within_unknown(tokenizer: Tokenizer, words: list[str]) -> dict[str, tuple[int, str]]:
    """(number of [UNK], the letters within) of the words that have any."""
    unk = tokenizer.special.unk
    odd = [word for word, ids in zip(words, tokenizer.encode(words), strict=True) if (ids == unk).any()]
    found = {}
    for word, (ids, spans) in zip(odd, tokenizer.encode_spans(odd), strict=True):
        found[word] = int((ids == unk).sum()), "".join(word[start:end] for start, end in spans[ids == unk])
    return found


def total(by_source: Iterable[Letters]) -> Letters:
    """Letters of all sources together."""
    everything = Letters()
    for letters in by_source:
        everything.join(letters)
    return everything


def report(
    by_source: Sequence[Letters],
    allow: bool,
    where: str = "",
    what: str = "are unknown to the tokenizer and become [UNK]",
) -> list[str]:
    """Lines that say how much of each source is unknown: one, and a warning above WARN in a source or in all.

    Args:
      by_source: letters of each source.
      allow: whether more than REFUSE in all is only warned of.
      where: part of the text that this is about, if not all.
      what: fate of the unknown letters, the end of the sentence.
    """
    everything = total(by_source)
    said = f"{everything.unknown:,} of {everything.total:,} letters{where} ({everything.share:.2%})"
    worst = sorted((letters for letters in by_source if letters.share > WARN), key=lambda letters: -letters.unknown)
    if not worst:
        most = max(by_source, key=lambda letters: letters.share)
        named = len(by_source) > 1 and most.share > _WORTH_A_NAME
        return [f"unknown to the tokenizer: {said}" + f"; most in {printable(most.source)} ({most.share:.2%})" * named]
    parts = []
    for letters in worst[:_NAMED_SOURCES]:
        common = letters.commonest.most_common(_NAMED_LETTERS)
        spelt = ", ".join(f"{printable(letter)} U+{ord(letter):04X} {count:,}" for letter, count in common)
        parts.append(f"{printable(letters.source)}: {letters.share:.1%} ({spelt})")
    if more := len(worst[_NAMED_SOURCES:]):
        parts.append(f"and {more:,} more above {WARN:.0%}")
    line = f"{said} {what}: {'; '.join(parts)}"
    if everything.share > REFUSE and not allow:
        raise UserError(
            f"{line}. Use a tokenizer of this text's language and script (or a larger --vocab-size, "
            "config.model.vocab_size), look at the file's encoding, or accept it: --allow-unknown, "
            "--config.data.allow_unknown=True"
        )
    return [f"warning: {line}"]
