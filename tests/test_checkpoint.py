import dataclasses
import json
import shutil
import subprocess
import sys
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from orbax.checkpoint._src.futures import future

from sctd_jax import stored
from sctd_jax.errors import UserError, printable
from sctd_jax.interop.exporting import export
from sctd_jax.parallel.mesh import one_device
from sctd_jax.pretrain.workdir import check_rows, check_workdir, claim_workdir
from sctd_jax.train import checkpoint
from sctd_jax.train import workdir as workdirs
from sctd_jax.train.checkpoint import Checkpoints, RemovedError
from tests import helpers


@pytest.fixture(scope="module")
def state():
    return helpers.initial(helpers.config())


def at(state, step):
    """The state as it might be at `step`: every number is its own."""
    return state.replace(step=jnp.int32(step), importance_V=state.importance_V + step)


def shape_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(workdir, state, losses, keep=2):
    checkpoints = Checkpoints(workdir, keep)
    for step, loss in losses.items():
        checkpoints.save(at(state, step), None if loss is None else {"eval/loss": loss})
        checkpoints.wait()
    checkpoints.close()


def restore(workdir, state, **kwargs):
    messages, checkpoints = [], Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.restore(shape_of(state), messages.append, **kwargs), messages
    finally:
        checkpoints.close()


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_the_whole_state_comes_back(tmp_path, state):
    save(tmp_path, state, {3: 1.0})
    restored, messages = restore(tmp_path, state)
    assert_same(restored, at(state, 3))
    assert messages == []


def test_the_digests_see_one_flipped_bit_anywhere(state):
    before = checkpoint._digests(state)
    for field in ("importance_V", "step"):
        bits = getattr(state, field).view(jnp.int32)
        flipped = (bits ^ (jnp.arange(bits.size).reshape(bits.shape) == 0)).view(getattr(state, field).dtype)
        after = checkpoint._digests(state.replace(**{field: flipped}))
        assert {name for name in before if int(after[name]) != int(before[name])} == {field}


def test_nothing_saved_is_nothing_restored(tmp_path, state):
    assert restore(tmp_path, state) == (None, [])


def test_the_last_two_and_the_best_are_kept(tmp_path, state):
    save(tmp_path, state, {1: 5.0, 2: 3.0, 3: 4.0})
    save(tmp_path, state, {4: 3.5, 5: None})  # a restart does not forget which was best
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best_step() == 2
    checkpoints.close()
    best, _ = restore(tmp_path, state, step=2)
    assert_same(best, at(state, 2))


@pytest.mark.parametrize("keep", [1, 5])
def test_of_two_best_the_last_is_the_best_however_many_are_kept(tmp_path, state, keep):
    save(tmp_path, state, {1: 3.0, 2: 3.0, 3: 4.0}, keep)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.best_step() == 2
    checkpoints.close()


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path, state):
    save(tmp_path, state, {1: 2.0, 2: float("nan"), 3: 1.0, 4: float("nan"), 5: float("inf"), 6: 4.0})
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.steps() == [3, 5, 6]
    assert checkpoints.best_step() == 3
    checkpoints.close()


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bits(path):
    content = bytearray(path.read_bytes())
    content[500::1000] = bytes(byte ^ 1 for byte in content[500::1000])
    path.write_bytes(content)


def change_check(folder):
    """Change numbers as one flipped bit can do without TensorStore noticing."""
    path = folder / "check" / "metadata"
    check = json.loads(path.read_text())
    path.write_text(json.dumps({**check, "digest": (check["digest"] + 1) % 2**32}))


DAMAGE = {
    "bits flipped": lambda folder: flip_bits(largest_file(folder)),
    "other numbers": change_check,
    "cut short": lambda folder: largest_file(folder).write_bytes(largest_file(folder).read_bytes()[:1000]),
    "largest file missing": lambda folder: largest_file(folder).unlink(),
    "state missing": lambda folder: shutil.rmtree(folder / "state"),
    "check missing": lambda folder: shutil.rmtree(folder / "check"),
    "emptied": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, state, damage):
    save(tmp_path, state, {3: 2.0, 6: 1.0})
    DAMAGE[damage](tmp_path / "checkpoints" / "6")
    restored, messages = restore(tmp_path, state)
    assert_same(restored, at(state, 3))
    assert len(messages) == 1
    assert str(tmp_path / "checkpoints" / "6") in messages[0]
    assert "damaged" in messages[0]


