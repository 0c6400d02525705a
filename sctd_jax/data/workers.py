"""Work on items in processes of this machine."""

import collections
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sctd_jax.errors import TryAgainError

_LOOK = 2.0  # seconds between looks whether the parent lives


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def on_cores(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, apart: bool = False
) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) of each item, as they come; by several workers in processes that share the cores.

    A single worker is this process, or with `apart` another one: a signal ends that at once, and compiled code only
    when it returns. The first exception of the function ends it. TryAgainError if a process dies.
    """
    workers = min(workers, len(items))
    if workers < 2 and not apart:
        for item in items:
            yield item, function(item)
        return
    # A pipe for each, unlike the pools of the library: the death of a worker is the end of its pipe, also in mid-send.
    context, left = multiprocessing.get_context("spawn"), collections.deque(items)
    running: dict[Any, tuple[Any, multiprocessing.process.BaseProcess]] = {}  # item and process by connection
    try:
        # Signals of the terminal are the parent's; what comes meanwhile comes afterwards.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            for _ in range(workers):
                here, there = context.Pipe()
                arguments = (there, function, os.getpid(), max(1, cores() // workers))
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                there.close()
                item = left.popleft()
                running[here] = item, process
                here.send(item)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        while busy := [connection for connection, (item, _) in running.items() if item is not None]:
            for ready in multiprocessing.connection.wait(busy):
                connection: Any = ready
                item, process = running[connection]
                try:
                    result, error = connection.recv()
                    if error is None and left:
                        connection.send(left[0])
                except (EOFError, OSError) as broken:
                    cure = ": fewer of them (--workers) take less" if workers > 1 else ""
                    raise TryAgainError(
                        f"one of {workers} worker processes died, maybe of too little memory{cure}"
                    ) from broken
                if error is not None:
                    raise error
                running[connection] = (left.popleft() if left else None), process
                yield item, result
    finally:
        for connection, (_, process) in running.items():
            process.terminate()
            connection.close()
        for _, process in running.values():
            process.join()


def _work(connection: Any, function: Callable[[Any], Any], parent: int, threads: int) -> None:
    """Answer each item with (result, None) or (None, exception), as long as the parent lives."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["RAYON_NUM_THREADS"] = str(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = function(item), None
        except Exception as error:
            answer = None, error
        connection.send(answer)
