"""Files of text as UTF-8 bytes: unpacked, decoded by their byte order mark, refused if they are something else."""

import bz2
import codecs
import gzip
import io
import itertools
import lzma
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import fsspec

from sctd_jax.errors import UserError
from sctd_jax.storage import regular_file

_HEAD = 1 << 12  # bytes that tell what a file is
_SAMPLE = 1 << 16  # bytes that tell whether it is UTF-8
LONGEST_RECORD = 1 << 28  # bytes of a document that is held whole, some three times
_IN_PIECES = "cut it into documents, or take its text into a .txt, which is read in pieces"
LONGEST_FIELD = 1 << 26  # characters of CSV, whose reader has 4 bytes for each
_MARKS = {  # UTF-32's before UTF-16's, which begins alike
    codecs.BOM_UTF8: "",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_ARROW = (
    "python -c 'import sys, pyarrow.ipc as i, pyarrow.parquet as p; p.write_table(i.open_{}(sys.argv[1]).read_all(), "
    "sys.argv[2])' {{}} new.parquet"
)
SURROGATE = re.compile("[\ud800-\udfff]")
Span = tuple[int, int] | None  # begin and end: bytes, groups of rows, or records of a file; None is all of it
END = -1  # a span's end that is the file's
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
# Exceptions of reading a damaged or cut-off file.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
_FORMATS = (  # first bytes, what it is, how to make a file of it that is read
    (b"PK\3\4", "a zip archive", "unpack it: unzip {}"),
    (b"%PDF-", "a PDF", "take its text: pdftotext {}"),
    (b"PAR1\x15", "Parquet", "give it a name that ends in .parquet"),
    (b"ARROW1\0\0", "an Arrow file", "convert it: " + _ARROW.format("file")),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "fetch it: git lfs pull"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "convert it: " + _ARROW.format("stream")),
)


def is_remote(path: str) -> bool:
    """Whether a file lies in a bucket, or behind another of fsspec's protocols."""
    return "://" in path


def raw(path: str) -> BinaryIO:
    """A file's bytes as they are; those of a bucket are streamed."""
    if is_remote(path):
        return cast(BinaryIO, io.BufferedReader(fsspec.open(path, "rb").open()))  # gcsfs's reads no part of a line
    return open(regular_file(path), "rb")


def _open_zstd(file: BinaryIO) -> BinaryIO:
    import pyarrow

    # Its frames may be many; unlike others it notices one that is cut off.
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return cast(BinaryIO, io.BufferedReader(stream, 1 << 16))


# First bytes of a file, and how it is unpacked.
_PACKED: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Any]], ...] = (
    (re.compile(rb"\x1f\x8b\x08"), gzip.open),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.open),
    (re.compile(rb"\xfd7zXZ\0"), lzma.open),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _open_zstd),
)


def suffix_of_packed(path: str) -> str:
    """The end of a name that says that the file is compressed; '' without one."""
    return next((suffix for suffix in COMPRESSED if path.lower().endswith(suffix)), "")


def unpacked(path: str) -> BinaryIO:
    """A file's bytes, unpacked where its first ones say that gzip, bzip2, xz or zstandard has compressed it."""
    with raw(path) as file:
        head = file.read(_HEAD)
    opened = next((opener for magic, opener in _PACKED if magic.match(head)), None)
    if opened:
        return _Unpacked(raw(path), opened)
    suffix = suffix_of_packed(path)
    if suffix and head:
        raise UserError(f"{path}: {what_is(path, head) or f'not compressed, as the {suffix} of its name says'}")
    return raw(path)


def is_utf8(path: str) -> bool:
    """Whether a file begins with UTF-8 that has letters beyond ASCII: another encoding hardly makes that."""
    with unpacked(path) as file:
        head = file.read(_SAMPLE)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # its last letter may be cut
    except UnicodeDecodeError:
        return False
    return not head.isascii()


def open_utf8(path: str, replaced: Callable[[int], None], encoding: str = "", span: Span = None) -> BinaryIO:
    """A file of text, `unpacked`, as UTF-8 without its byte order mark; or a `span` of its bytes, if it `can_be_cut`.

    UTF-16 and UTF-32 with a mark, and files without one where an `encoding` is given, are decoded on the way; all other
    bytes come as they are. Sequences that such an encoding does not know become U+FFFD, and `replaced` receives their
    numbers.
    """
    if span:
        file = raw(path)
        file.seek(span[0] or len(codecs.BOM_UTF8) * file.read(_HEAD).startswith(codecs.BOM_UTF8))
        return file if span[1] == END else cast(BinaryIO, io.BufferedReader(_Until(file, span[1]), 1 << 16))
    with unpacked(path) as file:
        head = file.read(_HEAD)
    mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
    if any(magic.match(head) for magic, _ in _PACKED):
        raise UserError(f"{path}: compressed twice; unpack it once")
    if not mark and (what := what_is(path, head) or (not encoding and b"\0" in head and _wide(path, head))):
        raise UserError(f"{path}: {what}")
    other = _MARKS[mark] if mark else encoding
    file = unpacked(path)  # anew: not all of them go back
    file.read(len(mark))
    return cast(BinaryIO, io.BufferedReader(_Recoded(file, other, replaced), 1 << 16)) if other else file


