"""Command lines and recipes, wrong ones above all, as sctd_jax.main answers them: before JAX is loaded."""

import ast
import dataclasses
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from sctd_jax import recipes
from sctd_jax.arguments import CommandParser, local_path, number
from sctd_jax.config import Config
from sctd_jax.errors import UserError
from tests import helpers

TINY, FINETUNE = "--config=configs/tiny.py", "--config=configs/finetune.py"
WRONG = [
    ([], "--config is missing: it names a recipe, such as --config=configs/tiny.py"),
    (["configs/tiny.py"], "--config is missing: write --config=configs/tiny.py"),
    (["configs/continued.py:runs/bert"], "--config is missing: write --config=configs/continued.py:runs/bert"),
    (["--config"], "--config has no value"),
    (["--config=configs/none.py"], "--config=configs/none.py: no such file; recipes are configs/base.py, "),
    (["--config=configs/tiny"], "--config=configs/tiny: no such file; did you mean configs/tiny.py?"),
    (["--config=configs"], "--config=configs: no such file"),
    ([TINY, FINETUNE], "--config is given 2 times: configs/tiny.py, configs/finetune.py"),
    (["--config=configs/tiny.py:x"], "--config=configs/tiny.py:x: get_config() does not take what is behind the colon"),
    (["--config=configs/continued.py"], "configs/continued.py, line "),
    # The mode.
    ([FINETUNE], "--config=configs/finetune.py is no recipe for --mode=train: give --mode=finetune"),
    (["--config=configs/sweep.py"], "--config=configs/sweep.py is no recipe for --mode=train: give --mode=sweep"),
    ([TINY, "--mode=sweep"], "is no recipe for --mode=sweep: give --mode=train or --mode=eval or --mode=compile, or"),
    ([TINY, "--mode=dance"], "flag --mode=dance: value should be one of <train|eval|compile|finetune|sweep|predict>"),
    ([TINY, "--largest_batch"], "--largest_batch is for --mode=compile"),
    ([TINY, "--topology=v5e:2x4"], "--topology is for --mode=compile"),
    ([TINY, "--mfu=0.5"], "--mfu is for --mode=compile"),
    # Fields.
    ([TINY, "--config.train.stepz=3"], "configs/tiny.py has no such field; did you mean --config.train.steps?"),
    ([TINY, "--config.modle.num_layers=3"], "did you mean --config.model.num_layers?"),
    ([TINY, "--config.steps", "3"], "did you mean --config.train.steps?"),
    ([TINY, "--config.task=boolq"], "configs/tiny.py has no such field"),
    ([TINY, "--noconfig.train.zero=3"], "--config.train.zero: configs/tiny.py has no such field"),
    ([TINY, "--config.train=3"], "--config.train is a section; its fields are accumulation, batch_schedule, "),
    ([TINY, "--config.model.num_heads=5"], "config.model.num_heads must divide model.hidden_size (128), found 5"),
    ([TINY, "--config.dropping.drop_rate=0.9"], "config.dropping.drop_rate 0.9 keeps K = 13 of N = 128 tokens"),
    ([TINY, "--config.train.steps.x=3"], "--config.train.steps.x: configs/tiny.py has no such field"),
    ([TINY, "--config.train.steps=1e5"], "--config.train.steps must be a whole number, found '1e5'"),
    ([TINY, "--config.optimizer.eps=small"], "--config.optimizer.eps must be a number, found 'small'"),
    ([TINY, "--config.masking.whole_word=yes"], "--config.masking.whole_word must be true or false, found 'yes'"),
    ([TINY, "--config.masking.whole_word", "True"], "did you mean --config.masking.whole_word=True?"),
    (["--config.train.steps=3", TINY], "Found --config.train.steps=3 in argv before a value for --config was"),
    # Options.
    ([TINY, "--workdi=x"], "--workdi is not known; did you mean --workdir?"),
    ([TINY, "--num-processes=2"], "--num-processes is not known; did you mean --num_processes?"),
    ([TINY, "--train.steps=3"], "--train.steps is not known; did you mean --config.train.steps?"),
    ([TINY, "--batch-size=3"], "--batch-size is not known; did you mean --config.train.batch_size?"),
    ([TINY, "--zzz=3"], "--zzz is not known; all are listed by --help"),
    ([TINY, "--num_processes=two"], "flag --num_processes=two: invalid literal for int()"),
    ([TINY, "--num_processes=0"], "flag --num_processes=0: 0 is not a positive integer"),
    ([TINY, "--num_processes=2", "--process_id=2"], "--process_id=2 must be below --num_processes=2: from 0 on"),
    ([TINY, "--workdir"], "--workdir has no value"),
    ([TINY, "--workdir="], "--workdir is empty"),
    ([TINY, "--config.data.input", "--workdir=x"], "--config.data.input has no value"),
    ([TINY, "--config.train.steps"], "--config.train.steps has no value"),
    ([TINY, "stray"], "unexpected argument stray; options begin with --"),
    ([TINY, "config.train.steps=3"], "unexpected argument config.train.steps=3; did you mean --config.train.steps=3?"),
]  # fmt: skip
HELP = [
    ["--help"], ["-h"], ["--helpfull"], [TINY, "--help"], [FINETUNE, "--help", "--config.nothing=3"],
    ["--mode=finetune", "--help"], ["--mode", "sweep", "--help"],
]  # fmt: skip


