"""The scripts of benchmarks/ whose parts take hours: with a pretended compiler they make the tables of docs/tpu.md."""

import importlib.util
import itertools
import json
import sys

import jax
import numpy as np
import pytest

from sctd_jax.errors import UserError
from sctd_jax.main import WITHOUT_CHIPS
from sctd_jax.parallel import chips
from sctd_jax.pretrain import model as pretrain_model
from sctd_jax.tpu import compile as tpu_compile
from sctd_jax.tpu import largest_batch
from tests import helpers


def load(name, monkeypatch):
    """A script of the benchmarks as a module; what it does to the environment ends with the test."""
    for variable in WITHOUT_CHIPS:
        monkeypatch.setenv(variable, "")
    spec = importlib.util.spec_from_file_location(name, helpers.ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented_table(first):
    """Rows of the table in docs/tpu.md whose head begins so."""
    lines = (helpers.ROOT / "docs" / "tpu.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))


def without(name, fields, path):
    """Entries of a JSON of docs/ but the one with such fields, written to `path`; returns that one."""
    entries = json.loads((helpers.ROOT / "docs" / name).read_text())
    (one,) = (entry for entry in entries if fields.items() <= entry.items())
    path.write_text(json.dumps([entry for entry in entries if entry is not one]))
    return one


@pytest.fixture
def pretended_slice(monkeypatch):
    """Four devices of this machine as a slice of v5e."""
    monkeypatch.setattr(tpu_compile, "topology_devices", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(pretrain_model, "platform_of", lambda device: "tpu")
    monkeypatch.setattr(tpu_compile.chips, "find", lambda kind: chips._CHIPS["TPU v5e"])


@pytest.mark.usefixtures("pretended_slice")
def test_the_table_of_recipes_is_what_its_command_makes_with_a_pretended_compiler(tmp_path, monkeypatch, capsys):
    """Its rows, remat and hours are computed anew for the recipe that is missing in the JSON."""
    script = load("tpu_recipes", monkeypatch)
    out = tmp_path / "recipes.json"
    one = without("tpu_recipes.json", {"recipe": "base_v5e_4"}, out)

    def compile_program(config, variant, mesh, name):
        assert (config.data.seq_len, mesh.size) == (512, 4)
        return tpu_compile.Program(0.0, one["needed"][name], 0, 0.0, 0.0, {})

    monkeypatch.setattr(script, "compile_program", compile_program)
    monkeypatch.setattr(sys, "argv", ["tpu_recipes.py", "--out", str(out)])
    monkeypatch.setattr(script.time, "strftime", lambda form: one["date"])
    assert script.main() == 0
    assert capsys.readouterr().out.splitlines() == documented_table("| recipe |")


@pytest.mark.usefixtures("pretended_slice")
def test_the_table_of_batches_is_what_its_command_makes_with_a_pretended_compiler(tmp_path, monkeypatch, capsys):
    script = load("tpu_batches", monkeypatch)
    out = tmp_path / "batches.json"
    one = without("tpu_batches.json", {"model": "BERT-large", "length": 128, "method": "sctd", "chip": "v5e"}, out)

    def buffer_bytes(config, variant, topology):
        assert (config.model.num_layers, config.data.seq_len, variant, topology) == (24, 128, "consistency", "v5e:2x2")
        if config.train.batch_size > 4 * one["rows"]:
            raise tpu_compile.DoesNotFitError("the compiler's words")
        return 2**30

    monkeypatch.setattr(largest_batch, "buffer_bytes", buffer_bytes)
    monkeypatch.setattr(sys, "argv", ["tpu_batches.py", "--out", str(out)])
    script.main()
    assert capsys.readouterr().out.splitlines() == documented_table("| model | N | method | v5e")
    assert json.loads(out.read_text())[-1]["rows"] == one["rows"]


def test_train_step_times_a_recipe_for_pretraining_with_every_kind_of_step_and_refuses_others(monkeypatch):
    script = load("train_step", monkeypatch)
    title, config = script.file_config("configs/drop.py")
    assert title == "configs/drop.py"
    assert (config.dropping.method, config.mesh.data, config.model.num_layers) == ("sctd", 1, 12)
    assert script.toy(config).model.num_layers == 2
    with pytest.raises(UserError, match=r"--config=configs/finetune\.py is no recipe for pretraining"):
        script.file_config("configs/finetune.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no recipe of an arena: expected is one such as configs/arena/small"),
        ("{'train': {}, 'data': {}}", "is no recipe of an arena"),
        (
            "{'methods': 5, 'rounds': (), 'baseline': 'full'}",
            "a recipe of an arena has the fields run, baseline, .*; look at run",
        ),
        ("ARENA | {'methods': 5}", "methods of an arena's recipe must be a table, found 5"),
    ],
)
def test_train_step_refuses_what_is_no_recipe_of_an_arena(tmp_path, monkeypatch, text, message):
    script, recipe = load("train_step", monkeypatch), tmp_path / "recipe.py"
    table = {"run": {}, "methods": {}, "rounds": (), "baseline": "full", "evaluations": 1, "judge_rows": 1}
    recipe.write_text(
        f"from ml_collections import ConfigDict\nARENA = {table | {'step_time': {}}}\n"
        f"def get_config():\n    return ConfigDict({text})\n"
    )
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--arena", str(recipe), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=message) as refused:
        script.main()
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("configs/base.py", "--arena=configs/base.py is no recipe of an arena"),
        ("configs/finetune.py", "--arena=configs/finetune.py is no recipe of an arena"),
        ("configs/nowhere.py", "--arena=configs/nowhere.py: no such file"),
        ("configs/arena/small.py", "--arena=.*configs/arena/small.py:ARGUMENT"),
        ("", "--arena=: no such file"),
    ],
)
def test_train_step_names_the_option_of_a_wrong_arena(monkeypatch, given, message):
    script = load("train_step", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["train_step.py", f"--arena={given}"])
    with pytest.raises(UserError, match=message):
        script.main()


