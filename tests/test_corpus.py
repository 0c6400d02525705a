import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from sctd_jax.data import corpus
from sctd_jax.errors import UserError


def read(*inputs, documents="file", text_field="text"):
    """({document: text}, counts)."""
    counts, texts = corpus.Counts(), {}
    sources = corpus.find_sources([str(text) for text in inputs])
    for chunk in corpus.read(sources, text_field=text_field, documents=documents, counts=counts):
        assert len(chunk.text) <= corpus.CHUNK_CHARS
        texts[chunk.document] = texts.get(chunk.document, "") + chunk.text
    assert counts.documents == len(texts)
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
    (tmp_path / "a" / "notes.md").write_text("not text of ours")
    assert read(tmp_path / "a")[0] == ["eins", "zwei"]
    assert read(tmp_path / "**" / "*.txt")[0] == ["eins", "zwei"]
    assert read(tmp_path / "a" / "1.txt", tmp_path / "a")[0] == ["eins", "zwei"]  # once each


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


@pytest.mark.parametrize("size", range(1, 40))
def test_documents_do_not_depend_on_where_blocks_end(tmp_path, monkeypatch, size):
    path = tmp_path / "x.txt"
    path.write_text("one a\none bb\n\ntwo aaa\n\n\n\nthree ä ö ü\n\nfour")
    monkeypatch.setattr(corpus, "CHUNK_CHARS", size)
    counts, texts = corpus.Counts(), {}
    chunks = corpus.read(corpus.find_sources([str(path)]), text_field="", documents="paragraph", counts=counts)
    for chunk in chunks:
        texts[chunk.document] = texts.get(chunk.document, "") + chunk.text
    assert [" ".join(text.split()) for text in texts.values()] == ["one a one bb", "two aaa", "three ä ö ü", "four"]
    assert counts.replaced == 0


def test_a_text_field_is_chosen_by_name(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "hello"}\n')
    assert read(tmp_path / "x.jsonl", text_field="body")[0] == ["hello"]


def test_empty_documents_are_counted_and_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": ""}\n{"text": " \\n "}\n\n{"text": "word"}\n')
    texts, counts = read(tmp_path / "x.jsonl")
    assert texts == ["word"]
    assert counts.empty == 2


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    (tmp_path / "x.txt").write_bytes("gut \ufffd ".encode() + b"b\xff\xfes und \xc3 ende")
    texts, counts = read(tmp_path / "x.txt")
    assert counts.replaced == 3
    assert texts == ["gut \ufffd b\ufffd\ufffds und \ufffd ende"]


def test_a_long_document_comes_in_pieces_cut_between_words(tmp_path):
    words = [f"w{i}" for i in range(200_000)]
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
    assert counts.replaced == 0


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
    return {
        "missing.txt": ["missing.txt", "no file found"],
        "empty": ["empty", "no file found"],
        "x.pdf": ["x.pdf", "unknown kind", ".jsonl"],
        "cut.txt.gz": ["cannot read", "cut.txt.gz"],
        "not.txt.gz": ["cannot read", "not.txt.gz"],
        "bad.jsonl": ["bad.jsonl, line 2", "not JSON"],
        "other.jsonl": ["other.jsonl, line 1", "'text'", "data.text_field"],
        "list.jsonl": ["list.jsonl, line 1", "'text'"],
        "bad.parquet": ["cannot read", "bad.parquet"],
        "columns.parquet": ["no string column 'text'", "n (int64)"],
    }


def test_bad_input_is_one_message_that_names_the_file(tmp_path):
    for name, words in bad_inputs(tmp_path).items():
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        for word in words:
            assert word in str(error.value), f"{name}: {error.value}"


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
    assert counts.replaced == 1


def test_invalid_utf8_in_parquet_and_dictionary_columns(tmp_path):
    broken = pyarrow.array([b"gut", b"b\xffse"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "x.parquet")
    texts, counts = read(tmp_path / "x.parquet")
    assert texts == ["gut", "b\ufffdse"]
    assert counts.replaced == 1
    column = pyarrow.array(["a", "b", "a", None]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "y.parquet")
    texts, counts = read(tmp_path / "y.parquet")
    assert texts == ["a", "b", "a"]
    assert counts.empty == 1


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
    """By asking the system, which root may not be refused."""
    (tmp_path / "x.txt").write_text("hello")
    monkeypatch.setattr(corpus.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"x.txt: no permission"):
        corpus.find_sources([str(tmp_path)])