@pytest.fixture(scope="module")
def answered():
    """Answers of the command to WRONG and HELP."""
    lines = [*(arguments for arguments, _ in WRONG), *HELP]
    return {tuple(line): answer for line, answer in zip(lines, helpers.answers(lines), strict=True)}


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) or "nothing" for a, _ in WRONG])
def test_a_wrong_command_line_is_one_line_and_exit_status_2(answered, arguments, message):
    status, stdout, stderr = answered[tuple(arguments)]
    assert (status, stdout) == (2, ""), stdout + stderr
    assert stderr.startswith("error: ")
    assert message in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_ends_with_0_and_lists_every_option_and_field(answered, arguments):
    status, stdout, stderr = answered[tuple(arguments)]
    assert (status, stderr) == (0, "")
    assert "--mode=train|eval|compile|finetune|sweep" in stdout
    assert max(map(len, stdout.splitlines())) <= 120
    line = " ".join(arguments)
    name = "finetune" if "finetune" in line else "sweep" if "sweep" in line else "tiny" if TINY in line else "base"
    assert f"Fields of configs/{name}.py" in stdout
    for field, value in recipes.fields(recipes.load(f"configs/{name}.py")):
        row = rf"^  {field.rpartition('.')[2]} +{type(value).__name__} +{re.escape(repr(value))}( |$)"
        assert re.search(row, stdout, re.MULTILINE), field


def test_every_field_of_every_recipe_has_a_meaning():
    for path in ("configs/base.py", "configs/finetune.py", "configs/sweep.py"):
        config = recipes.load(path)
        without = [
            row.split()[0]
            for row in recipes.describe(config, 1000).splitlines()
            if re.fullmatch(r"  \w+ +\w+ +\S+", row)
        ]
        assert without == [], path