def overwrite(folder, name):
    """Another first number in one array, as TensorStore itself would write it."""
    store = {"driver": "ocdbt", "base": f"file://{folder / 'state'}/"}
    array = tensorstore.open({"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}}).result()
    numbers = array.read().result()
    numbers.flat[0] += 1
    array.write(numbers).result()


@pytest.mark.parametrize("earlier", [False, True], ids=["a digest of each field", "one digest, as of earlier code"])
def test_parameters_are_read_alone_and_their_damage_is_found(tmp_path, state, earlier):
    save(tmp_path, state, {3: 2.0, 6: 1.0})
    folder, messages = tmp_path / "checkpoints", []
    if earlier:
        for path in folder.glob("*/check/metadata"):
            path.write_text(json.dumps({"digest": json.loads(path.read_text())["digest"]}))

    def read():
        with closing(Checkpoints(tmp_path, read_only=True)) as checkpoints:
            step, parts = checkpoints.restore_parts(("params", "importance_V"), one_device(), messages.append)
        assert parts.keys() == {"params", "importance_V"}
        assert_same(parts, {"params": state.params, "importance_V": at(state, step).importance_V})
        return step

    assert read() == 6
    overwrite(folder / "6", "skipped")  # which is not read
    assert read() == (3 if earlier else 6)
    overwrite(folder / "6", "params.mlm_head.bias")
    assert read() == 3
    assert all("checkpoints/6 is damaged and passed over" in message for message in messages)
    overwrite(folder / "3", "importance_V")
    with pytest.raises(UserError, match=r"can be read \(tried \[3, 6\]\)"):
        read()


def test_when_all_are_damaged_the_run_does_not_start_over(tmp_path, state):
    save(tmp_path, state, {3: 2.0})
    DAMAGE["cut short"](tmp_path / "checkpoints" / "3")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(tried \[3\]\)"):
        restore(tmp_path, state)


def test_a_damaged_checkpoint_is_set_aside_and_its_step_can_be_saved_again(tmp_path, state):
    save(tmp_path, state, {3: 2.0, 6: 1.0})
    DAMAGE["other numbers"](tmp_path / "checkpoints" / "6")
    checkpoints = Checkpoints(tmp_path, 2)
    assert int(checkpoints.restore(shape_of(state), lambda line: None).step) == 3
    checkpoints.set_aside(after_step=3)
    assert len(list(tmp_path.glob("damaged-6-*"))) == 1
    checkpoints.save(at(state, 6), {"eval/loss": 1.0})
    checkpoints.wait()
    checkpoints.close()
    assert_same(restore(tmp_path, state)[0], at(state, 6))


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path, state):
    """kill -9 in the middle of a save leaves a folder under Orbax's temporary name."""
    save(tmp_path, state, {3: 2.0, 6: 1.0})
    folder = tmp_path / "checkpoints"
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "6.orbax-checkpoint-tmp" / "check")
    restored, _ = restore(tmp_path, state)
    assert int(restored.step) == 3


