"""Huge pages for XLA's buffers on a CPU host."""

import os
import sys

_VARIABLE, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Start this Python again with glibc asking for huge pages, unless `GLIBC_TUNABLES` is set already (to anything).

    XLA on CPU allocates its temporaries anew in each step, hundreds of MB of them, and with pages of 4 KiB a training
    step spent a sixth of its time on them (docs/performance.md). glibc reads the variable only when a process starts.
    Does nothing where the process is not on Linux.
    """
    if sys.platform == "linux" and _VARIABLE not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _VARIABLE: _SETTING})
