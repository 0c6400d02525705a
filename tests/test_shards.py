"""Rows whose shards stay in a bucket: which are copied, how many are there, and what happens when one fails."""

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import types

import gcsfs
import numpy as np
import pytest

from sctd_jax import storage
from sctd_jax.data import frequencies, prepare, shard_cache
from sctd_jax.data import rows as rows_module
from sctd_jax.data.loader import Loader, ShardLoader
from sctd_jax.data.rows import HELD_OUT, TRAIN, Rows, fingerprint, on_disk, same_rows
from sctd_jax.data.shuffle import WINDOW
from sctd_jax.errors import TryAgainError, UserError
from sctd_jax.pretrain import rows as run_rows
from tests import fake_gcs, helpers

SHARDS, LENGTH, SEQ_LEN, BATCH = 24, 30, 16, 8
FIELDS = {
    "seq_len": SEQ_LEN, "vocab_size": 512, "tokenizer_sha256": "", "rows": SHARDS * LENGTH, "heldout_rows": 30,
    "tokens": 0, "documents": 0, "heldout_documents": 0, "empty_documents": 0, "replaced_bytes": 0, "sources": [],
    "settings": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder of 24 shards of 30 rows, and one without a row between them."""
    folder, rng = tmp_path_factory.mktemp("prepared") / "rows", np.random.default_rng(0)
    folder.mkdir()
    train = np.split(rng.integers(5, 512, (SHARDS * LENGTH, SEQ_LEN), dtype=np.int32), SHARDS)
    train.insert(5, train[0][:0])
    heldout = rng.integers(5, 512, (30, SEQ_LEN), dtype=np.int32)
    helpers.write_shards(folder, {TRAIN: train, HELD_OUT: [heldout]})
    (folder / "prepared.json").write_text(json.dumps(FIELDS))
    (folder / "tokenizer.model").write_bytes(b"tokenizer")
    return folder


@pytest.fixture
def bucket(local, tmp_path, monkeypatch):
    """The store with these rows as gs://bucket/rows; `asked` are the names of what was downloaded."""
    asked, media = [], fake_gcs._Handler._media

    def count(self, content, generation, query):
        asked.append(self.path.split("?")[0].rpartition("%2F")[2] or self.path)
        return media(self, store.change(asked[-1], content), generation, query)

    monkeypatch.setattr(fake_gcs._Handler, "_media", count)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "_WAITS", (0.01, 0.01))
    with fake_gcs.serve("bucket") as (store, address):
        for name, value in address.items():
            monkeypatch.setenv(name, value)
        store.asked, store.change = asked, lambda name, content: content
        for path in local.iterdir():
            store.put("bucket", f"rows/{path.name}", path.read_bytes())
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield store
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def opened(bucket):
    """Function that opens the training rows in the bucket, with room for so many of the shards."""
    rows = []

    def open_(shards=100, log=print):
        folder = on_disk("gs://bucket/rows", log, whole=False)
        rows.append(Rows(folder, TRAIN, int(shards * size()), log))
        return rows[-1]

    def size():
        return max(len(content) for (_, name), (content, _) in bucket.objects.items() if "-train" in name)

    yield open_
    for one in rows:
        one.keep(())
        one._cache.close()


def copies(tmp_path):
    return sorted(path for path in (tmp_path / "cache" / "sctd_jax" / "shards").iterdir() if path.name != ".lock")


def shards_in(names):
    return [name for name in names if "-train" in name]


def test_rows_are_read_from_the_bucket_as_from_a_disk(opened, bucket, local, tmp_path):
    said = []
    rows, here = opened(log=said.append), Rows(local, TRAIN)
    assert len(said) == 1
    assert said[0].endswith("without 25 files that are read when needed")
    assert shards_in(bucket.asked) == []
    assert {path.name for path in rows.folder.iterdir()} == {
        "dataset_info.json", "features.json", "prepared.json", "tokenizer.model", "origin.json",
        "packed_rows-validation.array_record-00000-of-00001",
    }  # fmt: skip
    numbers = np.random.default_rng(0).permutation(len(here))
    assert len(rows) == len(here) == SHARDS * LENGTH
    np.testing.assert_array_equal(rows.read([0, 29, 30, 0]), here.read([0, 29, 30, 0]))
    assert len(copies(tmp_path)) == len(shards_in(bucket.asked)) == 2
    np.testing.assert_array_equal(rows.read(numbers), here.read(numbers))
    assert len(shards_in(bucket.asked)) == SHARDS  # each once
    heldout = [Rows(folder, HELD_OUT).read(range(30)) for folder in (rows.folder, local)]
    np.testing.assert_array_equal(*heldout)
    with pytest.raises(IndexError):
        rows.read([len(rows)])


