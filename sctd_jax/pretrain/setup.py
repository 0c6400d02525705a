"""Everything that is made once before the loop: rows, mesh, compiled steps, state."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data import tokenizer, unknown
from sctd_jax.data.loader import Loader
from sctd_jax.data.prepare import ensure_rows
from sctd_jax.data.rows import HELD_OUT, TRAIN, Metadata, Rows, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.model.attention import platform_of, settled
from sctd_jax.models import open_run
from sctd_jax.objective.masking import SpecialIds
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.compiling import compile_train_step, state_shape
from sctd_jax.pretrain.evaluation import eval_rows, make_eval_step, summarize
from sctd_jax.pretrain.step import steps_needed
from sctd_jax.train.state import TrainState, initial_state


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows of a run and what their tokenizer says."""

    folder: Path
    metadata: Metadata
    tokenizer: tokenizer.Tokenizer
    special: SpecialIds
    word_start_V: np.ndarray | None  # for whole-word masking


def open_data(config: Config, log: Callable[[str], None], began: Metadata | None = None) -> Data:
    """The config's rows, prepared now if missing; `began`: of those that its run has been trained on.

    Raises:
      UserError: they cannot be prepared, or do not fit the config.
    """
    with hosts.first_goes_first("rows"):
        folder = ensure_rows(config, log, began)
    metadata = read_metadata(folder)
    for field, have, want in (
        ("data.seq_len", metadata.seq_len, config.data.seq_len),
        ("model.vocab_size", metadata.vocab_size, config.model.vocab_size),
    ):
        if have != want:
            raise UserError(f"config.{field} is {want}, but the rows in {folder} were prepared with {have}")
    # Rows that are there already were perhaps prepared for somebody who allowed it.
    share = metadata.unknown_letters / max(metadata.letters, 1)
    if share > unknown.WARN:
        said = f"{share:.1%} of the letters of the rows in {folder} are unknown to their tokenizer"
        if share > unknown.REFUSE and not (config.data.allow_unknown or config.data.rows or began):
            raise UserError(
                f"{said}; use another config.data.tokenizer, or accept it: --config.data.allow_unknown=True"
            )
        log(f"warning: {said}")
    path = tokenizer.find(folder)
    if tokenizer.digest(path) != metadata.tokenizer_sha256:
        raise UserError(f"{path} is not the tokenizer that the rows beside it were made with")
    pieces = tokenizer.load(path, kept=True)
    word_start_V = pieces.word_start_V if config.masking.whole_word else None
    if word_start_V is not None and not word_start_V.any():
        raise UserError("config.masking.whole_word: no piece of the vocabulary begins a word")
    return Data(folder, metadata, pieces, SpecialIds(**pieces.special), word_start_V)


def new_state(config: Config, data: Data, mesh: Mesh, log: Callable[[str], None]) -> TrainState:
    """The state before the first step, on the mesh; its parameters are those of `train.init` if that is given."""
    shape = state_shape(config, data.special, mesh)
    state = meshes.jit_init(lambda: initial_state(config, data.special), shape)()
    if not config.train.init:
        return state
    step, found = open_run(storage.as_path(config.train.init), log).read(None, mesh)
    log(f"starting from the parameters of {config.train.init} at step {step}")
    return state.replace(params=found["params"])


def compile_steps(config: Config, data: Data, mesh: Mesh) -> Mapping[str, Callable]:
    """Every step that the run needs by its `step_name`, compiled: nothing compiles in the middle of a run."""
    config = settled(config, platform_of(mesh.devices.flat[0]))
    return {
        name: compile_train_step(stage, data.special, variant, mesh, data.word_start_V)
        for name, (stage, variant) in steps_needed(config).items()
    }


def train_loader(config: Config, data: Data, mesh: Mesh) -> Loader:
    """Shuffled batches of the training rows."""
    rows = Rows(data.folder, TRAIN)
    mine = meshes.host_rows(mesh, config.train.batch_size)
    return Loader(rows, batch_size=config.train.batch_size, seed=config.train.seed, host_rows=mine)


def make_evaluate(config: Config, data: Data, mesh: Mesh) -> Callable[[TrainState], dict[str, float]]:
    """A function from a state to its held-out metrics, over `train.eval_rows` rows; drop passes with its last step's K.

    It raises a UserError if not one token of these rows can be predicted.
    """
    rows = Rows(data.folder, HELD_OUT)
    chosen = eval_rows(config.train.eval_rows, len(rows))
    batch_size = config.train.batch_size // config.train.accumulation
    mine = meshes.host_rows(mesh, batch_size)

    @functools.cache  # one compilation for each K that is met
    def eval_step(stage: Config) -> Callable:
        eval_fn = make_eval_step(stage, data.special, data.word_start_V, mesh)
        return meshes.jit_eval_step(mesh, eval_fn, state_shape(stage, data.special, mesh))

    def evaluate(state: TrainState) -> dict[str, float]:
        totals: dict[str, Any] = {}
        for start in range(0, len(chosen), batch_size):
            at = start + np.arange(batch_size)[mine]
            # The last batch is filled up with its own rows, which then do not count.
            numbers = chosen[np.minimum(at, len(chosen) - 1)]
            inputs = (rows.read(numbers), numbers.astype(np.int32), at < len(chosen))
            inputs = (meshes.put_batch(mesh, batch_size, x) for x in inputs)
            sums = eval_step(config.after(int(state.step)))(state, *inputs)
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
        if not totals["predictions"]:
            raise UserError(f"{data.folder}: the held-out rows have no token to predict, expected rows of text")
        return summarize({name: float(value) for name, value in totals.items()})

    return evaluate


def matmul_flops_per_second() -> float:
    """Achieved FLOP/s of a plain f32 product on the default device; takes well under a second."""
    size, repeats = 1024, 5
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    started = time.monotonic()
    for _ in range(repeats):
        a = product(a, a)
    a.block_until_ready()
    return repeats * 2 * size**3 / (time.monotonic() - started)
