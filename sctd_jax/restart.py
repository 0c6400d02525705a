"""What a process can only have from its start: huge pages for XLA's buffers, and stacks deep enough for libtpu."""

import importlib.util
import os
import resource
import sys

_VARIABLE, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def restart() -> None:
    """Start this Python again if glibc has to be told something; does nothing where the process is not on Linux.

    Huge pages, unless `GLIBC_TUNABLES` is set already (to anything): XLA on CPU allocates its temporaries anew in each
    step, hundreds of MB of them, and with pages of 4 KiB a training step spent a sixth of its time on them
    (docs/performance.md).

    An unlimited stack where libtpu is installed: the compiler of libtpu 0.0.42 overflows its threads' small ones on
    recomputed attention with dropout, and the process dies without a word. glibc gives threads 2 MiB then.
    """
    if sys.platform != "linux":
        return
    shallow = _libtpu() and _deepen_stack()
    if _VARIABLE not in os.environ or shallow:
        environment = {_VARIABLE: _SETTING, **os.environ}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _libtpu() -> bool:
    return "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None


def _deepen_stack() -> bool:
    """Whether the limit of stacks could be lifted, for the next process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or hard != resource.RLIM_INFINITY:
        return False
    resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, hard))
    return True
