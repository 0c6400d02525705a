"""HBM that a train step takes, as soon as the compiler knows it.

Four fifths of a compilation for a TPU generate code after the buffers have been placed, and whether a step fits is
known by then: this leaves the rest out.
"""

import multiprocessing
import re
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from sctd_jax.config import Config
from sctd_jax.errors import UserError
from sctd_jax.parallel.mesh import make_mesh
from sctd_jax.pretrain.step import Variant
from sctd_jax.tpu.compile import DoesNotFitError, compile_step, hbm_bytes, topology_devices

_REPORT = "*after_optimizations-memory-usage-report.txt"  # file of libtpu, written when the buffers are placed
_HBM = re.compile(r"Memory Space: default .*\nTotal bytes: (\d+) ")
_POLL_SECONDS = 0.5


def buffer_bytes(config: Config, variant: Variant, topology: str) -> int:
    """Bytes of HBM that a train step's arguments, results and temporaries take on each chip of a slice.

    The program's own code comes on top of that. The compiler runs in a process of its own, for it cannot be stopped
    otherwise.

    Raises:
      DoesNotFitError: the buffers are more than a chip has.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = spawn.Process(target=_compile, args=(config, variant, topology, folder, sender), daemon=True)
        process.start()
        sender.close()  # lets the receiver notice when the process ends
        try:
            while not receiver.poll(_POLL_SECONDS):
                placed = _placed(Path(folder))
                if placed is not None:
                    return placed
            outcome = receiver.recv()
        except EOFError:
            process.join()
            raise UserError(f"the TPU compiler's process died with status {process.exitcode}") from None
        finally:
            process.kill()
            process.join()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _placed(folder: Path) -> int | None:
    for report in folder.glob(_REPORT):
        found = _HBM.search(report.read_text())
        if found:
            return int(found[1])
    return None


def _compile(config: Config, variant: Variant, topology: str, folder: str, sender: Connection) -> None:
    """Compile in a process of its own, to the end if no report is written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one on Ctrl-C
    try:
        mesh = make_mesh(config, topology_devices(topology))
        sender.send(hbm_bytes(compile_step(config, variant, mesh, "train", {"xla_dump_to": folder})))
    except (DoesNotFitError, UserError) as error:
        sender.send(error)
