import codecs
import glob
import gzip
import itertools
import json
import lzma
import os
import re
import shlex
import sys
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from sctd_jax.data import corpus, files, formats, prepare
from sctd_jax.errors import UserError
from tests import helpers


def read(*inputs, documents="file", text_field="text"):
    """({document: text}, counts)."""
    counts, texts = corpus.Counts(), {}
    sources = corpus.find_sources([str(text) for text in inputs])
    for chunk in corpus.read(sources, text_field=text_field, documents=documents, counts=counts):
        assert len(chunk.text) <= corpus.CHUNK_CHARS
        texts[chunk.document] = texts.get(chunk.document, "") + chunk.text
    assert counts.total.documents == len(texts)
    assert list(texts) == list(range(len(texts)))
    return list(texts.values()), counts


def test_no_input_is_the_embedded_corpus():
    sources = corpus.find_sources([])
    assert len(sources) == 249
    texts, _ = read(sources[0].path)
    assert texts[0].startswith("Fellow")


def test_files_folders_and_globs(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "1.txt").write_text("eins")
    (tmp_path / "a" / "deep" / "2.txt").write_text("zwei")
    (tmp_path / "a" / "notes.rst").write_text("not text of ours")
    assert read(tmp_path / "a")[0] == ["eins", "zwei"]
    assert read(tmp_path / "**" / "*.txt")[0] == ["eins", "zwei"]
    assert read(tmp_path / "a" / "1.txt", tmp_path / "a")[0] == ["eins", "zwei"]  # once each


def said(*inputs):
    """(names of the sources, lines that were logged)."""
    lines = []
    sources = corpus.find_sources([str(text) for text in inputs], lines.append)
    return [os.path.basename(source.path) for source in sources], lines


def test_what_a_folder_holds_besides_is_counted_by_suffix(tmp_path):
    line = b'{"text": "one"}\n'
    contents = {
        "a.TXT": b"one", "b.text": b"one", "c.Jsonl": line, "d.ndjson": line, "e.JSONL.GZ": gzip.compress(line),
        "c4.json.gz": gzip.compress(line * 2), "f.json": line * 2, "g.PARQUET": b"", "h.md": b"one",
        "wiki_00": b"<doc id='1'>\none\n</doc>\n", "x.jsonl.XZ": lzma.compress(line), "y.Csv": b"n,text\n1,one\n",
        # What follows is not read.
        "info.json": line, "pretty.json": b'{\n"a": 1}\n', "wiki": b"one", "wiki_0a": b"one", "y.rst": b"",
        ".hidden.txt": b"one", ".checkpoints/a.txt": b"one", "\x1b[2J.\x1b[2J": b"", "z.parquet.gz": b"",
        "z.txt.zip": b"",
    }  # fmt: skip
    for name, raw in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "gone.txt").symlink_to("nowhere")
    names, lines = said(tmp_path)
    assert names == sorted(list(contents)[:12])
    assert lines == [
        "note: passed over: files of other kinds: 8 (2 .json without JSON lines or an array of objects, 2 without a "
        "suffix, 1 .\\x1b[2j, 1 .parquet.gz, 1 .rst, 1 .txt.zip); hidden files and folders: 2; broken links and "
        "special files: 1"
    ]
    (tmp_path / "g.PARQUET").unlink()
    assert {text.strip() for text in read(tmp_path)[0]} == {"one"}
    assert said(tmp_path / ".hidden.txt", tmp_path / ".checkpoints") == ([".hidden.txt", "a.txt"], [])
    assert said(f"{tmp_path}/[abc]*t")[1] == []
    (tmp_path / "a folder.txt").mkdir()
    assert said(f"{tmp_path}/*.[Tt]?[Tt]") == (
        ["a.TXT"],
        ["note: passed over: broken links and special files: 1; folders that a glob names (** looks into them): 1"],
    )
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.rst.xz").write_bytes(b"")
    with pytest.raises(UserError, match=r"no file found .* passed over: files of other kinds: 1 \(1 .rst.xz\)"):
        said(tmp_path / "only")


