"""The device mesh, the sharding of a batch, this host's rows, and jit with shardings."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sctd_jax.config import MeshConfig, ModelConfig, TrainConfig
from sctd_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh over ('data', 'fsdp', 'tensor') of these devices, by default all there are."""
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = config.data, config.fsdp, config.tensor
    if data == -1:
        data = max(len(devices) // (fsdp * tensor), 1)
    count = data * fsdp * tensor
    product = f"config.mesh.data x fsdp x tensor is {data} x {fsdp} x {tensor} = {count}"
    if count > len(devices):
        raise UserError(f"{product}, but there are {len(devices)} devices")
    if count < len(devices) and (jax.process_count() > 1 or config.data == -1):
        raise UserError(f"{product}, but it must be all {len(devices)} devices")
    # Auto axes: under Explicit ones Linen's lookups and scatters ask for output shardings.
    axes = {"axis_names": AXES, "axis_types": (AxisType.Auto,) * 3}
    slices = len({getattr(device, "slice_index", 0) for device in devices[:count]})
    if slices == 1:
        try:
            return jax.make_mesh((data, fsdp, tensor), devices=devices[:count], **axes)
        except (AssertionError, NotImplementedError) as error:  # a TPU's chips that are no box, or not to be folded so
            raise UserError(
                f"{product}, and JAX finds no such mesh in the torus of these {len(devices)} devices: take all of "
                "them, in powers of 2"
            ) from error
    return Mesh(across_slices((data, fsdp, tensor), slices, devices[:count]), **axes)


def one_device() -> Mesh:
    """A mesh of the first device, for what is only read or looked at."""
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def across_slices(shape: tuple[int, int, int], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices of several TPU slices, or of several GPU nodes, as an array in which only 'data' goes across them."""
    data, fsdp, tensor = shape
    if data % slices:
        raise UserError(
            f"config.mesh.data ({data}) must be divisible by the number of slices or GPU nodes ({slices}): only "
            "gradients may cross the network between them"
        )
    within = (data // slices, fsdp, tensor)
    return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)


def check_sizes(mesh: Mesh, model: ModelConfig, train: TrainConfig, batch: str = "train.batch_size") -> None:
    """Check that the axes of a mesh divide the sizes of a run; `batch` names the field with the rows of its batch."""
    data, fsdp, tensor = mesh.shape.values()
    rows = [train.batch_size // train.microbatches(variant) for variant in ("drop", "consistency")]
    for what, size, by, axes in (
        (f"{batch} / accumulation", rows[0], data * fsdp, "mesh.data x fsdp"),
        (f"{batch} / consistency_accumulation", rows[1], data * fsdp, "mesh.data x fsdp"),
        ("model.hidden_size", model.hidden_size, fsdp, "mesh.fsdp"),
        ("model.num_heads", model.num_heads, tensor, "mesh.tensor"),
        ("model.intermediate_size", model.intermediate_size, tensor, "mesh.tensor"),
    ):
        if size % by:
            raise UserError(f"config.{what} ({size}) must be divisible by {axes} ({by})")


def check_memory(mesh: Mesh, model: ModelConfig, train: TrainConfig, length: int, trained: bool = True) -> None:
    """Refuse, before anything is allocated, a run that cannot fit into the memory of its devices.

    By what each step needs at the least: float32 parameters, with one moment where they are `trained`, and the states
    of rows of `length` tokens that enter the layers, once. XLA says what a step takes on top, when it is compiled.
    """
    stats = jax.local_devices()[0].memory_stats() or {}  # no others tell theirs
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    memory = stats.get("bytes_limit", host)
    data, fsdp, tensor = mesh.shape.values()
    width, inner = model.hidden_size, model.intermediate_size
    weights = model.vocab_size * width + model.num_layers * (4 * width**2 + 2 * width * inner)
    state = (8 if trained else 4) * weights / (fsdp * tensor)
    rows = train.batch_size / (data * fsdp * max(train.microbatches(variant) for variant in ("drop", "consistency")))
    states = rows * length * width * jnp.dtype(model.dtype).itemsize
    if state + states > memory:
        raise UserError(
            f"this run cannot fit: a device has {memory / 1e9:,.1f} GB, and the parameters "
            f"{'with one moment ' if trained else ''}take {state / 1e9:,.1f} GB, the states of {rows:,.0f} rows before "
            f"one layer {states / 1e9:,.1f} GB. Lower "
            f"{'train.batch_size, raise train.accumulation' if trained else 'the batch size'}, or take a smaller model"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is rows."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Numbers of this host's rows of a global batch, ascending; on a torus they need not be neighbours."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index[0]] for index in indices]))


def put_batch(mesh: Mesh, batch_size: int, rows: np.ndarray) -> jax.Array:
    """Global array [B, ...] on the mesh from this host's `host_rows` of a batch, [B / hosts, ...]."""
    mine = host_rows(mesh, batch_size)

    def part(index):
        return rows[np.searchsorted(mine, np.arange(batch_size)[index[0]])]

    return jax.make_array_from_callback((batch_size, *rows.shape[1:]), batch_sharding(mesh), part)


def shardings(shapes: Any) -> Any:
    """The shardings of a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def jit_eval_step(mesh: Mesh, eval_fn: Callable, state: Any):
    """Jitted `(state, tokens, rows, valid) -> sums`."""
    batch = batch_sharding(mesh)
    return jax.jit(eval_fn, in_shardings=(shardings(state), batch, batch, batch), out_shardings=replicated(mesh))


def describe(mesh: Mesh) -> str:
    """Sizes of the axes and their product: `data 8 x fsdp 1 x tensor 1 (8)`."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()) + f" ({math.prod(mesh.shape.values())})"