@pytest.mark.parametrize("first", [0, 1])
def test_batches_are_those_of_a_disk_within_the_budget(opened, bucket, local, tmp_path, monkeypatch, first):
    """At each growth of the folder, what is there is counted: 4 of 8 lanes on this host, 6 shards each at most."""
    columns, room, most = np.arange(BATCH)[first::2], 13, []
    truncate = os.ftruncate

    def count(descriptor, size):
        truncate(descriptor, size)
        most.append(sum(path.stat().st_size for path in copies(tmp_path)))

    monkeypatch.setattr(shard_cache.os, "ftruncate", count)
    rows = opened(room)
    loaders = [ShardLoader(of, seed=0, batches=[(0, BATCH)]) for of in (rows, Rows(local, TRAIN))]
    for step in range(2 * len(rows) // BATCH):
        mine, theirs = (loader.read(step * BATCH + columns) for loader in loaders)
        np.testing.assert_array_equal(mine, theirs)
        assert len(rows._opened) <= 4 * (WINDOW + 2)
    assert len(most) > room  # some had to go
    assert max(most) <= rows._cache.budget


def test_hosts_read_their_columns_of_one_batch_which_has_each_row_once_an_epoch(local):
    batches, count = [(0, 48)], SHARDS * LENGTH
    whole = ShardLoader(Rows(local, TRAIN), seed=3, batches=batches)
    epoch = np.concatenate([whole.read(step * 48 + np.arange(48)) for step in range(count // 48)])
    everything = Rows(local, TRAIN).read(range(count))
    assert sorted(row.tobytes() for row in epoch) == sorted(row.tobytes() for row in everything)
    for hosts in (2, 3):
        parts = [
            ShardLoader(Rows(local, TRAIN), seed=3, batches=batches).read(7 * 48 + columns)
            for columns in np.split(np.arange(48), hosts)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole.read(7 * 48 + np.arange(48)))


def test_shards_that_come_next_are_there_before_they_are_read(opened, bucket):
    rows = opened()
    loader = ShardLoader(rows, seed=0, batches=[(0, BATCH)])
    loader.read(np.arange(2))
    for window in list(loader._windows.values()):
        for shard in loader.order.shards(loader.order.after(window)).tolist():
            path = rows._cache._path(rows._names[shard])
            for _ in range(500):
                if path.exists():
                    break
                rows._cache._threads[0].join(0.01)
            assert path.exists()


def test_a_budget_that_does_not_hold_what_is_read_at_once_is_one_message(opened, bucket, local, monkeypatch):
    rows = opened(2.5)
    with pytest.raises(
        UserError, match=r"config.data.cache_gb \(.*\) cannot hold the shards .* read at once: .* raise"
    ):
        rows.read(range(0, len(rows), LENGTH))
    config = helpers.config(data__shuffle="shards", data__cache_gb=0.0001, data__seq_len=16)
    mesh = types.SimpleNamespace()
    monkeypatch.setattr(run_rows.meshes, "host_rows", lambda mesh, size: np.arange(size))
    said = []
    with pytest.raises(UserError, match=r"config.data.cache_gb is 0.0001, but the shards that this host reads at once"):
        run_rows.open_loaders(config, {16: rows}, mesh, said.append)
    large = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_gb=0.005))
    run_rows.open_loaders(large, {16: rows}, mesh, said.append)
    assert "warning: config.data.cache_gb (0.005) may not hold the shards that are read next" in said[0]
    assert isinstance(run_rows.open_loaders(config, {16: Rows(local, TRAIN)}, mesh, said.append)[16], ShardLoader)
    plain = run_rows.open_loaders(helpers.config(data__seq_len=16), {16: rows}, mesh, said.append)[16]
    assert isinstance(plain, Loader)


def test_a_copy_that_is_read_is_not_removed_and_the_least_recently_used_goes_first(opened, tmp_path):
    rows = opened(3)
    for shard in (0, 1, 2, 1):
        rows.read([shard * LENGTH])
    rows.keep({0})
    rows.read([3 * LENGTH])
    assert [path.name[-10] for path in copies(tmp_path)] == ["0", "1", "3"]


def test_a_download_that_is_cut_off_is_tried_again_and_never_read(opened, bucket, local, tmp_path):
    said, cut = [], []

    def change(name, content):
        if "-train" in name and len(cut) < times:
            cut.append(name)
            return content[: len(content) // 2]
        return content

    rows, times, bucket.change = opened(log=said.append), 2, change
    np.testing.assert_array_equal(rows.read([5]), Rows(local, TRAIN).read([5]))
    assert len(cut) == len([line for line in said if "trying again in 0.01 s" in line]) == 2
    times = 1000
    with pytest.raises(TryAgainError, match=r"/rows/packed_rows-train.array_record-00001-of-00025 was cut off after"):
        rows.read([LENGTH])
    assert len(copies(tmp_path)) == 1  # nothing of it is left


def test_what_a_killed_process_left_is_not_read_and_not_waited_for(opened, bucket, local, tmp_path):
    rows = opened()
    path = rows._cache._path(rows._names[0])
    path.with_name(f"{path.name}.part").write_bytes(b"\0" * len((local / rows._names[0]).read_bytes()))
    np.testing.assert_array_equal(rows.read([5]), Rows(local, TRAIN).read([5]))
    assert copies(tmp_path) == [path]


def test_what_another_process_downloads_is_waited_for_and_taken_over_when_that_ends(opened, local):
    rows = opened()
    path = rows._cache._path(rows._names[0])
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rows.want([0], [])
        rows._cache._threads[0].join(0.2)
        assert not path.exists()
    np.testing.assert_array_equal(rows.read([5]), Rows(local, TRAIN).read([5]))
    assert not part.exists()


READ = """
import sys, zlib, numpy as np
from sctd_jax.data.loader import ShardLoader
from sctd_jax.data.rows import TRAIN, Rows, on_disk
rows = Rows(on_disk("gs://bucket/rows", print, whole=False), TRAIN, int(sys.argv[1]))
loader = ShardLoader(rows, seed=0, batches=[(0, 8)])
print(zlib.crc32(np.concatenate([loader.read(step * 8 + np.arange(8)) for step in range(90)]).tobytes()))
"""


def test_two_processes_share_the_copies(bucket, local, tmp_path):
    size = max((local / name).stat().st_size for name in os.listdir(local) if "-train" in name)
    command = [sys.executable, "-c", READ, str(SHARDS * size)]
    processes = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE, cwd=helpers.ROOT) for _ in range(2)]
    ends = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert ends[0] == ends[1]
    assert sorted(shards_in(bucket.asked)) == sorted(
        path.name for path in local.glob("*-train*") if "-00005-" not in path.name
    )
    assert len(copies(tmp_path)) == SHARDS


def test_a_damaged_shard_is_named(opened, bucket, local, tmp_path):
    name = "packed_rows-train.array_record-00001-of-00025"
    content = bytearray((local / name).read_bytes())
    content[2000:2400] = bytes(400)
    bucket.put("bucket", f"rows/{name}", bytes(content))
    rows = opened()
    with pytest.raises(UserError, match=rf"the copy of gs://bucket/rows/{name} cannot be read \(.*\) and was removed"):
        rows.read(range(2 * LENGTH))
    assert [path.name[-14:-9] for path in copies(tmp_path)] == ["00000"]
    shutil.copytree(local, tmp_path / "rows")
    (tmp_path / "rows" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"the rows in {tmp_path}/rows/{name} cannot be read: .*; prepare them again"):
        Rows(tmp_path / "rows", TRAIN).read(range(2 * LENGTH))


def test_a_shard_that_the_bucket_lacks_is_named(opened, bucket):
    rows = opened()
    del bucket.objects["bucket", "rows/packed_rows-train.array_record-00002-of-00025"]
    with pytest.raises(UserError, match=r"gs://bucket/rows/packed_rows-train\.array_record-00002-of-00025 is gone"):
        rows.read([2 * LENGTH])
    shutil.rmtree(rows.folder)
    with pytest.raises(UserError, match=r"lacks 1 of its shards, packed_rows-train\.array_record-00002-of-00025 first"):
        opened()


def test_a_copy_of_all_that_has_no_room_is_refused_before_it_begins(bucket, monkeypatch):
    free = types.SimpleNamespace(total=1, used=1, free=1 << 20)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: free)
    with pytest.raises(
        UserError, match=r"gs://bucket/rows has 0.0 GB, and the disk of .* --config.data.shuffle=shards"
    ):
        on_disk("gs://bucket/rows", print)
    assert bucket.asked == ["prepared.json"]
    folder = on_disk("gs://bucket/rows", print, whole=False)
    with pytest.raises(UserError, match=r"config.data.cache_gb is 50, but the disk of .* has only 0.0 GB for copies"):
        Rows(folder, TRAIN, 50 * 10**9)