def test_links_are_followed_and_each_file_is_read_once(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "far.txt").write_text("far")
    (tmp_path / "in" / "deep" / "z.txt").write_text("z")
    (tmp_path / "in" / "a-link.txt").symlink_to("deep/z.txt")
    os.link(tmp_path / "far" / "far.txt", tmp_path / "in" / "deep" / "hard.txt")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "far")
    for loop in ("loop", "again"):  # following two loops of links blindly reads 2**40 files
        (tmp_path / "in" / loop).symlink_to(".")
        (tmp_path / "in" / "deep" / loop).symlink_to("..")
    again = ["note: passed over: further names of files that are read: 2"]
    for name in ("in", "in/", "./in", "in/**/*.txt", "in/**", "**/*.txt", "in/loop"):
        texts, lines = read(tmp_path / name)[0], said(tmp_path / name)[1]
        assert sorted(texts) == ["far", "z"], name
        assert lines == again or name == "**/*.txt", name
    paths = [source.path for source in corpus.find_sources([str(tmp_path / "in")])]
    assert str(tmp_path / "in" / "deep" / "z.txt") in paths  # the file itself, by its shortest name
    names = [
        tmp_path / "far" / "far.txt",
        f"{tmp_path}/./far/far.txt",
        f"{tmp_path}/in/../far/far.txt",
        tmp_path / "far",
    ]
    assert said(*names, f"{tmp_path}/far/*", f"file://{tmp_path}/in/away/far.txt") == (
        ["far.txt"],
        ["note: passed over: further names of files that are read: 5"],
    )


def test_a_glob_with_two_stars_is_that_of_python(tmp_path, monkeypatch):
    for name in ("a.txt", "b/a.txt", "b/c/a.txt", "b/c/.h/a.txt", ".h/b/a.txt", "b/x.jsonl", "[b]/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    for pattern in (
        "**", "**/a.txt", "b/**", "b/**/a.txt", "*/**/*.txt", "**/c/*.txt", "**/.h/*.txt", ".h/**", "**/b/**/a.*",
        "./**/a.txt", f"{tmp_path}/**/a.txt", "[[]b]/**", "**/**/c/**",
    ):  # fmt: skip
        expected = sorted(set(filter(os.path.isfile, glob.glob(pattern, recursive=True))))
        assert expected, pattern
        assert files._glob(pattern, Counter()) == expected, pattern


def test_inputs_that_are_no_files_of_this_machine_say_what_to_do(tmp_path, monkeypatch):
    for text, words in (
        ("s3://bucket/x.txt", "pip install s3fs"),
        ("https://example.org/x.txt", "nothing is downloaded; fetch it first"),
        ("S3://bucket", "pip install s3fs"),
        ("hf://datasets/user/name", "hf download"),
        ("ftp://host/x.txt", "copy it to one first"),
    ):
        with pytest.raises(UserError, match=f"(?i)input {re.escape(text)}: .*{words}"):
            corpus.find_sources([text])
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("home")
    assert read("~/x.txt")[0] == read("$HOME/x.txt")[0] == read(f"file://{tmp_path}/x.txt")[0] == ["home"]
    with pytest.raises(UserError, match=rf"input '~/y.txt' \({tmp_path}/y.txt\): no file found"):
        corpus.find_sources(["~/y.txt"])


def test_inputs_are_separated_by_commas_but_those_of_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Smith, John, 1999.txt", "b.txt"):
        (tmp_path / name).write_text("")
    assert files.split("") == files.split(" , ") == ()
    assert files.split("b.txt, *.jsonl,tfds:x@train") == ("b.txt", "*.jsonl", "tfds:x@train")
    assert files.split("b.txt,Smith, John, 1999.txt , c,b.txt") == ("b.txt", "Smith, John, 1999.txt", "c", "b.txt")