def test_a_full_disk_is_one_message_and_older_checkpoints_stay(tmp_path, state):
    """A file-size limit stands in for a disk that is full."""
    save(tmp_path, state, {3: 2.0})
    code = """
import resource, signal, sys
import jax, jax.numpy as jnp
from pathlib import Path
from sctd_jax.errors import UserError
from sctd_jax.interop.exporting import export
from sctd_jax.train import checkpoint
from sctd_jax.train import workdir as workdirs
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.pretrain.model import initial_state
from tests import helpers
state = jax.jit(lambda: initial_state(helpers.config(), helpers.SPECIAL))()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
checkpoints = Checkpoints(Path(sys.argv[1]), 2)
try:
    checkpoints.save(state.replace(step=jnp.int32(6)), {"eval/loss": 1.0})
    checkpoints.wait()
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=helpers.environment(), cwd=helpers.ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout.startswith("saving the last checkpoint to"), done.stdout + done.stderr
    assert "can be resumed: [3]" in done.stdout
    restored, _ = restore(tmp_path, state)
    assert int(restored.step) == 3


# The workdir.


def claim(workdir, rows, **overrides):
    config = helpers.config(**overrides)
    check_workdir(workdir, config)
    check_rows(workdir, rows)
    claim_workdir(workdir, config, rows)


def test_a_workdir_holds_config_tokenizer_and_row_metadata(tmp_path, rows):
    claim(tmp_path / "run", rows)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written == stored.header(stored.CONFIG) | dataclasses.asdict(helpers.config())
    for name in ("tokenizer.model", "prepared.json"):
        assert (tmp_path / "run" / name).read_bytes() == (rows / name).read_bytes()


def test_a_longer_run_may_take_the_workdir_over_and_another_run_may_not(tmp_path, rows):
    claim(tmp_path, rows)
    claim(tmp_path, rows, train__steps=12, train__log_every=1)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 12
    with pytest.raises(UserError, match=r"another config: model.num_layers \(4 there, 5 now\)"):
        claim(tmp_path, rows, model__num_layers=5)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_layers"] == 4


def test_rows_of_another_text_are_refused(tmp_path, rows):
    claim(tmp_path / "run", rows)
    other = tmp_path / "rows"
    shutil.copytree(rows, other)
    metadata = json.loads((other / "prepared.json").read_text())
    (other / "prepared.json").write_text(json.dumps({**metadata, "tokenizer_sha256": "0"}))
    with pytest.raises(UserError, match=r"trained on other rows .* tokenizer_sha256"):
        claim(tmp_path / "run", other)


def test_a_folder_of_something_else_is_left_alone(tmp_path, rows):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and has no config.json"):
        claim(tmp_path, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_workdir_that_is_a_file(tmp_path, rows):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir .*file"):
        claim(tmp_path / "file", rows)


def test_a_kill_while_the_workdir_is_claimed_leaves_it_usable(tmp_path, rows):
    shutil.copy(rows / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / ".claim-config.json-1").write_text("{")
    (tmp_path / "checkpoints").mkdir()
    claim(tmp_path, rows)
    assert (tmp_path / "config.json").exists()


def test_a_damaged_config_or_metadata_file_is_named(tmp_path, rows):
    claim(tmp_path, rows)
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(UserError, match=r"prepared.json is damaged"):
        claim(tmp_path, rows)
    (tmp_path / "config.json").write_text("")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        claim(tmp_path, rows)


@pytest.fixture
def few_rows(rows, tmp_path):
    """A copy of the rows that a test may damage."""
    return shutil.copytree(rows, tmp_path / "rows")


def test_rows_that_became_fewer_or_others_are_refused_before_anything_starts(tmp_path, rows, few_rows):
    claim(tmp_path / "run", rows)
    claim(tmp_path / "run", few_rows)  # wherever they lie
    info = json.loads((few_rows / "dataset_info.json").read_text())
    train = next(split for split in info["splits"] if split["name"] == "train")
    count = int(train["shardLengths"][0])
    train["shardLengths"] = [str(count - 5)]
    (few_rows / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=rf"are damaged: {count - 5:,} train rows in dataset_info.json, {count:,} in"):
        claim(tmp_path / "run", few_rows)
    metadata = json.loads((few_rows / "prepared.json").read_text())
    (few_rows / "prepared.json").write_text(json.dumps(metadata | {"rows": count - 5}))
    with pytest.raises(UserError, match=rf"trained on other rows .*: rows is {count} there and {count - 5} here"):
        claim(tmp_path / "run", few_rows)


def test_rows_of_the_same_counts_and_other_content_are_refused(tmp_path, rows, few_rows):
    claim(tmp_path / "run", rows)
    there = json.loads((tmp_path / "run" / "rows.json").read_text())
    shard = next(few_rows.glob("*train*"))
    tokens = np.arange(32, dtype=np.int32)
    helpers.write_shards(few_rows, {split: [np.tile(tokens, (there[split]["rows"], 1))] for split in there})
    assert shard.exists()
    with pytest.raises(UserError, match=r"trained on other rows .*: train is .*; give it those, or choose another"):
        claim(tmp_path / "run", few_rows)


def test_an_old_run_takes_the_fingerprint_of_its_rows_on_and_says_so(tmp_path, rows):
    claim(tmp_path, rows)
    there = (tmp_path / "rows.json").read_bytes()
    (tmp_path / "rows.json").unlink()
    lines = []
    claim_workdir(tmp_path, helpers.config(), rows, lines.append)
    assert (tmp_path / "rows.json").read_bytes() == there
    assert [line for line in lines if "has no rows.json" in line]


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "prepared.json"])
@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"\xff", b"\x1b[31m", None])
def test_damaged_files_of_rows_are_one_line(tmp_path, few_rows, name, content):
    (few_rows / name).unlink()
    if content is not None:
        (few_rows / name).write_bytes(content)
    with pytest.raises(UserError, match=r"rows(/\w+\.json)?(:| )") as caught:
        check_rows(tmp_path, few_rows)
    assert printable(caught.value) == str(caught.value)


def test_a_lost_prepared_json_is_no_imported_model(tmp_path, rows):
    claim(tmp_path, rows)
    (tmp_path / "prepared.json").unlink()
    with pytest.raises(UserError, match=r"prepared.json is missing.*: copy it from the folder of the rows"):
        check_workdir(tmp_path, helpers.config())
    with pytest.raises(UserError, match=r"prepared.json is missing"):
        export(tmp_path, tmp_path / "out", step=None, force=False, log=print)
    (tmp_path / "checkpoints" / "0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds an imported model"):
        check_workdir(tmp_path, helpers.config())


def test_a_lease_makes_no_folder_foreign(tmp_path, rows):
    with workdirs.held(tmp_path, "training", lambda line: None):
        claim(tmp_path, rows)
        with pytest.raises(UserError, match="in use by process"), workdirs.held(tmp_path, "training", print):
            pass


METRICS_DAMAGE = {
    "empty": b"", "cut": b'{"eval/lo', "null": b"null", "no UTF-8": b"\xff{}", "without the metric": b"{}",
    "text": b'{"eval/loss": "x"}', "folder": None,
}  # fmt: skip


def test_a_checkpoint_with_damaged_metrics_is_passed_over_like_other_damage(tmp_path, saved_twice, state):
    workdir = shutil.copytree(saved_twice, tmp_path / "run")
    path = workdir / "checkpoints" / "6" / "metrics" / "metrics"
    for name, content in METRICS_DAMAGE.items():
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)
        with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
            said = "metrics is a folder" if content is None else "metrics is damaged: "
            assert said in checkpoints._read(6)[0], name
    restored, messages = restore(workdir, state)
    assert int(restored.step) == 3
    assert len(messages) == 1
    assert "checkpoints/6 is damaged and passed over" in messages[0]


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory, state):
    workdir = tmp_path_factory.mktemp("twice")
    save(workdir, state, {3: 2.0, 6: 1.0})
    return workdir


def test_a_run_goes_on_beside_damaged_metrics_and_says_what_it_set_aside(tmp_path, saved_twice, state):
    workdir = shutil.copytree(saved_twice, tmp_path / "run")
    (workdir / "checkpoints" / "3" / "metrics" / "metrics").write_bytes(b"")
    lines = []
    with closing(Checkpoints(workdir, 2)) as checkpoints:
        assert checkpoints.best_step(lines.append) == 6
        assert "checkpoints/3 may be the best and is passed over" in lines.pop()
        checkpoints.set_aside(after_step=6, log=lines.append)
        checkpoints.save(at(state, 9), {"eval/loss": 3.0})
        checkpoints.wait()
        assert checkpoints.steps() == [6, 9]
        assert checkpoints.best_step() == 6
    assert len(lines) == 1
    assert "checkpoints/3 is damaged and set aside" in lines[0]


def test_a_checkpoint_that_a_running_training_replaces_while_it_is_read_is_no_damage(
    tmp_path, saved_twice, state, monkeypatch
):
    workdir, messages = shutil.copytree(saved_twice, tmp_path / "run"), []
    folder, whole = workdir / "checkpoints", Checkpoints._read
    save(tmp_path / "later", state, {9: 1.0})
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:

        def replaced(self, step, *arguments):
            if step == 6 and (folder / "6").exists():
                (tmp_path / "later" / "checkpoints" / "9").rename(folder / "9")
                for old in ("3", "6"):
                    shutil.rmtree(folder / old)
            return whole(self, step, *arguments)

        monkeypatch.setattr(Checkpoints, "_read", replaced)
        step, _ = checkpoints.restore_parts(("params",), one_device(), messages.append)
        assert step == 9
        assert messages == [f"checkpoint {folder / '6'} was removed while it was read: the newest one is taken"]
        for read in (
            lambda: checkpoints.restore_parts(("params",), one_device(), messages.append, 6),
            lambda: checkpoints.identity(6),
        ):
            with pytest.raises(RemovedError, match="checkpoints/6 was removed while it was read"):
                read()


def test_a_checkpoint_that_another_step_is_called_by_is_passed_over(tmp_path, saved_twice, state):
    workdir, messages = shutil.copytree(saved_twice, tmp_path / "run"), []
    (workdir / "checkpoints" / "6").rename(workdir / "checkpoints" / "7")
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        assert checkpoints.restore_parts(("params",), one_device(), messages.append)[0] == 3
    assert messages[0].endswith("checkpoints/7 is damaged and passed over: its state is of step 6")


def test_what_fails_in_a_thread_of_orbax_is_raised_and_leaves_no_traceback(tmp_path, caplog):
    """A bucket that failed left 28 kB of them beside the one line."""

    def fail():
        raise TimeoutError("the bucket is gone")

    Checkpoints(tmp_path / "run").close()
    thread = future._SignalingThread(target=fail, send_signals=[], receive_signals=[], timeout_secs=5, operation_id="1")
    thread.start()
    with pytest.raises(TimeoutError, match="the bucket is gone"):
        thread.join()
    assert [record for record in caplog.records if record.exc_info] == []
