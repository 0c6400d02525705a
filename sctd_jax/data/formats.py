"""Formats of text: each file as a stream of its documents' texts.

A text stands in the field that `text_field` names: `text`, or `article.body` for one within another. A list of strings
is one text of so many lines. Each reader is a function (path, text_field, encoding, replaced, span) -> texts;
`replaced` receives the numbers of sequences that became U+FFFD. `span` is a part of the file, as `ranges` cuts it:
bytes of JSON lines, row groups of Parquet, record batches of Arrow.
"""

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from sctd_jax.data.decoding import (
    END,
    LONGEST_FIELD,
    LONGEST_RECORD,
    SURROGATE,
    Span,
    check_record,
    conversion,
    decode,
    is_remote,
    open_utf8,
    raw,
    suffix_of_packed,
    unpacked,
    what_is,
    whole_lines,
)
from sctd_jax.errors import UserError, printable
from sctd_jax.fields import unique_fields

_DOCUMENT = re.compile(r"<doc\b[^>]*>\s*$")

Replaced = Callable[[int], None]


def text_of(record: Any, field: str, place: str, replaced: Replaced) -> str:
    """The text in a record's field; null is an empty one. `place` begins messages."""
    value, parts = record, field.split(".")
    if isinstance(record, Mapping) and field in record:  # a name with a dot in it
        parts = [field]
    for part in parts:
        if not isinstance(value, Mapping) or part not in value:
            found = f"its fields are {', '.join(value)}" if isinstance(value, Mapping) else f"found {value!r}"
            raise UserError(f"{place}: no text in the field {field!r} (data.text_field); {printable(found):.200}")
        value = value[part]
    lines = value if isinstance(value, list) else [value]
    if not all(line is None or isinstance(line, str) for line in lines):
        raise UserError(f"{place}: the field {field!r} (data.text_field) is no text, found {value!r:.80}")
    # JSON may escape halves of a surrogate pair alone, which no encoding can write.
    text, halves = SURROGATE.subn("\ufffd", "\n".join(line or "" for line in lines))
    replaced(halves)
    return text


