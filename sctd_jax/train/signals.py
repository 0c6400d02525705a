"""SIGTERM, Ctrl-C and the end of a terminal as a polite request to stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sctd_jax import errors
from sctd_jax.parallel import hosts


class StopRequest:
    """`signum` is the signal that asked the run to stop, or None."""

    signum: int | None = None
    _since = 0.0

    def __init__(self, before: Mapping[int, Any]):
        self._before = before  # handlers by their signals

    def at(self, step: int) -> bool:
        """Whether to stop before this step: the same answer in every process of the run."""
        if hosts.stop_together(step):
            self.signum = signal.SIGTERM
        return self.signum is not None

    def __call__(self, signum: int, frame) -> None:
        """Python's signal handler."""
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
        elif time.monotonic() - self._since >= errors.ONE_REQUEST_SECONDS:  # the person wants out now
            if callable(handler := self._before.get(signum)):
                handler(signum, frame)  # raises, again if that is lost
            raise KeyboardInterrupt(signum)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Let `STOPPING` signals set `signum` instead of killing inside of the context; one a second later interrupts.

    Outside the main thread (a notebook's worker) Python delivers no signals, and none is handled. With several
    processes SIGTERM is left to JAX, which tells the others, and Ctrl-C ends this one without saving.
    """
    previous: dict[int, Any] = {}
    request = StopRequest(previous)
    signals = () if hosts.several() else errors.heeded()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    try:
        for number in signals:
            previous[number] = signal.signal(number, request)
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
