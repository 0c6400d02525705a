"""The search of the largest batch, over a pretended compiler."""

import jax
import pytest

from sctd_jax.parallel import aot, fitting
from sctd_jax.parallel.chips import Chip
from tests import helpers


def compiler(fixed, per_row, limit, unevenness=0):
    """(a function from rows to bytes or None, the rows that it was asked for)."""
    asked = []

    def needed(rows):
        asked.append(rows)
        size = fixed + per_row * rows + (unevenness if rows % 64 else 0)
        return size if size <= limit else None

    return needed, asked


def test_two_compilations_make_the_guess_and_a_third_checks_it():
    needed, asked = compiler(1000, 100, 15_750)
    assert fitting.search(needed, 15_750, 32) == fitting.Fit(144, 15_400, 160, 17_000)
    assert asked == [32, 64, 144]


def test_what_another_chip_needed_saves_the_first_two():
    needed, asked = compiler(1000, 100, 95_000)
    assert fitting.search(needed, 95_000, 32, [(32, 4200), (64, 7400)]).rows == 896
    assert asked == [896]


@pytest.mark.parametrize("limit", [1900, 2700, 4100, 9999, 31_250])
@pytest.mark.parametrize("known", [[], [(8, 1), (16, 2)], [(8, 10_000), (16, 30_000)]])
@pytest.mark.parametrize("start", [8, 64, 1024])
def test_however_wrong_the_guesses_are_the_result_fits_and_the_next_size_does_not(limit, known, start):
    needed, asked = compiler(1000, 100, limit, unevenness=90)
    fit = fitting.search(needed, limit, start, known)
    assert needed(fit.rows) == fit.needed
    if fit.next_needed is None:
        assert needed(fit.next_rows) is None
    elif not known:
        assert fit.next_needed > limit
    assert len(asked) == len(set(asked)) + 1 + (fit.next_needed is None)


def test_one_that_never_fits_is_said():
    needed, asked = compiler(1000, 100, 1700)
    with pytest.raises(aot.DoesNotFitError, match="8 rows a chip do not fit"):
        fitting.search(needed, 1700, 64)
    assert asked == [64, 32, 16, 8]


def test_the_command_prints_every_step_of_the_config(monkeypatch):
    """On four chips, with a pretended compiler: consistency steps need twice as much."""
    chip = Chip(1e12, 1e9, 1.0)
    monkeypatch.setattr(aot, "topology_devices", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(aot.chips, "find", lambda kind: chip)

    def compile_program(config, variant, mesh, name):
        rows = config.train.batch_size // mesh.size
        needed = rows * 2**20 * (2 if variant == "consistency" else 1)
        return aot.Program(0.0, needed, 0, 0.0, 0.0, {})

    monkeypatch.setattr(fitting, "compile_program", compile_program)
    lines = []
    assert fitting.fit_for(helpers.config(train__batch_size=128), "v5e:2x2", lines.append)
    assert lines[0].startswith("v5e:2x2: 4 x cpu")
    assert lines[2:] == [
        "drop\n  largest batch  1024 rows a chip: 1.00 GiB; 1152 would need about 1.12",
        "consistency\n  largest batch  512 rows a chip: 1.00 GiB; 576 would need about 1.12",
    ]