def json_texts(path: str, field: str, encoding: str, replaced: Replaced, span: Span = None) -> Iterator[str]:
    """JSON lines, or one array of objects over any lines."""
    with open_utf8(path, replaced, encoding, span) as file:
        head = file.read(1 << 12)
    if not span and head.lstrip().startswith(b"["):
        yield from _array_texts(path, field, encoding, replaced)
        return
    if b"\r" in head and b"\n" not in head:
        cure = conversion(path, r"tr '\r' '\n'", "new.jsonl")
        raise UserError(f"{path}: its lines end with CR alone, expected LF or CRLF; convert it: {cure}")
    first, after = True, f" after byte {span[0]:,}" if span and span[0] else ""
    with open_utf8(path, replaced, encoding, span) as file:
        for number, line in enumerate(whole_lines(file, path, after), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(
                    decode(line.removeprefix(codecs.BOM_UTF8), replaced), object_pairs_hook=unique_fields
                )
            except (ValueError, RecursionError) as error:
                what = f"not JSON ({error})"
                whole = line.rstrip().endswith(b"}") and "Extra data" not in str(error)
                if first and line.startswith(b"{") and not whole:
                    cure = conversion(path, "jq -c .", "new.jsonl")
                    what = f"not one whole JSON object, expected on each line; if the file has them otherwise: {cure}"
                raise UserError(f"{path}, line {number}{after}: {what}") from error
            first = False
            yield text_of(record, field, f"{path}, line {number}{after}", replaced)


def _array_texts(path: str, field: str, encoding: str, replaced: Replaced, span: Span = None) -> Iterator[str]:
    import ijson

    with open_utf8(path, replaced, encoding) as file:
        number = 0
        try:
            whole = _Whole(file, f"{path}, element 1")
            for number, record in enumerate(ijson.items(whole, "item", use_float=True), 1):
                whole.next(f"{path}, element {number + 1}")
                yield text_of(record, field, f"{path}, element {number}", replaced)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            said = printable(" ".join(str(error).split()))
            raise UserError(f"{path}, element {number + 1}: not one JSON array ({said:.120})") from error


class _Whole:
    """A file whose records are held whole: `read` refuses one that is too large. `next` tells where one begins."""

    def __init__(self, file: BinaryIO, place: str):
        self._file, self._size, self._place = file, 0, place

    def next(self, place: str) -> None:
        self._size, self._place = 0, place

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._size += len(data)
        check_record(self._size, self._place)
        return data


def csv_texts(path: str, field: str, encoding: str, replaced: Replaced, span: Span = None) -> Iterator[str]:
    """CSV with a line of names first; tabs separate the columns of .tsv, where a quoted field ends on its line."""
    tabs = path.lower().removesuffix(suffix_of_packed(path)).endswith(".tsv")
    csv.field_size_limit(LONGEST_FIELD)  # the limit of all readers of the process, of which several may be at work
    try:
        with open_utf8(path, replaced, encoding) as file:
            rows = csv.reader(
                (decode(line, replaced) for line in whole_lines(file, path)),
                delimiter="\t" if tabs else ",",
                strict=True,
            )
            names = next(rows, [])
            if names.count(field) != 1:
                kind = "no column" if field not in names else "more than one column"
                raise UserError(f"{path}: {kind} {field!r} (data.text_field), found {printable(', '.join(names)):.400}")
            column, line = names.index(field), rows.line_num
            while (row := next(rows, None)) is not None:
                before, line = line, rows.line_num
                if tabs and line > before + 1 and (len(names) == 1 or any("\t" in value for value in row)):
                    raise UserError(
                        f"{path}, lines {before + 1:,} to {line:,}: a field that begins with a double quote holds "
                        "whole rows; where quotes are text here, write the file as JSON lines"
                    )
                if row and len(row) != len(names):
                    raise UserError(f"{path}, line {rows.line_num}: {len(row)} columns, expected {len(names)}")
                if row:
                    yield row[column]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from error


def wiki_texts(path: str, field: str, encoding: str, replaced: Replaced, span: Span = None) -> Iterator[str]:
    """Files of wikiextractor: `<doc ...>` blocks, or JSON lines."""
    with open_utf8(path, replaced, encoding) as file:
        if file.read(1 << 12).lstrip().startswith(b"{"):
            yield from json_texts(path, field, encoding, replaced)
            return
    with open_utf8(path, replaced, encoding) as file:
        held: list[str] | None = None
        size = 0
        for number, raw in enumerate(whole_lines(file, path), 1):
            size = size + len(raw) if held else 0
            check_record(size, f"{path}, line {number}")
            line = decode(raw, replaced)
            if _DOCUMENT.match(line) and held is None:
                held = []
            elif line.strip() == "</doc>" and held is not None:
                yield "".join(held)
                held = None
            elif held is not None:
                held.append(line)
            elif line.strip():
                raise UserError(
                    f"{path}, line {number}: expected <doc ...> of wikiextractor, found {line.strip()!r:.80}"
                )
        if held is not None:
            raise UserError(f"{path}: its last <doc ...> has no </doc>; the file is cut off")


def warc_texts(path: str, field: str, encoding: str, replaced: Replaced, span: Span = None) -> Iterator[str]:
    """Text records of a WARC or WET file (ISO 28500): conversions, and responses that are plain text."""
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise UserError(f"{path}: reading it needs warcio: pip install warcio, or '.[warc]'") from error
    with unpacked(path) as file:
        try:
            for number, record in enumerate(ArchiveIterator(file), 1):
                if record.rec_type not in ("conversion", "response", "resource"):
                    continue
                headers = record.http_headers or record.rec_headers
                kind = (headers.get_header("Content-Type") or "").partition(";")[0].strip().lower()
                if kind != "text/plain":
                    raise UserError(
                        f"{path}, record {number}: {printable(kind) or 'no type'}, expected text/plain: pages are not "
                        "read as they are; take the crawl's WET files, or extract the text (trafilatura, datatrove)"
                    )
                content = record.content_stream().read(LONGEST_RECORD + 1)
                check_record(len(content), f"{path}, record {number}")
                text = decode(content, replaced)
                if getattr(record.raw_stream, "limit", 0):  # warcio takes the end of the file for that of the record
                    raise UserError(f"{path}, record {number}: the file is cut off")
                yield text
        except ArchiveLoadFailed as error:
            raise UserError(f"{path} is not WARC that can be read: {printable(error):.200}") from error


def parquet_texts(path: str, field: str, encoding: str, replaced: Replaced, span: Span = None) -> Iterator[str]:
    """A column of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    with raw(path) as file:
        head = file.read(32)
    if not head.startswith(b"PAR1") and (what := what_is(path, head)):
        raise UserError(f"{path}: {what}")
    try:
        table = pyarrow.parquet.ParquetFile(raw(path) if is_remote(path) else path)
        names = _path_in(table.schema_arrow, field, path)
        groups = _within(span, table.num_row_groups)
        first = 1
        for batch in table.iter_batches(batch_size=256, columns=[".".join(names)], row_groups=groups):
            yield from _column_texts(batch, names, replaced, path, first)
            first += len(batch)
    except pyarrow.ArrowException as error:
        raise UserError(f"cannot read {path}: {printable(error)}") from error


def arrow_texts(path: str, field: str, encoding: str, replaced: Replaced, span: Span = None) -> Iterator[str]:
    """A column of an Arrow file or stream, as `datasets.save_to_disk` writes it."""
    import pyarrow

    try:
        with pyarrow.PythonFile(raw(path), mode="r") if is_remote(path) else pyarrow.memory_map(path) as file:
            if file.read(6) == b"ARROW1":
                opened = pyarrow.ipc.open_file(file)
                batches = (opened.get_batch(i) for i in _within(span, opened.num_record_batches))
            else:
                file.seek(0)
                batches = opened = pyarrow.ipc.open_stream(file)
            names = _path_in(opened.schema, field, path)
            first = 1
            for batch in batches:
                for start in range(0, len(batch), 256):
                    yield from _column_texts(batch.slice(start, 256), names, replaced, path, first + start)
                first += len(batch)
    except pyarrow.ArrowException as error:
        raise UserError(f"cannot read {path}: {printable(error)}") from error


def _within(span: Span, count: int) -> range:
    """Numbers of a span's parts, of which a file has so many."""
    begin, end = span or (0, END)
    return range(begin, count if end == END else end)


def _path_in(schema, field: str, path: str) -> list[str]:
    """Names that lead to a field of strings or of lists of strings."""
    import pyarrow

    names = [field] if field in schema.names else field.split(".")
    kind, found = pyarrow.struct(list(schema)), 0
    for name in names:
        found = kind.get_all_field_indices(name) if pyarrow.types.is_struct(kind) else []
        if len(found) != 1:
            break
        kind = kind.field(found[0]).type
    else:
        inner = kind.value_type if pyarrow.types.is_dictionary(kind) or _is_list(kind) else kind
        if inner in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
            return names
    fields = [one for one in schema if one.name == names[0]] or schema
    columns = printable(", ".join(f"{one.name} ({one.type})" for one in fields))
    raise UserError(
        f"{path}: no column {field!r} of strings or of lists of strings (data.text_field), found {columns:.400}"
    )


def _is_list(kind) -> bool:
    import pyarrow

    return pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)


