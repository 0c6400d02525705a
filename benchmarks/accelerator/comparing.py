"""A few steps of a config on one device, and how far two such runs are apart."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sctd_jax.config import Config, MeshConfig
from sctd_jax.data.special import SpecialIds
from sctd_jax.model.attention import platform_of
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.model import initial_state, settle, state_layout
from sctd_jax.pretrain.step import compile_train_step, variant_at
from sctd_jax.train.state import TrainState

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
STEPS = 3
# The true gradient of the keys' biases is 0, for softmax does not see a constant: all of it is rounding.
_ZERO = "key/bias"

Arrays = dict[str, np.ndarray]  # leaves by name


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled steps of a config on one device."""

    config: Config
    mesh: jax.sharding.Mesh
    layout: TrainState  # shapes with shardings
    by_variant: dict[str, jax.stages.Compiled]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Numbers of a few steps."""

    losses: np.ndarray  # one a step
    gradients: Arrays  # first step, clipped: Adam's first moments, divided by 1 - beta1
    moments: Arrays  # Adam's first moments at the end: a mean of all gradients
    parameters: Arrays
    importance: Arrays
    state: Arrays  # everything at the end


def compile_steps(
    config: Config, device: jax.Device, precision: str | None = None, options: dict[str, Any] | None = None
) -> Programs:
    """The programs that the first steps of a config need.

    `precision` is that of matmuls, by default JAX's for the device; `options` are the compiler's.
    """
    mesh = meshes.make_mesh(MeshConfig(data=1), [device])
    settled = settle(config, platform_of(device))[0]
    layout = state_layout(config, SPECIAL, mesh)
    variants = sorted({variant_at(config, step) for step in range(STEPS)})
    with jax.default_matmul_precision(precision):
        programs = {v: compile_train_step(settled, SPECIAL, v, mesh, layout, None, options) for v in variants}
    return Programs(config, mesh, layout, programs)


def first_state(config: Config, device: jax.Device) -> TrainState:
    """The state before the first step, computed on a device."""
    with jax.default_device(device):
        return jax.jit(lambda: initial_state(config, SPECIAL))()


def train(programs: Programs, first: TrainState, rows: np.ndarray) -> Trajectory:
    """Train on rows i32[steps, B, N] from `first`, which may lie on another device."""
    config, mesh = programs.config, programs.mesh
    state = jax.tree.map(jax.device_put, first, meshes.shardings(programs.layout))
    # A step donates its state, and on the same device these may be the arrays of `first`.
    state = jax.tree.map(lambda leaf: leaf.copy(), state)
    losses, after_one = [], None
    for step, tokens in enumerate(rows):
        program = programs.by_variant[variant_at(config, step)]
        state, metrics = program(state, meshes.put_batch(mesh, len(tokens), tokens))
        losses.append(float(metrics["loss"]))
        after_one = after_one or _moments(state)
    factor = 1 / (1 - config.optimizer.beta1)
    return Trajectory(
        losses=np.array(losses),
        gradients={name: factor * leaf for name, leaf in after_one.items()},
        moments=_moments(state),
        parameters=arrays(state.params),
        importance={"importance": np.asarray(state.importance_V)},
        state=arrays(state),
    )


def arrays(tree: Any) -> Arrays:
    """The leaves of a tree by name, without random keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def _moments(state: TrainState) -> Arrays:
    return {name.partition("/mu/")[2]: leaf for name, leaf in arrays(state.opt_state).items() if "/mu/" in name}


def largest(ours: Arrays, theirs: Arrays) -> tuple[float, str]:
    """The largest deviation of a leaf and its name.

    A leaf's deviation is its largest difference relative to its largest number; for the keys' biases, relative to the
    largest number of all leaves.
    """
    whole = max(float(np.abs(leaf).max()) for leaf in theirs.values())
    found = {}
    for name, leaf in theirs.items():
        scale = whole if name.endswith(_ZERO) else float(np.abs(leaf).max())
        found[name] = float(np.abs(ours[name] - leaf).max()) / (scale or 1.0)
    name = max(found, key=lambda name: (np.isnan(found[name]), found[name]))
    return found[name], name


def spread(ours: Arrays, theirs: Arrays) -> tuple[float, float, str]:
    """Median and largest relative L2 distance of a leaf, and the name of the latter; without the keys' biases."""
    found = {
        name: float(np.linalg.norm(ours[name] - leaf) / (np.linalg.norm(leaf) or 1.0))
        for name, leaf in theirs.items()
        if not name.endswith(_ZERO)
    }
    name = max(found, key=lambda name: (np.isnan(found[name]), found[name]))
    return float(np.median(list(found.values()))), found[name], name


def differing(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Leaves that are not the same bits, and their largest difference relative to their largest number."""
    names = [name for name in theirs if ours[name].tobytes() != theirs[name].tobytes()]
    scale = {name: float(np.abs(theirs[name]).max()) or 1.0 for name in names}
    return {name: float(np.abs(ours[name] - theirs[name]).max()) / scale[name] for name in names}


def random_rows(config: Config, steps: int) -> np.ndarray:
    """Rows i32[steps, B, N] of random ordinary ids; every other row of a batch is padded at its end."""
    rng = np.random.default_rng(0)
    shape = (steps, config.train.batch_size, config.data.seq_len)
    # Some ids are frequent, as in text, so that their importance moves.
    rows = 5 + (rng.random(shape) ** 3 * (config.model.vocab_size - 5)).astype(np.int32)
    rows[..., 0], rows[..., -1] = SPECIAL.cls, SPECIAL.sep
    short = config.data.seq_len * 5 // 8
    rows[:, ::2, short - 1], rows[:, ::2, short:] = SPECIAL.sep, SPECIAL.pad
    return rows


def worst(pairs: Iterable[tuple[float, str]]) -> tuple[float, str]:
    """The pair of the largest number."""
    return max(pairs, key=lambda pair: (np.isnan(pair[0]), pair[0]))


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest relative difference of numbers that are not near 0."""
    return float(np.abs(ours / theirs - 1).max())


def same_bits(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each array has the same bits."""
    return {name: np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes() for name in theirs}
