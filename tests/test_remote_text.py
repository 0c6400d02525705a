"""Text in buckets: in memory for what is found, through gcsfs against a stand-in for what is read."""

import gzip
import io
import json
import uuid
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from sctd_jax.data import corpus, prepare
from sctd_jax.data.rows import TRAIN, Rows
from sctd_jax.errors import TryAgainError, UserError
from tests import fake_gcs, helpers


@pytest.fixture
def folder():
    """(its address, function that writes into it)."""
    files, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    yield f"memory:/{root}", lambda name, content: files.pipe_file(f"{root}/{name}", content)
    files.rm(root, recursive=True)


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(texts):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    return file.getvalue()


def arrow(texts):
    file, table = io.BytesIO(), pyarrow.table({"text": texts})
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def read(*inputs):
    said, counts = [], corpus.Counts()
    sources = corpus.find_sources(map(str, inputs), said.append)
    corpus.check(sources, text_field="text")
    chunks = corpus.read(sources, text_field="text", documents="line", counts=counts)
    return [chunk.text.strip() for chunk in chunks], said


def test_files_folders_and_globs_of_a_bucket(folder):
    address, write = folder
    contents = {
        "a.txt": b"one\n", "deep/b.jsonl.gz": gzip.compress(lines(["two"])), "deep/c.parquet": parquet(["three"]),
        "d.arrow": arrow(["four"]), "e.jsonl.zst": pyarrow.compress(lines(["five"]), "zstd", asbytes=True),
        "notes.rst": b"no", ".hidden/x.txt": b"no",
    }  # fmt: skip
    for name, content in contents.items():
        write(name, content)
    assert read(address) == (
        ["one", "four", "two", "three", "five"],
        ["note: passed over: files of other kinds: 1 (1 .rst); hidden files and folders: 1"],
    )
    assert read(f"{address}/a.txt", address)[0][:2] == ["one", "four"]  # once
    assert read(f"{address}/deep/*")[0] == ["two", "three"]
    assert read(f"{address}/**/*.parquet")[0] == ["three"]
    for text in (f"{address}/none", f"{address}/*.pdf"):
        with pytest.raises(UserError, match="no file found there"):
            read(text)


def test_a_listing_is_one_request_and_a_change_is_noticed(folder, monkeypatch):
    address, write = folder
    for number in range(300):
        write(f"{number:04}.txt", b"word\n")
    asked = []
    files = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(files, "info", lambda self, path, **more: asked.append(path))
    sources = corpus.find_sources([address])
    before = [corpus.fingerprint(source) for source in sources]
    assert (len(before), asked) == (300, [])
    monkeypatch.undo()
    assert corpus.fingerprint(sources[7], fresh=True) == before[7]
    write("0007.txt", b"other words\n")
    assert corpus.fingerprint(sources[7], fresh=True) != before[7]


def test_a_bucket_that_fails_while_it_is_read_may_be_tried_again(folder, monkeypatch):
    address, write = folder
    write("a.txt", b"one\n")
    sources = corpus.find_sources([address])

    def fail(*args, **more):
        raise RuntimeError("503")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "_open", fail)
    with pytest.raises(TryAgainError, match=r"a\.txt cannot be reached: 503"):
        list(corpus.read(sources, text_field="text", documents="file", counts=corpus.Counts()))


@pytest.mark.slow
def test_rows_from_a_bucket_are_those_from_a_disk(tmp_path, speeches):
    """Through gcsfs, as `prepare` reads gs://."""
    texts = [Path(path).read_text(encoding="utf-8") for path in speeches[:9]]
    contents = {"a.txt": "\n\n".join(texts[:3]).encode(), "b.jsonl.gz": gzip.compress(lines(texts[3:5])),
                "c.jsonl": lines(texts[5:6]),
                "deep/c.parquet": parquet(texts[6:])}  # fmt: skip
    with fake_gcs.serve("texts") as (store, address):
        for name, content in contents.items():
            path = tmp_path / "text" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            store.put("texts", f"some text/{name}", content)
        sizes = ["--documents=paragraph", "--seq-len=32", "--vocab-size=512", "--heldout-share=0.1"]
        out = f"--out={tmp_path / 'from_bucket'}"
        env = {**helpers.environment(), **address}
        done = helpers.run_module("sctd_jax.data.prepare", "--input=gs://texts/some text", *sizes, out, env=env)
        assert done.returncode == 0, done.stderr
        missing = helpers.run_module("sctd_jax.data.prepare", "--input=gs://texts/none", *sizes, out + "2", env=env)
        assert (missing.returncode, "no file found there" in missing.stderr) == (2, True)
    data = helpers.data(input=str(tmp_path / "text"), documents="paragraph", heldout_share=0.1)
    prepare.prepare(data, 512, tmp_path / "from_disk", print)
    ours, theirs = (Rows(tmp_path / name, TRAIN) for name in ("from_disk", "from_bucket"))
    assert len(ours) == len(theirs) > 64
    assert (ours.read(range(len(ours))) == theirs.read(range(len(theirs)))).all()