def test_folders_without_permission_are_counted(tmp_path, monkeypatch):
    (tmp_path / "a" / "locked").mkdir(parents=True)
    (tmp_path / "a" / "x.txt").write_text("hello")
    scan = os.scandir

    def refusing(path):  # root is refused nothing
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(files.os, "scandir", refusing)
    for name in ("a", "a/**/*.txt"):
        assert said(tmp_path / name) == (["x.txt"], ["note: passed over: folders without permission: 1"])
    with pytest.raises(UserError, match=r"a/locked: the folder cannot be read \(Permission denied\)"):
        corpus.find_sources([str(tmp_path / "a" / "locked")])


def test_text_gz_jsonl_and_parquet_agree(tmp_path):
    texts = ["Der erste Text.\nZwei Zeilen.", "Ein zweiter: äöü 文字"]
    lines = "".join(json.dumps({"text": text, "id": 3}) + "\n" for text in texts)
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "text": texts}), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.jsonl.gz", "x.parquet"):
        assert read(tmp_path / name)[0] == texts
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "*.txt.gz")[0] == texts


def test_documents_of_a_text_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("one a\none b\n\n\n  \ntwo a\r\n\r\nthree\n")
    assert read(path)[0] == ["one a\none b\n\n\n  \ntwo a\r\n\r\nthree\n"]
    assert read(path, documents="paragraph")[0] == ["one a\none b", "two a", "three"]
    assert read(path, documents="line")[0] == ["one a", "one b", "two a", "three"]


def test_documents_do_not_depend_on_where_blocks_end(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    text = "one a\none bb\n\ntwo aaa\n\n\n\nthree ä ö ü\n\nfour"
    for size, end in itertools.product(range(1, 40), ("\n", "\r\n", "\r")):
        path.write_bytes(text.replace("\n", end).encode())
        monkeypatch.setattr(corpus, "CHUNK_CHARS", size)
        counts, texts = corpus.Counts(), {}
        chunks = corpus.read(corpus.find_sources([str(path)]), text_field="", documents="paragraph", counts=counts)
        for chunk in chunks:
            texts[chunk.document] = texts.get(chunk.document, "") + chunk.text
        found = [" ".join(text.split()) for text in texts.values()]
        assert found == ["one a one bb", "two aaa", "three ä ö ü", "four"], (size, end)
        assert counts.total.replaced == 0


def test_a_text_field_is_chosen_by_name(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "hello"}\n')
    assert read(tmp_path / "x.jsonl", text_field="body")[0] == ["hello"]


def test_empty_documents_are_counted_and_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": ""}\n{"text": " \\n "}\n\n{"text": "word"}\n')
    texts, counts = read(tmp_path / "x.jsonl")
    assert texts == ["word"]
    assert counts.total.empty == 2


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    (tmp_path / "x.txt").write_bytes("gut \ufffd ".encode() + b"b\xff\xfes und \xc3 ende")
    texts, counts = read(tmp_path / "x.txt")
    assert counts.total.replaced == 3
    assert texts == ["gut \ufffd b\ufffd\ufffds und \ufffd ende"]


def test_a_long_document_comes_in_pieces_cut_between_words(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_CHARS", 1 << 14)
    words = [f"w{i}" for i in range(20_000)]
    text = " ".join(words)
    (tmp_path / "x.txt").write_text(text)
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}) + "\n")
    for name in ("x.txt", "x.jsonl"):
        counts = corpus.Counts()
        chunks = list(
            corpus.read(corpus.find_sources([str(tmp_path / name)]), text_field="text", documents="file", counts=counts)
        )
        assert len(chunks) > 3
        assert {chunk.document for chunk in chunks} == {0}
        assert [word for chunk in chunks for word in chunk.text.split()] == words


def test_text_without_spaces_is_cut_between_characters(tmp_path):
    text = "文" * 700_000
    (tmp_path / "x.txt").write_text(text)
    texts, counts = read(tmp_path / "x.txt")
    assert texts == [text]
    assert counts.total.replaced == 0


