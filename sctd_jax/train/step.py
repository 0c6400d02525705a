"""Parts of every train step: gradients over microbatches, the update, one program compiled ahead of time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sctd_jax.parallel import mesh as meshes
from sctd_jax.parallel.sharding import shard
from sctd_jax.train.state import TrainState

Metrics = dict[str, jax.Array]


def accumulate(loss_fn: Callable, params: Any, batch: Any, microbatches: int):
    """Gradient, loss and sums of a batch, added up over so many microbatches, a number that divides its rows.

    `loss_fn` is (params, microbatch, its row numbers, its number) -> (loss, sums), by the whole batch's denominator;
    `batch` is a tree of arrays whose first axis is rows.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    rows_B = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
    if microbatches == 1:
        (loss, aux), grads = value_and_grad(params, batch, rows_B, 0)
        return grads, loss, aux

    def split(x):
        # Strided, so that every microbatch has its share of each device's rows and nothing moves.
        return x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)

    def body(total, inputs):
        (loss, aux), grads = value_and_grad(params, *inputs)
        return jax.tree.map(jnp.add, total, (grads, loss, aux)), None

    inputs = (*jax.tree.map(split, (batch, rows_B)), jnp.arange(microbatches))
    shapes = jax.eval_shape(value_and_grad, params, *jax.tree.map(lambda x: x[0], inputs))
    (loss, aux), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, loss, aux), _ = jax.lax.scan(body, (grads, loss, aux), inputs)
    return grads, loss, aux


def update(
    optimizer: optax.GradientTransformation,
    rate: jax.Array,
    state: TrainState,
    grads: Any,
    loss: jax.Array,
    moved: Callable[[jax.Array], jax.Array] = lambda importance_V: importance_V,
) -> tuple[TrainState, Metrics]:
    """Next state and the metrics of any step; `moved` gives the next importance table.

    A non-finite loss or gradient leaves parameters, moments and importance as they were.
    """
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def updated(params, opt_state, importance_V):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return params, opt_state, moved(importance_V)

    # A branch, not a choice between old and new leaf by leaf: that one copies both moments of every parameter.
    old = (state.params, state.opt_state, state.importance_V)
    params, opt_state, importance_V = jax.lax.cond(finite, updated, lambda *kept: kept, *old)
    skipped = (~finite).astype(jnp.int32)
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        importance_V=importance_V,
        skipped=state.skipped + skipped,
    )
    return new_state, {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "skipped": skipped}


def state_shape(init: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Tree of `jax.ShapeDtypeStruct` with shardings on a mesh for what `init` returns; nothing is computed."""
    return shard(mesh, jax.eval_shape(init))


def compile_ahead(
    step_fn: Callable, state: TrainState, batch: Any, mesh: Mesh, options: dict[str, str | bool] | None = None
) -> jax.stages.Compiled:
    """The pure `step_fn` as an executable `(state, batch) -> (state, metrics)`; the state is donated.

    `state` is of `state_shape`, `batch` a tree of `jax.ShapeDtypeStruct` whose first axis is rows; `options` are the
    compiler's own, by name.
    """
    layout = meshes.shardings(state)
    inputs, outputs = (layout, meshes.batch_sharding(mesh)), (layout, meshes.replicated(mesh))
    jitted = jax.jit(step_fn, in_shardings=inputs, out_shardings=outputs, donate_argnums=0)
    return jitted.lower(state, batch).compile(options)


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that XLA allocates for a call: arguments, results and temporaries, donated buffers once."""
    m: Any = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
