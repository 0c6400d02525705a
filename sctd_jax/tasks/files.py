"""Files as streams of records: the fields of each row, in file order, and where it stands."""

import codecs
import contextlib
import csv
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sctd_jax import storage
from sctd_jax.data import decoding
from sctd_jax.errors import UserError, printable
from sctd_jax.fields import LARGEST_FLOAT, unique_fields

_IDS = ("index", "idx", "id", "ind")

Note = Callable[[str, str], None]  # (what the user should know, where it is so); they are counted by kind
_Rows = Iterable[tuple[int, list[str]]]  # (number of its first line, values) of each row


@dataclasses.dataclass(frozen=True)
class Record:
    """One row, or an object inside of one. Accessors raise UserError naming place and field if the value is another."""

    place: str  # file and line, for messages
    number: int  # counts the rows of a file, or the objects of a list, from 0
    fields: dict[str, Any]

    @property
    def id_field(self) -> str | None:
        """The field by which the file numbers this row, if it does."""
        return next((field for field in _IDS if field in self.fields), None)

    @property
    def id(self) -> int:
        """The id that the file gives this row, or else its number."""
        return self.integer(self.id_field) if self.id_field else self.number

    def value(self, field: str, type_: type = object, otherwise: str = "") -> Any:
        """Value of the field; messages call a value of another type `otherwise`."""
        if field not in self.fields:
            raise UserError(f"{self.place}: no field {field!r}; found {printable(', '.join(self.fields))}")
        value = self.fields[field]
        if not isinstance(value, type_):
            raise UserError(f"{self.place}: the field {field!r} is {otherwise}, found {value!r:.80}")
        return value

    def text(self, field: str, empty: bool = False) -> str:
        """A text as it stands; unless `empty`, it holds more than white space."""
        value = self.value(field, str, "no text")
        if not empty and not value.strip():
            raise UserError(f"{self.place}: the field {field!r} is empty")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON may escape it
            raise UserError(
                f"{self.place}: the field {field!r} holds half of a surrogate pair at character {error.start}"
            ) from error
        return value

    def label(self, field: str) -> str:
        """A label as text; JSON's true and 1 are 'true' and '1'."""
        value = self.value(field)
        if isinstance(value, bool):
            return str(value).lower()
        is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        return str(value) if is_number else self.text(field)

    def integer(self, field: str) -> int:
        """A whole number, which a TSV or CSV file holds as text."""
        value = self.value(field)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
            size = " of 64 bits" if type(value) is int else ""
            raise UserError(f"{self.place}: the field {field!r} is no whole number{size}, found {value!r:.80}")
        return value

    def flag(self, field: str) -> bool:
        """JSON's true or false, and nothing that only looks like it: the text "false" would count as true."""
        return self.value(field, bool, "neither true nor false")

    def real(self, field: str) -> float:
        """A number that is finite in 32 bits, which a TSV or CSV file holds as text."""
        value, number = self.value(field), math.nan
        if not isinstance(value, bool) and "_" not in str(value):  # Python reads "1_5" as 15
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                number = float(value)
        if not abs(number) <= LARGEST_FLOAT:
            raise UserError(f"{self.place}: the field {field!r} is no number, found {value!r:.80}")
        return number

    def items(self, field: str) -> list[Any]:
        """A list."""
        return self.value(field, list, "no list")

    def child(self, field: str) -> "Record":
        """An object inside of this one."""
        return Record(self.place, self.number, _object(self.value(field), f"{self.place}, {field}"))

    def children(self, field: str, name: str) -> Iterator["Record"]:
        """The objects of a list; messages call the first one `name` 1."""
        for number, value in enumerate(self.items(field)):
            place = f"{self.place}, {name} {number + 1}"
            yield Record(place, number, _object(value, place))