def check_record(size: int, place: str, advice: str = _IN_PIECES) -> None:
    """Refuse a document of a file that is read record by record if it is too large to be held whole."""
    if size > LONGEST_RECORD:
        raise UserError(
            f"{place}: a record of more than {LONGEST_RECORD / 1e6:.0f} MB, the most that is held at once; {advice}"
        )


def whole_lines(file: BinaryIO, path: str, after: str = "", advice: str = _IN_PIECES) -> Iterator[bytes]:
    """Lines of a file in which each is held whole; messages say `after` behind a line's number."""
    for number in itertools.count(1):
        line = file.readline(LONGEST_RECORD + 1)
        if not line:
            return
        check_record(len(line), f"{path}, line {number}{after}", advice)
        yield line


def can_be_cut(path: str) -> bool:
    """Whether a file is plain UTF-8 with LF at the ends of its lines, so that parts of it are text too."""
    with raw(path) as file:
        head = file.read(1 << 18)  # more than the block that decides for the reader what ends a line
    packed = any(magic.match(head) for magic, _ in _PACKED)
    other = any(head.startswith(mark) for mark, encoding in _MARKS.items() if encoding)
    return not packed and not other and b"\n" in head


def check_encoding(name: str) -> None:
    """Raise UserError unless Python reads text in the encoding; '' is UTF-8."""
    try:
        io.TextIOWrapper(io.BytesIO(b"a"), name or "utf-8", errors="replace").read()
    except (LookupError, ValueError) as error:  # base64 is no text, and a NUL in no name
        raise UserError(f"encoding {name!r:.40} (--encoding, config.data.encoding) is not known; expected one of "
                        "Python's for text, such as latin-1 or cp1252") from error  # fmt: skip


def decode(raw: bytes, replaced: Callable[[int], None]) -> str:
    """Text of UTF-8 bytes; sequences that are not UTF-8 become U+FFFD and are counted."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", errors="replace")
        replaced(text.count("\ufffd") - raw.count("\ufffd".encode()))
        return text


def what_is(path: str, head: bytes) -> str:
    """Kind of a file that is neither text nor what its name says, and its conversion; '' if it may be text."""
    for magic, what, cure in _FORMATS:
        if head.startswith(magic):
            return f"{what}, which is not read as it is; {cure.format(shlex.quote(path))}"
    return ""


def conversion(path: str, command: str, new: str) -> str:
    """A shell command that reads a file, unpacked, from its standard input and writes a new one."""
    name = shlex.quote(path)
    unpack = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
    tool = next((tool for suffix, tool in unpack.items() if path.lower().endswith(suffix)), "")
    return f"{tool} -dc {name} | {command} > {new}" if tool else f"{command} < {name} > {new}"


def _wide(path: str, head: bytes) -> str:
    """Message, as of `what_is`, if the zeros of a text without a mark show UTF-16 or UTF-32; '' otherwise."""
    zeros, quarter = [head[i::4].count(0) for i in range(4)], len(head) // 4
    total, odd = sum(zeros), zeros[1] + zeros[3]
    if total < 2 or total > 0.8 * len(head):
        return ""
    high = head[1 if odd > total - odd else 0 :: 2]
    if min(zeros[2:]) >= 0.95 * quarter or min(zeros[:2]) >= 0.95 * quarter:
        name = "UTF-32LE" if zeros[3] > zeros[0] else "UTF-32BE"
    elif high.count(0) < max(0.95 * total, len(head) // 200):
        return ""
    elif sum(byte < 0x20 for byte in high) >= 0.9 * len(high) or (total >= 8 and not _is_utf8(head)):
        # Alphabets stand below U+2000; other scripts have bytes that are not UTF-8, and zeros for spaces and line ends.
        name = "UTF-16LE" if odd > total - odd else "UTF-16BE"
    else:
        return ""
    cure = conversion(path, f"iconv -f {name} -t UTF-8", "new.txt")
    return f"{name} without a byte order mark, as its zeros show, which is not read; convert it: {cure}"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


class _Unpacked(io.BufferedReader):
    """Bytes that another file holds compressed; closed, it closes that one too."""

    def __init__(self, packed: BinaryIO, opener: Callable[[BinaryIO], Any]):
        self._packed = packed
        super().__init__(opener(packed))

    def close(self) -> None:
        super().close()
        self._packed.close()


class _Until(io.RawIOBase):
    """Bytes of a file up to a place in it."""

    def __init__(self, file: BinaryIO, end: int):
        self._file, self._end = file, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(max(min(len(buffer), self._end - self._file.tell()), 0))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Recoded(io.RawIOBase):
    """UTF-8 bytes of a file in another encoding."""

    def __init__(self, file: BinaryIO, encoding: str, replaced: Callable[[int], None]):
        # Only "\n" is read as it is: no other line end is translated.
        self._text = io.TextIOWrapper(file, encoding, errors="replace", newline="\n")
        self._replaced = replaced

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # A character has at most 4 bytes. UTF-7 and others may spell halves of surrogate pairs.
        text = SURROGATE.sub("\ufffd", self._text.read(len(buffer) // 4))
        self._replaced(text.count("\ufffd"))
        raw = text.encode()
        buffer[: len(raw)] = raw
        return len(raw)

    def close(self) -> None:
        self._text.close()
        super().close()
