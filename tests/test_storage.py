"""Workdirs and rows in a bucket, through gcsfs, TensorStore and Orbax, against a store in memory."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from sctd_jax import errors, storage
from sctd_jax.errors import TryAgainError, UserError
from sctd_jax.train.checkpoint import Checkpoints
from tests import fake_gcs, helpers, task_files

WORKDIR = "gs://bucket/a folder/run"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """(store, environment of a program that shall use it)."""
    with fake_gcs.serve("bucket") as (store, address):
        cache = tmp_path_factory.mktemp("cache")
        yield store, {**helpers.environment(), **address, "XDG_CACHE_HOME": str(cache)}


@pytest.fixture(scope="module")
def prepared(bucket, speeches):
    """Output of `prepare` into the bucket."""
    inputs = [f"--input={path}" for path in speeches[:12]]
    sizes = ["--documents=paragraph", "--seq-len=32", "--vocab-size=512", "--heldout-share=0.02"]
    return helpers.run_module("sctd_jax.data.prepare", *inputs, *sizes, "--out=gs://bucket/rows", env=bucket[1])


def train(bucket, *args, config="tests/small.py"):
    where = [f"--config={config}", f"--workdir={WORKDIR}", "--config.data.rows=gs://bucket/rows"]
    return helpers.run_module("sctd_jax.main", *where, *helpers.ONE_LAYER, *args, env=bucket[1])


@pytest.fixture(scope="module")
def trained(bucket, prepared):
    """Output of a run in the bucket, with checkpoints at 3 and 6."""
    return train(bucket)


def test_rows_are_prepared_into_a_bucket_and_complete_only_at_the_end(bucket, prepared):
    assert prepared.returncode == 0, prepared.stderr
    assert "prepared rows: gs://bucket/rows" in prepared.stdout
    store = bucket[0]
    rows = {name: store.objects["bucket", name][1] for name in store.names("bucket") if name.startswith("rows/")}
    assert max(rows, key=rows.get) == "rows/prepared.json"
    assert {"rows/tokenizer.model", "rows/dataset_info.json"} <= rows.keys()
    again = helpers.run_module("sctd_jax.data.prepare", "--out=gs://bucket/rows", env=bucket[1])
    assert again.returncode == 2
    assert "gs://bucket/rows exists already" in again.stderr


def test_a_run_in_a_bucket_trains_saves_and_leaves_everything_there(bucket, trained):
    assert trained.returncode == 0, trained.stderr
    assert "done: 6 steps" in trained.stdout
    assert "copying gs://bucket/rows to" in trained.stdout
    for line in ("curves: python -m sctd_jax.plot", "all on one page: python -m sctd_jax.report"):
        assert f"{line} '{WORKDIR}'" in trained.stdout
    store = bucket[0]
    names = [name.removeprefix("a folder/run/") for name in store.names("bucket") if name.startswith("a folder/run/")]
    assert {"config.json", "command.txt", "prepared.json", "tokenizer.model", "metrics.jsonl"} <= set(names)
    assert any(name.startswith("tensorboard/events") for name in names)
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"3", "6"}
    assert not [name for name in names if "claim" in name]


def test_a_run_in_a_bucket_resumes_passes_over_damage_and_can_be_used(bucket, trained, tmp_path):
    assert trained.returncode == 0, trained.stderr
    store = bucket[0]
    newest = [name for name in store.names("bucket") if "/run/checkpoints/6/state/" in name]
    store.put("bucket", max(newest, key=lambda name: len(store.objects["bucket", name][0])), b"")
    resumed = train(bucket, "--config.train.steps=9")
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoints/6 is damaged and passed over" in resumed.stdout
    assert "resuming at step 3" in resumed.stdout
    assert "copying" not in resumed.stdout
    assert any("/run/damaged-6-" in name for name in store.names("bucket"))
    lines = [json.loads(line) for line in store.objects["bucket", "a folder/run/metrics.jsonl"][0].splitlines()]
    assert [line["step"] for line in lines if "eval/loss" in line] == [0, 3, 6, 9]

    evaluated = train(bucket, "--config.train.steps=9", "--mode=eval")
    assert re.search("eval at step 9: held-out loss", evaluated.stdout), evaluated.stderr
    export = ["export", f"--workdir={WORKDIR}", f"--out={tmp_path / 'out'}"]
    for module, *args in (
        ["sctd_jax.interop.huggingface", *export],
        ["sctd_jax.plot", WORKDIR, f"--out={tmp_path / 'loss.png'}"],
        ["sctd_jax.report", WORKDIR, f"--out={tmp_path / 'report.html'}"],
    ):
        done = helpers.run_module(module, *args, env=bucket[1])
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 100_000
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text()
    assert page.count("<mark>") == 8 and "finished: 9 steps" in page and "<li>" not in page
    other = train(bucket, "--config.train.steps=9", "--config.train.seed=1")
    assert other.returncode == 2
    assert f"workdir {WORKDIR} belongs to another config: train.seed" in other.stderr


def test_fine_tuning_and_prediction_from_a_bucket_and_into_it(bucket, trained, tmp_path):
    assert trained.returncode == 0, trained.stderr
    store = bucket[0]
    for path in task_files.write_task(tmp_path, "classification").iterdir():
        store.put("bucket", f"labels/{path.name}", path.read_bytes())
    tuned = "gs://bucket/tuned/run"
    settings = [
        "--mode=finetune", "--config=configs/finetune.py", f"--config.init={WORKDIR}", "--config.task=classification",
        "--config.data_dir=gs://bucket/labels", "--config.max_length=32", "--config.batch_size=8", f"--workdir={tuned}",
    ]  # fmt: skip
    for epochs, expected in (("1", "done: 2 steps"), ("2", "belongs to another fine-tuning: epochs")):
        done = helpers.run_module("sctd_jax.main", *settings, f"--config.epochs={epochs}", env=bucket[1])
        assert expected in done.stdout + done.stderr, done.stderr
    result = json.loads(store.objects["bucket", "tuned/run/result.json"][0])
    assert (result["task"], result["step"]) == ("classification", 2)
    predicted = store.objects["bucket", "tuned/run/predictions/classification.tsv"][0].decode()
    arguments = [f"--config.init={tuned}", "--config.data_dir=gs://bucket/labels/test.csv", "--out=gs://bucket/a.csv"]
    done = helpers.run_module("sctd_jax.main", "--mode=predict", *arguments, env=bucket[1])
    assert done.returncode == 0, done.stderr
    rows = store.objects["bucket", "a.csv"][0].decode().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == [row.split("\t")[1] for row in predicted.splitlines()[1:]]
    assert not [name for name in store.names("bucket") if "claim" in name]
    missing = [*arguments[:1], "--config.data_dir=gs://bucket/labels/none.csv", "--out=gs://bucket/b.csv"]
    done = helpers.run_module("sctd_jax.main", "--mode=predict", *missing, env=bucket[1])
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "gs://bucket/labels/none.csv" in done.stderr


def test_a_run_by_shards_leaves_the_training_rows_in_the_bucket_and_resumes_as_if_it_had_not_stopped(bucket, prepared):
    """Its budget for copies may change, its shuffle not."""
    assert prepared.returncode == 0, prepared.stderr

    def train_by_shards(workdir, *args):
        done = train(bucket, f"--workdir=gs://bucket/{workdir}", "--config.data.shuffle=shards", *args)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in bucket[0].objects["bucket", f"{workdir}/metrics.jsonl"][0].splitlines()]
        return done.stdout, {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}

    said, whole = train_by_shards("by_shards")
    # The report of a run, which reads held-out rows alone, may have made this copy.
    copied = "without 1 files that are read when needed"
    assert [line for line in said.splitlines() if line.startswith("copying gs://") and copied not in line] == []
    assert "shuffle  by shards, 4 shards' worth of rows at a time in up to 16 lanes" in said
    copies = list((Path(bucket[1]["XDG_CACHE_HOME"]) / "sctd_jax" / "shards").glob("*-train*"))
    assert len(copies) == 1
    _, first = train_by_shards("stopped", "--config.train.steps=3", "--config.data.cache_gb=1.0")
    assert first[3] == whole[3]
    _, resumed = train_by_shards("stopped")
    assert resumed == whole
    other = train(bucket, "--workdir=gs://bucket/stopped")
    assert other.returncode == 2
    assert "gs://bucket/stopped belongs to another config: data.shuffle" in other.stderr


def test_two_processes_share_a_bucket(bucket, prepared):
    """Each must see what the other has written since it looked last: the claimed workdir, the checkpoint."""
    assert prepared.returncode == 0, prepared.stderr
    arguments = ("--config.mesh.fsdp=4", "--config.train.steps=3", *helpers.ONE_LAYER)
    processes = helpers.start_pair("gs://bucket/pair", "gs://bucket/rows", *arguments, env=bucket[1])
    statuses, (first, second) = helpers.end(processes)
    assert statuses == [0, 0], first + second
    assert "done: 3 steps" in first
    assert "bucket/pair/checkpoints/3" in first


def test_a_bucket_that_is_not_there_is_one_message(bucket):
    done = train(bucket, "--workdir=gs://other/run")
    assert done.returncode == 2
    assert re.search("error: gs://other/run cannot be reached: .*; does the bucket exist", done.stderr)
    assert "Traceback" not in done.stderr
    done = helpers.run_module("sctd_jax.data.prepare", "--out=gs://other/rows", env=bucket[1])
    assert done.returncode == 2
    assert "does the bucket exist" in done.stderr
    assert "documents" not in done.stdout  # it was said before the text was read


def test_a_cloud_that_cannot_be_reached_is_one_message(bucket):
    nowhere = {"STORAGE_EMULATOR_HOST": "http://localhost:1", "TENSORSTORE_GCS_HTTP_URL": "http://localhost:1"}
    done = train((None, bucket[1] | nowhere))
    assert done.returncode == errors.TRY_AGAIN_STATUS
    assert f"error: {WORKDIR} cannot be reached: Cannot connect to host localhost:1" in done.stderr
    assert "Traceback" not in done.stderr


class HttpError(Exception):
    """Error that is no OSError, as gcsfs raises it."""

    __module__ = "gcsfs.retry"


def test_what_the_clouds_libraries_raise_is_one_message_and_worth_another_try(capsys):
    def command():
        raise HttpError("Forbidden, 403")

    assert errors.run_command(command) == errors.TRY_AGAIN_STATUS
    assert capsys.readouterr().err == "error: the bucket failed: Forbidden, 403\n"


def test_a_full_disk_of_this_host_is_not_the_buckets_fault():
    with pytest.raises(OSError, match="No space left"), storage.reaching("gs://bucket/rows"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(TryAgainError, match="gs://bucket/rows cannot be reached: slow"),
        storage.reaching("gs://bucket/rows"),
    ):
        raise TimeoutError("slow")


def test_ranges_that_are_in_the_bucket_are_not_prepared_again(bucket, tmp_path):
    """A preparation whose uploads fail goes on with what has arrived."""
    (tmp_path / "text.txt").write_text("".join(f"a line of the text, the number {i}\n" for i in range(4000)))
    code = """
