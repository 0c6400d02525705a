"""A function of an item, run as tasks on a Ray cluster that somebody has started.

Every node needs Python, Ray and this package's dependencies in the versions of the others; the package itself travels
with the tasks (Ray's `py_modules`), so that all nodes run the code of the command.
"""

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sctd_jax.errors import TryAgainError, UserError, is_clouds, printable

MAX_RETRIES = 10  # Ray's, for a task that loses its worker or node; an error of the function is final
_TASKS_PER_CPU = 2  # submitted ahead: a core that becomes free finds its next one
_LEAST_WINDOW = 64  # tasks wait even without a node: autoscalers count them
_LOOK_SECONDS = 10.0  # between looks at the nodes
_REACH_SECONDS = 10.0  # patience with an address where nobody answers; Ray itself tries for ever
# Greeting of a gRPC client, with a frame that the other side sends too.
_SETTINGS = b"\x04"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
# A task has one core. JAX, if something imports it, must not claim the TPU of a node that is one.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JAX_PLATFORMS": "cpu",
}
_INSTALL = "pip install '.[ray]' on every node, with the same versions"


def on_ray(
    address: str, function: Callable[[Any], Any], items: Iterable[Any], *, name: str, log: Callable[[str], None]
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, function(item)) as the tasks of an existing Ray cluster finish, in any order.

    What is lost with a worker or node is run again, up to `MAX_RETRIES` times: a task may run more than once. At the
    first failure, or when the caller leaves the iterator, the connection is closed: what has not begun never does, and
    Ray ends the workers of what has.

    Args:
      address: "auto" for the cluster of this machine (or of RAY_ADDRESS), or "HOST:PORT"; this machine must be a node.
      function: function of a module of this package, or a functools.partial of one; it is pickled.
      items: one for each task, read as they are submitted.
      name: noun for an item, such as "range", in messages and in Ray's dashboard.
      log: receives a line about the nodes, another when they change, and one for each kind of Ray's complaints.

    Raises:
      TryAgainError: the function's own; a bucket fails it; a task is lost more than `MAX_RETRIES` times; or the cluster
        is lost. A UserError is the function's own with its message, or names the item.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray={address}: {error}: {_INSTALL}, this one too") from error
    if address != "auto":
        _reach(address)
    with _briefly(log), _own_sigterm() as restore:
        try:
            with tempfile.TemporaryDirectory() as empty:
                runtime_env = {"env_vars": _ENVIRONMENT, "py_modules": [str(Path(__file__).parents[1])]}
                # Without a working folder Ray puts this one's path first on every node, with what is there of the code.
                if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # ray job submit may have named one
                    runtime_env["working_dir"] = empty
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
        except Exception as error:
            ray.shutdown()
            raise _connection_error(address, error) from error
        restore()
        try:
            yield from _results(ray, function, iter(items), name, log)
        except ray.exceptions.RayError as error:
            raise TryAgainError(f"--ray={address}: the cluster is lost: {_one_line(error)}") from error
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Refuse an address where no program listens."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and host and re.fullmatch("[0-9]{1,5}", port) and int(port) < 1 << 16):
        raise UserError(f"--ray={address}: auto or HOST:PORT is expected, where ray start --head --port=PORT has run")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(_HTTP2)
                if connection.recv(9)[3:4] != _SETTINGS:
                    raise OSError("what listens there is not Ray")
    except OSError as error:
        raise UserError(
            f"--ray={address}: no Ray answers there ({error}): see that ray start --head has run on that host, with "
            "--port as here, and that this machine may reach it"
        ) from error


def _connection_error(address: str, error: Exception) -> UserError:
    """The message of what `ray.init` has raised."""
    text = _one_line(error).rstrip(".")
    cure = "run the command on a node of a cluster that ray start has started there, and that is of this user"
    return UserError(f"--ray={address}: {text}: {_INSTALL if 'ersion mismatch' in text else cure}")


