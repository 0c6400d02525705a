"""Saving and restoring a run; the only file that knows Orbax.

A workdir is all that is needed later: `config.json`, `command.txt`, the tokenizer, `prepared.json` (about the
rows) and `checkpoints/STEP/` with the whole TrainState, importance table included.
"""

import dataclasses
import json
import logging
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import METADATA_FILE, read_metadata
from sctd_jax.errors import TryAgainError, UserError
from sctd_jax.parallel import hosts
from sctd_jax.train.state import TrainState

CONFIG_FILE, COMMAND_FILE, _CHECKPOINTS = "config.json", "command.txt", "checkpoints"
TASK_FILE = "task.json"  # what a fine-tuned model has besides
# How TensorStore and gcsfs say that it is not the data.
_OUTAGE = re.compile("UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|ABORTED|Forbidden|Cannot connect")
_READERS = 8  # arrays that are checked at a time
# What a rerun may change without being another run. A longer run needs other `steps`, one that diverged another
# learning rate, and what a run started from may have been moved since.
_MAY_CHANGE = {
    "train.steps", "train.eval_every", "train.eval_rows", "train.checkpoint_every", "train.keep_checkpoints",
    "train.log_every", "train.max_bad_steps", "train.accumulation",
    "train.consistency_accumulation", "optimizer.learning_rate",
    "optimizer.warmup_steps", "data.rows", "data.prepared_dir", "data.input", "data.tokenizer", "data.text_field",
    "data.documents", "data.allow_unknown", "mesh.data", "mesh.fsdp", "mesh.tensor",
    "train.init",
    "model.attention", "model.remat",
}  # fmt: skip


def check_workdir(workdir: epath.Path, config: Config) -> None:
    """Check before any long work that `workdir` is new or this config's.

    Raises:
      UserError: it belongs to another config, to an imported model or to something else, or cannot be written.
    """
    try:
        with storage.reaching(workdir):
            if (workdir / CONFIG_FILE).exists():
                if (workdir / TASK_FILE).exists():
                    raise UserError(f"workdir {workdir} holds a fine-tuned model: pretrain in another --workdir")
                if not (workdir / METADATA_FILE).exists():
                    raise UserError(
                        f"workdir {workdir} holds an imported model, which stays as it is: train in another --workdir, "
                        f"starting from this one: --config=configs/continued.py:{workdir}"
                    )
                same_config(workdir, dataclasses.asdict(config))
            else:
                check_new(workdir)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error}") from error


def check_new(workdir: epath.Path) -> None:
    """Check that a folder without a config may become a workdir, and make it.

    Raises:
      UserError: something else is in it.
      OSError: it cannot be written.
    """
    if workdir.exists() and [path for path in workdir.iterdir() if not _ours(path)]:
        raise UserError(f"workdir {workdir} is not empty and has no {CONFIG_FILE}: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    if storage.is_remote(workdir):
        storage.check_writable(workdir)


def _ours(path: epath.Path) -> bool:
    """What a kill inside `claim_workdir` can leave."""
    names = (
        tokenizer.SENTENCEPIECE_FILE, tokenizer.JSON_FILE, METADATA_FILE, COMMAND_FILE, TASK_FILE, _CHECKPOINTS
    )  # fmt: skip
    return path.name in names or path.name.startswith(".claim-")


def has_checkpoints(workdir: epath.Path) -> bool:
    """Whether anything was saved in `workdir`."""
    return any((workdir / _CHECKPOINTS).glob("[0-9]*"))


def check_rows(workdir: epath.Path, rows: epath.Path) -> None:
    """Check that the steps in `workdir` were trained on these rows.

    Raises:
      UserError: they were trained on others.
    """
    if not (workdir / CONFIG_FILE).exists():
        return
    there, now = read_metadata(workdir), read_metadata(rows)
    for field in ("tokenizer_sha256", "rows", "tokens"):
        if getattr(there, field) != getattr(now, field):
            raise UserError(
                f"workdir {workdir} was trained on other rows than {rows}: {field} is {getattr(there, field)} there "
                f"and {getattr(now, field)} here; choose another --workdir"
            )


def claim_workdir(workdir: epath.Path, config: Config, rows: epath.Path) -> None:
    """Write tokenizer, row metadata, command and config, the last one last: it says that the workdir is a run's.

    With several hosts the first one writes.

    Raises:
      UserError: it cannot be written, or another host does not see it.
    """
    hosts.first_only("claim", lambda: _claim(workdir, config, rows))
    if not hosts.all_say((workdir / CONFIG_FILE).exists()):
        raise UserError(f"workdir {workdir} must be on storage that all hosts of the run share")


def _claim(workdir: epath.Path, config: Config, rows: epath.Path) -> None:
    try:
        if not (workdir / CONFIG_FILE).exists():
            for path in (tokenizer.find(rows), rows / METADATA_FILE):
                write(workdir / path.name, path.read_bytes())
        write_config(workdir, config)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error}") from error


