"""The largest batch that fits on a chip, by compiling: XLA saves memory in its own ways where it gets scarce."""

import bisect
import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.pretrain.step import Variant, programs_needed
from sctd_jax.tpu.buffers import buffer_bytes
from sctd_jax.tpu.compile import GIB, DoesNotFitError, compile_program, open_slice

# Rows a chip that are tried, two to each doubling; 8 is what the chips' tiles hold.
SIZES = [8, *(part << octave for octave in range(3, 15) for part in (2, 3))]
# More than a program's own code takes, which has to fit beside its buffers (BERT-base's consistency step: 0.4 GiB).
_CODE = GIB


@dataclasses.dataclass(frozen=True)
class Fit:
    """The largest batch of a train step on one chip."""

    rows: int
    needed: int  # bytes of HBM; without the program's code where that fits in any case
    too_many: int | None  # rows, the next of SIZES: does not fit; None if the largest of SIZES does


def fit_for(config: Config, topology: str, log: Callable[[str], None]) -> bool:
    """Find and print the largest batch of every train step that a config needs on a slice such as 'v5e:2x2'.

    Returns:
      Whether all of them fit with any batch.
    """
    config, mesh, chip = open_slice(config, topology, log)
    fits = True
    for name, (stage, variant) in programs_needed(config).items():
        log(name)
        try:
            fit = largest_batch(stage, variant, topology, mesh, chip.hbm_bytes)
            end = f"{fit.too_many} do not fit" if fit.too_many else "more were not tried"
            log(f"  {fit.rows} rows a chip: {fit.needed / GIB:.2f} of {chip.hbm_gib} GiB; {end}")
        except DoesNotFitError as error:
            fits = False
            log(f"  does not fit in {chip.hbm_gib} GiB: {error}")
    return fits


def largest_batch(config: Config, variant: Variant, topology: str, mesh: Mesh, limit: int) -> Fit:
    """Largest of SIZES, the rows of a chip, with which a train step fits.

    Args:
      config: config of the run; its batch size is the first guess.
      variant: variant of the step.
      topology: the slice.
      mesh: mesh of the chips.
      limit: bytes of HBM that a program may use on a chip.

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


def search(needed: Callable[[int], int | None], guess: int) -> Fit:
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
    return Fit(SIZES[fits], sizes[fits], SIZES[too_many] if too_many < len(SIZES) else None)