import sys
from sctd_jax import storage
from sctd_jax.data import prepare, ranges
from sctd_jax.errors import TryAgainError
ranges.BYTES, upload, left = 30_000, storage.upload_file, int(sys.argv.pop(1))
def upload_file(path, out):
    global left
    left -= 1
    if left < 0:
        raise TryAgainError(f"{out} cannot be reached: gone")
    upload(path, out)
storage.upload_file = upload_file
sys.exit(prepare.main(sys.argv[1:]))
"""
    arguments = (
        f"--input={tmp_path}/text.txt", "--documents=line", "--vocab-size=100", "--seq-len=16", "--tokenizer-type=bpe",
        "--workers=1",
    )  # fmt: skip

    def prepare(uploads, out, *more):
        return subprocess.run(
            [sys.executable, "-c", code, str(uploads), *arguments, *more, f"--out={out}"], env=bucket[1],
            cwd=helpers.ROOT, capture_output=True, text=True,
        )  # fmt: skip

    store, _ = bucket
    store.put("bucket", "parts/mine.txt", b"mine")
    assert prepare(7, "gs://bucket/parts", "--seed=1").returncode == errors.TRY_AGAIN_STATUS
    first = prepare(7, "gs://bucket/parts")
    assert (
        "note: gs://bucket/parts is of an interrupted preparation of other text or settings; it is removed"
        in first.stdout
    )
    assert store.objects.pop(("bucket", "parts/mine.txt"))[0] == b"mine"
    assert first.returncode == errors.TRY_AGAIN_STATUS, first.stderr
    assert re.search("error: gs://bucket/parts/packed_rows-.* cannot be reached: gone", first.stderr)
    again = prepare(100, "gs://bucket/parts")
    assert again.returncode == 0, again.stderr
    assert "other text or settings" not in again.stdout
    assert "going on with gs://bucket/parts: 2 of 4 ranges are finished" in again.stdout
    expected = prepare(0, tmp_path / "rows")
    assert expected.returncode == 0, expected.stderr
    copied = storage.as_path(tmp_path / "copy")
    code = "from sctd_jax import storage; print(storage.local_copy(storage.as_path('gs://bucket/parts'), '', print))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=bucket[1] | {"XDG_CACHE_HOME": str(copied)},
        cwd=helpers.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    (folder,) = (path for path in (copied / "sctd_jax").iterdir() if path.is_dir())
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "rows").iterdir())
    for name in names:
        ours, theirs = (path.joinpath(name).read_bytes().rstrip(b"\n") for path in (folder, tmp_path / "rows"))
        assert ours == theirs, name  # the store in memory drops the last line's end


@pytest.mark.parametrize(
    ("error", "outage"),
    [("UNAVAILABLE: try later", True), ("PERMISSION_DENIED: no", True), ("DATA_LOSS: checksum", False)],
)
def test_an_outage_is_no_damage(monkeypatch, error, outage):
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints._folder = epath.Path("gs://bucket/run/checkpoints")

    def refuse(path):
        raise ValueError(error)

    monkeypatch.setattr(type(checkpoints._folder), "read_text", refuse)
    if outage:
        with pytest.raises(TryAgainError, match=r"checkpoints/3 cannot be read now"):
            checkpoints._read(3)
    else:
        assert checkpoints._read(3) == (error, {})


def test_a_tilde_is_the_home_folder_which_no_shell_says_behind_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    assert [str(storage.as_path(path)) for path in ("~/run", "~", "a~b/~")] == ["/home/a/run", "/home/a", "a~b/~"]
    assert str(storage.as_path("gs://bucket/~")) == "gs://bucket/~"


def test_other_schemes_are_refused():
    with pytest.raises(UserError, match=r"s3://bucket/run: a folder on a disk or in a gs:// bucket is expected"):
        storage.as_path("s3://bucket/run")