def write_config(workdir: epath.Path, config: Config) -> None:
    """Write the running command, then the config, which makes the folder a run's."""
    write(workdir / COMMAND_FILE, shlex.join(["python", *sys.orig_argv[1:]]).encode())
    write(workdir / CONFIG_FILE, json.dumps(dataclasses.asdict(config), indent=2).encode())


def write(path: epath.Path, content: bytes) -> None:
    """Write a file of a workdir; a kill leaves the one before or the new one."""
    temporary = path.with_name(f".claim-{path.name}-{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def same_config(workdir: epath.Path, mine: dict) -> None:
    """Check that a workdir's config is this one, but for what a rerun may change.

    Raises:
      UserError: it is another one, or damaged.
    """
    try:
        theirs = json.loads((workdir / CONFIG_FILE).read_text())
    except ValueError as error:
        raise UserError(f"{workdir / CONFIG_FILE} is damaged ({error}); choose another --workdir") from error
    other = [
        f"{section}.{field} ({theirs.get(section, {}).get(field)!r} there, {value!r} now)"
        for section, fields in mine.items()
        for field, value in fields.items()
        if f"{section}.{field}" not in _MAY_CHANGE and theirs.get(section, {}).get(field) != value
    ]
    if other:
        raise UserError(f"workdir {workdir} belongs to another config: {', '.join(other)}; choose another --workdir")


@dataclasses.dataclass(frozen=True)
class Best:
    """By which metric one checkpoint is the best."""

    metric: str
    mode: Literal["min", "max"]

    def __call__(self, metrics: dict[str, float]) -> float:
        """The metric's value."""
        return metrics[self.metric]


LOWEST_LOSS = Best("eval/loss", "min")


class Checkpoints:
    """The checkpoints of one run: the last k and the best one, saved in the background."""

    def __init__(self, workdir: epath.Path, keep: int = 1, *, best: Best = LOWEST_LOSS, read_only: bool = False):
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax reports every file it touches
        folder = workdir / _CHECKPOINTS
        self._folder = folder if storage.is_remote(workdir) else epath.Path(os.path.abspath(folder))
        self._best = best
        # `reverse`: Orbax keeps the end of the sorted list, and a lowest loss shall be there.
        best_one = policies.BestN(
            get_metric_fn=best,
            reverse=best.mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best_one]),
            # The policy decides; without a `best_fn` Orbax would not write the metrics, and forget the best.
            best_fn=best,
            best_mode=best.mode,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The best step among those that are kept; the last one where several are, as Orbax keeps that."""
        found = ((step, self._manager.metrics(step)) for step in reversed(self.steps()))
        values = {step: self._best(metrics) for step, metrics in found if metrics}
        choose = min if self._best.mode == "min" else max
        return choose(values, key=values.get) if values else None

    def identity(self, step: int) -> str:
        """Changes with the parameters of a checkpoint.

        Raises:
          UserError: it is damaged.
        """
        try:
            return f"step {step}, digest {self._expected_digest(step)}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"checkpoint {self._folder / str(step)} is damaged: {_first_line(error)}") from error

    def _expected_digest(self, step: int) -> int:
        return json.loads((self._folder / str(step) / "check" / "metadata").read_text())["digest"]

    def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Start saving `state` under its step, unless that step is there already.

        A checkpoint without `metrics`, or whose metric is not finite, is never the best.

        Raises:
          UserError: this or the save before it failed (a full disk, say); older checkpoints are untouched.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        digest = {"digest": int(_digest(state))}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), check=ocp.args.JsonSave(digest))
        if metrics is not None and not math.isfinite(self._best(metrics)):
            metrics = None
        self._guard(step, lambda: self._manager.save(step, args=arguments, metrics=metrics, force=True))

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
          UserError: it failed.
        """
        self._guard(None, self._manager.wait_until_finished)

    def close(self) -> None:
        """Release Orbax's threads. A save that failed is reported by `save` and `wait`, which come before."""
        try:
            self._manager.close()
        except Exception as error:  # must not hide the exception that ended the run
            logging.getLogger(__name__).debug("closing Orbax: %s", error)

    def restore(self, shape: TrainState, log: Callable[[str], None], step: int | None = None) -> TrainState | None:
        """The newest checkpoint that is whole (or that of `step`); None if there is none at all.

        Args:
          shape: tree of `jax.ShapeDtypeStruct` with shardings.
          log: told of every checkpoint that is damaged and passed over.
          step: restore this one and no other.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        candidates = self.steps() if step is None else [step]
        for candidate in reversed(candidates):
            # The first host reads it through beforehand: Orbax leaves a failed restore's other reads behind, which
            # then fill the terminal with tracebacks.
            problem = self._problem(candidate) if hosts.is_first() else None
            if hosts.all_say(problem is None):
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore(shape))
                try:
                    restored = self._manager.restore(candidate, args=arguments)["state"]
                except Exception as error:  # Orbax raises many kinds, even Exception itself
                    problem = _first_line(error)
                if hosts.all_say(problem is None):
                    return restored
            log(f"warning: checkpoint {self._folder / str(candidate)} is damaged and passed over: {problem}")
        if candidates:
            raise UserError(f"no checkpoint in {self._folder} can be read (tried {candidates})")
        return None

    def _problem(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None. A bucket that does not answer is no damage."""
        folder = self._folder / str(step)
        try:
            expected = self._expected_digest(step)
            found = _stored_digest(folder / "state")
        except (OSError, ValueError, KeyError, TypeError) as error:  # TensorStore's are ValueErrors
            if storage.is_remote(folder) and _OUTAGE.search(str(error)):
                raise TryAgainError(f"{folder} cannot be read now: {_first_line(error)}") from error
            return _first_line(error)
        return None if found == expected else "its numbers do not add up to what was saved"

    def set_aside(self, after_step: int) -> None:
        """Move damaged checkpoints newer than `after_step` out of the way, so that they can be saved again."""

        def move():
            for step in [s for s in self.steps() if s > after_step]:
                (self._folder / str(step)).rename(self._folder.with_name(f"damaged-{step}-{time.time_ns()}"))

        hosts.first_only("damaged checkpoints", move)
        self._manager.reload()

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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else repr(error)


@jax.jit
def _digest(state: TrainState) -> jax.Array:
    """Wrapping sum of all bits: TensorStore checks lengths, not contents, and the sum is the same on any mesh."""
    state = state.replace(key=jax.random.key_data(state.key))

    def bits(x: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return sum(jax.tree.leaves(jax.tree.map(bits, state)), jnp.uint32(0))


def _stored_digest(folder: epath.Path) -> int:
    """`_digest` of a state that was saved, a few arrays at a time. Raises ValueError if one cannot be read."""
    store = {"driver": "ocdbt", "base": storage.tensorstore_spec(folder)}
    context = tensorstore.Context()  # shared, so that the index is read once
    keys = tensorstore.KvStore.open(store, context=context).result().list().result()

    def total(name: str) -> int:
        array = tensorstore.open({"driver": "zarr", "kvstore": {**store, "path": name}}, context=context).result()
        numbers = np.asarray(array.read().result())
        return int(numbers.view(f"u{numbers.dtype.itemsize}").sum(dtype=np.uint64))

    names = [key.decode().removesuffix(".zarray") for key in keys if key.endswith(b"/.zarray")]
    with ThreadPoolExecutor(_READERS) as pool:
        return sum(pool.map(total, names)) % 2**32
