"""What `pip install .` gives: recipes and console scripts, from any folder."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from sctd_jax import recipes, scripts
from sctd_jax.errors import UserError
from sctd_jax.sections import TRACKERS
from tests import helpers

PYPROJECT = tomllib.loads((helpers.ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
USERS = """
from configs import base, mine_too
def get_config():
    config = base.get_config()
    config.train.steps = mine_too.STEPS
    return config
"""


def versions(text):
    return tuple(int(part) for part in re.findall(r"\d+", text))


def pins(path):
    """Version by name, as a list of requirements has it."""
    lines = (helpers.ROOT / path).read_text().splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_is_a_range_from_what_is_pinned_that_holds_what_is_here():
    lists = [f"tests/requirements-{name}.txt" for name in ("trackers", "interop")]
    pinned = pins(lists[0]) | pins(lists[1]) | pins("requirements.txt")
    extras = PROJECT["optional-dependencies"]
    here = [
        *PROJECT["dependencies"],
        *extras["dev"],
        *extras["hub"],
        *extras["warc"],
        *extras["ray"],
        *PYPROJECT["build-system"]["requires"],
    ]
    for requirement in [*here, *(one for name in ("interop", *TRACKERS) for one in extras[name])]:
        name, lowest, below = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?", requirement).groups()
        assert lowest == pinned[name], requirement
        for found in [pinned[name], *([metadata.version(name)] if requirement in here else [])]:
            assert versions(lowest) <= versions(found), requirement
            assert below is None or versions(found) < versions(below), requirement


def test_what_is_carried_to_a_machine_without_a_network_is_what_is_pinned():
    carried = pins("benchmarks/requirements-accelerator.txt")
    assert carried.items() <= pins("requirements.txt").items()


def test_every_script_becomes_a_module_that_is_a_command(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append((program, arguments)))
    monkeypatch.setattr(sys, "argv", ["/venv/bin/tool", "--out", "a b"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "/venv/bin/tool", "--out", "a b"])
    for name, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        assert module == "sctd_jax.scripts"
        getattr(scripts, function)()
        program, (first, *options, run, command, out, value) = called.pop()
        assert (program, first, options, run) == (sys.executable, sys.executable, ["-X", "dev"], "-m"), name
        assert (out, value) == ("--out", "a b")
        assert 'if __name__ == "__main__":' in Path(importlib.util.find_spec(command).origin).read_text(), command


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder that is not the checkout's, in a process that has not loaded `configs` yet."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        sys.modules.pop(name)


def test_a_recipe_that_the_working_folder_lacks_is_this_projects_and_a_line_says_so(elsewhere):
    said = []
    own = str(helpers.ROOT / "configs" / "tiny.py")
    assert recipes.find("configs/tiny.py", said.append) == own
    assert said == [f"note: no configs/tiny.py in this folder; --config is {own}"]
    assert recipes.find("configs/tiny.py:x") == f"{own}:x"
    assert recipes.load("configs/tiny.py").train.steps == 1500
    # Only what is a recipe: not any file of the checkout, which no user has.
    for path in ("tests/small.py", "configs/../tests/small.py", "configs/tpu"):
        with pytest.raises(UserError, match="no such file"):
            recipes.find(path)


def test_a_file_of_the_users_always_wins(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "tiny.py").write_text(USERS)
    (elsewhere / "configs" / "mine_too.py").write_text("STEPS = 7\n")
    said = []
    assert recipes.find("configs/tiny.py", said.append) == "configs/tiny.py"
    assert said == []
    assert recipes.load("configs/tiny.py").train.steps == 7


@pytest.mark.parametrize("init", [None, "NAME = 1\n"])
def test_a_users_recipe_imports_from_its_own_configs_and_from_this_projects(elsewhere, init):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "mine_too.py").write_text("STEPS = 7\n")
    if init:
        (elsewhere / "configs" / "__init__.py").write_text(init)
    (elsewhere / "mine.py").write_text(USERS)
    assert recipes.load("mine.py").train.steps == 7
    assert getattr(sys.modules["configs"], "NAME", None) == (1 if init else None)


def test_an_installed_package_of_the_name_is_in_nobodys_way(elsewhere, monkeypatch):
    other = elsewhere / "site-packages" / "configs"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('somebody else')\n")
    monkeypatch.setattr(sys, "path", [str(other.parent), *sys.path])
    assert recipes.load("configs/drop.py").dropping.method == "drop"


def test_the_error_of_a_missing_recipe_lists_what_is_there(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "ours.py").write_text("")
    for path, advice in (
        ("configs/nothing_like_it.py", "recipes are configs/base.py, configs/continued.py, "),
        ("configs/nothing_like_it.py", "configs/ours.py, "),
        (
            "configs/nothing_like_it.py",
            " and those in configs/arena/, configs/gpu/, configs/modern/, configs/presets/, configs/tpu/",
        ),
        ("configs/tiny", "did you mean configs/tiny.py?"),
        ("tinny.py", "did you mean configs/tiny.py?"),
        ("base_v4_8.py", "did you mean configs/tpu/base_v4_8.py?"),
    ):
        with pytest.raises(UserError, match=r"^--config=\S+: no such file; ") as error:
            recipes.find(path)
        assert advice in str(error.value)


def test_every_recipe_is_in_the_list_with_its_first_sentence(elsewhere):
    names = recipes.available()
    assert names[0] == "configs/base.py" and "configs/tpu/base_v4_8.py" in names
    assert not [name for name in names if len(recipes.summary(name)) < 20]
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "broken.py").write_text("def f(:\n")
    assert recipes.summary("configs/broken.py") == ""
    assert "configs/broken.py" in recipes.available()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment in which only a copy that pip has installed is importable, and the folder of its scripts."""
    if versions(metadata.version("setuptools") if importlib.util.find_spec("setuptools") else "0") < (80,):
        pytest.skip("needs setuptools 80 or newer: make venv")
    folder = tmp_path_factory.mktemp("installed")
    for name in ("sctd_jax", "configs"):
        shutil.copytree(helpers.ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(helpers.ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--target", folder / "site", folder / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return helpers.environment() | {"PYTHONPATH": str(folder / "site")}, folder / "site"


def run_script(installed, cwd, name, *arguments):
    environment, site = installed
    return subprocess.run(
        [site / "bin" / name, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_what_is_installed_is_the_package_with_its_recipes_and_nothing_else(installed):
    _, site = installed
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"bin", "sctd_jax"}
    own, copied = helpers.ROOT / "configs", site / "sctd_jax" / "_recipes" / "configs"
    assert {path.relative_to(copied) for path in copied.rglob("*.py")} == {
        path.relative_to(own) for path in own.rglob("*.py")
    }
    assert (site / "sctd_jax" / "reporting" / "page.html").is_file()
    assert {path.name for path in (site / "bin").iterdir() if path.is_file()} == set(PROJECT["scripts"])


def test_scripts_answer_from_another_folder_as_their_modules_do(installed, tmp_path):
    done = run_script(installed, tmp_path, "sctd-jax", "--config=configs/tiny.py", "--config.train.steps=many")
    own = installed[1] / "sctd_jax" / "_recipes" / "configs" / "tiny.py"
    assert (done.returncode, done.stdout) == (2, f"note: no configs/tiny.py in this folder; --config is {own}\n")
    assert done.stderr == "error: --config.train.steps must be a whole number, found 'many'\n"
    done = run_script(installed, tmp_path, "sctd-jax-prepare", "--seq_len=3")
    wanted = "error: --seq_len is not known; did you mean --seq-len? (see python -m sctd_jax.data.prepare --help)\n"
    assert (done.returncode, done.stderr) == (2, wanted)


@pytest.mark.slow
def test_the_command_that_a_run_records_is_one_that_works_again(installed, tmp_path, rows):
    shutil.copy(helpers.ROOT / "tests" / "small.py", tmp_path / "mine.py")  # which says `from configs import base`
    arguments = ("--config=mine.py", "--workdir=a run", f"--config.data.rows={rows}", *helpers.ONE_LAYER)
    done = run_script(installed, tmp_path, "sctd-jax", *arguments, "--config.train.steps=1")
    assert done.returncode == 0, done.stderr
    command = (tmp_path / "a run" / "command.txt").read_text()
    python, *rest = shlex.split(command)
    assert python == "python"
    done = subprocess.run([sys.executable, *rest], env=installed[0], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 1" in done.stdout
