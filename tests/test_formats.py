"""Formats of text, plain and compressed by each program, whole, damaged and cut off."""

import bz2
import gzip
import json
import lzma
import re
import subprocess

import pyarrow
import pyarrow.parquet
import pytest

from sctd_jax.data import corpus, decoding, formats, prepare
from sctd_jax.errors import UserError
from tests import helpers

TEXTS = ["one ä", "two\nlines", "three 文"]


def read(path, text_field="text", encoding="", documents="line"):
    counts, documents_ = corpus.Counts(), {}
    sources = corpus.find_sources([str(path)])
    corpus.check(sources, text_field=text_field, encoding=encoding)
    for chunk in corpus.read(sources, text_field=text_field, documents=documents, counts=counts, encoding=encoding):
        documents_[chunk.document] = documents_.get(chunk.document, "") + chunk.text
    return [text.strip() for text in documents_.values()], counts.total


def json_lines(texts=TEXTS):
    return "".join(json.dumps({"n": 1.5, "text": text}) + "\n" for text in texts).encode()


def warc(texts=TEXTS, kind="text/plain"):
    records = [
        b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Type: application/warc-fields\r\nContent-Length: 0\r\n\r\n\r\n\r\n"
    ]
    for text in texts:
        body = text.encode()
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        records.append(head.encode() + body + b"\r\n\r\n")
    return b"".join(records)


def rows_of_csv(delimiter):
    quoted = (text.replace('"', '""') for text in TEXTS)
    return ("n" + delimiter + "text\r\n" + "".join(f'1{delimiter}"{text}"\r\n' for text in quoted)).encode()


CONTENTS = {
    "x.jsonl": json_lines(),
    "x.ndjson": json_lines(),
    "x.json": json_lines(),
    "array.json": json.dumps([{"n": 1.5, "text": text} for text in TEXTS]).encode(),
    "pretty.JSON": b"\n " + json.dumps([{"n": 1e99, "text": text} for text in TEXTS], indent=2).encode(),
    "x.csv": rows_of_csv(","),
    "x.TSV": rows_of_csv("\t"),
    "wiki_00": "".join(f'<doc id="1" url="u" title="t">\n{text}\n\n</doc>\n' for text in TEXTS).encode(),
    "wiki_01": json_lines(),
    "x.warc": warc(),
    "x.wet": warc(),
    "extensionless": json_lines(),
}


def zstd(raw):
    return subprocess.run(["zstd", "-q", "-c"], input=raw, capture_output=True, check=True).stdout


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.fixture(scope="module", autouse=True)
def has_zstd():
    """zstd's own program writes frames with checksums; without it pyarrow writes them."""
    try:
        zstd(b"")
    except OSError:
        PACKERS[".zst"] = lambda raw: pyarrow.compress(raw, "zstd", asbytes=True)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_every_format_gives_its_texts_however_it_is_compressed(name, suffix, tmp_path):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKERS[suffix](CONTENTS[name]) if suffix else CONTENTS[name])
    assert read(path)[0] == TEXTS
    if name != "extensionless":
        assert read(tmp_path)[0] == TEXTS  # found in its folder
        path.rename(tmp_path / f"{name}{suffix.upper()}")
        assert read(tmp_path)[0] == TEXTS


