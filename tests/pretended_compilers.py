"""What `buffers` may meet in the compiler's process, in place of `buffers._compile`; imported there, so little is."""

import os
import time
from pathlib import Path

from sctd_jax.errors import UserError

REPORT = "Memory Space: default (color=0)\nTotal bytes: 27612763744 (25.72GiB)\n  cumulative_size;  size;\n"


def places(config, variant, topology, folder, sender):
    """Buffers, then code for an hour."""
    report = Path(folder) / "module_0003.jit_step_fn.after_optimizations-memory-usage-report.txt"
    report.write_text(REPORT[:48])  # the end is in the middle of the number
    time.sleep(1)
    report.write_text(REPORT)
    time.sleep(3600)


def ends_without_report(config, variant, topology, folder, sender):
    """Send a size without a report, as where there is nothing to place."""
    sender.send(123)


def refuses(config, variant, topology, folder, sender):
    """Refuse a topology that does not exist."""
    sender.send(UserError(f"--topology={topology}: no such slice"))


def dies(config, variant, topology, folder, sender):
    """Die as libtpu does of a small stack."""
    os._exit(139)