def read_tsv(
    path: str, *, columns: tuple[str, ...] = (), exact: bool = False, broken: bool = False, note: Note
) -> Iterator[Record]:
    """Rows of a file whose columns are separated by tabs; a quote is a character like any other.

    Args:
      path: the file.
      columns: names of the columns, where the first line does not have them.
      exact: whether more columns than that are an error, too; official readers overlook them, which is noted.
      broken: whether a row with too few columns is left out and noted; else it is an error.
      note: told of what is passed over.
    """
    lines = ((line, text.rstrip("\r\n")) for line, text in text_lines(path))
    rows = ((line, text.split("\t") if text else []) for line, text in lines)
    return _table(path, rows, "\t", columns, exact, broken, note)


def read_csv(path: str, note: Note) -> Iterator[Record]:
    """Rows of a file with a header, commas and double quotes; `note` is told of what is passed over."""
    return _table(path, _csv_rows(path), ",", (), True, False, note)


def _csv_rows(path: str) -> _Rows:
    csv.field_size_limit(decoding.LONGEST_FIELD)
    reader, line = csv.reader((text for _, text in text_lines(path)), strict=True), 1
    try:
        for values in reader:
            yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not CSV ({error})") from error


def _table(
    path: str, rows: _Rows, separator: str, columns: tuple[str, ...], exact: bool, broken: bool, note: Note
) -> Iterator[Record]:
    """The records of rows; the first one names the columns if nothing else does."""
    number = 0
    for line, values in rows:
        place = f"{path}, line {line}"
        if not values:
            if len(columns) == 1:  # a line of more is no row for certain
                note("blank lines passed over, which may have been empty texts", place)
        elif not columns:
            if len(values) == 1 and any(other in values[0] for other in ",;\t"):
                raise UserError(f"{place}: one column, {values[0]!r}; separate the columns by {separator!r}")
            if len(set(values)) < len(values):
                raise UserError(f"{place}: the header names a column twice: {printable(', '.join(values))}")
            columns = tuple(values)
        elif broken and len(values) < len(columns):
            note("rows with too few columns left out", place)
        elif len(values) < len(columns) or (exact and len(values) > len(columns)):
            expected = ", ".join(map(repr, columns))
            raise UserError(f"{place}: {len(values)} columns, expected {len(columns)} ({expected})")
        else:
            if len(values) > len(columns):
                note(f"rows with more than {len(columns)} columns, whose rest is not read", place)
            yield Record(place, number, dict(zip(columns, values, strict=False)))
            number += 1


def read_jsonl(path: str) -> Iterator[Record]:
    """One JSON object on each line."""
    number = 0
    for line, text in text_lines(path):
        if text.strip():
            place = f"{path}, line {line}"
            yield Record(place, number, _object(_json(text, place), place))
            number += 1


def read_json(path: str) -> Record:
    """One JSON object, which is all of the file."""
    return Record(path, 0, _object(_json("".join(text for _, text in text_lines(path)), path), path))


def read_file(path: str, split: str, note: Note) -> Iterator[Record]:
    """Rows of a .tsv, .csv or .jsonl file, whatever the split."""
    if path.endswith(".tsv"):
        return read_tsv(path, note=note)
    return read_csv(path, note) if path.endswith(".csv") else read_jsonl(path)


def text_lines(path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end); only a newline ends a line, and a byte order mark is no text."""
    for number, raw in enumerate(_raw_lines(path), 1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
            if b"\r" in raw.rstrip(b"\r") and not raw.endswith(b"\n") and not path.endswith(".json"):
                raise UserError(f"{path}: its lines end in CR alone; convert it: tr '\\r' '\\n' < OLD > NEW")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
        yield number, text


def _raw_lines(path: str) -> Iterator[bytes]:
    try:
        with storage.reaching(path), decoding.raw(os.fspath(storage.as_path(path))) as file:
            yield from decoding.whole_lines(file, path, advice="cut it into shorter ones")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from error


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: not a JSON object, found {value!r:.80}")
    return value
