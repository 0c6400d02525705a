"""Preparation by ranges: where a text is cut, and that nothing depends on who prepares a range, when, or how often."""

import collections
import dataclasses
import functools
import gzip
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sctd_jax.data import corpus, prepare, range_rows, ranges, sentencepiece_trainer, survey, tokenizer, workers
from sctd_jax.data.rows import HELD_OUT, TRAIN, Rows, read_metadata
from sctd_jax.errors import TryAgainError, UserError
from tests import helpers

SPLITS = (TRAIN, HELD_OUT)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch):
    monkeypatch.setattr(ranges, "BYTES", 10_000)


def texts(count=900, seed=0):
    rng = np.random.default_rng(seed)
    words = ["".join(map(chr, rng.integers(97, 117, 4))) for _ in range(300)]
    return [f"{' '.join(rng.choice(words, 20))} {i}" for i in range(count)]


def read(sources, documents):
    counts = corpus.Counts()
    found = collections.defaultdict(str)
    for chunk in corpus.read(sources, text_field="text", documents=documents, counts=counts):
        found[chunk.document] += chunk.text
    return list(found.values()), counts.total


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines))


def write_json(path, lines):
    write_lines(path, [json.dumps({"text": line}) for line in lines])


def write_parquet(path, lines):
    pyarrow.parquet.write_table(pyarrow.table({"text": lines}), path, row_group_size=50)


def write_arrow(path, lines):
    table = pyarrow.table({"text": lines})
    with pyarrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table, max_chunksize=50)


