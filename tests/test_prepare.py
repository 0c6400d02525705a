import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tokenizers

from sctd_jax import lease
from sctd_jax.data import corpus, files, prepare, range_rows, survey, tokenizer
from sctd_jax.data.rows import HELD_OUT, TRAIN, Rows, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.pretrain import rows as run_rows
from tests import helpers

QUIET = {"log": lambda line: None}


@pytest.fixture
def settings(speeches):
    return helpers.data(input=",".join(speeches[:12]), documents="paragraph", heldout_share=0.02)


def test_rows_read_back_without_tensorflow_and_agree_with_the_metadata(rows):
    metadata = read_metadata(rows)
    builder = tfds.builder_from_directory(str(rows))
    assert builder.info.splits[TRAIN].num_examples == metadata.rows
    assert builder.info.splits[HELD_OUT].num_examples == metadata.heldout_rows >= 64
    assert "tensorflow" not in sys.modules
    row = builder.as_data_source(split=TRAIN)[0]["input_ids"]
    assert row.shape == (32,)
    assert (row[0], row[-1]) == (2, 3)
    assert metadata.vocab_size == 512
    assert metadata.tokenizer_sha256 == tokenizer.digest(str(rows / "tokenizer.model"))


def texts_of(rows, split):
    ids = Rows(rows, split).read(range(len(Rows(rows, split)))).ravel()
    return tokenizer.load(rows / "tokenizer.model").decode(ids[ids > 4])


def test_the_text_is_all_there_and_the_splits_share_no_document(rows, speeches):
    counts = corpus.Counts()
    chunks = corpus.read(corpus.find_sources(speeches[:12]), text_field="text", documents="paragraph", counts=counts)
    held, train = [], []
    metadata = read_metadata(rows)
    both = {TRAIN: texts_of(rows, TRAIN), HELD_OUT: texts_of(rows, HELD_OUT)}
    pieces = tokenizer.load(rows / "tokenizer.model")
    for chunk in chunks:
        words = pieces.decode([i for i in pieces.encode([chunk.text])[0] if i > 4])[:60]
        if len(words) < 60:
            continue
        (held if words in both[HELD_OUT] else train).append(chunk.document)
        assert words in both[TRAIN] or words in both[HELD_OUT]
    assert held
    assert train
    assert metadata.documents == counts.total.documents
    assert metadata.heldout_documents < 0.5 * counts.total.documents
    real = sum(int((Rows(rows, split).read(range(len(Rows(rows, split)))) > 4).sum()) for split in both)
    unknown = sum(int((Rows(rows, split).read(range(len(Rows(rows, split)))) == 1).sum()) for split in both)
    assert metadata.tokens == real + unknown


def test_padding_only_in_the_last_row_of_a_split(rows):
    for split in (TRAIN, HELD_OUT):
        data = Rows(rows, split)
        values = data.read(range(len(data)))
        assert (values[:-1] != 0).all()


