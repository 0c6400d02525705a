"""Arenas: recipes, cells and reports that are damaged or absurd; pages and rows of `report` and `data.inspect`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fire.case import Case, special

RECIPE = """
from tests import small_arena
def get_config(rows=""):
    config = small_arena.get_config(rows)
    {}
    return config
"""
ARENA = "sctd_jax.arena --config=$here/recipe.py:$base/rows --workdir=$here/cells {}"
DEEP = "[" * 20_000 + "]" * 20_000
CELL = {
    "method": "full", "budget": 1.0, "seed": 0, "step_time": 1.0, "steps": 300,
    "final": {"eval/loss": 5.0, "eval/below_unigram": 1.5}, "curve": [[0.5, 6.0, 0.5], [1.0, 5.0, None]],
    "downstream": {}, "probes": {},
}  # fmt: skip
REPORT = ("out", "out/*")


def _recipe(name: str, line: str, *words: str, flags: str = "", status: int = 2) -> Case:
    """The small arena with one line more."""
    return Case(
        f"recipe: {name}", ARENA.format(flags), lambda here, base: (here / "recipe.py").write_text(RECIPE.format(line)),
        status, words,
    )  # fmt: skip


def _cells(name: str, content: str | bytes, *words: str, status: int = 2, flags: str = "") -> Case:
    """`cells.jsonl` of an earlier report."""

    def make(here: Path, base: Path) -> None:
        (here / "cells.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())

    command = f"sctd_jax.arena --report --cells $here/cells.jsonl --out $here/out {flags}"
    return Case(f"cells: {name}", command, make, status, words, () if status else REPORT)


def _cell(name: str, *words: str, status: int = 2, gone: str = "", **fields: Any) -> Case:
    """A line of `cells.jsonl` with other fields."""
    values = {field: value for field, value in (CELL | fields).items() if field != gone}
    return _cells(name, json.dumps(values) + "\n", *words, status=status)


def _finished(name: str, result: str | bytes | None, *words: str, change: Callable[[Path], Any] = lambda cells: 0,
              flags: str = "--report", status: int = 2) -> Case:  # fmt: skip
    """A folder of cells with one that is finished, whose `result.json` is this."""

    def make(here: Path, base: Path) -> None:
        (here / "recipe.py").write_text(RECIPE.format("pass"))
        place = here / "cells" / "full-1-0"
        place.mkdir(parents=True)
        if result is not None:
            (place / "result.json").write_bytes(result if isinstance(result, bytes) else result.encode())
        change(here / "cells")

    return Case(f"workdir: {name}", ARENA.format(flags), make, status, words, () if status else ("cells/report*",))


def _other(file: str, content: str) -> Callable[[Path], Any]:
    def change(cells: Path) -> None:
        (cells / file).parent.mkdir(parents=True, exist_ok=True)
        (cells / file).write_text(content)

    return change


def _page(name: str, runs: str, *words: str, change: Callable[[Path], Any] = lambda run: 0, flags: str = "",
          of: str = "run", status: int = 2) -> Case:  # fmt: skip
    """A page of a copy of a run, changed; without fill-mask examples, which compile."""

    def make(here: Path, base: Path) -> None:
        change(Path(shutil.copytree(base / of, here / "run")))

    command = f"sctd_jax.report {runs} --out $here/x.html --examples=0 {flags}"
    return Case(f"page: {name}", command, make, status, words, () if status else ("x.html",))


WHOLE = json.dumps(CELL)
SWEEP = {
    "tasks": [{"checkpoint": "full-1-0", "task": "rte", "learning_rate": 1e-5, "median": 0.5, "lowest": 0.5,
               "highest": 0.5, "seeds": 1, "unfinished": 0}],
    "averages": [],
}  # fmt: skip
CASES = [
    _recipe("no runs", "config.run = 7", "run"),
    _recipe("a run without sections", "config.run = {}", "config"),
    _recipe("a run of nonsense", "config.run.train.steps = 0", "config.train.steps"),
    _recipe("methods that are a number", "config.methods = 7", "methods"),
    _recipe("a method that is a number", "config.methods.x = 7", "method x"),
    _recipe("a section that is a number", "config.methods.x = {'dropping': 7}", "method x"),
    _recipe("an unknown section", "config.methods.drop.driping = {'x': 1}", "method drop", "driping"),
    _recipe("an unknown selector", "config.methods.drop.dropping = {'selector': 'x'}", "selector"),
    _recipe("a name that leads outside", "config.methods['/x'] = {'dropping': {'method': 'full'}}", "'/x'"),
    _recipe("a name that is empty", "config.methods[''] = {'dropping': {'method': 'full'}}", "method ''"),
    _recipe("a baseline that is not there", "config.baseline = 'x'", "baseline x"),
    _recipe("a baseline that is a number", "config.baseline = 7", "baseline"),
    _recipe("no step times", "config.step_time = {}", "step_time"),
    _recipe("step times that are a number", "config.step_time = 7", "step_time"),
    *(_recipe(f"a step time of {value}", f"config.step_time = {{'full': 1.0, 'drop': {value}, 'random': 1.0}}", word)
      for value, word in (("float('nan')", "step_time"), ("-1.0", "step_time"), ("'fast'", "step_time"),
                          ("1e-12", "train.steps"), ("10**400", "step_time"))),
    _recipe("no rounds", "config.rounds = ()", "no cell"),
    _recipe("rounds that are a number", "config.rounds = 7", "rounds"),
    _recipe("a round that is a number", "config.rounds = (7,)", "round 1"),
    *(_recipe(f"{name} of {value}", f"config.rounds = ({{**dict(methods=('full',), budgets=(1.0,), seeds=(0,)), "
              f"'{name}': {value}}},)", "round 1")
      for name, value in (("budgets", 7), ("budgets", "('x',)"), ("budgets", "(float('nan'),)"), ("budgets", "(0,)"),
                          ("seeds", "(-1,)"), ("seeds", "(1.5,)"), ("seeds", "('x',)"), ("seeds", "(2**32,)"),
                          ("methods", "'full'"), ("methods", "('x',)"), ("colours", "(1,)"))),
    *(_recipe(f"{name} of {value}", f"config.{name} = {value}", name)
      for name in ("evaluations", "judge_rows") for value in ("0", "-1", "'x'", "10**12", "1.5")),
    _recipe("rows that are not there", "config.run.data.rows = '/nowhere'", "/nowhere"),
    _recipe("a field too many", "config.more = 7", "more"),
    _recipe("a report of nothing", "pass", "no cell is finished", flags="--report"),
    _recipe("an empty --out", "pass", "--out", flags="--report --out ''"),
    _recipe("--baseline beside a recipe", "pass", "--baseline", flags="--report --baseline drop"),
    _recipe("--step-time that is not there", "pass", "none.json", flags="--step-time $here/none.json"),
    _recipe("--step-time of another file", "pass", "step_time", flags="--step-time $base/rows/prepared.json"),
    _recipe("--step-time of a text", "pass", "text.txt", flags="--step-time $base/text.txt"),
    Case("arena: nothing", "sctd_jax.arena", words=("--config",)),
    Case("arena: no workdir", "sctd_jax.arena --config=configs/arena/small.py:rows --workdir=''", words=("--workdir",)),
    Case("arena: a file as workdir", "sctd_jax.arena --config=tests/small_arena.py:$base/rows --workdir=$base/text.txt",
         words=("text.txt",)),
    Case("arena: a recipe of a run", "sctd_jax.arena --config=configs/tiny.py --workdir=$here/cells", words=("arena",)),
    Case("arena: no rows", "sctd_jax.arena --config=configs/arena/small.py --workdir=$here/cells", words=("ARGUMENT",)),
    _cells("whole", WHOLE, "| full | 1 |", status=0),
    _cells("a cell that diverged", json.dumps(CELL | {"final": {"diverged": True}, "curve": []}), "diverged", status=0),
    _cells("empty", "", "no cell"), _cells("a list", "[1]\n", "line 1"), _cells("a number", "7\n", "line 1"),
    _cells("null", "null\n", "line 1"), _cells("cut", WHOLE + "\n" + WHOLE[:50] + "\n", "line 2"),
    _cells("nested deep", DEEP + "\n", "line 1"), _cells("no UTF-8", b"\xff\xfe{}\n", "line 1"),
    _cells("zeros", bytes(1000), "line 1"), _cells("twice", WHOLE + "\n" + WHOLE + "\n", "line 2", "line 1"),
    _cells("an unknown baseline", WHOLE, "warning", "dorp", status=0, flags="--baseline dorp"),
    _cells("with a recipe", WHOLE, "--config", flags="--config=x.py"),
    _cells("with a workdir", WHOLE, "--workdir", flags="--workdir=x"),
    *(_cell(f"without {field}", "line 1", field, gone=field)
      for field in ("method", "budget", "seed", "step_time", "final", "curve")),
    *(_cell(f"{field} of {value!r:.30}", "line 1", **{field: value}) for field, value in (
        ("method", 7), ("method", None), ("budget", float("nan")), ("budget", float("inf")), ("budget", "1"),
        ("budget", 0), ("budget", 10**400), ("seed", "0"), ("final", {}), ("final", []),
        ("final", {"eval/loss": float("nan")}), ("final", {"eval/loss": 5.0, "eval/below_unigram": "x"}),
        ("curve", []), ("curve", 7), ("curve", [7]), ("curve", [[]]), ("curve", [[0.5, float("nan"), None]]),
        ("curve", [[0.5, None, None]]), ("downstream", {"rte": "good"}), ("probes", [1]),
        ("probes", {"rte": float("inf")}))),
    _cell("a method no terminal shows", status=0, method="\x1b[31m|x"),
    Case("cells: not there", "sctd_jax.arena --report --cells $here/x --out $here/out", words=("--cells",)),
    Case("cells: a folder", "sctd_jax.arena --report --cells $here --out $here/out", words=("--cells",)),
    Case("cells: a pipe", "sctd_jax.arena --report --cells $here/x --out $here/out",
         lambda here, base: special("x")(here), words=("--cells", "x is a pipe")),
    Case("cells: /dev/zero", "sctd_jax.arena --report --cells /dev/zero --out $here/out", words=("is a device",)),
    Case("step times that are a pipe", "sctd_jax.arena --config=tests/small_arena.py:$base/rows --workdir=$here/c "
         "--step-time=$here/x", lambda here, base: special("x")(here), words=("x is a pipe",)),
    Case("cells: over a report of somebody else", "sctd_jax.arena --report --cells $here/c --out $here",
         lambda here, base: [(here / "c").write_text(WHOLE), (here / "report.md").write_text("mine")],
         words=("report.md is there", "another name")),
    _cell("a curve that goes back", "line 1", "curve", curve=[[1.0, 5.0, 1.0], [0.5, 6.0, 0.0]]),
    *(_cells(f"two {field}", WHOLE + "\n" + json.dumps(CELL | {"seed": 9, field: 7}) + "\n", "line 2", field)
      for field in ("step_time", "steps")),
    Case("arena: a run as workdir", "sctd_jax.arena --config=tests/small_arena.py:$base/rows --workdir=$here/run",
         lambda here, base: shutil.copytree(base / "run", here / "run"), words=("no cell of this table",)),
    Case("inspect over a text named as a picture", "sctd_jax.data.inspect $base/rows --out=$here/x.png",
         lambda here, base: (here / "x.png").write_text("mine"), words=("x.png is there", "no picture")),
    Case("inspect over its own picture, in other colours", "sctd_jax.data.inspect $base/rows --out=$here/x.png",
         lambda here, base: [(here / "x.png").write_bytes(b"\x89PNG"), (here / "rc").write_text("text.usetex: True")],
         status=0, new=("x.png",), env={"MATPLOTLIBRC": "$here/rc"}),
    Case("cells: without --report", "sctd_jax.arena --cells $here/x --out $here/out", words=("--report",)),
    Case("cells: without --out", "sctd_jax.arena --report --cells $here/x", words=("--out",)),
    *(Case(f"cells: to {out}", f"sctd_jax.arena --report --cells $here/c --out {out}",
           lambda here, base: (here / "c").write_text(WHOLE), words=(word,))
      for out, word in (("$here/c", "/c"), ("$here/c/d", "/c/d"), ("/proc/x", "/proc/x"), ("''", "--out"),
                        ("s3://bucket/x", "s3://"))),
    _finished("a finished cell", WHOLE, "1 of 9 cells", status=0),
    *(_finished(f"result.json is {what}", content, "result.json") for what, content in (
        ("empty", ""), ("a list", "[]"), ("an empty object", "{}"), ("half", WHOLE[:80]), ("nested deep", DEEP),
        ("NaN", WHOLE.replace("5.0", "NaN")), ("no UTF-8", b"\xff"))),
    _finished("result.json is a folder", None, "result.json",
              change=lambda cells: (cells / "full-1-0" / "result.json").mkdir()),
    _finished("config.json is half", WHOLE, "config.json", change=_other("full-1-0/config.json", '{"model": {')),
    _finished("config.json of another run", WHOLE, "config.json", change=_other("full-1-0/config.json", "{}")),
    _finished("a sweep's report", WHOLE, "fine-tuned on glue", status=0,
              change=_other("downstream/glue/report.json", json.dumps(SWEEP))),
    *(_finished(f"a sweep's report is {what}", WHOLE, "report.json", change=_other("downstream/glue/report.json", text))
      for what, text in (("empty", ""), ("an empty object", "{}"), ("tasks of numbers", '{"tasks": [7]}'),
                         ("a score that is a word", json.dumps(SWEEP).replace("0.5", '"x"')),
                         ("a score that is NaN", json.dumps(SWEEP).replace("0.5", "NaN")))),
    *(_finished(f"probes are {what}", WHOLE, "layers.json", change=_other("probes/layers.json", text))
      for what, text in (("empty", ""), ("an empty object", "{}"), ("models of numbers", '{"models": [7]}'),
                         ("no scores", '{"models": [{"model": "full-1-0", "mean": {"score": []}}], '
                                       '"settings": {"task": "rte"}}'))),
    _page("nothing wrong", "$here/run", status=0),
    _page("a fine-tuning", "$here/run", of="tuned", status=0),
    _page("all kinds", "$base/run $base/tuned", status=0),
    _page("a run twice", "$here/run $here/run/", "twice"),
    _page("an empty name", "$here/run ''", "RUN"),
    _page("a hundred runs", " ".join(f"$here/run{i}" for i in range(101)), "101"),
    _page("an export", "$base/exported", "exported"),
    _page("a config that is half", "$here/run", "config.json",
          change=lambda run: (run / "config.json").write_text("{")),
    _page("a result that is half", "$here/run", "result.json", of="tuned",
          change=lambda run: (run / "result.json").write_text("{")),
    _page("a result of words", "$here/run", "result.json", of="tuned",
          change=lambda run: (run / "result.json").write_text('{"eval/score": "good"}')),
    _page("a result of NaN", "$here/run", of="tuned", status=0,  # earlier code wrote it of a run that diverged
          change=lambda run: (run / "result.json").write_text('{"eval/score": NaN}')),
    _page("labels of numbers", "$here/run", "task.json", of="tuned",
          change=lambda run: (run / "task.json").write_text('{"labels": [1]}')),
    *(_page(f"--examples {value}", "$here/run", "--examples", flags=f"--examples={value}")
      for value in ("-1", "x", "nan", "1000000000000")),
    *(_page(f"a sweep's report is {what}", "$here/sweep", "report.json", change=lambda run, text=text: (
        (run.parent / "sweep").mkdir(), (run.parent / "sweep" / "report.json").write_text(text)))
      for what, text in (("empty", ""), ("a list", "[]"), ("an empty object", "{}"),
                         ("a table of numbers", '{"tasks": [7], "averages": []}'))),
    *(Case(f"inspect {flags:.50}", f"sctd_jax.data.inspect {flags}", words=words) for flags, words in (
        ("", ("ROWS",)), ("''", ("ROWS",)), ("$here/none", ("none",)), ("$base/text.txt", ("text.txt",)),
        ("$base/run", ("is a run",)), ("$base/rows --rows=0", ("--rows",)), ("$base/rows --rows=x", ("--rows",)),
        (f"$base/rows --rows={10**30}", ("--rows",)), ("$base/rows --out=$here", ("--out",)),
        ("$base/rows --out=''", ("--out",)), ("$base/rows --out=/proc/x.png", ("/proc/x.png",)),
        ("$base/rows --out=$here/x.txt.nothing", ("--out",)), ("$base/rows more", ("more",)),
        ("s3://bucket/rows", ("s3://",)))),
    *(Case(f"inspect {count} rows", f"sctd_jax.data.inspect $base/rows --rows={count} --out=$here/x.png", status=0,
           new=("x.png",)) for count in (1, 2, 15)),
]  # fmt: skip
