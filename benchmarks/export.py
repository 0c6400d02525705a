"""Bytes that an export reads and the memory that it needs, for a run as large as BERT-base.

python benchmarks/export.py [--workdir RUN] [--out DIR] [--smoke]

Without --workdir a run of BERT-base with random weights is made in a temporary folder. SCTD_JAX=FOLDER measures the
package of another checkout. --smoke makes a run of one small layer, to see that all of it works.
Bytes are those of the process's read calls (`rchar` of /proc/self/io), memory is its resident set; both without what
Python and its libraries took before. Neither depends on what else runs.
"""

import dataclasses
import multiprocessing
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.insert(0, os.environ.get("SCTD_JAX", str(Path(__file__).parents[1])))

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sctd_jax.arguments import CommandParser
from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.errors import run_command
from sctd_jax.interop.exporting import export
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.optimizer import make_optimizer
from sctd_jax.train.state import TrainState
from sctd_jax.train.workdir import write_config


def main() -> None:
    """Measure and print."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--workdir", default="", help="folder of a run; default: one of BERT-base is made")
    parser.add_argument("--out", help="keep the export there")
    parser.add_argument("--smoke", action="store_true", help="one small layer in the place of BERT-base")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = args.workdir
        if not workdir:
            workdir = f"{folder}/run"
            child = multiprocessing.get_context("spawn").Process(target=make_run, args=(Path(workdir), args.smoke))
            child.start()
            child.join()
            if child.exitcode:
                sys.exit(child.exitcode)
        jax.devices()
        before, read_before = memory("VmRSS"), read_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        export(epath.Path(workdir), Path(args.out or f"{folder}/out"), step=None, force=False, log=print)
        size = sum(x.stat().st_size for x in Path(workdir, "checkpoints").rglob("*") if x.is_file())
        rows = {
            "checkpoint": size,
            "read": read_bytes() - read_before,
            "peak memory": memory("VmHWM") - before,
            "memory before": before,
        }
    for name, value in rows.items():
        print(f"{name:15s} {value / 2**20:8,.0f} MiB")


def make_run(workdir: Path, smoke: bool) -> None:
    """Write a run of BERT-base, or of one small layer, with random weights, moments and words, at step 0."""
    config = Config(dropping=dataclasses.replace(Config().dropping, method="full"))
    if smoke:
        small = {"vocab_size": 512, "num_layers": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **small))
    model, special = config.model, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    workdir.mkdir()
    vocabulary = workdir.with_name("vocab.txt")
    vocabulary.write_text("\n".join([*special, *(f"w{number}" for number in range(model.vocab_size - len(special)))]))
    name, content = tokenizer.canonical(vocabulary)
    (workdir / name).write_bytes(content)
    row_BN = np.zeros((1, 8), np.int32)
    params = jax.jit(MaskedLm(model, 0, 0).init)(jax.random.key(0), row_BN, row_BN == 0)["params"]
    # Zeros take no room in a checkpoint, and the moments of a run that has trained are none.
    moments = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) if x.ndim else x,
        make_optimizer(config.optimizer).init(params),
    )
    zero, importance_V = jnp.int32(0), jnp.zeros(model.vocab_size)
    with closing(Checkpoints(epath.Path(workdir))) as checkpoints:
        checkpoints.save(TrainState(zero, params, moments, importance_V, jax.random.key(0), zero), None)
        checkpoints.wait()
    write_config(epath.Path(workdir), config)


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def read_bytes() -> int:
    """Bytes that this process has read so far, from files and pipes."""
    return int(Path("/proc/self/io").read_text().split("\n")[0].removeprefix("rchar: "))


if __name__ == "__main__":
    sys.exit(run_command(main))