def test_help_shows_type_value_and_meaning_in_the_order_of_the_dataclasses():
    lines = recipes.describe(recipes.load("configs/tiny.py"), 100).splitlines()
    assert lines[0] == "config.model: The encoder (docs/method.md 1)."
    assert [line.split(":")[0] for line in lines if not line.startswith(" ") and line] == [
        f"config.{field.name}" for field in dataclasses.fields(Config)
    ]
    assert any(re.match(r"  activation +str +'gelu' +'gelu' \(erf, BERT", line) for line in lines)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", ", line 1: SyntaxError: "),
        ("import nothing_of_this_name\n", ", line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("from configs import nothing\n", ", line 1: ImportError: cannot import name 'nothing' from 'configs'"),
        ("def get_config():\n    return 1 / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    raise ValueError('no GPU\\n\x1b[31m here')\n", ", line 2: no GPU"),
        (
            "from configs import base\ndef get_config():\n    config = base.get_config()\n"
            "    config.train.steps = 'many'\n    return config\n",
            ", line 4: TypeError: ",
        ),
        (
            "from configs import base\ndef get_config():\n    return base.get_config().train.stepz\n",
            ", line 3: AttributeError: ",
        ),
        ("def get_config():\n    {}['x']\n", ", line 2: KeyError: x"),
        ("def get_config():\n    pass\n", ": get_config() must return a ConfigDict, found NoneType"),
        ("def get_config():\n    return {'a': 1}\n", ": get_config() must return a ConfigDict, found dict"),
        ("x = 1\n", " is no recipe: it has no function get_config()"),
        ("def get_config(size):\n    pass\n", ": get_config(size) needs an argument: --config="),
        ("\u00e9\x00", ": "),
    ],
)
def test_an_error_in_a_recipe_is_one_line_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        recipes.load(str(path))
    assert f"{path}{message}" in str(error.value)
    assert str(error.value).isprintable()


def test_an_error_below_a_recipe_is_told_by_the_users_own_last_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_helper.py").write_text("import json\n\n\ndef read():\n    return json.loads('{')\n")
    (tmp_path / "mine.py").write_text("import my_helper\n\n\ndef get_config():\n    return my_helper.read()\n")
    with pytest.raises(UserError, match=r"my_helper\.py, line 5: JSONDecodeError: "):
        recipes.load(str(tmp_path / "mine.py"))
    (tmp_path / "my_other.py").write_text("x = 1\ny = (\n")
    (tmp_path / "mine.py").write_text("import my_other\n")
    with pytest.raises(UserError, match=r"my_other\.py, line 2: SyntaxError: "):
        recipes.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("end", ["pass", "raise RuntimeError('up')"])
def test_a_recipe_that_goes_to_another_folder_leaves_the_users_folder_where_it_was(tmp_path, end):
    (tmp_path / "mine.py").write_text(f"import os\n\n\ndef get_config():\n    os.chdir('/')\n    {end}\n")
    before = os.getcwd()
    with pytest.raises(UserError, match=r"line 6: RuntimeError: up" if "up" in end else "ConfigDict"):
        recipes.load(str(tmp_path / "mine.py"))
    assert os.getcwd() == before


KINDS = {"base": "compile", "finetune": "finetune", "sweep": "sweep", "predict": "predict"}


def test_the_kind_of_a_recipe_follows_from_its_fields():
    kinds = {name: recipes.modes(recipes.load(f"configs/{name}.py"))[-1] for name in KINDS}
    assert kinds == KINDS
    partial = ConfigDict({"task": "boolq", "init": "runs/a", "data_dir": "x"})
    assert recipes.modes(partial) == ("finetune",)