def test_a_run_may_move_between_disk_and_bucket(opened, local):
    here, there = fingerprint(local), fingerprint(opened().folder)
    assert all(same_rows(here[split], there[split]) for split in (TRAIN, HELD_OUT))
    assert "sha256" in here[TRAIN]
    assert "sha256" not in there[TRAIN]
    old = {split: {name: found[name] for name in ("rows", "sha256")} for split, found in here.items()}
    assert same_rows(old[TRAIN], here[TRAIN])
    assert not same_rows(old[TRAIN], there[TRAIN])
    assert not same_rows({**here[TRAIN], "sha256": "0"}, here[TRAIN])
    assert not same_rows({**here[TRAIN], "described": "0"}, there[TRAIN])
    assert not same_rows(None, here[TRAIN])


def test_frequencies_come_from_what_preparation_counted_or_from_few_shards(opened, bucket, local):
    rows = opened()
    few = rows.some(4)
    assert len(few) == 4 * LENGTH
    counted = frequencies.log_frequencies(few, 512, helpers.SPECIAL)
    few.keep(())
    assert len(shards_in(bucket.asked)) == 4
    assert rows.some(30) is rows
    here = Rows(local, TRAIN)
    assert here.some(4) is here
    assert np.abs(counted - frequencies.log_frequencies(here, 512, helpers.SPECIAL)).max() < 2
    counts = np.arange(512)
    np.save(rows.folder / "frequencies.npy", counts)
    logs_V = frequencies.log_frequencies(rows, 512, helpers.SPECIAL)
    assert len(shards_in(bucket.asked)) == 4
    assert np.exp(logs_V[10] - logs_V[20]) == pytest.approx(11 / 21)
    assert np.exp(logs_V)[[1, *range(5, 512)]].sum() == pytest.approx(1)
    for damaged in (b"", b"x" * 100, np.arange(3)):
        path = rows.folder / "frequencies.npy"
        path.write_bytes(damaged) if isinstance(damaged, bytes) else np.save(path, damaged)
        with pytest.raises(UserError, match=r"frequencies.npy is damaged: .*; prepare the rows again"):
            frequencies.log_frequencies(rows, 512, helpers.SPECIAL)


