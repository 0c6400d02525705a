"""Saving and restoring a run's state; the only file that saves with Orbax."""

import dataclasses
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from sctd_jax import storage
from sctd_jax.errors import TryAgainError, UserError, say
from sctd_jax.parallel import hosts
from sctd_jax.parallel.sharding import shard
from sctd_jax.train.state import TrainState
from sctd_jax.train.workdir import CHECKPOINTS

# Words of TensorStore and gcsfs for an outage: the data may be whole.
_OUTAGE = re.compile("UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|ABORTED|Forbidden|Cannot connect")
_READERS = 8  # arrays that are checked at a time


@dataclasses.dataclass(frozen=True)
class Best:
    """The metric by which one checkpoint is the best."""

    metric: str
    mode: Literal["min", "max"]

    def __call__(self, metrics: dict[str, float]) -> float:
        """The metric's value."""
        return metrics[self.metric]


LOWEST_LOSS = Best("eval/loss", "min")


class DamagedError(UserError):
    """A checkpoint is not whole."""


class RemovedError(UserError):
    """A checkpoint is gone, as the one that a running training has replaced by a newer one."""


class Checkpoints:
    """The checkpoints of one run: the last k and the best one, saved in the background.

    `check` is called before each save, and raises where the workdir is no longer this process's.
    """

    def __init__(
        self,
        workdir: epath.Path,
        keep: int = 1,
        *,
        best: Best = LOWEST_LOSS,
        read_only: bool = False,
        check: Callable[[], None] = lambda: None,
    ):
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax reports every file it touches
        absl_logging.get_absl_logger().addFilter(_is_told_once)
        folder = workdir / CHECKPOINTS
        self._folder = folder if storage.is_remote(workdir) else epath.Path(os.path.abspath(folder))
        self._best, self._keep, self._read_only, self.check = best, keep, read_only, check
        self._manager = self._open_to_read()
        self._writes = False

    def _open_to_read(self) -> ocp.CheckpointManager:
        # Lightweight: without the metrics, a damaged file of which would end it.
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, lightweight_initialize=True)
        return ocp.CheckpointManager(self._folder, options=options)

    def _open_to_write(self) -> None:
        if self._writes or self._read_only:
            return
        # `reverse`: Orbax keeps the end of the sorted list, and a lowest loss shall be there.
        best_one = policies.BestN(
            get_metric_fn=self._best,
            reverse=self._best.mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best_one]),
            # The policy decides; without a `best_fn` Orbax would not write the metrics, and forget the best.
            best_fn=self._best,
            best_mode=self._best.mode,
            cleanup_tmp_directories=True,
        )
        self._manager.close()
        self._manager, self._writes = ocp.CheckpointManager(self._folder, options=options), True

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; who only reads does not see later ones before `look_again`."""
        return sorted(self._manager.all_steps())

    def look_again(self) -> None:
        """Let `steps` see what a running training has saved and removed meanwhile."""
        self._manager.close()  # its `reload` would read the metrics, a damaged file of which ends it
        self._manager = self._open_to_read()

    def best_step(self, log: Callable[[str], None] = say) -> int | None:
        """The best step among those that are kept; the last one where several are, as Orbax keeps that.

        `log` is told of those whose metrics are damaged.
        """
        values: dict[int, float] = {}
        for step in reversed(self.steps()):
            try:
                if (value := self._value(step)) is not None:
                    values[step] = value
            except DamagedError as error:
                log(f"warning: checkpoint {self._folder / str(step)} may be the best and is passed over: {error}")
        choose = min if self._best.mode == "min" else max
        return choose(values, key=values.__getitem__) if values else None

    def _value(self, step: int) -> float | None:
        """The metric of a checkpoint; None if it was saved without. Raises DamagedError."""
        path = self._folder / str(step) / "metrics" / "metrics"
        try:
            if not path.exists():
                return None
            found = storage.read_json(path)
            value = found.get(self._best.metric)
            if type(value) not in (int, float):
                raise DamagedError(f"{path} is damaged: no number for {self._best.metric}, found {value!r}")
        except TryAgainError:
            raise
        except UserError as error:
            raise DamagedError(str(error)) from error
        return value

    def identity(self, step: int) -> str:
        """Text that changes with the parameters of a checkpoint. Raises RemovedError."""
        try:
            return f"step {step}, digest {self._check(step)['digest']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._check_there(step)
            raise UserError(f"checkpoint {self._folder / str(step)} is damaged: {_first_line(error)}") from error

    def _check_there(self, step: int) -> None:
        if not hosts.all_agree(storage.exists(path := self._folder / str(step))):
            raise RemovedError(f"checkpoint {path} was removed while it was read")

    def _check(self, step: int) -> dict[str, Any]:
        """`digest` of the whole state and, unless earlier code saved it, `parts`: the digest of each of its fields."""
        return json.loads((self._folder / str(step) / "check" / "metadata").read_text())

    def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Start saving `state` under its step, unless that step is there already.

        A checkpoint without `metrics`, or whose metric is not finite, is never the best. An error may be that of the
        save before (a full disk, say); older checkpoints are untouched.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.check()
        parts = {name: int(total) for name, total in _digests(state).items()}
        digests = {"digest": sum(parts.values()) % 2**32, "parts": parts}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), check=ocp.args.JsonSave(digests))
        if metrics is not None and not math.isfinite(self._best(metrics)):
            metrics = None

        def save():
            self._open_to_write()
            self._manager.save(step, args=arguments, metrics=metrics, force=True)

        self._guard(step, save)

    def wait(self) -> None:
        """Return when the last save is on disk."""
        self._guard(None, self._manager.wait_until_finished)

    def close(self) -> None:
        """Release Orbax's threads. A save that failed is reported by `save` and `wait`, which come before."""
        try:
            self._manager.close()
        except Exception as error:  # must not hide the exception that ended the run
            logging.getLogger(__name__).debug("closing Orbax: %s", error)

    def restore(self, shape: TrainState, log: Callable[[str], None], step: int | None = None) -> TrainState | None:
        """The newest checkpoint that is whole, or that of `step` and no other; None if there is none at all.

        `shape` is a tree of `jax.ShapeDtypeStruct` with shardings; `log` is told of damaged ones that are passed over.
        """

        def attempt(candidate: int) -> tuple[str | None, Any]:
            # The first host reads it through beforehand: Orbax leaves a failed restore's other reads behind, which
            # then fill the terminal with tracebacks.
            problem = self._read(candidate)[0] if hosts.is_first() else None
            if hosts.all_agree(problem is None):
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore(shape))
                try:
                    return None, self._manager.restore(candidate, args=arguments)["state"]
                except Exception as error:  # Orbax raises many kinds, even Exception itself
                    problem = _first_line(error)
            return problem, None

        found = self._newest_whole(step, attempt, log)
        return found and found[1]

    def restore_parts(
        self, names: Sequence[str], mesh: Mesh, log: Callable[[str], None], step: int | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """Step and the fields `names` of a `TrainState`, chosen as in `restore`; the others are not read.

        Their shapes are the checkpoint's own, and the rules of `parallel.sharding` place them on the mesh. Orbax's
        partial restore would read a file twice, for the digest and for itself, and keep about a third more memory: one
        pass over TensorStore's arrays gives both here.
        """

        def place(name: str, numbers: np.ndarray) -> jax.Array:
            layout = shard(mesh, {name: numbers})[name].sharding
            return jax.make_array_from_callback(numbers.shape, layout, lambda index: numbers[index])

        return self._newest_whole(step, lambda candidate: self._read(candidate, names, place), log)

    def _newest_whole(
        self, step: int | None, attempt: Callable[[int], tuple[str | None, Any]], log: Callable[[str], None]
    ) -> tuple[int, Any] | None:
        """The first checkpoint, newest first, that `attempt` finds no problem with, and what it found.

        A running training removes checkpoints while they are read, and has newer ones then. Raises RemovedError for
        `step`.
        """
        tried: list[int] = []
        while candidates := [one for one in (self.steps() if step is None else [step]) if one not in tried]:
            candidate = candidates[-1]
            problem, found = attempt(candidate)
            if hosts.all_agree(problem is None):
                return candidate, found
            tried.append(candidate)
            try:
                self._check_there(candidate)
                log(f"warning: checkpoint {self._folder / str(candidate)} is damaged and passed over: {problem}")
            except RemovedError as error:
                if step is not None:
                    raise
                log(f"{error}: the newest one is taken")
            if self._read_only:
                self.look_again()
                hosts.check_same({f"the list of checkpoints in {self._folder}": self.steps()})
        if tried:
            raise UserError(f"no checkpoint in {self._folder} can be read (tried {sorted(tried)})")
        return None

    def _read(
        self, step: int, names: Sequence[str] = (), place: Callable[[str, np.ndarray], Any] = lambda *_: None
    ) -> tuple[str | None, dict[str, Any]]:
        """Problem of a checkpoint, or None, and fields of it, leaf by leaf as `place` returns them.

        Only these fields are read and checked, or all if `names` is empty or the checkpoint has no digest of each. A
        bucket that does not answer is no damage.
        """
        folder, found = self._folder / str(step), {}
        try:
            check = self._check(step)
            alone = {*names, "step"} if names and "parts" in check else ()
            expected = sum(check["parts"][name] for name in alone) % 2**32 if alone else check["digest"]
            digest, leaves = _read_arrays(
                folder / "state", alone, (*names, "step"), lambda path, x: x if path == "step" else place(path, x)
            )
            self._value(step)
            if (held := int(leaves.pop("step"))) != step:
                return f"its state is of step {held}", {}
            found = unflatten_dict(leaves, sep="/")
        except DamagedError as error:
            return _first_line(error), {}
        except (OSError, ValueError, KeyError, TypeError) as error:  # TensorStore's are ValueErrors
            if storage.is_remote(folder) and _OUTAGE.search(str(error)):
                raise TryAgainError(f"{folder} cannot be read now: {_first_line(error)}") from error
            return _first_line(error), {}
        return None if digest == expected else "its numbers do not add up to what was saved", found

    def set_aside(self, after_step: int, log: Callable[[str], None] = say) -> None:
        """Move checkpoints newer than `after_step` out of the way, which are damaged, so that they can be saved again.

        Older ones whose metrics are damaged go too, which is said: Orbax reads them when it looks for the best.
        """

        def move():
            for step in self.steps():
                try:
                    if step < after_step:
                        self._value(step)
                    if step <= after_step:
                        continue
                except DamagedError as error:
                    path = self._folder / str(step)
                    log(f"warning: checkpoint {path} is damaged and set aside: {_first_line(error)}")
                (self._folder / str(step)).rename(self._folder.with_name(f"damaged-{step}-{time.time_ns()}"))

        hosts.run_on_first("damaged checkpoints", move)
        self.close()
        self._manager, self._writes = self._open_to_read(), False

    def _guard(self, step: int | None, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # background errors surface as many kinds, ENOSPC as ValueError too
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax abandons futures that then complain
            what = "the last checkpoint" if step is None else f"checkpoint {step} (or the one before it)"
            raise TryAgainError(
                f"saving {what} to {self._folder} failed: {_first_line(error)}; checkpoints that can be resumed: "
                f"{self.steps()}"
            ) from error


def _is_told_once(record: logging.LogRecord) -> bool:
    """Whether no exception says it besides: what fails in Orbax's threads is raised by the next save or wait, too.

    Nothing raises that an old checkpoint could not be removed.
    """
    return not (record.exc_info and "orbax" in record.pathname) or "Failed to remove" in str(record.msg)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else repr(error)


@jax.jit
def _digests(state: TrainState) -> dict[str, jax.Array]:
    """Wrapping sum of all bits u32[] of each field, the same on any mesh: TensorStore checks lengths, not contents."""

    def bits(x: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    fields = vars(dataclasses.replace(state, key=jax.random.key_data(state.key)))
    return {name: sum(map(bits, jax.tree.leaves(field)), jnp.uint32(0)) for name, field in fields.items()}


def _read_arrays(
    folder: epath.Path, read: Collection[str], keep: Collection[str], place: Callable[[str, np.ndarray], Any]
) -> tuple[int, dict[str, Any]]:
    """The sum of `_digests` of the fields `read` of a saved state (all if empty), and the leaves of the fields `keep`.

    Leaves are what `place` makes of path (`params/encoder/...`) and numbers. A few arrays are held at a time. Raises
    ValueError if one cannot be read.
    """
    store = {"driver": "ocdbt", "base": storage.tensorstore_spec(folder)}
    context = tensorstore.Context()  # shared, so that the index is read once
    keys = tensorstore.KvStore.open(store, context=context).result().list().result()
    arrays = [key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")]

    def one(array: str) -> tuple[int, Any]:
        spec = {"driver": "zarr", "kvstore": {**store, "path": f"{array}/"}}
        numbers = np.asarray(tensorstore.open(spec, context=context).result().read().result())
        digest = int(numbers.view(f"u{numbers.dtype.itemsize}").sum(dtype=np.uint64))
        return digest, place(array.replace(".", "/"), numbers) if _field(array) in keep else None

    chosen = [array for array in arrays if not read or _field(array) in read]
    with ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(chosen, pool.map(one, chosen), strict=True))
    leaves = {array.replace(".", "/"): leaf for array, (_, leaf) in found.items() if _field(array) in keep}
    return sum(digest for digest, _ in found.values()) % 2**32, leaves


def _field(array: str) -> str:
    """The field of `TrainState` that an array, by its name in a checkpoint, belongs to."""
    return array.partition(".")[0]
