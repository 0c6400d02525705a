"""Ranges: a text cut into parts of about 64 MB, which depends on the text alone and on nothing that works on it.

Whatever is done with one range is done with it alone, so that ranges may be prepared anywhere, in any order, and twice.
"""

import codecs
import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from sctd_jax.data import corpus, decoding, files, hub_datasets
from sctd_jax.data.decoding import END

BYTES = 64 << 20
_UNPACKED = 4  # bytes of text in a byte of a compressed file, or of Parquet, about
_WINDOW = 1 << 20
# An end of a line with the white space after it; it takes all of that, so that no long run is tried twice.
_LINE_END = re.compile(rb"\n\s*+")


class Part(NamedTuple):
    """A file, or a span of one."""

    source: corpus.Source
    file: int  # its number among the sources
    share: float  # share of its documents that is taken


class Range(NamedTuple):
    """Parts that are prepared together."""

    number: int
    parts: tuple[Part, ...]
    size: int  # bytes of text, about
    repeat: int  # 0 for the first time that its documents are taken

    def __str__(self) -> str:
        """Give its number, in messages."""
        return str(self.number)


def plan(sources: Iterable[corpus.Source], documents: str, encoding: str = "") -> list[Range]:
    """The ranges of a text, in its order; those of sources with more than one epoch come again after all others.

    A file of UTF-8 whose documents are lines or paragraphs is cut between two of them; Parquet, Arrow and TFDS datasets
    by their row groups, record batches and records. What is compressed, CSV, WARC and other encodings are not cut.
    """
    is_utf8 = codecs.lookup(encoding or "utf-8").name == "utf-8"
    once: list[list[tuple[Part, int]]] = []
    room = 0
    for index, source in enumerate(sources):
        for part, size in _cut(source, documents, is_utf8):
            if room <= 0:
                once.append([])
                room = BYTES
            once[-1].append((Part(part, index, 1.0), size))
            room -= size
    most = max((math.ceil(part.source.epochs) for group in once for part, _ in group), default=0)
    ranges: list[Range] = []
    for repeat in range(most):
        for group in once:
            left = [
                (part._replace(share=min(1.0, part.source.epochs - repeat)), size)
                for part, size in group
                if part.source.epochs > repeat
            ]
            if left:
                ranges.append(Range(len(ranges), tuple(part for part, _ in left), sum(n for _, n in left), repeat))
    return ranges


def _cut(source: corpus.Source, documents: str, is_utf8: bool) -> Iterator[tuple[corpus.Source, int]]:
    """Spans of a source and their sizes in bytes of text."""
    if hub_datasets.is_one(source.path):
        yield source, BYTES  # the hub does not tell its size
        return
    if source.split:
        yield from _evenly(source, *_records_of_tfds(source))
        return
    remote = decoding.is_remote(source.path)
    stored = int(source.stamp.partition(":")[0]) if remote else os.path.getsize(source.path)
    kind = files.kind(source.path)
    packed = kind in ("parquet", "arrow") or source.path.lower().endswith(decoding.COMPRESSED)
    size = stored * (_UNPACKED if packed and kind != "arrow" else 1)
    if size < 2 * BYTES:
        yield source, size
    elif kind == "parquet":
        import pyarrow.parquet

        with decoding.raw(source.path) as file:
            count = pyarrow.parquet.ParquetFile(file).num_row_groups
        yield from _evenly(source, count, size)
    elif kind == "arrow":
        import pyarrow

        with decoding.raw(source.path) as file:
            is_file = file.read(6) == b"ARROW1"
            count = pyarrow.ipc.open_file(file).num_record_batches if is_file else 1
        yield from _evenly(source, count, size)
    elif is_utf8 and (kind == "json" or (kind == "text" and documents != "file")) and decoding.can_be_cut(source.path):
        with decoding.raw(source.path) as file:
            head = file.read(_WINDOW).removeprefix(codecs.BOM_UTF8)
        is_array = kind == "json" and head.lstrip().startswith(b"[")
        if is_array:
            yield source, size
        else:
            yield from _between(source, size, blank_line=kind == "text" and documents == "paragraph")
    else:
        yield source, size


def _evenly(source: corpus.Source, count: int, size: int) -> Iterator[tuple[corpus.Source, int]]:
    """Spans of whole records, groups or batches, of which there are `count`."""
    spans = max(1, min(count, size // BYTES))
    if spans == 1:
        yield source, size
        return
    places = [count * i // spans for i in range(spans + 1)]
    for begin, end in itertools.pairwise(places):
        yield dataclasses.replace(source, span=(begin, end)), size // spans


def _between(source: corpus.Source, size: int, blank_line: bool) -> Iterator[tuple[corpus.Source, int]]:
    """Spans of bytes, each cut at the first end of a line, or of blank lines, after a multiple of BYTES."""
    begin = 0
    with decoding.raw(source.path) as file:
        while size - begin >= 2 * BYTES:
            file.seek(begin + BYTES)
            end = _after_break(file, begin + BYTES, blank_line)
            if end is None:
                break
            yield dataclasses.replace(source, span=(begin, end)), end - begin
            begin = end
    yield dataclasses.replace(source, span=(begin, END)), size - begin


def _after_break(file: BinaryIO, at: int, blank_line: bool) -> int | None:
    """Place of the first line that follows an end of a line, or a blank one, from `at` on, where the file stands."""
    seen = b""
    while more := file.read(_WINDOW):
        seen += more
        for match in _LINE_END.finditer(seen):
            # White space that goes on in the next window is looked at with that.
            if match.end() < len(seen) and (not blank_line or match[0].count(b"\n") > 1):
                return at + match.start() + match[0].rindex(b"\n") + 1
        rest = seen[len(seen.rstrip()) :]
        at, seen = at + len(seen) - len(rest), rest
    return None


def _records_of_tfds(source: corpus.Source) -> tuple[int, int]:
    with open(os.path.join(source.path, "dataset_info.json"), encoding="utf-8") as file:
        for split in json.load(file).get("splits", ()):
            if split.get("name") == source.split:
                return sum(map(int, split.get("shardLengths", ()))), int(split.get("numBytes", 0))
    return 1, 0  # the reader says what is wrong
