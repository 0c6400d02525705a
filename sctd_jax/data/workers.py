"""Work on items in processes of this machine."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sctd_jax.errors import TryAgainError

_LOOK = 2.0  # seconds between looks whether the parent lives
_AHEAD = 2  # items that wait for each process


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def on_cores(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) of each item, as they come; by several workers in processes that share the cores.

    The first exception of the function ends it. TryAgainError if a process dies.
    """
    workers = min(workers, len(items))
    if workers < 2:
        for item in items:
            yield item, function(item)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin, (os.getpid(), max(1, cores() // workers))
    )
    left = collections.deque(items)
    running: dict[concurrent.futures.Future, Any] = {}
    try:
        while left or running:
            while left and len(running) < _AHEAD * workers:
                item = left.popleft()
                running[pool.submit(function, item)] = item
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise TryAgainError(
            f"one of {workers} worker processes died, maybe of too little memory: fewer of them (--workers) take less, "
            "and the same command goes on with what is missing"
        ) from error
    finally:
        for process in (pool._processes or {}).values():  # a public way to end them comes with Python 3.14
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _begin(parent: int, threads: int) -> None:
    """Begin a process: it leaves signals of the terminal to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["RAYON_NUM_THREADS"] = str(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