@pytest.mark.parametrize("suffix", PACKERS)
def test_many_frames_are_one_file_and_a_name_without_the_suffix_does_no_harm(suffix, tmp_path):
    lines = [json_lines([text]) for text in TEXTS]
    (tmp_path / f"x.jsonl{suffix}").write_bytes(b"".join(map(PACKERS[suffix], lines)))
    (tmp_path / "y.jsonl").write_bytes(PACKERS[suffix](lines[0]))
    assert read(tmp_path / f"x.jsonl{suffix}")[0] == TEXTS
    assert read(tmp_path / "y.jsonl")[0] == TEXTS[:1]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_that_is_cut_off_or_damaged_is_named_wherever_that_is(suffix, tmp_path):
    raw = PACKERS[suffix](json_lines([f"number {i * 7919 % 1000}" for i in range(3000)]))
    path = tmp_path / f"x.jsonl{suffix}"
    for end in (len(raw) - 1, len(raw) - 5, len(raw) // 2, 20):
        path.write_bytes(raw[:end])
        with pytest.raises(UserError, match=rf"^cannot read {re.escape(str(path))}: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    damaged = bytearray(raw)
    damaged[len(raw) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read(path)
    path.write_bytes(b"plain")
    with pytest.raises(UserError, match=f"not compressed, as the {suffix} of its name says"):
        read(path)


@pytest.mark.parametrize("name", [*CONTENTS, "x.parquet", "x.arrow"])
def test_a_record_that_is_too_large_to_be_held_is_refused_with_its_place(name, tmp_path, monkeypatch):
    for where in (decoding, formats):
        monkeypatch.setattr(where, "LONGEST_RECORD", 5000)
        monkeypatch.setattr(where, "LONGEST_FIELD", 4000)
    texts = ["short", "letters " * 700, "short"]
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    elif name.endswith("arrow"):
        with pyarrow.ipc.new_file(path, pyarrow.schema([("text", pyarrow.string())])) as writer:
            writer.write_table(pyarrow.table({"text": texts}))
    elif "csv" in name or "TSV" in name:
        separator = "\t" if "TSV" in name else ","
        path.write_text(f"n{separator}text\n" + "".join(f"1{separator}{text}\n" for text in texts))
    elif name == "wiki_00":
        path.write_text("".join(f"<doc>\n{text.replace(' ', chr(10))}\n</doc>\n" for text in texts))
    elif "w" in name.partition(".")[2]:
        path.write_bytes(warc(texts))
    elif name.lower().endswith("json") and name != "x.json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    else:
        path.write_bytes(json_lines(texts))
    with pytest.raises(UserError, match=rf"{path}, (line|element|record) \d+: (a record of more than|field larger)"):
        read(path)
    monkeypatch.undo()
    assert len(read(path)[0]) == 3


NESTED = {"article": {"body": "one ä", "tags": ["x"]}, "lines": ["two", None, "lines"], "a.b": "dotted"}


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "x.arrow"])
def test_a_field_may_lie_within_another_or_be_a_list_of_strings(name, tmp_path):
    path = tmp_path / name
    table = pyarrow.Table.from_pylist([NESTED, {**NESTED, "article": None}])
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, path)
    elif name.endswith("arrow"):
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        text = json.dumps(NESTED)
        path.write_text(f"[{text}]" if name == "x.json" else text + "\n")
    assert read(path, "article.body")[0] == ["one ä"]
    assert read(path, "lines")[0][0] == "two\n\nlines"
    assert read(path, "a.b")[0][0] == "dotted"
    for field in ("article.missing", "article", "article.body.deeper", "none"):
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*'{re.escape(field)}'.*data.text_field"):
            read(path, field)


def test_datasets_saved_to_disk_are_read_without_their_caches(tmp_path):
    schema = pyarrow.schema([("text", pyarrow.large_string())])
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):
            with pyarrow.ipc.new_stream(folder / name, schema) as writer:
                for text in TEXTS:
                    writer.write_table(pyarrow.table({"text": [f"{split} {text}"]}, schema=schema))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read(tmp_path / "saved")[0] == [f"{split} {text}" for split in ("test", "train") for text in TEXTS]
    lines = []
    corpus.find_sources([str(tmp_path / "saved")], lines.append)
    assert "caches of datasets: 2" in lines[0]


def test_an_arrow_file_that_is_cut_off_or_damaged_is_named(tmp_path):
    path, table = tmp_path / "x.arrow", pyarrow.table({"text": ["words " * 99] * 99})
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    raw = path.read_bytes()
    for part in (raw[: len(raw) // 2], b"nothing", b""):
        path.write_bytes(part)
        with pytest.raises(UserError, match=re.escape(str(path))):
            read(path)


@pytest.mark.parametrize(
    ("name", "raw", "match"),
    [
        ("x.csv", b"n,text\n1,one,more\n", "line 2: 3 columns, expected 2"),
        ("x.csv", b"n,body\n1,one\n", "no column 'text' .*found n, body"),
        ("x.csv", b"text,text\n1,one\n", "more than one column 'text'"),
        ("x.csv", b'n,text\n1,"one\n', "line 2: unexpected end of data"),
        ("x.csv", b"", "no column 'text'"),
        ("x.json", b'[{"text": "one"}, {"text": "tw', "element 2: not one JSON array"),
        ("x.json", b'[{"text": "one"}] more', "element 2: not one JSON array"),
        ("x.json", b'[{"text": "one"}, 3]', "element 2: no text in the field 'text'.*found 3"),
        ("wiki_00", b"<doc id='1'>\none\n", "no </doc>; the file is cut off"),
        ("wiki_00", b"words\n", "line 1: expected <doc ...> of wikiextractor, found 'words'"),
        ("x.warc", warc(kind="text/html"), "record 2: text/html, expected text/plain"),
        ("x.wet", b"words", "is not WARC that can be read"),
        ("x.wet", warc()[:-15], "cut off|is not WARC"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line_with_its_place(name, raw, match, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=match) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoding_is_for_files_without_a_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("Straße".encode("latin-1"))
    (tmp_path / "b.jsonl").write_bytes('{"text": "schön"}\n'.encode("latin-1"))
    (tmp_path / "c.csv").write_bytes("text\nGrüße\n".encode("utf-16"))  # with its mark
    found, counts = read(tmp_path, encoding="latin-1")
    assert (found, counts.replaced) == (["Straße", "schön", "Grüße"], 0)
    assert read(tmp_path / "a.txt")[1].replaced == 1
    with pytest.raises(UserError, match=r"encoding 'latin-one' .* is not known"):
        decoding.check_encoding("latin-one")
    with pytest.raises(UserError, match="encoding 'latin-one'"):
        prepare.prepare(helpers.data(input=str(tmp_path), encoding="latin-one"), 300, tmp_path / "rows", print)
