"""Runs of earlier code: `fixtures/*.tar.xz` are what its users have."""

import dataclasses
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from configs import base, finetune, tiny, tiny_bert
from sctd_jax import stored
from sctd_jax.config import Config, from_dict
from sctd_jax.errors import UserError, printable
from sctd_jax.finetune import config as finetune_settings
from sctd_jax.finetune import finetuning as finetune_loop
from sctd_jax.finetune import workdir as finetune_workdir
from sctd_jax.interop.exporting import export
from sctd_jax.models import open_model
from sctd_jax.pretrain import evaluation
from sctd_jax.pretrain.pretraining import evaluate_workdir, train_and_evaluate
from sctd_jax.pretrain.workdir import followed
from sctd_jax.stored import Added, Mended, Removed, Renamed
from sctd_jax.train import workdir as workdirs

# The first commit whose runs must open, and the last one before one model on disk and one engine.
COMMITS = ("da051c2", "3fd73b5")


def unpack(folder, commit):
    with tarfile.open(Path(__file__).parent / "fixtures" / f"{commit}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with `rows`, `run` and `tuned` of the first commit, which the tests leave as they are."""
    return unpack(tmp_path_factory.mktemp("old"), COMMITS[0])


@pytest.fixture(scope="module", params=COMMITS)
def earlier(request, tmp_path_factory):
    """The same of each commit."""
    return unpack(tmp_path_factory.mktemp("earlier"), request.param)


def begun(folder):
    """The version of the configuration with which the run began."""
    return json.loads((folder / "run" / "config.json").read_text()).get("begun", 1)


def recipe(old, **train):
    """Today's recipe of the run: base.py with the fields that `old.py` set."""
    values, theirs = base.get_config().to_dict(), json.loads((old / "run" / "config.json").read_text())
    for section in values:
        fields = theirs[section]
        values[section] |= {name: value for name, value in fields.items() if name in values[section]}
    values["data"]["rows"] = str(old / "rows")
    values["train"] |= train
    values["mesh"]["data"] = 1
    return from_dict(values)


def test_every_field_that_the_old_run_does_not_have_has_a_line_in_the_table(old):
    def names(type_, prefix=""):
        for field in dataclasses.fields(type_):
            if dataclasses.is_dataclass(field.type):
                yield from names(field.type, f"{field.name}.")
            else:
                yield prefix + field.name

    for file, changes, type_, more in (
        ("run/config.json", stored.CONFIG, Config, ()),
        ("tuned/task.json", stored.TASK, finetune_settings.FinetuneConfig, finetune_workdir.Origin),
    ):
        there = stored.read(epath.Path(old / file), changes).values
        flat = {name for name, _ in stored.flat(there)}
        assert flat == {*names(type_), *(names(more) if more else ())}, file
    assert workdirs.read_config(epath.Path(old / "run")).train.steps == 4


def test_an_old_run_evaluates_to_what_it_said_then(earlier, monkeypatch):
    lines, first = [], begun(earlier) == 1
    if first:  # as it was
        monkeypatch.setattr(evaluation, "eval_rows", lambda count, available: np.arange(min(count, available)))
    metrics = evaluate_workdir(recipe(earlier), earlier / "run", lines.append)
    then = json.loads((earlier / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["eval/loss"] == pytest.approx(then["eval/loss"], abs=1e-4)
    assert not any("damaged" in line for line in lines)
    assert any("otherwise than there: held-out rows are taken from all over" in line for line in lines) == first


@pytest.mark.parametrize("commit", COMMITS)
def test_an_old_run_goes_on(tmp_path, commit):
    folder, lines = unpack(tmp_path, commit), []
    before = begun(folder)
    result = train_and_evaluate(recipe(folder, steps=6), folder / "run", lines.append)
    assert result.step == 6
    assert "resuming at step 4" in lines
    assert json.loads((folder / "run" / "config.json").read_text())["begun"] == before


def test_old_runs_are_exported(earlier, tmp_path):
    for name, architecture in (("run", "BertForMaskedLM"), ("tuned", "BertForSequenceClassification")):
        export(epath.Path(earlier / name), tmp_path / name, step=None, force=False, log=lambda line: None)
        assert architecture in (tmp_path / name / "config.json").read_text()


def test_an_old_run_is_fine_tuned_and_an_old_fine_tuning_goes_on(earlier, tmp_path):
    values = finetune.get_config().to_dict() | {
        "task": "classification", "init": str(earlier / "run"), "data_dir": str(earlier / "labels.jsonl"),
        "max_length": 16, "batch_size": 8, "epochs": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    settings = finetune_settings.from_dict(values)
    made = finetune_loop.prepare(settings, epath.Path(earlier / "tuned"), lambda line: None)
    assert set(made.pretrained.params(made.step, made.mesh)) == {"encoder", "mlm_head"}
    assert finetune_loop.finetune(settings, tmp_path / "new", lambda line: None).step > 1
    tuned = shutil.copytree(earlier / "tuned", tmp_path / "tuned")
    (tuned / "result.json").unlink()  # its end is evaluated and told again
    assert finetune_loop.finetune(settings, tuned, lambda line: None).step > 1
    assert (tuned / "result.json").is_file()
    again = open_model(str(earlier / "tuned"), lambda line: None)
    assert set(again.params(None, made.mesh)) == {"encoder", "pooler", "classifier"}


# Changes of fields, on the old run's files.


@pytest.fixture
def changed(old, monkeypatch):
    """A function that lets today's code have more changes than it has."""

    def change(config=(), task=()):
        monkeypatch.setattr(stored, "CONFIG", [*stored.CONFIG, *config])
        monkeypatch.setattr(stored, "TASK", [*stored.TASK, *task])

    return change


def read(old, changes, file="run/config.json"):
    return stored.read(epath.Path(old / file), changes)


def test_a_field_that_came_later_takes_the_value_of_then_and_is_named(old):
    found = read(old, [Added("optimizer.eps_at", "update"), Added("extra.x", 1)])
    assert found.values["optimizer"]["eps_at"] == "update"
    assert found.values["extra"] == {"x": 1}
    assert len(found.notes) == 1
    assert "config.json was written by an earlier version" in found.notes[0]
    assert found.notes[0].endswith("optimizer.eps_at='update', extra.x=1")


def test_a_field_has_its_new_name_and_a_removed_one_only_the_value_that_is_left(old):
    found = read(old, [Renamed("optimizer.eps", "optimizer.epsilon"), Removed("train.accumulation", 1)])
    assert found.values["optimizer"]["epsilon"] == 1e-6
    assert "eps" not in found.values["optimizer"]
    assert "accumulation" not in found.values["train"]
    assert found.notes[0].endswith("optimizer.epsilon (then optimizer.eps)")
    with pytest.raises(UserError, match=r"config.json has dropping.method='sctd', but .* do anything but 'drop'"):
        read(old, [Removed("dropping.method", "drop")])


def test_what_is_mended_is_said_to_the_runs_that_it_concerns(old):
    found = read(
        old, [Mended("all"), Mended("lamb", "optimizer.name", "lamb"), Mended("sctd", "dropping.method", "sctd")]
    )
    assert len(found.notes) == 1 and found.notes[0].endswith("otherwise than there: all, sctd")


def test_a_newer_versions_configuration_is_refused_by_name(old, tmp_path):
    for file in ("run/config.json", "tuned/task.json"):
        path = epath.Path(tmp_path / "new.json")
        path.write_text(json.dumps({**json.loads((old / file).read_text()), "version": 9}))
        with pytest.raises(UserError, match=r"new.json was written by a newer version .*9, this one reads up to 1"):
            stored.read(path, [])
    for version in (0, "1", None, True):
        path.write_text(json.dumps({"version": version}))
        with pytest.raises(UserError, match=r"new.json is damaged: its version is"):
            stored.read(path, [])


def test_a_run_keeps_what_it_began_without_however_often_it_is_resumed(old, tmp_path, changed):
    """`train.seed` stands for a field that came after the run, with another default today."""
    workdir, config = epath.Path(tmp_path), recipe(old)
    values = json.loads((old / "run" / "config.json").read_text())
    del values["train"]["seed"], values["train"]["log_every"]
    (workdir / "config.json").write_text(json.dumps(values))
    changed(config=[Added("train.seed", 7), Added("train.log_every", 5)])
    for resumed in range(2):
        lines = []
        mine = followed(workdir, config, lines.append)
        assert (mine.train.seed, mine.train.log_every) == (7, 2)  # the latter may change
        assert any("train.seed stays 7, as the run began without it (the recipe's 0" in line for line in lines)
        assert any("earlier version" in line for line in lines) == (resumed == 0)
        workdirs.same_config(workdir, dataclasses.asdict(mine))
        workdirs.write_config(workdir, mine)
    written = json.loads((workdir / "config.json").read_text())
    assert (written["version"], written["begun"]) == (stored.version_of(stored.CONFIG), 1)
    assert written["train"]["seed"] == 7
    with pytest.raises(UserError, match=r"train.seed \(7 there, 0 now\)"):
        workdirs.same_config(workdir, dataclasses.asdict(config))


def test_a_run_of_the_demo_of_then_is_told_the_recipe_that_it_has_now(tmp_path):
    """configs/tiny.py was the BERT that is configs/tiny_bert.py now."""
    bert, modern = (dataclasses.asdict(from_dict(recipe.get_config().to_dict())) for recipe in (tiny_bert, tiny))
    fields = ("vocab_size", "hidden_size", "intermediate_size", "initializer_range")
    assert [bert["model"][field] for field in fields] == [4096, 128, 512, 0.05]
    assert (bert["optimizer"]["learning_rate"], bert["train"]["steps"]) == (1.5e-3, 1200)
    workdir = epath.Path(tmp_path)
    (workdir / "config.json").write_text(json.dumps(bert))
    (workdir / "command.txt").write_text("python -m sctd_jax.main --config=configs/tiny.py --config.train.steps=2400")
    workdirs.same_config(workdir, bert)
    with pytest.raises(UserError, match=r"model.family \('bert' there, 'modernbert' now\)") as caught:
        workdirs.same_config(workdir, modern)
    now = (
        "; what configs/tiny.py was when this run began is configs/tiny_bert.py now: go on with that, or choose another"
    )
    assert str(caught.value).endswith(f"{now} --workdir")
    (workdir / "command.txt").write_text("python -m sctd_jax.main --config=configs/modern/tiny.py")
    with pytest.raises(UserError, match=r"now\); choose another --workdir$"):
        workdirs.same_config(workdir, modern)


def test_a_silent_look_at_a_run_keeps_no_note_from_the_next_one(old, tmp_path, changed, monkeypatch):
    """Export looks before it opens."""
    monkeypatch.setattr(workdirs, "_said", set())
    values = json.loads((old / "run" / "config.json").read_text())
    del values["train"]["seed"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    changed(config=[Added("train.seed", 7)])
    lines = []
    for log in (None, lines.append, lines.append):
        workdirs.read_config(epath.Path(tmp_path), log)
    assert any("train.seed=7" in line for line in lines)
    assert len(lines) == len(set(lines))


def test_settings_of_a_fine_tuning_are_followed_too(old, tmp_path, changed):
    workdir = epath.Path(tmp_path)
    for name in ("task.json", "config.json"):
        (workdir / name).write_bytes((old / "tuned" / name).read_bytes())
    values = json.loads((workdir / "task.json").read_text())
    del values["weight_decay"]
    (workdir / "task.json").write_text(json.dumps(values))
    changed(task=[Added("weight_decay", 0.5)])
    lines, mine = [], {**finetune.get_config().to_dict(), "task": "classification", "init": "x", "data_dir": "y"}
    followed = finetune_workdir.followed(workdir, finetune_settings.from_dict(mine), lines.append)
    assert followed.weight_decay == 0.5
    assert any("weight_decay stays 0.5" in line for line in lines)
    assert finetune_workdir.read_task(workdir)["weight_decay"] == 0.5


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: b"\xff\xfe" + text,
        lambda text: b"null",
        lambda text: b"[1]",
        lambda text: text[:-9],
        lambda text: b"[" * 100_000,
        lambda text: re.sub(rb'"(model|mesh)": {', rb'"\1": null, "was": {', text),
        lambda text: re.sub(rb'"(model|mesh)": {', rb'"\1": "\\u001b[31m\\nerror:", "was": {', text),
        lambda text: text.replace(b'"init": "', b'"init": null, "w\\nas": "'),
        lambda text: None,
    ],
    ids=["empty", "no UTF-8", "null", "list", "cut", "deep", "null section", "text for a section", "field", "folder"],
)
def test_a_damaged_configuration_is_one_line(old, tmp_path, damage):
    workdir = epath.Path(tmp_path)
    for name in ("config.json", "task.json"):
        path, content = workdir / name, damage((old / "tuned" / name).read_bytes())
        path.mkdir() if content is None else path.write_bytes(content)
    for attempt in (
        lambda: workdirs.read_config(workdir),
        lambda: workdirs.same_config(workdir, dataclasses.asdict(recipe(old))),
        lambda: finetune_workdir.read_task(workdir),
    ):
        with pytest.raises(UserError, match=r"(config|task).json is (damaged|a folder, a file is expected)") as caught:
            attempt()
        assert printable(caught.value) == str(caught.value)
