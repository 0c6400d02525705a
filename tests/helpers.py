"""Helpers of several tests."""

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sctd_jax.config import Config, DataConfig, from_dict
from sctd_jax.data.shards import ShardWriter, shard_name, write_description
from sctd_jax.data.special import SpecialIds
from sctd_jax.hf import names
from sctd_jax.model.token_dropping import Candidates
from sctd_jax.pretrain.model import initial_state, settle
from sctd_jax.train.state import TrainState
from tests import small

ROOT = Path(__file__).parents[1]
# Tests and the programs that they start share compiled code; most of the suite's time is XLA's compiler.
FAST_COMPILER = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # later ones have no such choice, and end where they meet an unknown flag
    FAST_COMPILER += " --xla_cpu_use_fusion_emitters=false"
COMPILATION_CACHE = {
    # One for all workers of pytest-xdist, for the programs that tests start and for the next run of the suite.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
}
# Made by .ci/run or `make interop`; a Python that has torch and transformers.
PEER = Path(os.environ.get("SCTD_INTEROP_PYTHON", ROOT / ".venv-interop" / "bin" / "python"))
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def config(**overrides) -> Config:
    """`tests/small.py` with overrides such as `train__steps=3`, on one device where no mesh is asked for.

    Eight devices double a compiler's time; test_mesh.py, test_finetune_step.py and a run of test_hosts.py have them.
    """
    values = small.get_config().to_dict()
    values["mesh"]["data"] = -1 if any(name.startswith("mesh__") for name in overrides) else 1
    for name, value in overrides.items():
        section, field = name.split("__")
        assert field in values[section]
        values[section][field] = value
    return from_dict(values)


def settled(config: Config) -> Config:
    """The config as the tests' devices compute it."""
    return settle(config, "cpu")[0]


def data(**fields) -> DataConfig:
    """The section `data` of `config()` with other fields; `vocab_size` is 512 there."""
    return dataclasses.replace(config().data, **fields)


DROPOUT = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}


def random_rows(count: int, length: int = 32, vocab_size: int = 512, seed: int = 0, pad: bool = False) -> jax.Array:
    """Rows [CLS] ... [SEP] of random ordinary ids; with `pad`, row i loses its last 3 i tokens."""
    tokens = jax.random.randint(jax.random.key(seed), (count, length), 5, vocab_size)
    ends = length - (3 * jnp.arange(count) if pad else jnp.zeros(count, jnp.int32))
    at = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
    tokens = jnp.where(at == ends[:, None] - 1, SPECIAL.sep, jnp.where(at >= ends[:, None], SPECIAL.pad, tokens))
    return tokens.at[:, 0].set(SPECIAL.cls)


@functools.cache
def _initial(of: Config):
    return jax.jit(lambda: initial_state(of, SPECIAL))


def initial(of: Config) -> TrainState:
    """The state before the first step, from one program for each network and optimizer."""
    mine = config()
    dropping = dataclasses.replace(mine.dropping, importance_init=of.dropping.importance_init)
    train = dataclasses.replace(mine.train, seed=of.train.seed)
    return _initial(dataclasses.replace(mine, model=of.model, optimizer=of.optimizer, dropping=dropping, train=train))()


def moved(params, scale: float, seed: int = 5):
    """Parameters plus normal noise, so that biases are not 0 and gradients not tiny; without a compilation."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + scale * rng.standard_normal(p.shape).astype(np.float32), params)


def bert_tensors(model, params) -> dict[str, np.ndarray]:
    """Parameters by the names of `BertForMaskedLM`, those of them that there are."""
    leaves = flatten_dict(params)
    return {
        name: names.to_torch(model, paths, leaves) for name, paths in names.names(model).items() if paths[0] in leaves
    }


def candidates(importance_V, ids, mask=None, *, keys_B=None, num_top=0, state_BND=None) -> Candidates:
    """What a selector reads; what it does not may be left out."""
    return Candidates(importance_V, ids, ids > 0 if mask is None else mask, state_BND, keys_B, num_top)


# One process for many programs, which forks for each after the imports that take the time.
_FORKING = """
import importlib, json, os, runpy, signal, sys, tempfile, time, warnings
for module in json.loads(sys.stdin.readline()):
    importlib.import_module(module)
warnings.simplefilter("ignore", RuntimeWarning)  # JAX's, of forks; it has no threads before its backend
for line in sys.stdin:
    arguments, environment = json.loads(line)
    files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    began, child = time.monotonic(), os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(environment)
        for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *(file.fileno() for file in files)]):
            os.dup2(descriptor, number)
        (kind, *rest), sys.path[0] = arguments, os.getcwd()
        sys.argv = rest if kind == "-m" or kind == "-c" else arguments
        if kind == "-c":
            exec(rest[0], {"__name__": "__main__"})
        elif kind == "-m":
            sys.orig_argv = [sys.executable, *arguments]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(kind)
            runpy.run_path(kind, run_name="__main__")
        sys.exit(0)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(int(environment.get("SECONDS_OF_A_FORK", 1200)))  # one that hangs ends, and its test fails
    _, status, used = os.wait4(child, 0)
    signal.alarm(0)
    texts = [(file.seek(0), file.read().decode(errors="replace"), file.close())[1] for file in files]
    cpu_seconds = used.ru_utime + used.ru_stime
    used = {"seconds": time.monotonic() - began, "cpu_seconds": cpu_seconds, "peak_bytes": used.ru_maxrss * 1024}
    print(json.dumps([os.waitstatus_to_exitcode(status), *texts, used]), flush=True)
