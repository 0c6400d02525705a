"""Texts, tokenizers and settings that are damaged, hostile or absurd: read by `data.prepare`, and by a run's."""

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fire.case import Case, special

PREPARE = "sctd_jax.data.prepare --out $here/rows --vocab-size 300 --seq-len 16 --documents paragraph --workers 1"
TEXT = f"{PREPARE} --input $base/text.txt"
RUN = (
    "sctd_jax.main --config=tests/small.py --workdir=$here/run --config.data.prepared_dir=$here/prepared "
    "--config.data.documents=paragraph"
)
ROWS = ("rows", "rows/*")


def _write(name: str, content: bytes | str) -> Callable[[Path, Path], None]:
    content = content.encode() if isinstance(content, str) else content

    def make(here: Path, base: Path) -> None:
        path = here / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def _text(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    """The text that all cases share, changed."""
    return lambda here, base: _write(name, change((base / "text.txt").read_bytes()))(here, base)


def _file(name: str, content: bytes | str, *words: str, says: str = "", status: int = 2, flags: str = "") -> Case:
    """A file that is read alone, by its kind."""
    wrong = says or f"{name} with {content!r:.40}"
    return Case(wrong, f"{PREPARE} --input '$here/in/{name}' {flags}", _write(name, content), status, words or (name,))


def _json_lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _flag(flags: str, *words: str, status: int = 2, new: tuple[str, ...] = (), name: str = "") -> Case:
    return Case(name or f"flags {flags:.60}", f"{TEXT} {flags}", status=status, words=words, new=new)


DEEP = 20_000
NUMBERS = [
    _flag(f"--{flag} '{value}'", *words.split())
    for flag, words, values in (
        ("seq-len", "--seq-len", ("x", "1.5", "1e3", "", "16GB", "\u0661\u0666", "\uff11\uff16", "1_6", "9" * 5000)),
        ("seq-len", "--seq-len", ("-1", "0", "7", "131073", "1000000000", "9" * 30)),
        ("seq-len", "held-out rows", ("131072",)),
        ("vocab-size", "--vocab-size", ("-1", "0", "5", "2147483647", "99999999999", "9" * 30, "x", "1e3")),
        ("vocab-size", "vocab_size", ("6", "100000", "16777216")),
        ("heldout-share", "smaller one", ("0.9999",)),
        ("heldout-share", "--heldout-share", ("-0.1", "1", "1.5", "nan", "inf", "x")),
        ("seed", "--seed", ("-1", "4294967296", "9" * 30, "x", "0.5")),
        ("longest-line", "--longest-line", ("-1", "9" * 30, "x", "1")),
        ("shortest-document", "--shortest-document", ("-1", "9" * 30, "x", "1000000")),
        ("workers", "--workers", ("0", "-1", "x", "1000000000", "9" * 30)),
        ("tokenizer-type", "--tokenizer-type", ("wordpiece", "", "BPE")),
        ("documents", "--documents", ("word", "", "File")),
        ("normal-form", "--normal-form", ("nfc", "NFX")),
        ("encoding", "encoding", ("utf-9", "base64", "rot13", "idna", "undefined", "zip", "\u00e9", "a" * 300)),
        ("tokenizer", "data.tokenizer", ("$here/none", "$base/text.txt", "$base/rows/prepared.json", "/dev/null")),
        ("tokenizer", "tokenizer.json", ("$here",)),
        ("ray", "--ray", ("nowhere", "localhost:1", "localhost:99999", "http://localhost:80", "a:b:c")),
        ("out", "gs://", ("s3://bucket/rows", "http://host/rows")),
        ("out", "--out", ("",)),
        ("out", "exists", ("$base/rows", "/", ".")),
        ("out", "cannot be written", ("/dev/null/rows", "/proc/rows", "$base/text.txt/rows", "/" + "a" * 300)),
        ("input", "--input", ("",)),
        ("input", "no file found", ("$here/none", "$here", "$here/*.txt", "~nobody/x", "[", "a,b", "a" * 5000)),
        ("input", "weight", ("$base/text.txt:0", "$base/text.txt:101", "$base/text.txt:0.5")),
        ("input", "", ("/dev/null", "/dev/zero", "/proc/self/mem", "$base/text.txt:1e9", "http://host/x",
                            "ftp://x", "tfds:", "tfds:none@x",
                            "tfds:../..", "hf:", "hf:/", "gs://", "file://", "zip://x", "://")),
    )
    for value in values
]  # fmt: skip


def _loop(here: Path, base: Path) -> None:
    shutil.copy(base / "text.txt", here / "a.txt")
    (here / "in").mkdir()
    (here / "in" / "loop").symlink_to(here / "in")
    (here / "in" / "broken").symlink_to(here / "nowhere")
    (here / "in" / "a.txt").symlink_to(here / "a.txt")


def _nested(folders: list[str]) -> Callable[[Path, Path], None]:
    """A text below so many folders."""

    def make(here: Path, base: Path) -> None:
        before = os.getcwd()
        os.chdir(here)
        for name in ("in", *folders):
            os.mkdir(name)
            os.chdir(name)
        shutil.copy(base / "text.txt", "a.txt")
        os.chdir(before)

    return make


def _bytes_name(here: Path, base: Path) -> None:
    os.mkdir(here / "in")
    shutil.copy(base / "text.txt", os.fsencode(here / "in") + b"/a\xff\xe9.txt")


def _named(name: str) -> Callable[[Path, Path], None]:
    return _text(name, lambda text: text)


def _columns(count: int) -> str:
    return ",".join(f"column{i}" for i in range(count)) + "\n" + ",".join("x" * count) + "\n"


def _parquet(write: Callable) -> Callable[[Path, Path], None]:
    def make(here: Path, base: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        (here / "in").mkdir()
        table = write(pyarrow, (base / "text.txt").read_text().split("\n\n"))
        pyarrow.parquet.write_table(table, here / "in" / "a.parquet")

    return make


def _arrow(here: Path, base: Path) -> None:
    import pyarrow

    (here / "in").mkdir()
    table = pyarrow.table({"text": (base / "text.txt").read_text().split("\n\n")})
    with pyarrow.ipc.new_file(here / "in" / "a.arrow", table.schema) as file:
        file.write_table(table)


IN = f"{PREPARE} --input '$here/in'"
FILES = [
    _file("a.txt", "", "no text"),
    _file("a.txt", " \n\t\n" * 1000, "no text"),
    _file("a.txt", "word", "a.txt"),
    _file("a.txt", bytes(5000)),
    _file("a.txt", "\ufeff" * 1000),
    _file("a.txt", "\u2585 \x01\x02\n" * 3000),
    _file("a.txt", random.Random(0).randbytes(200_000), "a.txt", "encoding", says="random bytes"),
    _file("a.txt", b"\xff\xfe" + "abc\n".encode("utf-16-le")[:-1], says="UTF-16 that is cut"),
    _file("a.txt", "abc def\n\n".encode("utf-16-le") * 500, "UTF-16LE", "iconv", says="UTF-16 without a mark"),
    _file("a.txt", b"abc def\n\n" * 500, flags="--encoding utf-16", says="UTF-16 that is none"),
    _file("a.txt", b"+2AA- word\n\n" * 5000, flags="--encoding utf-7", says="halves of surrogate pairs in UTF-7"),
    _file("a.txt", b"PK\3\4" + bytes(100), "zip", "unzip"),
    _file("a.txt", b"%PDF-1.7", "pdftotext"),
    _file("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(5000), says="a picture named .txt"),
    _file("a.png", b"\x89PNG\r\n\x1a\n", "unknown kind"),
    _file("a.txt.gz", b"plain text", "a.txt.gz", "not compressed"),
    _file("a.txt.gz", gzip.compress(b"some text\n\n" * 2000)[:-20], "a.txt.gz", says="gzip that is cut"),
    _file("a.txt.bz2", bz2.compress(b"some text\n\n" * 2000)[:-20], says="bzip2 that is cut"),
    _file("a.txt.xz", lzma.compress(b"some text\n\n" * 2000)[:-20], says="xz that is cut"),
    _file("a.txt.zst", b"\x28\xb5\x2f\xfd" + bytes(50), says="zstandard of zeros"),
    _file("a.json", ""), _file("a.jsonl", ""), _file("a.csv", ""), _file("a.tsv", ""), _file("a.warc", ""),
    _file("a.parquet", ""), _file("a.arrow", ""), _file("wiki_00", "", "no text"),
    _file("a.jsonl", "not JSON\n", "line 1"),
    _file("a.jsonl", "7\n" * 10, "line 1"),
    _file("a.jsonl", "null\n", "line 1"),
    _file("a.jsonl", '{"text": "a"}\n{"text": 5}\n', "line 2"),
    _file("a.jsonl", '{"text": "a"}\n{"txt": "a"}\n', "line 2", "text_field"),
    _file("a.jsonl", '{"text": "a"}\n{"text": "b"\n', "line 2"),
    _file("a.jsonl", '{"text": {"a": 1}}\n', "line 1"),
    _file("a.jsonl", '{"text": [1, 2]}\n', "line 1"),
    _file("a.jsonl", '{"text": ' + "[" * DEEP + "]" * DEEP + "}\n", "line 1", says="JSON nested deep"),
    _file("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "line 1", says="an integer of 5,000 digits"),
    _file("a.jsonl", '{"text": NaN}\n', "line 1"),
    _file("a.jsonl", '{"text": "\\ud800"}\n', "a.jsonl"),
    _file("a.jsonl", b'{"text": "\xff\xff\xff"}\n', "a.jsonl"),
    _file("a.jsonl", '{"text": "a"}\r{"text": "b"}\r', "CR"),
    _file("a.jsonl", _json_lines({f"f{i}": i for i in range(100_000)}), "text_field", says="JSON of 100,000 fields"),
    _file("a.json", "[" * DEEP, says="an array nested deep"),
    _file("a.json", '[{"text": "a"}, {"text": "b"', "element"),
    _file("a.json", '[{"text": "a"}, 7]', "element 2"),
    _file("a.json", '[{"text": "a"}] more', "a.json"),
    _file("a.json", '{"text": "a"}', "one document"),
    _file("a.json", '{\n  "text": "a"\n}', "jq"),
    _file("a.csv", "a,b\n1,2\n", "no column"),
    _file("a.csv", "text,text\n1,2\n", "more than one"),
    _file("a.csv", 'text\n"open', "line"),
    _file("a.csv", "text,b\n1\n", "line 2"),
    _file("a.tsv", 'text\tid\n"He said\t1\nno\t2\nand yes"\t3\n', "lines 2 to 4", "double quote", says="TSV of quotes"),
    _file("a.tsv", 'text\n"He said\nno\nand yes"\n', "lines 2 to 4", "double quote", says="a column of quotes"),
    _file("a.txt.gz", gzip.compress(gzip.compress(b"some text\n\n" * 2000)), "compressed twice", says="gzip in gzip"),
    Case("CSV in a folder of a name with .tsv", f"{PREPARE} --input $here/in/a.tsv.files/a.csv", words=("no text",),
         make=_write("a.tsv.files/a.csv", "id,text\n1,\n")),
    _file("a.jsonl", '{"text": ""}\n', "data.documents (paragraph) is not used", "no text", says="paragraphs of JSON"),
    _file("a.txt", "", "data.text_field (body) is not used", "no text", flags="--text-field body"),
    Case("settings of a tokenizer that is given", f"{TEXT} --tokenizer $base/rows --tokenizer-type bpe --no-keep-zwnj "
         "--text-field body",
         words=("--tokenizer-type is not used", "--no-keep-zwnj is not used", "vocab_size is 300")),
    Case("OUT.incomplete that is a file", TEXT, lambda here, base: _write("../rows.incomplete", "mine")(here, base),
         words=("rows.incomplete exists", "remove it")),
    Case("OUT.incomplete that is a link to nowhere", TEXT,
         lambda here, base: (here / "rows.incomplete").symlink_to(here / "nowhere"), words=("rows.incomplete exists",)),
    Case("OUT.incomplete that is a link to a folder", TEXT, words=("rows.incomplete exists",),
         make=lambda here, base: [(here / "other").mkdir(), (here / "rows.incomplete").symlink_to(here / "other")]),
    _file("a.csv", _columns(100_000), "no column", says="CSV of 100,000 columns"),
    _file("a.csv", b"text\n\0\0\n", says="CSV with NUL"),
    _file("wiki_00", "<doc id=1>\ntext\n", "</doc>"),
    _file("wiki_00", "text\n", "line 1"),
    _file("a.warc", "WARC/1.0\r\n", "a.warc"),
    _file("a.warc", "not WARC at all", "a.warc"),
    _file("a.warc", "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 99\r\n\r\nshort", says="WARC that is cut"),
    _file("a.warc", "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: -5\r\n\r\nx", says="WARC of length -5"),
    _file("a.parquet", "PAR1" + "x" * 100 + "PAR1", says="Parquet of nothing"),
    _file("a.arrow", b"ARROW1\0\0" + bytes(100), says="Arrow of zeros"),
    _file("a.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f", says="an Arrow stream of 2 GB in its header"),
    Case("Parquet without the column", IN, _parquet(lambda pa, texts: pa.table({"b": texts})), words=("text_field",)),
    Case("Parquet of numbers", IN, _parquet(lambda pa, texts: pa.table({"text": [1, 2]})), words=("a.parquet",)),
    Case("Parquet of 100,000 columns", IN, words=("a.parquet",),
         make=_parquet(lambda pa, texts: pa.table({f"column{i}": [i] for i in range(100_000)}))),
    Case("Parquet of bytes", IN, _parquet(lambda pa, texts: pa.table({"text": [b"\xff"]})), words=("text_field",)),
    Case("Parquet of nulls", IN, words=("no text",),
         make=_parquet(lambda pa, texts: pa.table({"text": pa.nulls(9, pa.string())}))),
    Case("Parquet", IN, _parquet(lambda pa, texts: pa.table({"text": texts})), 0, new=ROWS),
    Case("Arrow", IN, _arrow, 0, new=ROWS),
    _file("a.jsonl", '{"text": "wrong", "text": "right"}\n', "line 1", "stands twice", says="JSON of a field twice"),
    Case("a link to nowhere as --out", TEXT, lambda here, base: (here / "rows").symlink_to(here / "nowhere"),
         words=("rows", "exists")),
    Case("a pipe", f"{PREPARE} --input $here/a.txt", lambda here, base: special("a.txt")(here), words=("a.txt",)),
    Case("a tokenizer that is a pipe", f"{PREPARE} --input $base/text.txt --tokenizer $here/tokenizer.json",
         lambda here, base: special("tokenizer.json")(here), words=("tokenizer.json is a pipe",)),
    Case("a loop of links", IN, _loop, 0, ("passed over",), ROWS),
    # A path that is longer than a system call takes, and more folders than Python calls functions in one another.
    Case("650 folders, one in the other", IN, _nested(["folder"] * 650), words=("in/folder",)),
    Case("1,200 folders, one in the other", IN, _nested(["f"] * 1200), 0, new=ROWS),
    Case("a weight in full-width digits", f"{PREPARE} --input $base/text.txt:\uff12", words=("text.txt",)),
    Case("a name that is no UTF-8", IN, _bytes_name, 0, new=ROWS),
    *(Case(f"a file named {name!r:.30}", IN, _named(name), 0, new=ROWS) for name in (
        "a b.txt", "a'b.txt", 'a"b.txt', "a\nb.txt", "\x1b[31m.txt", "$HOME.txt", "-a.txt", "a,b.txt", "[a].txt", 
        "*.txt", "\u0130.txt", "a:2.txt", "a\\,b.txt", "\U0001f600.txt", "a" * 250 + ".txt")),
    Case("a comma after a backslash", f"{PREPARE} --input '$here/in\\,1/*.txt'", _named("../in,1/a.txt"), 0, new=ROWS),
    Case("a comma in a name", f"{PREPARE} --input '$here/in/a,b.txt,$here/in/a,b.txt'", _named("a,b.txt"), 0, new=ROWS),
]  # fmt: skip


def _runs(flags: str, *words: str, make=lambda here, base: None) -> Case:
    return Case(f"main {flags:.60}", f"{RUN} {flags}", make, words=words)


RUNS = [
    _runs("--config.data.input=$here/none", "none", "no file found"),
    _runs("--config.data.input=$here/in/a.txt", "no text", make=_write("a.txt", "")),
    _runs("--config.data.input=$base/text.txt --config.data.seq_len=1000000000", "config.data.seq_len"),
    _runs("--config.data.input=$base/text.txt --config.model.vocab_size=2147483647", "config.model.vocab_size"),
    _runs("--config.data.input=$base/text.txt --config.model.vocab_size=100000", "vocab_size"),
    _runs("--config.data.input=$base/text.txt --config.data.encoding=base64", "data.encoding"),
    _runs("--config.data.input=$base/text.txt --config.data.tokenizer=$here/none", "data.tokenizer"),
    _runs("--config.data.input=$here/in/a.jsonl", "line 1", make=_write("a.jsonl", "{}\n")),
]

CASES = [
    *NUMBERS,
    *FILES,
    *RUNS,
    Case(
        "--out that is no UTF-8", "sctd_jax.data.prepare --input $base/text.txt --out $here/a\udcffb", words=("UTF-8",)
    ),
    Case("no --out", "sctd_jax.data.prepare --input $base/text.txt", words=("--out",)),
    Case("an unknown flag", f"{TEXT} --seqlen 16", words=("--seqlen", "--seq-len")),
    Case("a stray argument", f"{TEXT} more.txt", words=("more.txt",)),
    Case("help", "sctd_jax.data.prepare --help", status=0, words=("--seq-len",)),
    Case("nothing wrong", TEXT, status=0, words=("prepared rows",), new=ROWS),
]
