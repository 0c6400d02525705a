"""Recipes, flags and variables of `python -m sctd_jax.main`."""

from pathlib import Path

from tests.fire.case import Case, special

_WHERE = "--workdir=$here/run --config.data.rows=$base/rows"
_TWO = "--num_processes=2 --process_id=0"
_SMALL = f"sctd_jax.main --config=tests/small.py {_WHERE}"


def _field(name: str, value: str, *words: str) -> Case:
    return Case(f"{name} {value[:40]}", f"{_SMALL} '--config.{name}={value}'", words=words or (name,))


def _recipe(name: str, content: str | bytes, *words: str) -> Case:
    def make(here: Path, base: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (here / "recipe.py").write_bytes(data)

    return Case(f"a recipe that {name}", f"sctd_jax.main --config=$here/recipe.py {_WHERE}", make, words=words)


def _flags(name: str, given: str, *words: str, status: int = 2, **more) -> Case:
    return Case(name, f"sctd_jax.main {given}", words=words, status=status, **more)


def _variable(name: str, value: str, **others: str) -> Case:
    return Case(f"{name}={value}", _SMALL, words=(name,), env={name: value} | others)


_TINY = "from configs import base\n\ndef get_config():\n    config = base.get_config()\n"
_BAD_NUMBERS = ("nan", "inf", "-inf", "1e400", "-1", "", "1_0", "٣")
_INTEGERS = ("train.steps", "train.batch_size", "train.seed", "train.eval_rows", "train.keep_checkpoints",
             "model.num_layers", "model.hidden_size", "data.seq_len", "dropping.sc_interval")  # fmt: skip

CASES = [
    *(_field("optimizer.learning_rate", value) for value in _BAD_NUMBERS),
    *(_field("dropping.sc_weight", value) for value in ("inf", "nan", "-1")),
    *(_field("dropping.importance_init", value) for value in ("inf", "-5")),
    *(_field(name, value) for name in _INTEGERS for value in ("-1", "9999999999", "99999999999999999999", "x", "1.5")),
    *(_field("train.batch_size", value) for value in ("1000000000", "1000000000000000000")),
    *(_field("model.num_layers", value) for value in ("0", "1000000")),
    *(_field("model.hidden_size", value) for value in ("1000000000000", "33")),
    *(_field("model.intermediate_size", value) for value in ("0", "1000000000000")),
    *(_field("model.vocab_size", value) for value in ("1", "1000000000000")),
    *(_field("dropping.first_layer", value) for value in ("-7", "99")),
    _field("dropping.keep_schedule", "٣:8"),
    _field("dropping.keep_schedule", "0:8,0:9"),
    _field("dropping.keep_schedule", "0:" + "9" * 5000),
    _field("dropping.method", "dorp", "dropping.method"),
    _field("data.rows", "/nowhere", "/nowhere"),
    _field("data.rows", "/dev/null", "/dev/null"),
    _field("train.init", "/nowhere", "/nowhere"),
    _field("train.init", "\x01", "\\x01"),
    _field("train.track", "nobody", "track"),
    _field("mesh.fsdp", "3", "fsdp"),
    _field("mesh.fsdp", "0", "fsdp"),
    _field("mesh.tensor", "99999999999", "tensor"),
    _field("nothing", "1", "no such field"),
    _field("train", "1", "section"),
    _recipe("has a syntax error", "def get_config(:\n", "recipe.py", "line 1"),
    _recipe("raises", _TINY + "    raise RuntimeError('never')\n", "recipe.py", "never"),
    _recipe("raises nothing to read", _TINY + "    raise RuntimeError\n", "recipe.py", "RuntimeError"),
    _recipe("exits", _TINY + "    raise SystemExit(0)\n", "recipe.py", "SystemExit"),
    _recipe("exits with a number", "import sys\nsys.exit(7)\n", "recipe.py", "SystemExit"),
    _recipe("raises a base exception", _TINY + "    raise BaseException('up')\n", "recipe.py", "up"),
    _recipe("returns a dict", "def get_config():\n    return {}\n", "ConfigDict"),
    _recipe("returns a string", "def get_config():\n    return 'x'\n", "ConfigDict"),
    _recipe("returns nothing", "def get_config():\n    pass\n", "ConfigDict"),
    _recipe("returns a million letters", "def get_config():\n    return 'x' * 10**6\n", "ConfigDict"),
    _recipe(
        "returns what cannot be shown",
        "class A:\n    def __repr__(self): 1 / 0\n\ndef get_config():\n    return A()\n",
        "ConfigDict",
    ),
    _recipe(
        "returns an empty config",
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
        "recipe.py",
    ),
    _recipe("lacks a section", _TINY + "    del config.model\n    return config\n", "model"),
    _recipe("lacks a field", _TINY + "    del config.model['num_heads']\n    return config\n", "num_heads"),
    _recipe(
        "has a section for a number",
        _TINY + "    config.unlock()\n    config.train.steps = config.model\n    return config\n",
        "steps",
    ),
    _recipe(
        "has a list for a number",
        _TINY + "    config.unlock()\n    config.train.ignore_type()\n"
        "    config.train.steps = [1]\n    return config\n",
        "steps",
    ),
    _recipe(
        "has a number too large to read",
        _TINY + "    config.train.steps = int('9' * 4000)\n    return config\n",
        "steps",
    ),
    _recipe("imports what is not there", "import nowhere\n", "recipe.py", "nowhere"),
    _recipe("imports a recipe that is not there", "from configs import nowhere\n", "recipe.py", "nowhere"),
    _recipe("has no function", "x = 1\n", "get_config"),
    _recipe("has a number of that name", "get_config = 1\n", "get_config"),
    _recipe("wants an argument", "def get_config(x):\n    pass\n", "argument"),
    _recipe("calls itself for ever", "def get_config():\n    return get_config()\n", "recipe.py", "Recursion"),
    _recipe("is empty", "", "get_config"),
    _recipe("holds NUL", b"x = 1\0\n", "recipe.py"),
    _recipe("is no UTF-8", b"x = '\xff'\n", "recipe.py"),
    _recipe("is a picture", bytes(range(256)) * 20, "recipe.py"),
    _recipe("is nested deep", "x = " + "[" * 10_000 + "]" * 10_000 + "\n", "recipe.py"),
    Case("a recipe that is a folder", f"sctd_jax.main --config=$here {_WHERE}"),
    _flags("no arguments", "", "--config"),
    _flags("a stray argument", f"--config=tests/small.py {_WHERE} stray", "stray"),
    _flags("help", "--help", status=0),
    _flags("help of a recipe", "--config=tests/small.py --help", status=0),
    _flags("an option that is not known", f"--config=tests/small.py {_WHERE} --nothing=1", "--nothing"),
    _flags("an option without a value", f"--config=tests/small.py {_WHERE} --mode", "--mode"),
    _flags("a mode that is not known", f"--config=tests/small.py {_WHERE} --mode=tarin", "mode"),
    _flags("a recipe of another mode", f"--config=tests/small.py {_WHERE} --mode=finetune", "--mode"),
    _flags("a recipe that is not there", f"--config=nowhere.py {_WHERE}", "nowhere.py"),
    _flags("a recipe given twice", f"--config=tests/small.py --config=tests/small.py {_WHERE}", "--config"),
    _flags("an empty recipe", f"--config= {_WHERE}", "--config"),
    _flags("an empty workdir", "--config=tests/small.py --workdir= --config.data.rows=$base/rows", "--workdir"),
    _flags("a flag file that is not there", "--flagfile=/nowhere", "/nowhere"),
    Case(
        "a flag file that is a pipe",
        f"sctd_jax.main --flagfile=$here/flags {_WHERE}",
        lambda here, base: special("flags")(here),
        words=("flags is a pipe",),
    ),
    _flags(
        "a workdir that is a file",
        "--config=tests/small.py --workdir=$base/text.txt --config.data.rows=$base/rows",
        "text.txt",
    ),
    _flags(
        "a workdir that is no UTF-8",
        "--config=tests/small.py --workdir=$here/a\udcffb --config.data.rows=$base/rows",
        "UTF-8",
    ),
    _flags(
        "rows that are no UTF-8", "--config=tests/small.py --workdir=$here/run --config.data.rows=$here/\udcff", "UTF-8"
    ),
    _flags(
        "a workdir below a file",
        "--config=tests/small.py --workdir=$base/text.txt/x --config.data.rows=$base/rows",
        "text.txt",
    ),
    _flags(
        "a workdir where nobody may write",
        "--config=tests/small.py --workdir=/proc/x --config.data.rows=$base/rows",
        "/proc/x",
    ),
    _flags(
        "a workdir with a name too long",
        f"--config=tests/small.py --workdir=$here/{'x' * 300} --config.data.rows=$base/rows",
        "name too long",
    ),
    _flags("a coordinator of nonsense", f"--config=tests/small.py {_WHERE} --coordinator=x", "coordinator"),
    _flags(
        "a process beyond their number",
        f"--config=tests/small.py {_WHERE} --coordinator=localhost:1 --num_processes=2 --process_id=2",
        "process_id",
    ),
    *(
        _flags(
            f"a coordinator at {where}", f"--config=tests/small.py {_WHERE} --coordinator={where} {_TWO}", "coordinator"
        )
        for where in ("localhost:0", "localhost:99999", "' localhost:80'", "localhost:0x50")
    ),
    _flags("half of several hosts", f"--config=tests/small.py {_WHERE} --num_processes=2", "coordinator"),
    _flags("no slice to compile for", "--config=tests/small.py --mode=compile", "--topology"),
    _flags("a slice that is none", "--config=tests/small.py --mode=compile --topology=v9:1x1"),
    _flags("a utilisation of 7", "--config=tests/small.py --mode=compile --topology=v5e:2x4 --mfu=7", "mfu"),
    _flags("evaluation without a run", f"--config=tests/small.py {_WHERE} --mode=eval", "run"),
    _variable("JAX_PLATFORMS", "nonsense"),
    _variable("JAX_NUM_PROCESSES", "many", JAX_COORDINATOR_ADDRESS="localhost:1"),
    _variable("JAX_PROCESS_ID", "-1", JAX_COORDINATOR_ADDRESS="localhost:1", JAX_NUM_PROCESSES="2"),
    _variable("JAX_COORDINATOR_ADDRESS", "localhost", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0"),
    _variable("SLURM_STEP_NUM_TASKS", "many"),
    _variable("OMPI_COMM_WORLD_SIZE", "-3"),
]