def test_train_step_times_an_arena_without_what_is_for_recipes(monkeypatch, capsys):
    script = load("train_step", monkeypatch)
    for option in (["--config=configs/tiny.py"], ["--smoke"], ["--peer=pytorch"]):
        monkeypatch.setattr(sys, "argv", ["train_step.py", "--arena=configs/arena/small.py:rows", *option])
        with pytest.raises(SystemExit) as left:
            script.main()
        assert left.value.code == 2
        assert "--arena times an arena's methods: without --config, --peer" in capsys.readouterr().err


def test_train_step_gives_the_peer_the_rows_of_one_microbatch_and_says_so(monkeypatch):
    script = load("train_step", monkeypatch)
    title, config = script.file_config("configs/modern/base.py")
    assert title == "configs/modern/base.py, one of its 8 microbatches: 64 rows, with an update of their own"
    assert (config.train.batch_size, config.train.accumulation, config.train.consistency_accumulation) == (64, 1, 2)
    train = script.toy(config).train
    assert (train.batch_size, train.microbatches("drop"), train.microbatches("consistency")) == (4, 1, 1)


def test_train_step_sets_a_recipe_against_its_peer(tmp_path, monkeypatch, capsys):
    """Medians of the ratios within a repeat."""
    script = load("train_step", monkeypatch)
    seconds = {"full": [1.0, 2.0, 6.0], "ScTD average": [0.6, 1.4, 2.8], "plain full": [1.0, 1.0, 1.0]}

    def measure(title, config, kinds, repeats, peer):
        found = {kind: np.array(values) for kind, values in {**seconds, "PyTorch": [1.0, 2.0, 4.0]}.items()}
        return script.Timing(title, config, found, dict.fromkeys(found, 8e9), {}, {}, "PyTorch 9")

    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script, "matmul_flops_per_second", lambda: 1e9)
    line = ["train_step.py", "--config", "configs/drop.py", "--peer", "pytorch", "--peer-python", sys.executable]
    monkeypatch.setattr(sys, "argv", [*line, "--out", str(tmp_path)])
    script.main()
    shown = [text.split() for text in capsys.readouterr().out.splitlines() if "/ PyTorch full step" in text]
    assert [words[-5:] for words in shown] == [
        ["1.00", "1.00-1.50", "1.00", "0.90", "missed"], ["0.70", "0.60-0.70", "1.00", "0.70", "met"],
    ]  # fmt: skip
    full, average = json.loads((tmp_path / "train_step.json").read_text())["targets"]
    assert (full["what"], full["found"], full["spread"]) == ("own full step / PyTorch full step", 1.0, [1.0, 1.5])
    assert (average["what"], average["target"]) == ("ScTD average / PyTorch full step", 0.7)