def test_preparing_twice_gives_the_same_bytes(settings, tmp_path, rows):
    prepare.prepare(settings, 512, tmp_path / "again", **QUIET)
    for path in rows.rglob("*array_record*"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert (rows / "tokenizer.model").read_bytes() == (tmp_path / "again" / "tokenizer.model").read_bytes()


def test_one_huge_document_is_tokenised_as_a_whole(tmp_path):
    """Chunks are cut between words, and the pieces are those of the text in one go."""
    words = [f"word{i % 977} and" for i in range(60_000)]
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"text": " ".join(words)})] + [json.dumps({"text": f"held out {i} " * 40}) for i in range(900)]
    path.write_text("\n".join(lines))
    data = helpers.data(input=str(path), tokenizer_type="bpe", seed=1)
    prepare.prepare(data, 300, tmp_path / "rows", **QUIET)
    (expected,) = tokenizer.load(tmp_path / "rows" / "tokenizer.model").encode([" ".join(words)])
    data = Rows(tmp_path / "rows", TRAIN)
    got = data.read(range(len(expected) // 30 + 1)).ravel()
    got = got[got > 4][: len(expected)]
    np.testing.assert_array_equal(got, expected)


def test_an_existing_tokenizer_is_used_and_its_size_checked(settings, tmp_path, rows):
    model = str(rows / "tokenizer.model")
    again = dataclasses.replace(settings, tokenizer=model)
    metadata = prepare.prepare(again, 512, tmp_path / "a", **QUIET)
    assert metadata.tokenizer_sha256 == tokenizer.digest(model)
    with pytest.raises(UserError, match=r"model.vocab_size is 600, but the tokenizer .* has 512 pieces"):
        prepare.prepare(again, 600, tmp_path / "b", **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_wordpiece_vocabulary_prepares_rows_with_its_own_special_ids(speeches, tmp_path):
    pieces = tokenizers.BertWordPieceTokenizer()
    text = [Path(path).read_text() for path in speeches[:12]]
    special = ["[SEP]", "[MASK]", "[UNK]", "[CLS]", "[PAD]"]
    pieces.train_from_iterator(text, vocab_size=700, special_tokens=special, show_progress=False)
    pieces.save_model(str(tmp_path))
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("über\n")
    done = helpers.run_module(
        "sctd_jax.data.prepare", *(f"--input={path}" for path in speeches[:12]), "--documents=paragraph",
        f"--out={tmp_path / 'rows'}", "--seq-len=32", "--heldout-share=0.02", f"--tokenizer={tmp_path / 'vocab.txt'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing says strip_accents; accents are kept, as 1 of 696 pieces have them" in done.stdout
    assert read_metadata(tmp_path / "rows").vocab_size == 701
    loaded = tokenizer.load(tokenizer.find(tmp_path / "rows"))
    data = Rows(tmp_path / "rows", TRAIN).read(range(100))
    assert (data[:, 0] == 3).all()
    assert (data[:, -1] == 0).all()
    assert not (data == 1).any()
    assert (data == 2).mean() < 0.01
    known = " ".join(" ".join(text).lower().split())
    words = loaded.decode(data[5][1:-1]).split(" ")
    assert sum(word in known for word in words) > 0.9 * len(words)


def test_identity_differs_by_text_tokenizer_and_length(settings, speeches, tmp_path, rows):
    def identity(vocab_size=512, **changes):
        changed = dataclasses.replace(settings, **changes)
        return prepare.identity(changed, vocab_size, corpus.find_sources(files.split(changed.input)))

    names = [
        identity(), identity(seq_len=16), identity(vocab_size=600), identity(tokenizer_type="bpe"), identity(seed=1),
        identity(input=",".join(speeches[:11])), identity(tokenizer=str(rows / "tokenizer.model")),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert identity() == identity() == identity(allow_unknown=True) != identity(keep_zwnj=False)


def test_rows_of_earlier_versions_keep_their_names_and_open(settings, rows, tmp_path):
    inputs = settings.input.split(",")
    sources = corpus.find_sources(inputs)
    first_fields = (
        "text_field", "documents", "seq_len", "tokenizer", "tokenizer_type", "heldout_share", "seed",
    )  # fmt: skip
    for model in ("", str(rows / "tokenizer.model")):
        changed = dataclasses.replace(settings, tokenizer=model, keep_zwnj=bool(model))
        values = {name: getattr(changed, name) for name in first_fields} | {"input": inputs, "vocab_size": 512}
        values["sources"] = [corpus.fingerprint(source) for source in sources]
        values |= {"tokenizer": tokenizer.digest(model)} if model else {}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        assert prepare.identity(changed, 512, sources) == digest[:16]
    values = json.loads((rows / "prepared.json").read_text())
    later = {**values, "a_field_of_a_later_version": 1}
    earlier = {name: values[name] for name in list(values)[: list(values).index("settings") + 1]}
    for content in (earlier, later):
        (tmp_path / "prepared.json").write_text(json.dumps(content))
        assert read_metadata(tmp_path).rows == values["rows"]
    assert values["letters"] > 100_000
    assert values["by_source"][0].keys() >= {"documents", "characters", "letters", "unknown_letters"}


def test_a_tokenizer_that_does_not_know_the_text_is_refused_before_the_text_is_tokenised(rows, tmp_path, monkeypatch):
    """`--allow-unknown` takes it, and every letter is accounted for."""
    path = tmp_path / "x.jsonl"
    chinese = [chr(0x4E00 + i % 50) * 40 for i in range(400)]
    path.write_text(
        "".join(json.dumps({"text": f"{text} the United States {i}"}) + "\n" for i, text in enumerate(chinese))
    )
    settings = helpers.data(input=str(path), seq_len=8, tokenizer=str(rows / "tokenizer.model"), heldout_share=0.3)
    write, fail, lines = range_rows.prepare, None, []
    share = r"letters{} \(6\d.\d+%\) .*x.jsonl: 6\d.\d% \(.* U\+4E.*--allow-unknown"
    for size, said in (
        (1 << 20, r"16,000 of 2\d,\d+ " + share.format("")),  # the sample is the whole text
        (20_000, share.format(" of a sample")),
        (5_000, r"16,000 of 2\d,\d+ " + share.format("")),  # too few lines to be believed: when all is counted
    ):
        monkeypatch.setattr(survey, "LOOK_BYTES", size)
        monkeypatch.setattr(range_rows, "prepare", fail if size > 5_000 else write)
        with pytest.raises(UserError, match=said):
            prepare.prepare(settings, 512, tmp_path / "rows", lines.append)
    assert [line.split()[0] for line in lines] == ["reading", "400"] * 3 + ["what"]
    assert not (tmp_path / "rows").exists()
    metadata = prepare.prepare(dataclasses.replace(settings, allow_unknown=True), 512, tmp_path / "rows", lines.append)
    assert metadata.unknown_letters == 400 * 40
    assert metadata.letters == sum(
        len("".join(json.loads(line)["text"].split())) for line in path.read_text().splitlines()
    )
    assert metadata.by_source[0]["unknown_letters"] == 400 * 40
    assert next(line for line in lines if "[UNK]" in line).startswith("warning: 16,000 of 2")


def test_an_interrupted_preparation_is_not_mistaken_for_a_finished_one(settings, tmp_path):
    """kill -9 while rows are written: the folder does not exist, and the next run makes it."""
    out = tmp_path / "rows"
    code = f"""
import os
from sctd_jax.data import prepare, shards
from sctd_jax.config import DataConfig
add = shards.ShardWriter.add
def dying(self, values):
    add(self, values)
    if self.rows > 1000:
        os.kill(os.getpid(), 9)
shards.ShardWriter.add = dying
prepare.prepare({settings!r}, 512, prepare.Path({str(out)!r}), print)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=helpers.environment(), cwd=helpers.ROOT, capture_output=True
    )
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    held, left = sorted(path.name for path in tmp_path.iterdir())
    assert held == ".rows.lease"
    assert "incomplete" in left
    prepare.prepare(settings, 512, out, **QUIET)  # the lease of the dead does not hold it up
    assert read_metadata(out).rows > 1000
    assert not (tmp_path / held).exists()


def test_a_folder_that_exists_is_left_alone(settings, rows):
    before = (rows / "prepared.json").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        prepare.prepare(settings, 512, rows, **QUIET)
    assert (rows / "prepared.json").read_bytes() == before


def test_one_process_prepares_a_folder_at_a_time(settings, rows, tmp_path, monkeypatch):
    """A second command is refused and names the first; a run that needs the same rows waits for them, or makes them."""
    lines = []
    with lease.hold(tmp_path / "rows", "preparing rows", beside=True):
        with pytest.raises(UserError, match=rf"rows is in use by process {os.getpid()} on .* \(preparing rows"):
            prepare.prepare(settings, 512, tmp_path / "rows", lines.append)
        assert lines == []
    run = helpers.config(
        data__input=settings.input, data__documents="paragraph", data__prepared_dir=str(tmp_path),
        data__tokenizer=str(rows / "tokenizer.model"),
    )  # fmt: skip
    name = f"n32-v512-{prepare.identity(run.data, 512, corpus.find_sources(files.split(settings.input)))}"

    def wait(finish):
        lines.clear()
        looks = []
        with contextlib.ExitStack() as other:
            other.enter_context(lease.hold(tmp_path / name, "preparing rows", beside=True))

            def sleep(seconds):
                looks.append(seconds)
                if len(looks) == 3:
                    finish()
                    other.close()

            monkeypatch.setattr(prepare.time, "sleep", sleep)
            folder = prepare.ensure_rows(run, lines.append)
        assert folder == tmp_path / name
        assert read_metadata(folder).rows > 1000
        assert lines[0].startswith("waiting for the same rows")

    # A run goes on with the rows it began with, though its text is another one now, or gone.
    shutil.copytree(rows, tmp_path / "before")
    for changed, why in (
        (run, "has changed"),
        (dataclasses.replace(run, data=dataclasses.replace(run.data, input="gone")), "gone"),
    ):
        lines.clear()
        assert prepare.ensure_rows(changed, lines.append, read_metadata(rows)) == tmp_path / "before"
        assert len(lines) == 1 and why in lines[0]
    shutil.copytree(rows, tmp_path / name)  # nor if another run has prepared the other text meanwhile
    (tmp_path / name / "prepared.json").write_text(
        json.dumps(dataclasses.asdict(read_metadata(rows)) | {"documents": 1})
    )
    assert prepare.ensure_rows(run, lines.append, read_metadata(rows)) == tmp_path / "before"
    shutil.rmtree(tmp_path / name)
    shutil.rmtree(tmp_path / "before")
    lines.clear()

    wait(lambda: shutil.copytree(rows, tmp_path / name))
    assert len(lines) == 1
    shutil.rmtree(tmp_path / name)
    wait(lambda: None)
    assert lines[1].startswith("reading")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_text_that_cannot_be_split_is_refused_at_the_first_look(tmp_path):
    path = tmp_path / "x.txt"

    def refused(text, words, documents="file", look=True):
        lines = []
        path.write_text(text)
        data = helpers.data(input=str(path), documents=documents, tokenizer_type="bpe")
        with pytest.raises(UserError, match=words):
            prepare.prepare(data, 30, tmp_path / "rows", lines.append)
        assert any("training" in line for line in lines) != look

    finer = r".*--documents {} \(config.data.documents\)"
    refused("a few words only " * 3000, "x.txt: one document, .*" + finer.format("paragraph or line"))
    refused("a few words only " * 3000, "x.txt: one document, .*" + finer.format("line"), "paragraph")
    refused("the same again\n" * 3000, "x.txt: 3,000 copies of one document, .*; give other text$", "line")
    refused("a few words\nonly and few\n", "x.txt: 2 documents, which would all be .* smaller --seq-len", "line")
    text = "".join(f"few words {'and' * (i % 9)} only {'or' * (i // 9)}\n\n" for i in range(230))
    late = r"gives \d+ training and \d+ held-out rows of 32 tokens from 230 doc.*" + finer.format("line")
    refused(text, late, "paragraph", look=False)
    refused(" \n ", r"x.txt: no text in 1 empty documents")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def prepare_and_measure(out, *args):
    """(what the command printed, its peak memory in MB), in a process of its own."""
    code = """
import sys
from pathlib import Path
from sctd_jax.data.prepare import main
status = main(sys.argv[1:])
# Not getrusage: its maximum begins with what the process that started us had.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak MB", int(peak.split()[1]) // 1024)
sys.exit(status)
"""
    args = [*args, "--out", str(out), "--vocab-size", "1000", "--seq-len", "128", "--tokenizer-type", "bpe"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=helpers.environment(), cwd=helpers.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stdout.split("peak MB")[1])


@pytest.mark.slow
def test_a_25_mb_document_stays_small(tmp_path):
    """Its 8 million ids in a list of pointers would be 66 MB more, which the bound does not leave."""
    block = "".join(f"the {i} of and to in that it is {i * 7919 % 10007} " for i in range(25_000))
    with (tmp_path / "0.txt").open("w") as file:
        for _ in range(25 * 1024 * 1024 // len(block)):
            file.write(block)
    with (tmp_path / "1.jsonl").open("w") as file:
        for i in range(900):
            file.write(json.dumps({"text": f"held out {i} of the {i * 31} " * 30}) + "\n")
    printed, peak = prepare_and_measure(tmp_path / "rows", "--input", str(tmp_path / "*.*"))
    assert "901 documents, 26." in printed
    assert peak < 300


@pytest.mark.slow
def test_ten_million_empty_documents_stay_small(tmp_path):
    with (tmp_path / "lines.txt").open("w") as file:
        for _ in range(100):
            file.write("\n" * 100_000)
        for i in range(900):
            file.write(f"held out {i} of the {i * 31} " * 30 + "\n")
    printed, peak = prepare_and_measure(
        tmp_path / "rows", "--input", str(tmp_path / "lines.txt"), "--documents", "line"
    )
    assert "900 documents" in printed
    assert "10,000,001 empty" in printed  # and what follows the last line's end
    assert peak < 1500


@pytest.mark.parametrize("argument", ["--input=", "--out="])
def test_an_empty_argument_is_no_default(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare.main([f"--out={tmp_path / 'rows'}", argument])
    assert ended.value.code == 2
    assert f"{argument[:-1]} is empty: " in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_the_command(tmp_path, speeches):
    args = ["--input", f"{speeches[0]},{speeches[1]}", "--documents", "paragraph", "--seq-len", "16"]
    args += ["--vocab-size", "300", "--out", str(tmp_path / "rows")]
    done = helpers.run_module("sctd_jax.data.prepare", *args)
    assert done.returncode == 0, done.stderr
    assert "held-out rows of 16 tokens" in done.stdout
    again = helpers.run_module("sctd_jax.data.prepare", *args)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, speeches):
    code = """
import resource, signal, sys
from sctd_jax.data.prepare import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # stands in for a disk that is full
sys.exit(main(sys.argv[1:]))
"""
    args = ["--documents", "paragraph", "--seq-len", "32", "--vocab-size", "512", "--out", str(tmp_path / "rows")]
    args += [word for path in speeches[:30] for word in ("--input", path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=helpers.environment(), cwd=helpers.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "error: cannot write prepared rows" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq_len": 2}, "seq_len must be at least 8, found 2"),
        ({"vocab_size": 3}, "vocab_size must be at least 6 and at most 16777216, found 3"),
        ({"seed": -1}, "seed must not be negative, found -1"),
        ({"heldout_share": 1.0}, "heldout_share must be .* below 1, found 1.0"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(settings, tmp_path, changes, words):
    lines, vocab_size = [], changes.pop("vocab_size", 512)
    with pytest.raises(UserError, match=words):
        prepare.prepare(dataclasses.replace(settings, **changes), vocab_size, tmp_path / "rows", lines.append)
    assert lines == []


def test_a_folder_that_cannot_be_made_is_named(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r".*file/rows cannot be written"):
        prepare.prepare(settings, 512, tmp_path / "file" / "rows", **QUIET)


def test_sigterm_while_preparing_leaves_nothing_behind(speeches, tmp_path):
    args = ["--out", str(tmp_path / "rows"), "--vocab-size", "8000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sctd_jax.data.prepare", *args], env=helpers.environment(), cwd=helpers.ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("reading"):
                process.terminate()
                break
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + 15
    assert "stopped by signal 15" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_rows_that_lost_a_shard_are_one_message(rows, tmp_path):
    shutil.copytree(rows, tmp_path / "rows")
    shard = next((tmp_path / "rows").glob("*train*array_record*"))
    shard.write_bytes(shard.read_bytes()[:5000])
    data = Rows(tmp_path / "rows", TRAIN)
    with pytest.raises(UserError, match="cannot be read"):
        data.read(range(len(data)))


def test_rows_that_are_there_already_are_no_way_around_a_refusal(rows, tmp_path, monkeypatch):
    folder, lines = shutil.copytree(rows, tmp_path / "rows"), []
    odd = dataclasses.replace(read_metadata(rows), letters=100, unknown_letters=30)
    (folder / "prepared.json").write_text(json.dumps(dataclasses.asdict(odd)))
    monkeypatch.setattr(run_rows, "ensure_rows", lambda *_: folder)
    with pytest.raises(UserError, match=r"30.0% of the letters of the rows in .*allow_unknown=True"):
        run_rows.open_data(helpers.config(), lines.append)
    run_rows.open_data(helpers.config(data__allow_unknown=True), lines.append)
    run_rows.open_data(helpers.config(), lines.append, odd)  # a run that has been trained on them goes on
    assert [line.startswith("warning: 30.0% of the letters") for line in lines] == [True, True]
    monkeypatch.undo()
    chosen = helpers.config(data__rows=str(folder), data__input="x.txt")
    assert prepare.ensure_rows(chosen, lines.append) == folder and lines[-1].endswith("; not read: data.input")
    chosen = dataclasses.replace(
        chosen,
        data=dataclasses.replace(chosen.data, input="", documents="paragraph", normal_form="NFC", longest_line=9),
    )
    prepare.ensure_rows(chosen, lines.append)
    assert lines[-1].endswith("; not read: data.normal_form, data.longest_line")
