"""The largest batch that fits: the memory of a train step is nearly linear in its rows, so few compilations find it."""

import dataclasses
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.parallel.aot import GIB, DoesNotFitError, compile_program, open_slice
from sctd_jax.train.step import Variant, steps_needed

_LEAST = 8  # rows: what the chips' tiles hold


@dataclasses.dataclass(frozen=True)
class Fit:
    """The largest batch of a train step on one chip."""

    rows: int
    needed: int  # bytes of HBM at `rows`, as compiled
    next_rows: int
    next_needed: int | None  # by the line through the two largest batches that were compiled; None: compiled, no fit


def fit_for(config: Config, topology: str, log: Callable[[str], None]) -> bool:
    """Find and print the largest batch of every train step that a config needs on a slice such as 'v5e:2x2'.

    Returns:
      Whether all of them fit with any batch.

    Raises:
      UserError: as `compile_for`.
    """
    config, mesh, chip = open_slice(config, topology, log)
    fits = True
    for name, (stage, variant) in steps_needed(config).items():
        try:
            log(f"{name}\n  largest batch  {describe(largest_batch(stage, variant, mesh, chip.hbm_bytes))}")
        except DoesNotFitError as error:
            fits = False
            log(f"{name}\n  does not fit in {chip.hbm_gib} GiB: {error}")
    return fits


def describe(fit: Fit) -> str:
    """E.g. `144 rows a chip: 15.20 GiB; 160 would need about 16.60`."""
    estimate = "would not fit" if fit.next_needed is None else f"would need about {fit.next_needed / GIB:.2f}"
    return f"{fit.rows} rows a chip: {fit.needed / GIB:.2f} GiB; {fit.next_rows} {estimate}"


def largest_batch(
    config: Config, variant: Variant, mesh: Mesh, limit: int, known: Sequence[tuple[int, int]] = ()
) -> Fit:
    """How many rows of one train step fit on a chip, in steps of about an eighth of the result (8, 16, 32 ...).

    Args:
      config: its batch size is where the search begins.
      variant: of the step.
      mesh: of the chips.
      limit: bytes of HBM that a program may use on a chip.
      known: (rows a chip, bytes) of the same step on other chips, to begin with a better guess.

    Raises:
      DoesNotFitError: not even 8 rows do.
    """

    def needed(rows: int) -> int | None:
        train = dataclasses.replace(config.train, batch_size=rows * mesh.size)
        try:
            size = compile_program(dataclasses.replace(config, train=train), variant, mesh, "train").needed
        except DoesNotFitError:
            return None
        return size if size <= limit else None

    return search(needed, limit, _rounded(config.train.batch_size // mesh.size), known)


def search(needed: Callable[[int], int | None], limit: int, start: int, known: Sequence[tuple[int, int]] = ()) -> Fit:
    """The search of `largest_batch`, over a function that says what some rows need, or None if they do not fit."""
    fitting: dict[int, int] = {}
    too_many = 1 << 20
    while too_many > _LEAST:
        points = fitting if len(fitting) > 1 else dict(known) | fitting
        rows = max([_LEAST, min(_guess(points, limit, start), _rounded(too_many - 1)), *fitting])
        if rows in fitting:
            next_rows = rows + _step(rows)
            estimate = None if next_rows >= too_many else round(_bytes_at(points, next_rows))
            return Fit(rows, fitting[rows], next_rows, estimate)
        size = needed(rows)
        if size is None:
            too_many, start = rows, rows // 2
        else:
            fitting[rows] = size
    raise DoesNotFitError(f"{_LEAST} rows a chip do not fit")


def _guess(points: dict[int, int], limit: int, start: int) -> int:
    if len(points) > 1:
        return _rounded(_rows_at(points, limit))
    return 2 * max(points) if points else start


def _step(rows: int) -> int:
    return max(_LEAST, (1 << rows.bit_length()) // 16)


def _rounded(rows: float) -> int:
    step = _step(max(int(rows), 1))
    return int(rows) // step * step


def _slope(points: dict[int, int]) -> tuple[int, float]:
    """The largest batch and the bytes a row, by the two largest."""
    first, second = sorted(points)[-2:]
    return second, (points[second] - points[first]) / (second - first)


def _bytes_at(points: dict[int, int], rows: int) -> float:
    last, slope = _slope(points)
    return points[last] + slope * (rows - last)


def _rows_at(points: dict[int, int], size: int) -> float:
    last, slope = _slope(points)
    return last + (size - points[last]) / slope
