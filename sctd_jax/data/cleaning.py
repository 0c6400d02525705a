"""Clean-up of a text before it is tokenised: long lines, short documents, and Unicode's normal form.

A document comes as (text, whether that ends it), in pieces of bounded size, and leaves so.
"""

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal, cast

from sctd_jax.errors import UserError

Pieces = Iterable[tuple[str, bool]]
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """Settings; each value here leaves the text as it is."""

    normal_form: str = ""  # Unicode's
    longest_line: int = 0  # characters; longer ones are left out, 0: none
    shortest_document: int = 0  # characters, after the lines are gone; shorter ones are left out

    def __post_init__(self):
        """Check the settings."""
        if self.normal_form and self.normal_form not in _FORMS:
            raise UserError(f"normal_form must be one of {', '.join(_FORMS)} or '', found {self.normal_form!r}")
        for name in ("longest_line", "shortest_document"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, found {getattr(self, name)}")


@dataclasses.dataclass
class LeftOut:
    """Counts of what was left out."""

    lines: int = 0
    documents: int = 0


def split_text(text: str, most: int) -> Iterator[str]:
    """Cut at white space into pieces of at most `most` characters, so that no word is cut where words exist."""
    start = 0
    while len(text) - start > most:
        end = max(text.rfind(white, start, start + most) for white in " \n\t")
        end = end if end > start else start + most
        yield text[start:end]
        start = end
    yield text[start:]


def clean(pieces: Pieces, how: Cleaning, left_out: LeftOut) -> Pieces:
    """The text as it is to be read; `left_out` counts what is not."""
    if how.normal_form:
        pieces = _normalized(pieces, how.normal_form)
    if how.longest_line:
        pieces = _without_long_lines(pieces, how.longest_line, left_out)
    if how.shortest_document:
        pieces = _without_short_documents(pieces, how.shortest_document, left_out)
    return pieces


def _normalized(pieces: Pieces, form: str) -> Iterator[tuple[str, bool]]:
    for text, last in pieces:
        yield unicodedata.normalize(cast(Literal["NFC"], form), text), last


def _without_long_lines(pieces: Pieces, most: int, left_out: LeftOut) -> Iterator[tuple[str, bool]]:
    """Lines end with LF. A line that goes over many pieces is held up to `most` characters."""
    begun, too_long = "", False  # the line that a piece left open
    for text, last in pieces:
        *whole, rest = (begun + text).split("\n")
        if last:
            whole, rest = [*whole, rest], ""
        kept = []
        for line in whole:
            if too_long or len(line) > most:
                left_out.lines += 1
            else:
                kept.append(line)
            too_long = False
        if not last:
            kept.append("")  # the last line of these has ended
            too_long = len(rest) > most or (too_long and not whole)
        begun = "" if too_long else rest
        yield "\n".join(kept), last


def _without_short_documents(pieces: Pieces, least: int, left_out: LeftOut) -> Iterator[tuple[str, bool]]:
    """White space at the ends of a document does not count."""
    held, begun = "", False
    for text, last in pieces:
        if begun:
            yield text, last
        else:
            held += text
            if len(held.strip()) >= least:
                yield held, last
                held, begun = "", True
            elif last and held.strip():
                left_out.documents += 1
            elif last:
                yield "", True  # an empty one, which is counted apart
        if last:
            held, begun = "", False