def test_the_first_batch_of_a_thousand_million_rows_opens_its_shards_alone(local, tmp_path):
    """None of the others is there."""
    folder, shards = tmp_path / "rows", 16_000
    shutil.copytree(local, folder, ignore=shutil.ignore_patterns("*-train*"))
    info = json.loads((folder / "dataset_info.json").read_text())
    next(split for split in info["splits"] if split["name"] == TRAIN)["shardLengths"] = [str(LENGTH)] * shards
    (folder / "dataset_info.json").write_text(json.dumps(info))
    rows = Rows(folder, TRAIN)
    loader = ShardLoader(rows, seed=0, batches=[(0, 256)])
    first = {int(row) // LENGTH for part in loader.order.parts(np.arange(256)) for row in part.rows}
    for shard in first:
        os.link(local / "packed_rows-train.array_record-00000-of-00025", folder / rows._names[shard])
    assert len(rows) == shards * LENGTH
    assert loader.read(np.arange(256)).shape == (256, SEQ_LEN)
    assert len(first) <= 16 * (WINDOW + 1)


def test_a_bounded_number_of_shards_is_open(local, monkeypatch):
    monkeypatch.setattr(rows_module, "_OPEN", 3)
    most, open_ = [], Rows._open

    def count(self, shard):
        opened = open_(self, shard)
        most.append(len(self._opened))
        return opened

    monkeypatch.setattr(Rows, "_open", count)
    rows = Rows(local, TRAIN)
    read = rows.read(range(0, len(rows), 7))
    np.testing.assert_array_equal(read, np.concatenate([rows.read([i]) for i in range(0, len(rows), 7)]))
    assert 3 < max(most) <= 6


def test_the_shuffle_is_no_part_of_the_rows_identity():
    data = helpers.data()
    other = dataclasses.replace(data, shuffle="shards", cache_gb=1.0)
    assert prepare.settings_of(data, 512) == prepare.settings_of(other, 512)