class Letters(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"body": tfds.features.Text(), "n": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("ab"), "test": self._generate_examples("c")}

    def _generate_examples(self, letters):
        yield from ((i, {"body": f"text {letter} ä", "n": i}) for i, letter in enumerate(letters))


@pytest.fixture
def tfds_root(tmp_path, monkeypatch):
    """A prepared dataset `letters` with splits train and test, and its root in TFDS_DATA_DIR."""

    Letters(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_tfds(tfds_root):
    assert read("tfds:letters", text_field="body")[0] == ["text a ä", "text b ä"]
    assert read("tfds:letters@test", text_field="body")[0] == ["text c ä"]
    assert read("tfds:letters/1.2.0", text_field="body")[0] == ["text a ä", "text b ä"]
    for text, field, words in [
        ("tfds:numbers", "body", ["tfds:numbers", "no prepared dataset", "TFDS_DATA_DIR"]),
        ("tfds:letters@dev", "body", ["no split 'dev'", "test", "train"]),
        ("tfds:letters", "text", ["no feature 'text'", "body"]),
    ]:
        with pytest.raises(UserError) as error:
            read(text, text_field=field)
        assert all(word in str(error.value) for word in words)


def test_a_tfds_dataset_that_needs_tensorflow_is_refused(tfds_root):
    info = next(tfds_root.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="tfrecord, which needs tensorflow"):
        corpus.find_sources(["tfds:letters"])


def bad_inputs(folder):
    (folder / "empty").mkdir()
    (folder / "x.pdf").write_bytes(b"%PDF")
    (folder / "cut.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:-20])
    (folder / "not.txt.gz").write_bytes(b"plain text")
    (folder / "bad.jsonl").write_text('{"text": "ok"}\n{"text": \n')
    (folder / "other.jsonl").write_text('{"title": "ok"}\n')
    (folder / "list.jsonl").write_text('["ok"]\n')
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), folder / "columns.parquet")
    (folder / "array\x1b[2J.jsonl").write_text('{"\\u001b[2J": "ok"}\n')
    return {
        "missing.txt": ["missing.txt", "no file found"],
        "empty": ["empty", "no file found"],
        "x.pdf": ["x.pdf", "unknown kind", ".jsonl"],
        "cut.txt.gz": ["cannot read", "cut.txt.gz"],
        "not.txt.gz": ["not.txt.gz: not compressed, as the .gz of its name says"],
        "bad.jsonl": ["bad.jsonl, line 2", "not JSON"],
        "other.jsonl": ["other.jsonl, line 1", "'text'", "data.text_field"],
        "list.jsonl": ["list.jsonl, element 1", "'text'"],
        "bad.parquet": ["cannot read", "bad.parquet"],
        "columns.parquet": ["no column 'text' of strings", "n (int64)"],
        "array\x1b[2J.jsonl": ["no text in the field 'text'", "its fields are \\x1b[2J"],
    }


def test_bad_input_is_one_message_that_names_the_file(tmp_path):
    for name, words in bad_inputs(tmp_path).items():
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        for word in words:
            assert word in str(error.value), f"{name}: {error.value}"


ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_decoded_by_its_byte_order_mark(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_CHARS", 1 << 12)
    text = "eins äöü\r\n文字 \U0001f600\u2028\n\n" + "drei ä " * 3000 + "文" * 6000
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    for name, content in (("x.txt", text), ("x.jsonl", line + "\n" + line)):
        raw = ("\ufeff" + content).encode(encoding)
        (tmp_path / name).write_bytes(raw)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(raw, 1))
        for found in (name, f"{name}.gz"):
            texts, counts = read(tmp_path / found)
            assert texts == [text] * (1 + (content != text))
            assert counts.total.replaced == 0
    assert read(tmp_path / "x.txt", documents="line")[0][:2] == ["eins äöü", "文字 \U0001f600\u2028"]


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_utf16_and_utf32_without_a_mark_are_named(tmp_path, encoding):
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    for text in (
        "Hello, plain words.\n",
        "文字の列だ。\nそして、 続く。\n",
        "Это русский. ",
        "हिन्दी है। ",
        "ひらがなとカタカナ。 ",
    ):
        raw = (text * 50).encode(encoding)
        (tmp_path / "x.txt").write_bytes(raw)
        (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(raw))
        with pytest.raises(UserError, match=rf"x.txt: {name} without .* iconv -f {name} -t UTF-8 < .*x.txt > new.txt"):
            read(tmp_path / "x.txt")
        with pytest.raises(UserError, match=rf"gzip -dc \S*x.jsonl.gz \| iconv -f {name} -t UTF-8 > new.txt"):
            read(tmp_path / "x.jsonl.gz")