def _column_texts(batch, names: Sequence[str], replaced: Replaced, path: str, first: int) -> Iterator[str]:
    """Texts of a batch of records, whose first one has the number `first` in its part of the file."""
    import pyarrow
    import pyarrow.compute

    column = batch.column(names[0])
    for name in names[1:]:
        column = pyarrow.compute.struct_field(column, name)
    if pyarrow.types.is_dictionary(column.type):
        # The number of records that may be held, if each is as long as the whole dictionary.
        count = max(LONGEST_RECORD // max(column.dictionary.nbytes, 1), 1)
        parts = map(lambda start: column.slice(start, count).dictionary_decode(), range(0, len(column), count))
    else:
        parts = iter([column])
    for part in parts:
        if part.nbytes > LONGEST_RECORD:
            for number in range(len(part)):
                check_record(part.slice(number, 1).nbytes, f"{path}, record {first + number}")
        first += len(part)
        if _is_list(part.type):
            for lines in part.cast(pyarrow.large_list(pyarrow.large_binary())).to_pylist():
                yield decode(b"\n".join(line or b"" for line in lines or ()), replaced)
        else:
            for raw in part.cast(pyarrow.large_binary()).to_pylist():
                yield decode(raw or b"", replaced)


READERS: dict[str, Callable[[str, str, str, Replaced, Span], Iterator[str]]] = {
    "json": json_texts,
    "csv": csv_texts,
    "wiki": wiki_texts,
    "warc": warc_texts,
    "parquet": parquet_texts,
    "arrow": arrow_texts,
}
