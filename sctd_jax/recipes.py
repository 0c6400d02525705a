"""Recipes, the files behind --config: reading one, the modes that it is for, and what its fields mean."""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import os
import runpy
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ml_collections import ConfigDict

from sctd_jax.comparison.table import Recipe as ArenaRecipe
from sctd_jax.config import Config
from sctd_jax.errors import UserError, printable
from sctd_jax.finetune.config import FinetuneConfig, PredictConfig, SweepConfig

# Dataclasses that describe a recipe, the modes that it is for, and the recipe that has all fields.
_KINDS = (
    (("train", "eval", "compile"), (Config,), "configs/base.py"),
    (("finetune",), (FinetuneConfig,), "configs/finetune.py"),
    (("sweep",), (SweepConfig, FinetuneConfig), "configs/sweep.py"),
    (("predict",), (PredictConfig,), "configs/predict.py"),
    ((), (ArenaRecipe,), "configs/arena/small.py"),  # sctd_jax.arena's
)
DEFAULT = {mode: path for modes, _, path in _KINDS for mode in modes}
BOOLEAN = "true or false"
_WORDS = {int: "a whole number", float: "a number", bool: BOOLEAN, str: "a text"}


# Folder that holds this project's `configs`: beside the modules where it is installed (setup.py), else the checkout.
_INSTALLED = Path(__file__).parent / "_recipes"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]


def find(given: str, log: Callable[[str], None] | None = None) -> str:
    """FILE.py or FILE.py:ARGUMENT as it can be opened here: the working folder's file, else this project's own.

    Args:
      given: value of --config.
      log: receives a line where it is not the file at the path given.
    """
    path, colon, argument = given.partition(":")
    if Path(path).is_file():
        return given
    if not (own := _own(path)):
        raise UserError(f"--config={path}: no such file; {_advice(path)}")
    if log:
        log(f"note: no {path} in this folder; --config is {own}")
    return f"{own}{colon}{argument}"


def _own(path: str) -> Path | None:
    """This project's file of that path, such as configs/base.py."""
    parts = Path(path).parts
    own = _ROOT / path
    return own if parts[:1] == ("configs",) and ".." not in parts and own.is_file() else None


def _advice(path: str) -> str:
    for near in (f"{path}.py", os.path.expanduser(path)):
        if Path(near).is_file() or _own(near):
            return f"did you mean {near}?"
    names = available()
    stems = {Path(name).stem: name for name in reversed(names)}  # the one in fewer folders of two
    if near := difflib.get_close_matches(Path(path).stem, stems, 1, 0.75):
        return f"did you mean {stems[near[0]]}?"
    top = [name for name in names if name.count("/") == 1]
    folders = dict.fromkeys(str(Path(name).parent) + "/" for name in names if name not in top)
    return f"recipes are {', '.join(top)} and those in {', '.join(folders)}"


def available() -> list[str]:
    """Paths of the recipes in configs/ of the working folder and of this project, which --config takes."""
    found = {path.relative_to(root) for root in _roots() for path in (root / "configs").rglob("*.py")}
    names = [path.as_posix() for path in found if path.name != "__init__.py"]
    return sorted(names, key=lambda name: (name.count("/"), name))


def summary(path: str) -> str:
    """First sentence of a recipe's docstring; empty where it cannot be read."""
    try:
        text = ast.get_docstring(ast.parse(Path(find(path)).read_bytes())) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    return text.split("\n")[0]


def _roots() -> list[Path]:
    """Folders whose `configs` counts, the first one first."""
    return [root for root in dict.fromkeys((Path.cwd(), _ROOT.resolve())) if (root / "configs").is_dir()]


