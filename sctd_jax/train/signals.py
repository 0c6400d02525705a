"""SIGTERM, Ctrl-C and the end of a terminal as a polite request to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from sctd_jax.errors import STOPPING
from sctd_jax.parallel import hosts


class StopRequest:
    """`signum` is the signal that asked the run to stop, or None."""

    signum: int | None = None

    def at(self, step: int) -> bool:
        """Whether to stop before this step: the same answer in every process of the run."""
        if hosts.stop_together(step):
            self.signum = signal.SIGTERM
        return self.signum is not None

    def __call__(self, signum: int, frame) -> None:
        """Python's signal handler."""
        if self.signum is not None:  # the second signal: the person wants out now
            raise KeyboardInterrupt
        self.signum = signum


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Let `STOPPING` signals set `signum` instead of killing inside of the context; a second one interrupts.

    Outside the main thread (a notebook's worker) Python delivers no signals, and none is handled. With several
    processes SIGTERM is left to JAX, which tells the others, and Ctrl-C ends this one without saving.
    """
    request = StopRequest()
    signals = () if hosts.several() else [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in signals}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