def test_utf8_that_is_declared_as_another_encoding_is_said(tmp_path):
    for name, raw in (
        ("a.txt", "schön\n".encode() * 20_000),
        ("b.txt", "schön\n".encode("latin-1")),
        ("c.txt", b"so\n"),
    ):
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress('{"text": "schön"}\n'.encode()))
    sources, lines = corpus.find_sources([str(tmp_path)]), []
    for encoding in ("latin-1", "utf-8"):
        corpus.check(sources, text_field="text", encoding=encoding, log=lines.append)
    assert lines == [
        f"warning: 2 of 4 sources ({tmp_path}/a.txt first) begin with UTF-8, and are read as latin-1: leave --encoding "
        "(config.data.encoding) out"
    ]


def test_zeros_in_utf8_are_no_other_encoding(tmp_path):
    for raw in (b"a\0b\0\0c word " * 40, b"one\0two\0three\0" * 30, b"text " * 100 + b"\0" * 900, b"a\0", b"\0\0\0\0"):
        (tmp_path / "x.txt").write_bytes(raw)
        assert read(tmp_path / "x.txt")[0] == [raw.decode()]


def test_what_no_encoding_explains_is_counted_in_utf16_too(tmp_path):
    (tmp_path / "x.txt").write_bytes(codecs.BOM_UTF16_LE + "gut ".encode("utf-16-le") + b"\x00\xd8" + b"b\0c")
    texts, counts = read(tmp_path / "x.txt")
    assert texts == ["gut \ufffdb\ufffd"]  # half a pair, and half a unit at the end
    assert counts.total.replaced == 2


def test_a_file_of_another_encoding_is_named_with_its_share(tmp_path):
    for number, raw in enumerate([b"all is well " * 10, b"sch\xf6n " * 10, b"word " * 100 + b"\xff"]):
        (tmp_path / f"{number}.txt").write_bytes(raw)
    sources = corpus.find_sources([str(tmp_path)])
    counts = corpus.Counts()
    for _ in corpus.read(sources, text_field="", documents="file", counts=counts):
        pass
    assert corpus.replaced_warning(sources, counts) == (
        f"warning: 11 invalid sequences were replaced by U+FFFD in 2 of 3 sources: {tmp_path}/1.txt (16.67% of its "
        f"characters), {tmp_path}/2.txt (0.20% of its characters); more than 1% is likely another encoding, which "
        "--encoding (config.data.encoding) names, such as latin-1"
    )
    assert "--encoding" not in corpus.replaced_warning(sources[2:], corpus.Counts(counts.sources[2:]))
    assert corpus.replaced_warning(sources[:1], corpus.Counts(counts.sources[:1])) == ""