FORMATS = {
    "a.txt": (lambda path, lines: write_lines(path, lines), "line"),
    "b.txt": (lambda path, lines: path.write_text("\n \r\n\n".join(lines) + "\n\n"), "paragraph"),
    "c.jsonl": (write_json, "file"),
    "d.parquet": (write_parquet, "file"),
    "e.arrow": (write_arrow, "file"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_spans_of_a_file_hold_its_documents_once(tmp_path, name):
    write, documents = FORMATS[name]
    lines = texts(400)
    write(tmp_path / name, lines)
    sources = corpus.find_sources([str(tmp_path / name)])
    parts = [part.source for one in ranges.plan(sources, documents) for part in one.parts]
    assert len(parts) >= 3
    found, counts = read(parts, documents)
    assert [text.strip() for text in found] == lines
    assert (found, counts) == read(sources, documents)


def test_a_byte_order_mark_and_a_long_line_are_no_place_to_cut(tmp_path):
    lines = [*texts(200), "long " * 30_000, *texts(200, 1)]
    (tmp_path / "a.txt").write_text("\ufeff" + "\n".join(lines))
    sources = corpus.find_sources([str(tmp_path)])
    parts = [part.source for one in ranges.plan(sources, "line") for part in one.parts]
    assert len(parts) > 3
    assert read(parts, "line")[0] == lines


def test_what_has_no_place_to_cut_is_one_range(tmp_path):
    lines = texts(600)
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps([{"text": line} for line in lines], indent=1))
    (tmp_path / "c.txt").write_text("\n".join(lines), encoding="utf-16")
    (tmp_path / "d.txt").write_text("\r".join(lines))
    (tmp_path / "e.csv").write_text("text\n" + "\n".join(lines))
    with gzip.open(tmp_path / "f.txt.gz", "wt") as file:
        file.write("\n".join(lines))
    for path in sorted(tmp_path.iterdir()):
        documents = "file" if path.name == "a.txt" else "line"
        (one,) = ranges.plan(corpus.find_sources([str(path)]), documents)
        assert one.parts[0].source.span is None, path
        assert one.size > 20_000


def test_a_text_of_another_encoding_is_read_as_that(tmp_path):
    (tmp_path / "a.txt").write_bytes("\n".join(f"café {line}" for line in texts()).encode("latin-1"))
    data = helpers.data(
        input=str(tmp_path / "a.txt"), documents="line", encoding="latin-1", tokenizer_type="bpe", heldout_share=0.1
    )
    made(data, tmp_path / "rows")
    assert read_metadata(tmp_path / "rows").replaced_bytes == 0
    assert len(ranges.plan(corpus.find_sources([data.input]), "line", "utf8")) > 3


@pytest.mark.parametrize("window", [3, 7, 1000])
def test_a_cut_is_behind_all_blank_lines_wherever_a_window_ends(tmp_path, monkeypatch, window):
    monkeypatch.setattr(ranges, "_WINDOW", window)
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n  three \n \t\r\n\n\n  four\n\nfive\n\n \n")
    content = path.read_bytes()

    def after(at, blank_line):
        with path.open("rb") as file:
            file.seek(at)
            return ranges._after_break(file, at, blank_line)

    assert {after(at, True) for at in range(content.index(b" \n") + 2)} == {content.index(b"  four")}
    assert after(content.index(b"four"), True) == content.index(b"five")
    assert after(content.index(b"five"), True) is None
    assert after(0, False) == content.index(b"two")


def test_small_files_share_ranges(tmp_path):
    for i, line in enumerate(texts(300)):
        (tmp_path / f"{i:03d}.txt").write_text(line)
    plan_ = ranges.plan(corpus.find_sources([str(tmp_path)]), "file")
    assert [part.file for one in plan_ for part in one.parts] == list(range(300))
    assert 3 <= len(plan_) <= 5
    assert all(one.size < 11_000 for one in plan_)


@pytest.fixture
def data(tmp_path):
    """A text of some twenty ranges: lines of JSON, Parquet and a compressed file, some documents twice."""
    (tmp_path / "text").mkdir()
    write_json(tmp_path / "text" / "a.jsonl", texts())
    write_parquet(tmp_path / "text" / "b.parquet", texts(600, 1))
    with gzip.open(tmp_path / "text" / "c.jsonl.gz", "wt") as file:
        for line in [*texts(300, 2), *texts(50)]:
            file.write(json.dumps({"text": line}) + "\n")
    return helpers.data(input=str(tmp_path / "text"), tokenizer_type="bpe", seq_len=32, heldout_share=0.05)


def made(data, out, **options):
    lines = []
    prepare.prepare(data, 300, out, lines.append, **options)
    return lines


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def all_rows(folder, split):
    return Rows(folder, split).read(range(len(Rows(folder, split))))


def test_rows_do_not_depend_on_who_prepares_them(data, tmp_path):
    lines = made(data, tmp_path / "one", processes=1)
    assert any(line.startswith("1,850 documents") for line in made(data, tmp_path / "two", processes=2))
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two
    assert not [name for name in one if name.startswith((".", "range-", "plan"))]
    shards = [name for name in one if "train.array_record" in name]
    assert len(shards) > 10 and shards[0].endswith(f"-of-{len(shards):05d}")
    assert [line for line in lines if line.startswith("going on")] == []
    for split in SPLITS:
        tokens = all_rows(tmp_path / "one", split)
        assert 0 < (tokens[:, -1] == 0).sum() <= len(shards)
        assert (tokens[:, 0] == 2).all()
    metadata = read_metadata(tmp_path / "one")
    assert metadata.documents == 1850
    assert metadata.tokens == sum(int((all_rows(tmp_path / "one", split) > 4).sum()) for split in SPLITS)
    frequencies = np.load(tmp_path / "one" / "frequencies.npy")
    assert (frequencies == np.bincount(all_rows(tmp_path / "one", TRAIN).ravel(), minlength=300)).all()
    assert sum(source["tokens"] for source in metadata.by_source) == metadata.tokens
    assert [source["documents"] for source in metadata.by_source] == [900, 600, 350]


def numbers_in(folder, split):
    """How often each document, whose last word is its number, is in a split."""
    tok = tokenizer.load(tokenizer.find(folder))
    tokens = all_rows(folder, split)
    text = tok.decode([int(i) for i in tokens.ravel() if i > 4])
    return collections.Counter(int(word) for word in re.findall(r"\d+", text))


def test_a_document_is_in_one_row_or_its_neighbours_and_on_one_side(tmp_path):
    write_json(tmp_path / "a.jsonl", [f"the words of document {i} end" for i in range(3000)])
    made(helpers.data(input=str(tmp_path / "a.jsonl"), tokenizer_type="bpe", heldout_share=0.3), tmp_path / "rows")
    sides = [numbers_in(tmp_path / "rows", split) for split in SPLITS]
    assert sum(sides, collections.Counter()) == dict.fromkeys(range(3000), 1)
    assert not sides[0] & sides[1]
    assert 0.25 < len(sides[1]) / 3000 < 0.35


def test_copies_are_left_out_wherever_they_stand(data, tmp_path):
    lines = made(dataclasses.replace(data, drop_copies=True), tmp_path / "rows", processes=2)
    assert "left out: 50 copies of documents" in lines
    metadata = read_metadata(tmp_path / "rows")
    assert metadata.documents == 1800
    assert [source["copies"] for source in metadata.by_source] == [0, 0, 50]


def test_weights_are_epochs(tmp_path):
    for name, first in (("a", 0), ("b", 10_000), ("c", 20_000)):
        write_json(tmp_path / f"{name}.jsonl", [f"the words of document {first + i} end" for i in range(1500)])
    inputs = f"{tmp_path}/a.jsonl:2.5,{tmp_path}/b.jsonl,{tmp_path}/c.json*:.5"
    data = helpers.data(input=inputs, tokenizer_type="bpe", heldout_share=0.1)
    made(data, tmp_path / "rows")
    train, heldout = (numbers_in(tmp_path / "rows", split) for split in SPLITS)
    metadata = read_metadata(tmp_path / "rows")

    def share(numbers, first, times):
        return sum(count == times for i, count in numbers.items() if first <= i < first + 10_000) / 1500

    assert set(heldout.values()) == {1}
    assert not train.keys() & heldout.keys()
    assert share(train, 0, 2) + share(train, 0, 3) + share(heldout, 0, 1) == pytest.approx(1)
    assert 0.4 < share(train, 0, 3) / (1 - share(heldout, 0, 1)) < 0.6
    assert share(train, 10_000, 1) + share(heldout, 10_000, 1) == pytest.approx(1)
    assert 0.4 < share(train, 20_000, 1) + share(heldout, 20_000, 1) < 0.6
    assert 0.05 < share(heldout, 20_000, 1) / share(train, 20_000, 1) < 0.2
    assert [source["epochs"] for source in metadata.by_source] == [2.5, 1.0, 0.5]
    assert [source["documents"] for source in metadata.by_source] == [1500] * 3
    assert metadata.settings["input"] == inputs.split(",")
    assert metadata.documents == train.total() + heldout.total()
    made(data, tmp_path / "again", processes=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "rows")


def test_a_source_that_a_weight_leaves_out_is_said(tmp_path):
    for name, first in (("a", 0), ("b", 10_000)):
        write_json(tmp_path / f"{name}.jsonl", [f"the words of document {first + i} end" for i in range(1500)])
    data = helpers.data(
        input=f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl:0.000000001", tokenizer_type="bpe", heldout_share=0.1
    )
    lines = made(data, tmp_path / "rows")
    assert f"warning: {tmp_path}/b.jsonl has 1,500 documents, and by its weight 1e-09 none is taken" in lines


def test_a_weight_must_be_one(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b:2").mkdir()
    (tmp_path / "b:2" / "a.txt").write_text("a")
    assert [source.epochs for source in corpus.find_sources([f"{tmp_path}/b:2"])] == [1.0]
    assert [source.epochs for source in corpus.find_sources([f"{tmp_path}/b:2:3"])] == [3.0]
    for text, words in (
        (f"{tmp_path}/a.txt:0", "weight must be above 0 and at most 100, found 0"),
        (f"{tmp_path}/a.txt:101", "found 101"),
        (f"{tmp_path}/a.txt:two", "no file found"),
    ):
        with pytest.raises(UserError, match=words):
            corpus.find_sources([text])
    with pytest.raises(UserError, match=r"a.txt is also in an input of the weight 2, here it is 1; name it once"):
        corpus.find_sources([f"{tmp_path}/a.txt:2", f"{tmp_path}"])


def killed(data, out, after, how="9"):
    """A preparation that is killed when the `after`-th range is finished."""
    code = f"""
import os
import pathlib
from sctd_jax.config import DataConfig
from sctd_jax.data import prepare, range_rows, ranges
from sctd_jax.errors import run_command
ranges.BYTES = {ranges.BYTES}
one, done = range_rows.prepare, []
def dying(job, task, **advance):
    counted = one(job, task, **advance)
    done.append(task)
    if len(done) == {after}:
        os.kill(os.getpid(), {how})
    return counted
range_rows.prepare = dying
out = prepare.storage.as_path({str(out)!r})
raise SystemExit(run_command(lambda: prepare.prepare({data!r}, 300, out, print, processes=1)))
"""
    return subprocess.run(
        [sys.executable, "-c", code], env=helpers.environment(), cwd=helpers.ROOT, capture_output=True, text=True
    )


def test_an_interrupted_preparation_goes_on(data, tmp_path, monkeypatch):
    made(data, tmp_path / "expected")
    out, work = tmp_path / "rows", tmp_path / "rows.incomplete"
    assert killed(data, out, 5).returncode == -9
    assert not out.exists()
    assert len(list(work.glob("range-*"))) == 5
    done = killed(data, out, 3, "15")
    assert done.returncode == 128 + 15
    assert f"what is finished stays in {work}; the same command goes on with it" in done.stdout
    count = len(list(tmp_path.glob("expected/*train*")))
    prepared = []
    one = range_rows.prepare
    monkeypatch.setattr(range_rows, "prepare", lambda job, task: prepared.append(task) or one(job, task))
    monkeypatch.setattr(survey, "take", None)  # nothing is looked at a second time
    lines = made(data, out, processes=1)
    assert f"going on with {work}: {count - len(prepared)} of {count} ranges are finished" in lines
    assert any(line.startswith("1,850 documents") for line in lines)
    assert 8 <= count - len(prepared) <= 9
    assert contents(out) == contents(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "rows", "text"]


def test_other_text_or_settings_begin_anew(data, tmp_path):
    out, work = tmp_path / "rows", tmp_path / "rows.incomplete"
    assert killed(data, out, 2).returncode == -9
    other = dataclasses.replace(data, heldout_share=0.2)
    made(other, tmp_path / "expected")
    lines = made(other, out)
    assert f"note: {work} is of an interrupted preparation of other text or settings; it is removed" in lines
    assert contents(out) == contents(tmp_path / "expected")
    work.mkdir()
    (work / "mine").touch()
    shutil.rmtree(out)
    with pytest.raises(UserError, match=r"rows.incomplete exists, and is no interrupted preparation; remove it"):
        made(other, out)
    assert (work / "mine").exists()


def test_a_range_that_cannot_be_read_is_named_and_what_is_finished_stays(data, tmp_path):
    path = tmp_path / "text" / "c.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-40])
    for processes in (1, 2):
        lines = []
        with pytest.raises(UserError, match=r"cannot read .*c.jsonl.gz: Compressed file ended"):
            prepare.prepare(
                dataclasses.replace(data, tokenizer=""), 300, tmp_path / "rows", lines.append, processes=processes
            )
        assert not (tmp_path / "rows").exists()


def test_a_file_that_changes_while_ranges_are_prepared_is_named(data, tmp_path, monkeypatch):
    one = range_rows.prepare

    def change(job, task):
        counted = one(job, task)
        os.utime(tmp_path / "text" / "b.parquet", ns=(1, 1))
        return counted

    monkeypatch.setattr(range_rows, "prepare", change)
    lines = []
    with pytest.raises(UserError, match=r"b.parquet changed while it was read; prepare again when nothing writes to"):
        prepare.prepare(data, 300, tmp_path / "rows", lines.append, processes=1)
    assert lines[-1].endswith("the same command goes on with it, unless the text has changed")


def large(number, how):
    """A result that fills a pipe many times; the third is the last."""
    if number == 3 and how == "raises":
        raise UserError("text/a.jsonl: line 7")
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4 and isinstance(how, pathlib.Path):  # dies in mid-send, when the file is there
        while not how.exists():
            time.sleep(0.02)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(50_000_000 if number == 4 else 500_000)


def test_a_worker_that_fails_or_dies_is_one_message(tmp_path):
    with pytest.raises(UserError, match=r"^text/a.jsonl: line 7$"):
        list(workers.on_cores(functools.partial(large, how="raises"), range(8), 2))
    with pytest.raises(TryAgainError, match=r"one of 2 worker processes died.*\(--workers\) take less$"):
        list(workers.on_cores(functools.partial(large, how="dies"), range(8), 2))
    results = workers.on_cores(functools.partial(large, how=tmp_path / "go"), [4, 5], 2)
    assert next(results)[0] == 5
    (tmp_path / "go").touch()
    while len(multiprocessing.active_children()) == 2:  # the result is on its way, and nobody takes it
        time.sleep(0.05)
    with pytest.raises(TryAgainError, match="one of 2 worker processes died"):
        list(results)


def test_enough_is_held_out_of_a_text_with_a_weight(tmp_path):
    write_json(tmp_path / "a.jsonl", texts(400))
    for weight in ("", ":2", ":3"):
        data = helpers.data(input=f"{tmp_path}/a.jsonl{weight}", tokenizer_type="bpe", heldout_share=0.0)
        made(data, tmp_path / f"rows{weight}")
        assert 64 <= read_metadata(tmp_path / f"rows{weight}").heldout_rows < 90
    with pytest.raises(UserError, match=r"400 documents, of which the weight of the input takes none; give more"):
        made(dataclasses.replace(data, input=f"{tmp_path}/a.jsonl:0.00001"), tmp_path / "none")


def test_documents_that_are_not_taken_have_no_copies(tmp_path):
    """Half of the documents are distinct ones, and half of them are there twice."""
    lines = [f"the words of document {i}" for i in range(3000)]
    write_json(tmp_path / "a.jsonl", lines)
    write_json(tmp_path / "b.jsonl", lines[:1500])
    found = {}
    for name, weight in (("a", ":0.5"), ("[ab]", ":0.5"), ("[ab]", "")):
        data = helpers.data(input=f"{tmp_path}/{name}.jsonl{weight}", tokenizer_type="bpe", drop_copies=True)
        made(data, tmp_path / f"rows{len(found)}")
        found[name + weight] = read_metadata(tmp_path / f"rows{len(found)}")
    assert found["a:0.5"].documents == found["[ab]:0.5"].documents
    assert [sum(source["copies"] for source in one.by_source) for one in found.values()][::2] == [0, 1500]
    assert 600 < found["[ab]:0.5"].by_source[1]["copies"] < 900


def test_what_a_machine_without_power_left_is_prepared_again(data, tmp_path):
    made(data, tmp_path / "expected")
    out, work = tmp_path / "rows", tmp_path / "rows.incomplete"
    assert killed(data, out, 6).returncode == -9
    (work / range_rows.counts_name(0)).write_bytes(b"")
    (work / range_rows.counts_name(1)).write_bytes((work / range_rows.counts_name(1)).read_bytes()[:300])
    os.truncate(next(work.glob("*train*-00002-of*")), 1000)
    next(work.glob("*train*-00003-of*")).unlink()
    overwritten = next(work.glob("*train*-00004-of*"))
    content = overwritten.read_bytes()
    overwritten.write_bytes(content[: len(content) // 2] + b"\0lost\0" + content[len(content) // 2 + 6 :])
    lines = made(data, out)
    (line,) = (line for line in lines if line.startswith(f"going on with {work}: 1 of "))
    assert line.endswith(" ranges are finished, 5 that were are damaged and made again")
    assert contents(out) == contents(tmp_path / "expected")
    # Killed after the tokenizer and before the plan.
    before = os.umask(0o027)
    work.mkdir()
    (out / "tokenizer.model").rename(work / "tokenizer.model")
    shutil.rmtree(out)
    made(data, out)
    os.umask(before)
    assert contents(out) == contents(tmp_path / "expected")
    assert out.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in out.glob("*.json")} == {0o640}


@pytest.mark.parametrize("pieces", [300, 290])
def test_finished_ranges_are_not_joined_with_those_of_another_tokenizer(data, tmp_path, pieces):
    out, work = tmp_path / "rows", tmp_path / "rows.incomplete"
    assert killed(data, out, 2).returncode == -9
    model = sentencepiece_trainer.train(texts(seed=5), vocab_size=pieces, model_type="bpe")
    kept = (work / "tokenizer.model").read_bytes()
    (work / "tokenizer.model").write_bytes(model)
    with pytest.raises(UserError, match=rf"is not the tokenizer .* put that one there; or remove {work}"):
        made(data, out)
    (work / "tokenizer.model").write_bytes(kept)
    assert any(line.startswith(f"going on with {work}: 2 of ") for line in made(data, out))


def test_a_large_text_is_looked_at_in_part(data, tmp_path, monkeypatch):
    """Enough is held out and the tokenizer knows the text, though each range is only begun to be looked at."""
    monkeypatch.setattr(survey, "LOOK", 20_000)
    monkeypatch.setattr(survey, "_LEAST_LOOK", 1_000)
    lines = made(dataclasses.replace(data, heldout_share=0.0), tmp_path / "rows", processes=1)
    assert any(line.startswith("looked at 0 M characters of about 0 MB in ") for line in lines)
    assert any(line.startswith("1,850 documents") for line in lines)
    metadata = read_metadata(tmp_path / "rows")
    assert 64 <= metadata.heldout_rows < 0.5 * metadata.rows
    assert metadata.unknown_letters == 0


def test_shards_that_a_node_wrote_to_a_disk_of_its_own_are_missed(data, tmp_path, monkeypatch):
    one = range_rows.prepare

    def elsewhere(job, task):
        counted = one(job, task)
        if task.range.number == 2:
            next((tmp_path / "rows.incomplete").glob("*validation*-00002-of*")).unlink()
        return counted

    monkeypatch.setattr(range_rows, "prepare", elsewhere)
    words = r"lacks 1 of \d+ shards that were written, packed_rows-validation.*-00002-of.* folder that all nodes share"
    with pytest.raises(UserError, match=words):
        made(data, tmp_path / "rows", processes=1)
    assert not (tmp_path / "rows").exists()
