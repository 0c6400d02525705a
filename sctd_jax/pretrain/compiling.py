"""Train steps compiled ahead of time, for the devices at hand or for those of a topology."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.objective.masking import SpecialIds
from sctd_jax.parallel import mesh as meshes
from sctd_jax.parallel.sharding import shard
from sctd_jax.pretrain.step import Variant, make_train_step
from sctd_jax.train.state import TrainState, initial_state


@functools.cache  # traced once, and asked for by every program of a run
def state_shape(config: Config, special: SpecialIds, mesh: Mesh) -> TrainState:
    """The state as a tree of `jax.ShapeDtypeStruct` with its shardings."""
    return shard(mesh, jax.eval_shape(lambda: initial_state(config, special)))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """What XLA allocates for a call: arguments, results and temporaries, donated buffers once."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes


def compile_train_step(
    config: Config,
    special: SpecialIds,
    variant: Variant,
    mesh: Mesh,
    word_start_V: jax.Array | None = None,
    options: dict[str, str] | None = None,
) -> jax.stages.Compiled:
    """`make_train_step` as an executable `(state, tokens) -> (state, metrics)`; the state is donated.

    `options` are the compiler's, by name.
    """
    state = state_shape(config, special, mesh)
    batch = (config.train.batch_size, config.data.seq_len)
    tokens = jax.ShapeDtypeStruct(batch, jnp.int32, sharding=meshes.batch_sharding(mesh))
    step_fn = make_train_step(config, special, variant, word_start_V, mesh)
    return meshes.jit_train_step(mesh, step_fn, state).lower(state, tokens).compile(options)