def _make_importable() -> None:
    """Let recipes say `from configs import base`: the working folder's file, else this project's.

    One package of both folders, under whatever other `configs` there may be among the installed packages.
    """
    if "configs" in sys.modules:
        return
    folders = [root / "configs" for root in _roots()]
    init = next(file for folder in folders if (file := folder / "__init__.py").is_file())
    spec = importlib.util.spec_from_file_location("configs", init, submodule_search_locations=[*map(str, folders)])
    sys.modules["configs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["configs"])


def load(given: str) -> ConfigDict:
    """Result of `get_config` of FILE.py, or of FILE.py:ARGUMENT with that argument; FILE.py as `find` finds it."""
    path, colon, argument = find(given).partition(":")
    arguments = (argument,) if colon else ()
    folder = os.getcwd()
    try:
        _make_importable()
        function = runpy.run_path(path).get("get_config")
        if not callable(function):
            raise UserError(f"--config={path} is no recipe: it has no function get_config()")
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            does = "does not take what is behind the colon" if colon else f"needs an argument: --config={path}:ARGUMENT"
            raise UserError(f"--config={given}: get_config{inspect.signature(function)} {does}") from None
        config = function(*arguments)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a file of the user's can raise anything, or exit
        raise UserError(_failure(path, error)) from error
    finally:
        os.chdir(folder)  # --workdir is of the user's folder, wherever the file went
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return a ConfigDict, found {type(config).__name__}")
    return config


def _failure(path: str, error: BaseException) -> str:
    """The error by the last line of the user's own files that led to it."""
    if isinstance(error, SyntaxError) and error.filename:
        places = [(error.filename, error.lineno)]
        message = f"SyntaxError: {error.msg}"
    else:
        libraries = (*(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")), "<", __file__)
        frames = traceback.extract_tb(error.__traceback__)
        places = [(f.filename, f.lineno) for f in frames if not f.filename.startswith(libraries)]
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        # A recipe refuses its argument by a ValueError, which speaks for itself.
        kind = "" if type(error) is ValueError and str(error) else f"{type(error).__name__}: "
        message = kind + " ".join(str(text).split())
    file, line = places[-1] if places else (path, None)
    file = Path(file)
    where = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return printable(f"{where}{f', line {line}' if line else ''}: {message}")


def modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes of sctd_jax.main that a recipe is for, by its fields."""
    return _kind(config)[0]


def _kind(config: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[type, ...], str]:
    def common(kind) -> tuple[int, float]:
        """Number of the recipe's fields that it has, then the share of common ones: a recipe may leave fields out."""
        names = {field.name for type_ in kind[1] for field in dataclasses.fields(type_)}
        return len(names & set(config)), len(names & set(config)) / len(names | set(config))

    return max(_KINDS, key=common)


def check_fields(path: str, config: ConfigDict, names: Sequence[str]) -> None:
    """Check that each name, such as train.steps, is a field of the recipe."""
    for name in names:
        value: Any = config
        for part in name.split("."):
            if not isinstance(value, ConfigDict) or part not in value:
                raise UserError(f"--config.{name}: {path} has no such field; {suggestion(name, config)}")
            value = value[part]
        if isinstance(value, ConfigDict):
            raise UserError(f"--config.{name} is a section; its fields are {', '.join(value)}")


def suggestion(name: str, config: Mapping[str, Any], options: Sequence[str] = ()) -> str:
    """Guess at a name that is no field of a recipe, and none of the options either."""
    known = {f"config.{field}": field for field, _ in fields(config)} | {option: option for option in options}
    wanted = name.replace("-", "_")
    near = {full: difflib.SequenceMatcher(None, wanted, short).ratio() for full, short in known.items()}
    last = wanted.rpartition(".")[2]
    for full, short in known.items():  # the right name in another section, or in none
        near[full] = max(near[full], 0.99 * difflib.SequenceMatcher(None, last, short.rpartition(".")[2]).ratio())
    best = max(near.values(), default=0)
    found = [f"--{full}" for full, ratio in near.items() if ratio == best][:3]
    return f"did you mean {' or '.join(found)}?" if best > 0.75 else "all are listed by --help"


def expected(name: str, config: ConfigDict) -> str:
    """Values that a field may have, in words; '' where there is no such field."""
    found = dict(fields(config))
    return _WORDS.get(type(found[name]), type(found[name]).__name__) if name in found else ""


def fields(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Name, such as train.steps, and value of each field."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{above}{name}.")
        else:
            yield above + name, value


def describe(config: ConfigDict, width: int) -> str:
    """A table of a recipe's fields: name, type, value there, and the meaning with its bounds."""
    known = {field.name: field for type_ in _kind(config)[1] for field in dataclasses.fields(type_)}
    plain = {name: value for name, value in config.items() if not isinstance(value, ConfigDict)}
    blocks = [_table("config", plain, known, width)] if plain else []
    for name in _in_order(config, known):
        if isinstance(config[name], ConfigDict):
            title, inner = f"config.{name}", {}
            if name in known and dataclasses.is_dataclass(type_ := known[name].type):
                title += f": {inspect.getdoc(type_)}"
                inner = {field.name: field for field in dataclasses.fields(type_)}
            blocks.append(_table(title, config[name], inner, width))
    return "\n\n".join(blocks)


def _table(title: str, values: Mapping[str, Any], known: Mapping[str, dataclasses.Field], width: int) -> str:
    found = [(name, values[name]) for name in _in_order(values, known)]
    rows = [(name, type(value).__name__, repr(value), _meaning(known.get(name))) for name, value in found]
    return "\n".join([title, *columns(rows, width)])


def _meaning(field: dataclasses.Field | None) -> str:
    if field is None:
        return ""
    bounds = field.metadata["bounds"]
    limits = [f"one of {', '.join(choices)}"] if (choices := get_args(field.type)) else []
    limits += [bounds.says.removeprefix("must be ")] if bounds else []
    limits += ["a rerun may change it"] if field.metadata["rerun"] else []
    return field.metadata["meaning"] + (f" ({'; '.join(limits)})" if limits else "")


def _in_order(names, order) -> list[str]:
    """A ConfigDict sorts its names; the dataclass has them as one reads them."""
    return [*(name for name in order if name in names), *(name for name in names if name not in order)]


def columns(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of a table whose last column is wrapped."""
    sizes = [min(max(len(row[i]) for row in rows), 29) for i in range(len(rows[0]) - 1)]
    indent = " " * (2 + sum(size + 2 for size in sizes))
    lines = []
    for *cells, last in rows:
        first = "  " + "".join(cell.ljust(size) + "  " for cell, size in zip(cells, sizes, strict=True))
        found = textwrap.wrap(
            last, max(width, len(indent) + 30), initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
        )
        lines += [line.rstrip() for line in found] or [first.rstrip()]
    return lines
