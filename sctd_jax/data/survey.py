"""The first pass over a text: counts, a sample, and which documents are held out, in bounded memory."""

import dataclasses
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sctd_jax.config import DataConfig
from sctd_jax.data import corpus
from sctd_jax.data.cleaning import Cleaning
from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError, printable

MIN_HELDOUT_ROWS = 64
TRAINING_BYTES = 40 << 20  # sample that a tokenizer is trained on: under 1 GB of memory
LOOK_BYTES = 1 << 20  # sample that shows whether a tokenizer fits
_CHARS_PER_TOKEN = 16  # generous: how much text the held-out candidates must hold


@dataclasses.dataclass
class Survey:
    """Findings of the first pass."""

    data: DataConfig
    sources: list[corpus.Source]
    fingerprints: list[str]  # fingerprints of the sources before the pass
    counts: corpus.Counts = dataclasses.field(default_factory=corpus.Counts)
    sample: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # (line, source), in random order
    whole: bool = True  # the sample is all of the text
    # (draw, text, a huge one cut off) of held-out candidates, by draw
    candidates: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    draws: dict[int, float] = dataclasses.field(default_factory=dict)  # draws of documents in several chunks
    lowest: float = 1.0  # draw of all documents
    highest: float = 0.0
    letters: Counter[int] = dataclasses.field(default_factory=Counter)  # characters by source that are no white space
    nul: int = 0  # NUL characters, which became spaces
    copies: dict[int, int] = dataclasses.field(default_factory=dict)  # source of each document that is left out as one

    def draw(self, chunk: corpus.Chunk) -> float:
        """The draw of a chunk's document."""
        known = self.draws.get(chunk.document)
        return known if known is not None else heldout_draw(self.data.seed, chunk.text)

    def least_threshold(self) -> float:
        """The threshold if a token were a quarter of a character: what fails even so needs no tokenizer to tell."""
        return self._threshold([len(text) for _, text in self.candidates], MIN_HELDOUT_ROWS * self.data.seq_len / 4)

    def threshold(self, tokenizer: Tokenizer) -> float:
        """Highest draw of a document that is held out: `data.heldout_share`, or what gives MIN_HELDOUT_ROWS rows.

        The tokenizer counts the candidates' tokens: texts of several kinds differ too much to guess.
        """
        sizes = [len(ids) + 1 for ids in tokenizer.encode([text for _, text in self.candidates])]
        return self._threshold(sizes, (MIN_HELDOUT_ROWS + 1) * self.data.seq_len)

    def _threshold(self, sizes: Sequence[int], needed: float) -> float:
        total, threshold = 0, self.data.heldout_share
        for (draw, _), size in zip(self.candidates, sizes, strict=True):
            if total >= needed:
                break
            total += size
            threshold = max(threshold, draw)
        return threshold

    def check_split(self, threshold: float) -> None:
        """Refuse a text all of whose documents would be held out, as none draws more than the threshold."""
        if threshold < self.highest:
            return
        number, cure = (
            self.counts.total.documents - len(self.copies),
            f"give more text{more_documents(self.data.documents)}",
        )
        if number == 1:
            said = "one document, and documents are held out whole: none is left to train on"
        elif self.lowest == self.highest:
            said, cure = f"{number:,} copies of one document, of which none may be held out alone", "give other text"
        else:
            said = f"{number:,} documents, which would all be needed for {MIN_HELDOUT_ROWS} held-out rows"
            cure += ", or take a smaller --seq-len (config.data.seq_len)"
        more = f" and {len(self.sources) - 1:,} more" if len(self.sources) > 1 else ""
        raise UserError(f"{printable(self.sources[0].path)}{more}: {said}; {cure}")

    def check_unchanged(self, source: int, *passes: corpus.SourceCounts) -> None:
        """Refuse a source that has changed since the first pass, or was other text in these passes."""
        path = self.sources[source].path
        try:
            same = corpus.fingerprint(self.sources[source], fresh=True) == self.fingerprints[source]
        except OSError:
            same = False
        first = self.counts.sources[source]
        if not same or any(again != first for again in passes):
            again = "".join(f", {again.characters:,} in the second" for again in passes)
            raise UserError(
                f"{printable(path)} changed while it was read ({first.characters:,} characters in the first "
                f"pass{again}); prepare again when nothing writes to it"
            )


def more_documents(documents: str) -> str:
    """Advice to cut text files into more documents than by `documents`, as the end of a sentence."""
    finer = {"file": "paragraph or line", "paragraph": "line"}.get(documents)
    return f", or cut text files into more documents: --documents {finer} (config.data.documents)" if finer else ""