def foreign(folder):
    table = pyarrow.table({"text": ["one", "two"]})
    with pyarrow.ipc.new_stream(folder / "stream.parquet", table.schema) as writer:
        writer.write_table(table)
    with pyarrow.ipc.new_file(folder / "file.txt", table.schema) as writer:
        writer.write_table(table)
    pyarrow.parquet.write_table(table, folder / "x.txt")
    for name, column in {
        "list": pyarrow.array([[["one"]], [["two"]]]),
        "map": pyarrow.array([[("a", "b")]] * 2, pyarrow.map_(pyarrow.string(), pyarrow.string())),
        "struct": pyarrow.array([{"text": "a"}] * 2),
        "null": pyarrow.array([None] * 2, pyarrow.null()),
        "binary": pyarrow.array([b"a"] * 2),
    }.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), folder / f"{name}.parquet")
    double = pyarrow.table([["one"], ["two"]], names=["text", "text"])
    pyarrow.parquet.write_table(double, folder / "double.parquet")
    records = [{"text": "one"}, {"text": "two"}]
    (folder / "array.json").write_text(json.dumps(records)[:-9])
    (folder / "pretty.jsonl.gz").write_bytes(
        gzip.compress("\n".join(json.dumps(r, indent=1) for r in records).encode())
    )
    (folder / "mac.jsonl").write_text("\r".join(map(json.dumps, records)))
    (folder / "joined.jsonl").write_text("".join(map(json.dumps, records)))
    (folder / "number.jsonl").write_text('{"text": 3}\n')
    for name in ("lfs.txt", "lfs.jsonl.gz", "lfs.parquet"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12\n")
    (folder / "x.docx").write_bytes(b"PK\3\4...")
    columns = {name: ["no column 'text' of strings", f"text ({name}<"] for name in ("list", "map", "struct")}
    return {
        **{f"{name}.parquet": words for name, words in columns.items()},
        "null.parquet": ["found text (null)"],
        "binary.parquet": ["found text (binary)", "of lists of strings"],
        "double.parquet": ["found text (string), text (string)"],
        "stream.parquet": ["an Arrow stream", "open_stream", "convert it: python -c"],
        "file.txt": ["an Arrow file", "open_file"],
        "x.txt": ["x.txt: Parquet", ".parquet"],
        "array.json": ["element 2: not one JSON array"],
        "pretty.jsonl.gz": ["line 1: not one whole JSON object", "gzip -dc", "| jq -c . > new.jsonl"],
        "joined.jsonl": ["line 1: not one whole JSON object", "jq -c . < "],
        "mac.jsonl": ["CR alone", "tr '\\r' '\\n' < "],
        "number.jsonl": ["line 1: the field 'text'", "is no text, found 3"],
        **{name: ["a pointer of Git LFS", "git lfs pull"] for name in ("lfs.txt", "lfs.jsonl.gz", "lfs.parquet")},
        "x.docx": ["a zip archive"],
    }


def checked_and_read(path):
    corpus.check(corpus.find_sources([str(path)]), text_field="text")
    read(path)


def test_files_of_other_formats_are_named_before_any_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in foreign(tmp_path).items():
        with pytest.raises(UserError) as error:
            checked_and_read(tmp_path / name)
        for word in [name, *words]:
            assert word in str(error.value), f"{name}: {error.value}"
        assert "\n" not in str(error.value)
        if "arrow" in str(error.value):  # converted by the command that is advised
            _, _, code, *arguments = shlex.split(str(error.value).partition("convert it: ")[2])
            monkeypatch.setattr(sys, "argv", ["-c", *arguments])
            exec(code, {})
            assert read("new.parquet")[0] == ["one", "two"]


def test_a_preparation_says_what_is_passed_over_and_refuses_before_it_reads(tmp_path):
    for name, text in (("a.txt", "words " * 9), ("notes.rst", "# notes"), ("z.jsonl", '[{"title": "one"}]')):
        (tmp_path / name).write_text(text)
    lines = []
    with pytest.raises(UserError, match=r"z.jsonl, element 1: no text in the field 'text'"):
        prepare.prepare(helpers.data(input=str(tmp_path), tokenizer_type="bpe"), 300, tmp_path / "rows", lines.append)
    assert lines == ["note: passed over: files of other kinds: 1 (1 .rst)"]
    assert not (tmp_path / "rows").exists()


def test_null_is_an_empty_document_in_json_lines_and_parquet(tmp_path):
    texts = ["one", None, "", "two", None]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, kind in (("x", pyarrow.string()), ("y", pyarrow.string_view()), ("z", pyarrow.large_string())):
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, kind)}), tmp_path / f"{name}.parquet")
    for name in ("x.jsonl", "x.parquet", "y.parquet", "z.parquet"):
        found, counts = read(tmp_path / name)
        assert (found, counts.total.empty) == (["one", "two"], 3), name


