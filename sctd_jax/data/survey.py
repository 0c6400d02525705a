"""The look at a text before its rows are made: counts, a sample, copies, and how much must be held out.

Each range is looked at alone, up to a share of `LOOK` characters, and what was found is put together. So a text of up
to that size is read twice, here and for its rows, and of a larger one the beginning of each range; all of it, where
copies of documents are to be found.
"""

import dataclasses
import hashlib
import heapq
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sctd_jax.config import DataConfig
from sctd_jax.data import corpus, ranges
from sctd_jax.data.cleaning import Cleaning
from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError, printable

MIN_HELDOUT_ROWS = 64
LOOK = 256 << 20  # characters that are looked at in all ranges together
_LEAST_LOOK = 1 << 20  # and in each
TRAINING_BYTES = 40 << 20  # sample that a tokenizer is trained on: under 1 GB of memory
LOOK_BYTES = 1 << 20  # sample that shows whether a tokenizer fits
_CHARS_PER_TOKEN = 16  # generous: how much text the held-out candidates must hold
_DRAWN_LETTERS = 1 << 20  # first letters of a document, which its draw depends on
# Ranges keep so many times their even share, because the lowest draws are not spread evenly over them.
_MORE_SAMPLE, _MORE_CANDIDATES = 4, 64
_SAMPLE_LINE = 40  # bytes; a sample holds no more lines than of this length: each takes memory of its own


class Piece(NamedTuple):
    """A chunk of a document."""

    document: int  # number within its range
    text: str
    part: int  # number of its part of the range
    draw: float  # draw of its document
    words: int
    letters: int  # characters that are no white space
    nul: int  # NUL characters that have become spaces


@dataclasses.dataclass
class Survey:
    """Findings in one range, or in all of them."""

    counts: dict[int, corpus.SourceCounts] = dataclasses.field(
        default_factory=dict
    )  # counts of what was read, by source
    sample: list[tuple[float, int, Any]] = dataclasses.field(default_factory=list)  # (draw, bytes, (line, source))
    # (draw, characters, beginning) of the documents with the lowest draws
    candidates: list[tuple[float, int, str]] = dataclasses.field(default_factory=list)
    whole: bool = True  # all of the text was read
    all_sampled: bool = True  # the sample is all that was read
    lowest: float = 1.0  # draw of all documents
    highest: float = 0.0
    nul: int = 0
    taken: int = 0  # documents that are in the rows, copies included
    # (u64 digest, bool taken)[documents] by part, to find copies.
    digests: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> corpus.SourceCounts:
        """Counts of all sources together."""
        return corpus.Counts(list(self.counts.values())).total

    def lines(self) -> list[tuple[str, int]]:
        """The sample's lines, with the numbers of their sources, in random order."""
        return [item for _, _, item in self.sample]


def heldout_draw(seed: int, text: str) -> float:
    """Uniform in [0, 1), a pure function of the seed and the document's first letters.

    Copies fall on one side of the split. White space does not count: where a document is cut into chunks, and how its
    lines end, must not matter. Letters beyond the first million (2**20) do not either: none is read twice for its draw.
    """
    digest = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    digest.update("".join(text.split())[:_DRAWN_LETTERS].encode("utf-8", "replace"))
    return int.from_bytes(digest.digest(), "big") / 2**64


def is_taken(draw: float, share: float) -> bool:
    """Whether a document is among a share of them, by its draw; which side of the split it is on does not matter."""
    again = hashlib.blake2b(np.float64(draw).tobytes(), digest_size=8).digest()
    return share >= 1.0 or int.from_bytes(again, "big") < share * 2**64


def read(parts: Sequence[corpus.Source], data: DataConfig, counts: corpus.Counts) -> Iterator[Piece]:
    """Pieces of all documents, with spaces for NUL (padding of fixed-width files), which no tokenizer reads."""
    cleaning = Cleaning(data.normal_form, data.longest_line, data.shortest_document)
    reading = {"text_field": data.text_field, "documents": data.documents, "encoding": data.encoding}
    held: list[Piece] = []
    document, draw, beginning = -1, -1.0, ""  # state of the document that is being read; its draw is not known at first

    def drawn() -> Iterator[Piece]:
        nonlocal draw
        if held:
            draw = heldout_draw(data.seed, beginning)
            yield from (piece._replace(draw=draw) for piece in held)
            held.clear()

    for chunk in corpus.read(parts, counts=counts, cleaning=cleaning, **reading):
        if chunk.document != document:
            yield from drawn()
            document, draw, beginning = chunk.document, -1.0, ""
        nul = chunk.text.count("\0")
        text = chunk.text.replace("\0", " ") if nul else chunk.text
        words = text.split()
        letters = "".join(words)
        piece = Piece(document, text, chunk.source, draw, len(words), len(letters), nul)
        if draw >= 0:
            yield piece
            continue
        held.append(piece)
        beginning += letters[: _DRAWN_LETTERS - len(beginning)]
        if len(beginning) == _DRAWN_LETTERS:
            yield from drawn()
    yield from drawn()