def read(sources: list[corpus.Source], data: DataConfig, counts: corpus.Counts) -> Iterator[tuple[corpus.Chunk, int]]:
    """`corpus.read` with spaces for NUL (padding of fixed-width files), which no tokenizer reads, and their number."""
    cleaning = Cleaning(data.normal_form, data.longest_line, data.shortest_document)
    reading = {"text_field": data.text_field, "documents": data.documents, "encoding": data.encoding}
    for chunk in corpus.read(sources, counts=counts, cleaning=cleaning, **reading):
        nul = chunk.text.count("\0")
        yield (chunk._replace(text=chunk.text.replace("\0", " ")) if nul else chunk), nul


def take(sources: list[corpus.Source], data: DataConfig, sample_bytes: int) -> Survey:
    """Count, and sample without knowing the size of the text: the lowest random draws stay.

    From `data` come the settings of reading, the seed of the sample, and N: the held-out candidates hold
    MIN_HELDOUT_ROWS rows.
    """
    found = Survey(data, sources, [corpus.fingerprint(source) for source in sources])
    rng = np.random.default_rng(np.random.Philox(data.seed))
    sample = _LowestDraws(sample_bytes)
    enough = (MIN_HELDOUT_ROWS + 1) * data.seq_len * _CHARS_PER_TOKEN
    candidates = _LowestDraws(enough)
    seen: set[float] = set()  # draws of the documents before, where copies are left out
    for document, pieces in itertools.groupby(read(sources, data, found.counts), lambda pair: pair[0].document):
        size, chunks, digest = 0, 0, _digest(data.seed)
        beginning: list[str] = []
        for chunk, nul in pieces:
            if size < enough:
                beginning.append(chunk.text)
            size, chunks, found.nul = size + len(chunk.text), chunks + 1, found.nul + nul
            found.letters[chunk.source] += _update(digest, chunk.text)
            lines = chunk.text.splitlines()
            for i in np.flatnonzero((draws := rng.random(len(lines))) < sample.limit):
                sample.offer(draws[i], len(lines[i].encode("utf-8", "replace")), (lines[i], chunk.source))
        draw = _draw(digest)
        if data.drop_copies and draw in seen:
            found.copies[document] = chunk.source
            continue
        if data.drop_copies:
            seen.add(draw)
        candidates.offer(draw, size, "".join(beginning))
        found.lowest, found.highest = min(found.lowest, draw), max(found.highest, draw)
        if chunks > 1:
            found.draws[document] = draw
    found.sample, found.whole = [item for _, item in sample.sorted()], sample.limit == 1.0
    found.candidates = candidates.sorted()
    return found


def read_again(look: Survey, counts: corpus.Counts) -> Iterator[corpus.Chunk]:
    """The second pass, which adds to `counts` and fails at the end of a source that the first pass read otherwise."""
    for i in range(len(look.sources)):
        look.check_unchanged(i)
    done = 0
    for chunk, _ in read(look.sources, look.data, counts):
        while done < chunk.source:
            look.check_unchanged(done, counts.sources[done])
            done += 1
        if chunk.document not in look.copies:
            yield chunk
    for i in range(done, len(look.sources)):
        look.check_unchanged(i, counts.sources[i])


def heldout_draw(seed: int, text: str) -> float:
    """Uniform in [0, 1), a pure function of the seed and the document's text: copies fall on one side of the split.

    White space does not count: where a document is cut into chunks, and how its lines end, must not matter.
    """
    digest = _digest(seed)
    _update(digest, text)
    return _draw(digest)


def _digest(seed: int):
    return hashlib.blake2b(f"{seed}:".encode(), digest_size=8)


def _update(digest, text: str) -> int:
    letters = "".join(text.split())
    digest.update(letters.encode("utf-8", "replace"))
    return len(letters)


def _draw(digest) -> float:
    return int.from_bytes(digest.digest(), "big") / 2**64


class _LowestDraws:
    """The items with the lowest draws whose sizes fill a budget (and not one more than needed)."""

    def __init__(self, budget: int):
        self._budget, self._total, self.limit = budget, 0, 1.0
        self._heap: list[tuple[float, int, Any]] = []

    def offer(self, draw: float, size: int, item: Any) -> None:
        """Take the item if its draw is among the lowest."""
        if draw >= self.limit:
            return
        heapq.heappush(self._heap, (-draw, size, item))
        self._total += size
        while self._total - self._heap[0][1] >= self._budget:
            self.limit = -self._heap[0][0]
            self._total -= heapq.heappop(self._heap)[1]

    def sorted(self) -> list[tuple[float, Any]]:
        """(draw, item), lowest first."""
        return sorted((-negative, item) for negative, _, item in self._heap)
