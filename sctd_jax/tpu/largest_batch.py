"""The largest batch that fits on a chip, by compiling: XLA saves memory in its own ways where it gets scarce."""

import bisect
import dataclasses
import multiprocessing
import re
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.errors import UserError
from sctd_jax.parallel.mesh import check_sizes, make_mesh
from sctd_jax.pretrain.step import Variant, programs_needed
from sctd_jax.tpu.compile import (
    GIB,
    DoesNotFitError,
    compile_program,
    compile_step,
    hbm_bytes,
    open_slice,
    topology_devices,
)

# Rows a chip that are tried, two to each doubling; 8 is what the chips' tiles hold.
SIZES = [8, *(part << octave for octave in range(3, 15) for part in (2, 3))]
# More than a program's own code takes, which has to fit beside its buffers (BERT-base's consistency step: 0.4 GiB).
_CODE = GIB
_REPORT = "*after_optimizations-memory-usage-report.txt"  # libtpu writes it when the buffers are placed
_HBM = re.compile(r"Memory Space: default .*\nTotal bytes: (\d+) ")
_POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest batch of a train step on one chip."""

    rows: int
    needed: int  # bytes of HBM; without the program's code where that fits in any case
    too_many: int | None  # rows, the next of SIZES: does not fit; None if the largest of SIZES does


def largest_batches(config: Config, topology: str, log: Callable[[str], None]) -> bool:
    """Print the largest batch of every train step that a config needs on a slice such as 'v5e:2x2'; True if all fit."""
    config, mesh, chip = open_slice(config, topology, log)
    all_fit = True
    for name, (stage, variant) in programs_needed(config).items():
        log(name)
        try:
            found = largest_batch(stage, variant, topology, mesh, chip.hbm_bytes)
            end = f"{found.too_many} do not fit" if found.too_many else "more were not tried"
            log(f"  {found.rows} rows a chip: {found.needed / GIB:.2f} of {chip.hbm_gib} GiB; {end}")
        except DoesNotFitError as error:
            all_fit = False
            log(f"  does not fit in {chip.hbm_gib} GiB: {error}")
    return all_fit


def largest_batch(config: Config, variant: Variant, topology: str, mesh: Mesh, limit: int) -> LargestBatch:
    """Largest of SIZES, the rows of a chip, with which a train step fits into `limit` bytes of its HBM.

    The batch size of the config, which is settled, is the first guess.

    Raises:
      DoesNotFitError: not even 8 rows fit.
    """

    def needed(rows: int) -> int | None:
        sized = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=rows * mesh.size))
        try:
            size = buffer_bytes(sized, variant, topology)
            if limit - _CODE < size <= limit:
                size = compile_program(sized, variant, mesh, "train").needed
        except DoesNotFitError:
            return None
        return size if size <= limit else None

    return search(needed, config.train.batch_size // mesh.size)


def search(needed: Callable[[int], int | None], guess: int) -> LargestBatch:
    """The largest of SIZES for which `needed` gives bytes and not None, if none above it does.

    Away from the guess in steps that double, then between what fits and what does not.
    """
    fits, too_many, sizes = -1, len(SIZES), {}
    at, stride = max(bisect.bisect_right(SIZES, guess) - 1, 0), 1
    while too_many - fits > 1:
        size = needed(SIZES[at])
        if size is None:
            too_many = at
        else:
            fits, sizes[at] = at, size
        if fits == -1:
            at = max(too_many - stride, 0)
        elif too_many == len(SIZES):
            at = min(fits + stride, len(SIZES) - 1)
        else:
            at = (fits + too_many) // 2
        stride *= 2
    if fits == -1:
        raise DoesNotFitError(f"{SIZES[0]} rows a chip do not fit")
    return LargestBatch(SIZES[fits], sizes[fits], SIZES[too_many] if too_many < len(SIZES) else None)


def buffer_bytes(config: Config, variant: Variant, topology: str) -> int:
    """Bytes of HBM that a train step's arguments, results and temporaries take on each chip of a slice.

    The program's own code comes on top of that. Making it is the last four fifths of a compilation, which are left out:
    the compiler runs in a process of its own, for it cannot be stopped otherwise.

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
                for report in Path(folder).glob(_REPORT):
                    if placed := _HBM.search(report.read_text()):
                        return int(placed[1])
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


def _compile(config: Config, variant: Variant, topology: str, folder: str, sender: Connection) -> None:
    """Compile in a process of its own, to the end if no report is written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one on Ctrl-C
    try:
        mesh = make_mesh(config.mesh, topology_devices(topology))
        check_sizes(mesh, config.model, config.train)
        sender.send(hbm_bytes(compile_step(config, variant, mesh, "train", {"xla_dump_to": folder})))
    except (DoesNotFitError, UserError) as error:
        sender.send(error)