def test_cr_alone_ends_lines_where_no_lf_came_first(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one a\rtwo\r\rthree b\r")
    assert read(path, documents="line")[0] == ["one a", "two", "three b"]
    assert read(path, documents="paragraph")[0] == ["one a\ntwo", "three b"]
    assert read(path)[0] == ["one a\rtwo\r\rthree b\r"]
    path.write_bytes(b"one\ntwo 5%\rtwo 9%\nthree\r\n")  # a progress bar
    assert read(path, documents="line")[0] == ["one", "two 5%\rtwo 9%", "three"]


def test_the_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("one")
    before = corpus.fingerprint(corpus.Source(str(path)))
    assert before == corpus.fingerprint(corpus.Source(str(path)))
    path.write_text("three")
    assert before != corpus.fingerprint(corpus.Source(str(path)))


def test_text_that_no_encoding_can_write_is_replaced_and_counted(tmp_path):
    """Half a surrogate pair is legal in JSON, and common in scraped text."""
    (tmp_path / "x.jsonl").write_text('{"text": "a \\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n')
    texts, counts = read(tmp_path / "x.jsonl")
    assert texts == ["a \ufffd b", "\U0001f600"]
    assert counts.total.replaced == 1


def test_invalid_utf8_in_parquet_and_dictionary_columns(tmp_path):
    broken = pyarrow.array([b"gut", b"b\xffse"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "x.parquet")
    texts, counts = read(tmp_path / "x.parquet")
    assert texts == ["gut", "b\ufffdse"]
    assert counts.total.replaced == 1
    column = pyarrow.array(["a", "b", "a", None]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "y.parquet")
    texts, counts = read(tmp_path / "y.parquet")
    assert texts == ["a", "b", "a"]
    assert counts.total.empty == 1


def test_a_dictionary_of_long_texts_is_decoded_in_parts(tmp_path, monkeypatch):
    """As a whole, 200 times a text of 12 MB is more than a column may hold."""
    monkeypatch.setattr(formats, "LONGEST_RECORD", 13_000_000)
    text = "a b " * 3_000_000
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 200, pyarrow.int32()), [text])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    texts = formats.parquet_texts(str(tmp_path / "x.parquet"), "text", "", lambda count: None)
    assert next(texts) == next(texts) == text


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert read(tmp_path / "x.txt")[0] == read(tmp_path / "x.jsonl")[0] == ["hello"]
    (tmp_path / "short.txt").write_bytes(b"ab")
    assert read(tmp_path / "short.txt")[0] == ["ab"]


def test_a_file_name_may_hold_glob_characters(tmp_path):
    (tmp_path / "a[1].txt").write_text("hello")
    assert read(tmp_path / "a[1].txt")[0] == ["hello"]


@pytest.mark.parametrize("line", ['{"text": ' + "9" * 5000 + "}", '{"text": ' + "[" * 100_000 + "}"])
def test_json_that_python_refuses_is_named_by_line(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"x.jsonl, line 1: not JSON"):
        read(tmp_path / "x.jsonl")


def test_the_highest_version_of_a_tfds_dataset_is_taken(tmp_path, monkeypatch):
    for version in ("1.9.0", "1.10.0"):
        (tmp_path / "x" / version).mkdir(parents=True)
        (tmp_path / "x" / version / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert corpus.find_sources(["tfds:x"])[0].path.endswith("1.10.0")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    """The system is asked, which may not refuse root."""
    (tmp_path / "x.txt").write_text("hello")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"x.txt: no permission"):
        corpus.find_sources([str(tmp_path)])