"""


@contextlib.contextmanager
def forking(
    python: str | Path, preload: tuple[str, ...], env: dict[str, str], cwd: Path = ROOT
) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """A function that runs `python` with arguments, and an environment if not `env`, after imports that all share."""
    env = {"GLIBC_TUNABLES": ""} | env  # for huge pages the command would start Python again
    with subprocess.Popen(
        [python, "-c", _FORKING], env=env, cwd=cwd, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def run(arguments: list[str], own: dict[str, str] | None = None) -> subprocess.CompletedProcess:
            process.stdin.write(json.dumps((arguments, own or env)) + "\n")
            process.stdin.flush()
            *answer, used = json.loads(process.stdout.readline())
            done = subprocess.CompletedProcess(arguments, *answer)
            done.used = used  # 'seconds', 'cpu_seconds' and 'peak_bytes'
            return done

        process.stdin.write(json.dumps(preload) + "\n")
        yield run


@functools.cache
def _forks(of_the_process: frozenset[tuple[str, str]]):
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    env = {name: value for name, value in os.environ.items() if not _OF_THE_PROCESS.match(name)} | dict(of_the_process)
    return stack.enter_context(forking(sys.executable, ("sctd_jax.pretrain.pretraining", "sctd_jax.report"), env))


# Variables that Python, JAX and the compilers read at their start; the rest each fork is given.
_OF_THE_PROCESS = re.compile(r"(JAX|XLA|TF|TPU|LIBTPU|ALLOW_MULTIPLE_LIBTPU|GLIBC|LD|PYTHON|MALLOC)_?")


def run_fork(arguments: Sequence[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """`python arguments` in a process that begins after the imports; in `env`, by default that of `environment()`."""
    env = {name: value for name, value in (env or environment()).items() if name != "PYTEST_CURRENT_TEST"}
    own = {name: value for name, value in env.items() if _OF_THE_PROCESS.match(name)}
    return _forks(frozenset(own.items()))(list(map(str, arguments)), {"GLIBC_TUNABLES": ""} | env)


def run_module(module: str, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """`python -m module args` as a user would, on one CPU device; without the seconds of its imports."""
    return run_fork(["-m", module, *args], env)


# One program of one layer, for runs whose end or place is the point and not what they train.
ONE_LAYER = ("--config.dropping.method=full", "--config.model.num_layers=1")


def call(main, *args: str) -> subprocess.CompletedProcess:
    """`main(args)` in this process, where what the command does is the point and not that it is a process."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = main(list(args))
    return subprocess.CompletedProcess(args, status, stdout.getvalue(), stderr.getvalue())


def environment() -> dict[str, str]:
    """A user's environment on one CPU device."""
    cache = {name: str(value) for name, value in COMPILATION_CACHE.items()}
    return {**os.environ, **cache, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_COMPILER, "PYTHONPATH": str(ROOT)}


# One process for many command lines, which forks for each: absl parses once in a process.
_FORKS = """
import json, os, sys, tempfile
from absl import app
from sctd_jax import main
answers = []
for arguments in json.load(sys.stdin):
    files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if not child:
        os.dup2(files[0].fileno(), 1)
        os.dup2(files[1].fileno(), 2)
        sys.argv = ["main", *arguments]
        app.run(main._main, flags_parser=main._parse)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answers.append((status, *((file.seek(0), file.read().decode())[1] for file in files)))
print(json.dumps(answers))
"""


def answers(command_lines: list[list[str]]) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of sctd_jax.main with each list of arguments, before JAX is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _FORKS], input=json.dumps(command_lines), env=environment(), cwd=ROOT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start_pair(
    workdir, rows, *args, each=lambda i: (), env=None, program=("-m", "sctd_jax.main")
) -> list[subprocess.Popen]:
    """Two processes of two devices each that train `tests/small.py` on rows; without rows, what `args` say."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = dict(env or environment())
    env["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    small = ["--config=tests/small.py", f"--config.data.rows={rows}"] if rows is not None else []
    where = [f"--workdir={workdir}"] if workdir else []
    command = [
        sys.executable, *program, *small, *where, f"--coordinator=localhost:{port}", "--num_processes=2", *args,
    ]  # fmt: skip
    return [
        subprocess.Popen(
            [*command, f"--process_id={i}", *each(i)], cwd=ROOT, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip


def end(processes) -> tuple[list[int], list[str]]:
    """(exit statuses, outputs)."""
    with ThreadPoolExecutor() as pool:  # together: one that cannot write to a full pipe holds up the other
        outputs = list(pool.map(lambda process: process.communicate(timeout=240)[0], processes))
    return [process.returncode for process in processes], outputs


def write_shards(folder: Path, shards: dict[str, list[np.ndarray]]) -> None:
    """Write the rows i32[R, N] of each shard, by split, and what describes them."""
    for split, blocks in shards.items():
        for number, rows_RN in enumerate(blocks):
            writer = ShardWriter(folder / shard_name(split, number, len(blocks)), rows_RN.shape[1])
            writer.add(rows_RN)
            writer.close()
    seq_len = next(iter(shards.values()))[0].shape[1]
    write_description(folder, seq_len, {split: [len(rows) for rows in blocks] for split, blocks in shards.items()})