@contextlib.contextmanager
def _own_sigterm() -> Iterator[Callable[[], None]]:
    """A function that takes SIGTERM back from Ray, whose handler ends a command with a status of its own."""
    handler = signal.getsignal(signal.SIGTERM)

    def restore() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    try:
        yield restore
    finally:
        restore()


@contextlib.contextmanager
def _briefly(log: Callable[[str], None]) -> Iterator[None]:
    """Ray prints a paragraph for each task of a lost worker; `log` has the first sentence of each kind, once."""
    from ray._private import worker

    said = set()

    def told(data: dict[str, Any], **_: object) -> None:
        for line in data["lines"]:
            first = printable(re.split(r"(?<=[.!]) |\n", str(line).strip())[0])
            if (kind := re.sub(r"\d+", "", first)) not in said:
                said.add(kind)
                log(f"note: Ray says, and will not be cited again: {first}")

    # No option of ray.init reaches these.
    before = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = told  # type: ignore[assignment]
    try:
        yield
    finally:
        worker.print_to_stdstream = before  # type: ignore[assignment]


def _results(
    ray: Any, function: Callable[[Any], Any], items: Iterator[Any], name: str, log: Callable[[str], None]
) -> Iterator[tuple[Any, Any]]:
    pickled = ray.put(ray.cloudpickle.dumps(function))
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_run)
    pending: dict[Any, Any] = {}
    before, cpus, looked = None, 0, float("-inf")
    while True:
        if time.monotonic() - looked >= _LOOK_SECONDS:
            nodes = sum(node["Alive"] for node in ray.nodes())
            cpus, looked = int(ray.cluster_resources().get("CPU", 0)), time.monotonic()
            if before != (before := (nodes, cpus)):
                none = "" if cpus else ": tasks wait until a node has some"
                log(f"Ray: {nodes} node{'s' * (nodes != 1)}, {cpus} CPU{'s' * (cpus != 1)}{none}")
        for item in itertools.islice(items, max(0, max(_LEAST_WINDOW, _TASKS_PER_CPU * cpus) - len(pending))):
            pending[task.options(name=f"{name} {item}").remote(pickled, item, name, os.getcwd())] = item
        if not pending:
            return
        ray.wait(list(pending), timeout=_LOOK_SECONDS)
        failed = None
        # All that are there: what has finished shall not be lost to a failure.
        for done in ray.wait(list(pending), num_returns=len(pending), timeout=0)[0]:
            item = pending.pop(done)
            try:
                result, error = ray.get(done)
            except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError) as broken:
                error = UserError(f"{name} {item}: {_one_line(getattr(broken, 'cause', broken))}")
            except ray.exceptions.RayError as lost:
                error = TryAgainError(
                    f"{name} {item}: lost with its worker or node {MAX_RETRIES + 1} times ({_one_line(lost)}); "
                    "if memory was short, start Ray with fewer CPUs a node: --num-cpus"
                )
            if error is None:
                yield item, result
            failed = failed or error
        if failed:
            raise failed


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _run(pickled: bytes, item: Any, name: str, folder: str) -> tuple[Any, UserError | None]:
    """A task, on its node: (result, None), or (None, what went wrong); relative paths are from the command's folder."""
    import ray

    with contextlib.suppress(OSError):  # a node may lack it, and the paths be absolute
        os.chdir(folder)
    try:
        return ray.cloudpickle.loads(pickled)(item), None
    except UserError as error:
        # A subclass may not be pickled with its message alone.
        return None, (TryAgainError if isinstance(error, TryAgainError) else UserError)(str(error))
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{name} {item}: {_one_line(error)}"
        if is_clouds(error):
            return None, TryAgainError(f"{text}: the bucket failed")
        text += f" (node {ray.util.get_node_ip_address()}, {Path(at.filename).name}:{at.lineno})"
        return None, UserError(f"{text}: {_INSTALL}" if isinstance(error, ImportError) else text)