def test_another_python_is_refused_in_one_line_by_every_command(monkeypatch, capsys):
    package = helpers.ROOT / "sctd_jax" / "__init__.py"
    ast.parse(package.read_text(), feature_version=(3, 7))  # or its message would be a SyntaxError
    for name, value, message in (
        ("sys.version_info", (3, 10, 13), "error: Python 3.11 or newer is needed; this is Python 3.10, "),
        ("importlib.util.find_spec", lambda name: None, "error: jax is not installed; this is Python 3."),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            patch.setattr("sys.orig_argv", ["python", "-m", "sctd_jax.main"])
            with pytest.raises(SystemExit) as exit_:
                runpy.run_path(str(package))
        assert exit_.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith(message)
        assert printed.count("\n") == 1 and ".venv/bin/python" in printed


def test_make_says_which_python_is_needed(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" != --version ] || echo Python 3.10.12\n')
    old.chmod(0o755)
    for python, found in ((old, "Python 3.10.12"), ("/nowhere/python", "not there"), (sys.executable, None)):
        command = ["make", "--dry-run", "--what-if=requirements.txt", "venv", f"PYTHON={python}"]
        env = {"PATH": os.environ["PATH"]}  # no variables of a make around the tests
        done = subprocess.run(command, env=env, cwd=helpers.ROOT, capture_output=True, text=True)
        wanted = f"Python 3.11 or newer is needed, and {python} is {found}: make PYTHON=python3.11 venv"
        assert (done.returncode, wanted in done.stderr) == ((2, True) if found else (0, False))
        assert done.stderr.count("\n") == (1 if found else 0)


def test_the_other_commands_say_in_one_line_what_is_wrong_and_know_no_abbreviations(capsys):
    parser = CommandParser(prog="tool")
    parser.add_argument("--seq-len", type=number(int, 8, 512))
    parser.add_argument("--share", type=number(float, 0))
    parser.add_argument("--out", required=True, type=local_path)
    commands = CommandParser(prog="both")
    commands.add_subparsers(dest="command", required=True).add_parser("fetch").add_argument("--name", required=True)
    for parse, arguments, message in (
        (parser, "", "the following arguments are required: --out"),
        (parser, "--seq_len 9", "--seq_len is not known; did you mean --seq-len?"),  # before what is missing
        (parser, "--seq 9 --out x", "--seq is not known; did you mean --seq-len?"),
        (parser, "--zzz=1 --out x", "--zzz is not known"),
        (parser, "--out x a.txt b.txt", "unexpected argument a.txt and 1 more; an option takes one value"),
        (parser, "--out x --seq-len 1e2", "argument --seq-len: must be a whole number, found '1e2'"),
        (parser, "--out x --seq-len 600", "argument --seq-len: must be at least 8 and below 512, found 600"),
        (parser, "--out x --share nan", "argument --share: must be at least 0, found nan"),
        (parser, "--out", "argument --out: expected one argument"),
        (parser, "--out gs://bucket/x", "argument --out: a path on a disk is expected, found gs://bucket/x"),
        (commands, "", "the following arguments are required: command"),
        (commands, "fech", "argument command: invalid choice: 'fech' (choose from 'fetch')"),
        (commands, "fetch --nam x", "--nam is not known; did you mean --name?"),
    ):
        with pytest.raises(SystemExit) as exit_:
            parse.parse_args(arguments.split())
        printed = capsys.readouterr().err
        assert exit_.value.code == 2
        assert printed.startswith(f"error: {message}"), printed
        assert re.fullmatch(r".* \(see (tool|both|both fetch) --help\)\n", printed), printed
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--help"])
    assert exit_.value.code == 0
    assert vars(parser.parse_args(["--out", "~/x", "--seq-len=8"])) == {
        "seq_len": 8, "share": None, "out": Path.home() / "x",
    }  # fmt: skip


def test_an_option_that_is_given_twice_is_said(capsys):
    """A script may append its own options to those of its caller, and the other way round."""
    twice = [TINY, "--config.train.steps=5", "--mode=predict", "--config.train.steps", "6"]
    ((status, stdout, stderr),) = helpers.answers([twice])
    assert (status, stdout) == (2, "note: --config.train.steps is given 2 times: the last one counts\n"), stderr
    commands = CommandParser(prog="tool")
    command = commands.add_subparsers(dest="command").add_parser("fetch")
    command.add_argument("--name")
    command.add_argument("--input", action="append")
    assert commands.parse_args(["fetch", "--name=a", "--input=a", "--input=b", "--name", "c"]).name == "c"
    assert capsys.readouterr().out == "note: --name is given 2 times: the last one counts\n"


def test_every_other_command_uses_this_parser():
    sources = [*(helpers.ROOT / "sctd_jax").rglob("*.py"), *(helpers.ROOT / "benchmarks").glob("*.py")]
    assert [path.name for path in sources if "ArgumentParser(" in path.read_text()] == []


def test_help_waits_for_no_library_that_takes_seconds_and_needs_no_docstring():
    """There is none under -OO (PYTHONOPTIMIZE=2)."""
    program = "import sys; from sctd_jax import arena, probe, report; probe._parser(), report._parser(); "
    program += "print(*{'jax', 'matplotlib'} & set(sys.modules))"
    command = [sys.executable, "-OO", "-c", program]
    done = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
