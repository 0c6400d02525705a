"""The device mesh, the shardings of state and batch, and this host's rows."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sctd_jax.config import Config
from sctd_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: Config) -> Mesh:
    """Mesh over ('data', 'fsdp', 'tensor'); data parallel, so the other two have size 1.

    Raises:
      UserError: more devices asked for than there are, a number that leaves some of several hosts' devices
        out, or a batch that does not divide.
    """
    devices, data = jax.devices(), config.mesh.data
    if data == -1:
        data = len(devices)
    if data > len(devices):
        raise UserError(f"config.mesh.data is {data}, but there are {len(devices)} devices; -1 takes all")
    if jax.process_count() > 1 and data != len(devices):
        raise UserError(f"config.mesh.data is {data}; with several hosts it must be {len(devices)} (or -1)")
    microbatch = config.train.batch_size // config.train.accumulation
    if microbatch % data:
        raise UserError(
            f"config.train.batch_size / accumulation ({microbatch} rows) must be divisible by the {data} devices "
            "of mesh.data"
        )
    # Auto axes: under Explicit ones Linen's lookups and scatters ask for output shardings.
    return jax.make_mesh((data, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:data])


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of the state and of scalars."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is rows."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def host_rows(mesh: Mesh, batch_size: int) -> slice:
    """This host's rows of a global batch of `batch_size`."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    starts, stops = zip(*(index[0].indices(batch_size)[:2] for index in indices), strict=True)
    return slice(min(starts), max(stops))


def put_batch(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """This host's rows [B / hosts, ...] -> the global array [B, ...] on the mesh."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), rows)


def jit_init(mesh: Mesh, init: Callable):
    """Jitted `init()`, its result laid out on the mesh."""
    return jax.jit(init, out_shardings=replicated(mesh))


def jit_train_step(mesh: Mesh, step_fn: Callable):
    """Jitted `(state, tokens) -> (state, metrics)` with explicit shardings; the state is donated."""
    state, batch = replicated(mesh), batch_sharding(mesh)
    return jax.jit(step_fn, in_shardings=(state, batch), out_shardings=(state, state), donate_argnums=0)


def jit_eval_step(mesh: Mesh, eval_fn: Callable):
    """Jitted `(state, tokens, rows, valid) -> sums`."""
    state, batch = replicated(mesh), batch_sharding(mesh)
    return jax.jit(eval_fn, in_shardings=(state, batch, batch, batch), out_shardings=state)


def describe(mesh: Mesh) -> str:
    """E.g. `data 8 x fsdp 1 x tensor 1`."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()) + f" ({math.prod(mesh.shape.values())})"
