"""How much of a text a tokenizer does not know, in letters: a whole run of unknown letters can be one [UNK]."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError, printable

WARN, REFUSE = 0.01, 0.20  # shares of the letters
_KEPT = 1000  # different unknown letters of one source; the rarest beyond are forgotten, not uncounted
_NAMED_SOURCES, _NAMED_LETTERS = 3, 5


@dataclasses.dataclass
class Letters:
    """Letters of a text: its characters without the white space."""

    total: int = 0
    unknown: int = 0  # within an [UNK]
    commonest: Counter = dataclasses.field(default_factory=Counter)  # of the unknown ones

    @property
    def share(self) -> float:
        """Of the letters, how many are unknown."""
        return self.unknown / max(self.total, 1)

    def add(self, other: "Letters") -> None:
        """Count another text in."""
        self.total += other.total
        self.unknown += other.unknown
        self.commonest.update(other.commonest)
        if len(self.commonest) > 2 * _KEPT:
            self.commonest = Counter(dict(self.commonest.most_common(_KEPT)))


def measure(pieces: Tokenizer, texts: Sequence[str], ids: Sequence[np.ndarray]) -> list[Letters]:
    """Letters of each text, and which of them the tokenizer does not know.

    Only texts with an [UNK] cost more than a count: their different words are tokenised once more, alone, and those
    that have the [UNK] are asked for the place.

    Args:
      pieces: the tokenizer.
      texts: any texts.
      ids: what `pieces.encode(texts)` gave.
    """
    unk = pieces.special["unk"]
    found, words = [], {}
    for i, (text, piece_ids) in enumerate(zip(texts, ids, strict=True)):
        parts = text.split()
        found.append(Letters(sum(map(len, parts))))
        if (piece_ids == unk).any():
            words[i] = Counter(parts)
    distinct = list(dict.fromkeys(word for counts in words.values() for word in counts))
    odd = [word for word, piece_ids in zip(distinct, pieces.encode(distinct), strict=True) if (piece_ids == unk).any()]
    letters = {}
    for word, (piece_ids, spans) in zip(odd, pieces.encode_spans(odd), strict=True):
        letters[word] = Counter("".join(word[start:end] for start, end in spans[piece_ids == unk]))
    for i, counts in words.items():
        for word in counts.keys() & letters.keys():
            for letter, count in letters[word].items():
                found[i].commonest[letter] += count * counts[word]
        found[i].unknown = found[i].commonest.total()
    return found


def total(by_source: Iterable[Letters]) -> Letters:
    """Of all sources together."""
    everything = Letters()
    for letters in by_source:
        everything.add(letters)
    return everything


def report(names: Sequence[str], by_source: Sequence[Letters], allow: bool, where: str = "") -> list[str]:
    """Lines that say how much of each source is unknown: one, and a warning above WARN in a source or in all.

    Args:
      names: of the sources.
      by_source: their letters.
      allow: whether more than REFUSE in all is only warned of.
      where: of what text this is, if not of all.

    Raises:
      UserError: more than REFUSE in all, and `allow` is not set.
    """
    everything = total(by_source)
    said = f"{everything.unknown:,} of {everything.total:,} letters{where} ({everything.share:.2%})"
    worst = sorted((pair for pair in zip(names, by_source, strict=True) if pair[1].share > WARN), key=_by_unknown)
    if not worst:
        return [f"unknown to the tokenizer: {said}"]
    named = "; ".join(
        f"{printable(name)}: {letters.share:.1%} ({_letters(letters)})" for name, letters in worst[:_NAMED_SOURCES]
    )
    more = f"; and {len(worst) - _NAMED_SOURCES:,} more above {WARN:.0%}" if len(worst) > _NAMED_SOURCES else ""
    line = f"{said} are unknown to the tokenizer and become [UNK]: {named}{more}"
    if everything.share > REFUSE and not allow:
        raise UserError(
            f"{line}. Use a tokenizer of this text's language and script (or a larger --vocab-size, "
            "config.model.vocab_size), look at the file's encoding, or accept it: --allow-unknown, "
            "--config.data.allow_unknown=True"
        )
    return [f"warning: {line}"]


def _by_unknown(pair: tuple[str, Letters]) -> int:
    return -pair[1].unknown


def _letters(letters: Letters) -> str:
    common = letters.commonest.most_common(_NAMED_LETTERS)
    return ", ".join(f"{printable(letter)} U+{ord(letter):04X} {count:,}" for letter, count in common)
