"""Several processes, one for each host: how they join, what only the first of them does, how they end together."""

import contextlib
import glob
import hashlib
import importlib.util
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from sctd_jax.errors import TryAgainError, UserError

_HEARTBEAT_SECONDS = 60  # a process that is silent for so long counts as dead, and the others end
_WAIT_SECONDS = 24 * 3600  # time for the first process to prepare the rows


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes of a run, before JAX is used; alone if nothing says that there are others.

    If the others do not come within five minutes, JAX ends the process. Joined, SIGTERM is JAX's: see `stop_together`.
    `coordinator` is host:port of process 0. None stands for what the environment says: JAX_COORDINATOR_ADDRESS with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, Slurm, Open MPI or a TPU slice.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None) and "JAX_COORDINATOR_ADDRESS" in os.environ:
        numbers = (_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        given = (os.environ["JAX_COORDINATOR_ADDRESS"], *numbers)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise UserError(
            "--coordinator, --num_processes and --process_id (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID) go together, on every host"
        )
    if given[0] is not None:
        found = re.fullmatch(r"\S+:([0-9]{1,5})", given[0])
        if not (found and 0 < int(found[1]) < 1 << 16):
            raise UserError(f"--coordinator (or JAX_COORDINATOR_ADDRESS) must be host:port, found {given[0]!r}")
    launchers = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    asked = given[0] is not None or any((_number(name) or 1) > 1 for name in launchers)
    if not asked and not _on_tpu_vm():
        _look_for_devices()
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        if not asked and isinstance(error, ValueError):  # a TPU VM that is none of a slice, in a container say
            _look_for_devices()
            return
        reason = str(error).strip().splitlines()[0]
        raise TryAgainError(f"the processes of this run cannot join: {reason}") from error
    if not several():
        signal.signal(signal.SIGTERM, handler)
        return
    print(f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} devices", flush=True)


def _number(name: str) -> int | None:
    """An environment variable that is a number; None where it is not set."""
    text = os.environ.get(name)
    if text is not None and not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"the environment variable {name} must be a whole number, found {text!r}")
    return None if text is None else int(text)


def _look_for_devices() -> None:
    """Start JAX's backends, which may find no device; what they say is one line."""
    try:
        jax.devices()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        kind = UserError if "known backends" in reason else TryAgainError
        raise kind(f"JAX has no devices (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {reason}") from error


def _on_tpu_vm() -> bool:
    """Whether this machine is a TPU VM, which may be one of a slice."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    tpu = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return bool(chips) and tpu and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def on_first(log: Callable[[str], None]) -> Callable[[str], None]:
    """`log` in the first process, nothing in the others."""
    return log if is_first() else lambda line: None


@contextlib.contextmanager
def first_then_others(name: str) -> Iterator[None]:
    """The first process runs the body, then the others: they find what it has written, where storage is shared."""
    if several() and not is_first():
        _barrier(name)
    yield
    if several() and is_first():
        _barrier(name)


def run_on_first(name: str, action: Callable[[], None]) -> None:
    """Run `action` in the first process; the others go on when it is done."""
    if is_first():
        action()
    if several():
        _barrier(name)


def all_agree(yes: bool) -> bool:
    """Whether `yes` is true in every process."""
    return bool(multihost_utils.process_allgather(np.array(yes)).all()) if several() else yes


def _barrier(name: str) -> None:
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * _WAIT_SECONDS)


def check_same(what: Mapping[str, Any]) -> None:
    """Check that these values are the same in every process."""
    if not several():
        return
    digests = [hashlib.sha256(repr(value).encode()).digest()[:8] for value in what.values()]
    everywhere = multihost_utils.process_allgather(np.stack([np.frombuffer(digest, np.uint32) for digest in digests]))
    for i, name in enumerate(what):
        if (everywhere[:, i] != everywhere[0, i]).any():
            raise UserError(f"{name} differs between the processes of this run: start all with the same arguments")


def stop_together(step: int) -> bool:
    """Whether all processes stop at this step because one of them got SIGTERM; asked by all, at every step.

    JAX takes note of a SIGTERM that comes before the first step, and it counts from then on.
    """
    return several() and multihost_utils.reached_preemption_sync_point(step)