def take(range_: ranges.Range, data: DataConfig, sample_bytes: int, count: int) -> Survey:
    """Look at one range of so many, without knowing the size of the text: the lowest random draws stay.

    From `data` come the settings of reading, the seed of the sample, and N: the held-out candidates of all ranges
    together hold MIN_HELDOUT_ROWS rows.
    """
    found, counts = Survey(), corpus.Counts()
    most = sys.maxsize if data.drop_copies else max(LOOK // count, _LEAST_LOOK)
    rng = np.random.default_rng(np.random.Philox(data.seed).jumped(range_.number))
    enough = _enough(data)
    sample = _sample(min(sample_bytes, _MORE_SAMPLE * sample_bytes // count))
    candidates = _LowestDraws(min(enough, _MORE_CANDIDATES * enough // count))
    digests: list[list[tuple[int, bool]]] = [[] for _ in range_.parts]
    document, draw, size, read_chars = -1, 0.0, 0, 0
    seen: set[float] = set()  # draws, where copies are left out
    part, taken, digest = 0, False, hashlib.blake2b(digest_size=8)
    beginning: list[str] = []

    def end_document() -> None:
        if document >= 0 and data.drop_copies:
            digests[part].append((int.from_bytes(digest.digest(), "big"), taken))
        found.taken += document >= 0 and taken and range_.repeat == 0
        # Held-out documents are in the rows once.
        if document >= 0 and taken and range_.repeat == 0 and not (data.drop_copies and draw in seen):
            if data.drop_copies:
                seen.add(draw)
            candidates.offer(draw, size, "".join(beginning))
            found.lowest, found.highest = min(found.lowest, draw), max(found.highest, draw)

    for piece in read([part.source for part in range_.parts], data, counts):
        if piece.document != document:
            end_document()
            if read_chars >= most:
                found.whole = False
                document = -1
                break
            document, draw, part, size, beginning = piece.document, piece.draw, piece.part, 0, []
            taken, digest = is_taken(draw, range_.parts[part].share), hashlib.blake2b(digest_size=8)
        if size >= max(most, enough):  # a huge one
            found.whole = False
            break
        read_chars += len(piece.text)
        found.nul += piece.nul * (range_.repeat == 0)
        if data.drop_copies:
            digest.update("".join(piece.text.split()).encode("utf-8", "replace"))
        if not taken:
            continue
        if size < enough:
            beginning.append(piece.text)
        size += len(piece.text)
        lines = piece.text.splitlines()
        for i in np.flatnonzero((draws := rng.random(len(lines))) < sample.limit):
            item = (lines[i], range_.parts[part].file)
            sample.offer(draws[i], len(lines[i].encode("utf-8", "replace")), item)
    end_document()
    for number, here in enumerate(counts.sources if range_.repeat == 0 else ()):
        add_counts(found.counts, range_.parts[number].file, here)
    found.sample, found.candidates, found.all_sampled = sample.sorted(), candidates.sorted(), sample.limit == 1.0
    if data.drop_copies and range_.repeat == 0:
        names = (part_name(part) for part in range_.parts)
        kind = np.dtype([("digest", np.uint64), ("taken", bool)])
        found.digests = {name: np.array(here, kind) for name, here in zip(names, digests, strict=True)}
    return found


def _enough(data: DataConfig) -> int:
    """Characters of held-out candidates, so that they surely give MIN_HELDOUT_ROWS rows."""
    return (MIN_HELDOUT_ROWS + 1) * data.seq_len * _CHARS_PER_TOKEN


def add_counts(counts: dict[int, corpus.SourceCounts], index: int, more: corpus.SourceCounts) -> None:
    """Add counts to those of the source with this index."""
    counts[index] = corpus.Counts([counts.get(index, corpus.SourceCounts()), more]).total


def together(found: Iterable[Survey], data: DataConfig, sample_bytes: int) -> Survey:
    """One survey of all ranges; `found` are theirs, in their order."""
    everything, seen = Survey(), set[float]()
    sample, candidates = _sample(sample_bytes), _LowestDraws(_enough(data))
    for here in found:
        for index, counts in here.counts.items():
            add_counts(everything.counts, index, counts)
        for line in here.sample:
            sample.offer(*line)
        for draw, size, text in here.candidates:
            if not (data.drop_copies and draw in seen):
                candidates.offer(draw, size, text)
                seen.add(draw)
        everything.whole &= here.whole
        everything.all_sampled &= here.all_sampled
        everything.lowest, everything.highest = (
            min(everything.lowest, here.lowest),
            max(everything.highest, here.highest),
        )
        everything.nul += here.nul
        everything.taken += here.taken
    everything.all_sampled &= sample.limit == 1.0
    everything.sample, everything.candidates = sample.sorted(), candidates.sorted()
    return everything


def part_name(part: ranges.Part) -> str:
    """Name of a part in all ranges that it is in."""
    return f"{part.file}:{part.source.span[0] if part.source.span else 0}"


def copies(found: Sequence[Survey]) -> dict[str, list[int]]:
    """Documents that are copies of ones before: their numbers within their part, by its name."""
    by_part = {name: digests for here in found for name, digests in here.digests.items()}
    if not by_part:
        return {}
    documents = np.concatenate(list(by_part.values()))
    taken = np.flatnonzero(documents["taken"])  # one that is not leaves its copies in
    digests = documents["digest"][taken]
    order = np.argsort(digests, kind="stable")
    is_copy = np.zeros(len(documents), bool)
    is_copy[taken[order[1:]]] = digests[order[1:]] == digests[order[:-1]]
    ends = np.cumsum([len(here) for here in by_part.values()])
    pieces = zip(by_part, np.split(is_copy, ends[:-1]), strict=True)
    return {name: np.flatnonzero(here).tolist() for name, here in pieces if here.any()}


def least_threshold(look: Survey, data: DataConfig) -> float:
    """The threshold if a token were a quarter of a character: what fails even so needs no tokenizer to tell."""
    sizes = [len(text) for _, _, text in look.candidates]
    return _threshold(look, data, sizes, MIN_HELDOUT_ROWS * data.seq_len / 4)


def threshold(look: Survey, data: DataConfig, tokenizer: Tokenizer) -> float:
    """Highest draw of a document that is held out: `data.heldout_share`, or what gives MIN_HELDOUT_ROWS rows.

    The tokenizer counts the candidates' tokens: texts of several kinds differ too much to guess.
    """
    sizes = [len(ids) + 1 for ids in tokenizer.encode([text for _, _, text in look.candidates])]
    # The packer of each range begins anew; a range may end in the middle of a row.
    return _threshold(look, data, sizes, (MIN_HELDOUT_ROWS + 1) * data.seq_len)


def _threshold(look: Survey, data: DataConfig, sizes: Sequence[int], needed: float) -> float:
    total, found = 0, data.heldout_share
    for (draw, _, _), size in zip(look.candidates, sizes, strict=True):
        if total >= needed:
            break
        total += size
        found = max(found, draw)
    return found


def check_split(look: Survey, data: DataConfig, sources: Sequence[corpus.Source], copied: int, found: float) -> None:
    """Refuse a text all of whose documents would be held out, as none draws more than the threshold found."""
    if found < look.highest or not look.whole:
        return
    number, cure = look.taken - copied, f"give more text{more_documents(data.documents)}"
    if not look.taken:
        said = f"{look.total.documents:,} documents, of which the weight of the input takes none"
    elif number == 1:
        said = "one document, and documents are held out whole: none is left to train on"
    elif look.lowest == look.highest:
        said, cure = f"{number:,} copies of one document, of which none may be held out alone", "give other text"
    elif data.heldout_share >= look.highest:
        said = f"--heldout-share {data.heldout_share} (config.data.heldout_share) holds out all {number:,} documents"
        cure = "take a smaller one, or give more text"
    else:
        said = f"{number:,} documents, which would all be needed for {MIN_HELDOUT_ROWS} held-out rows"
        cure += ", or take a smaller --seq-len (config.data.seq_len)"
    more = f" and {len(sources) - 1:,} more" if len(sources) > 1 else ""
    raise UserError(f"{printable(sources[0].path)}{more}: {said}; {cure}")


def more_documents(documents: str) -> str:
    """Advice to cut text files into more documents than by `documents`, as the end of a sentence."""
    finer = {"file": "paragraph or line", "paragraph": "line"}.get(documents)
    return f", or cut text files into more documents: --documents {finer} (config.data.documents)" if finer else ""


class _LowestDraws:
    """The items with the lowest draws whose sizes fill a budget (not one more than needed), or the `most` lowest."""

    def __init__(self, budget: int, most: int = sys.maxsize):
        self._budget, self._most, self._total, self.limit = budget, most, 0, 1.0
        self._heap: list[tuple[float, int, Any]] = []

    def offer(self, draw: float, size: int, item: Any) -> None:
        """Take the item if its draw is among the lowest."""
        if draw >= self.limit:
            return
        heapq.heappush(self._heap, (-draw, size, item))
        self._total += size
        while self._total - self._heap[0][1] >= self._budget or len(self._heap) > self._most:
            self.limit = -self._heap[0][0]
            self._total -= heapq.heappop(self._heap)[1]

    def sorted(self) -> list[tuple[float, int, Any]]:
        """(draw, size, item), lowest first."""
        return sorted((-negative, size, item) for negative, size, item in self._heap)


def _sample(budget: int) -> _LowestDraws:
    return _LowestDraws(budget, most=budget // _SAMPLE_LINE)
