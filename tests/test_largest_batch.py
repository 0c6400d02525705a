"""The search of the largest batch, over a pretended compiler."""

import multiprocessing

import jax
import pytest

from sctd_jax.errors import UserError
from sctd_jax.parallel.chips import Chip
from sctd_jax.tpu import compile as tpu_compile
from sctd_jax.tpu import largest_batch
from tests import helpers, pretended_compilers


def compiler(limit):
    """(a function from rows to bytes or None, the rows that it was asked for)."""
    asked = []

    def needed(rows):
        asked.append(rows)
        return 1000 + 100 * rows if rows <= limit else None

    return needed, asked


def test_sizes_are_multiples_of_8_two_to_each_doubling():
    assert largest_batch.SIZES[:10] == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(b <= 1.5 * a for a, b in zip(largest_batch.SIZES[1:], largest_batch.SIZES[2:], strict=False))


@pytest.mark.parametrize(
    ("guess", "asked"),
    [
        (128, [128, 192]),
        (192, [192, 128]),
        (100, [96, 128, 256, 192]),
    ],
)
def test_a_good_guess_costs_few_compilations(guess, asked):
    needed, found = compiler(140)
    assert largest_batch.search(needed, guess) == largest_batch.LargestBatch(128, 13_800, 192)
    assert found == asked


@pytest.mark.parametrize("limit", [8, 15, 16, 63, 64, 100, 5000, 120_000])
@pytest.mark.parametrize("guess", [0, 8, 70, 4096, 1 << 20])
def test_what_is_found_fits_and_the_next_size_does_not(limit, guess):
    needed, asked = compiler(limit)
    fit = largest_batch.search(needed, guess)
    assert fit.rows <= limit
    assert fit.rows in asked
    assert fit.too_many is None or (fit.too_many > limit and fit.too_many in asked)
    assert len(asked) == len(set(asked)) <= 12


def test_one_that_never_fits_is_said():
    needed, asked = compiler(7)
    with pytest.raises(tpu_compile.DoesNotFitError, match="8 rows a chip do not fit"):
        largest_batch.search(needed, 64)
    assert asked == [64, 48, 24, 8]


@pytest.mark.parametrize(("compiler", "found"), [("places", 27612763744), ("ends_without_report", 123)])
def test_buffers_are_known_before_the_compiler_ends(monkeypatch, compiler, found):
    monkeypatch.setattr(largest_batch, "_compile", getattr(pretended_compilers, compiler))
    before = multiprocessing.active_children()
    assert largest_batch.buffer_bytes(helpers.config(), "drop", "v5e:2x2") == found
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("refuses", "--topology=v5e:3x7: no such slice"), ("dies", "the TPU compiler's process died with status 139")],
)
def test_what_the_compiler_says_or_that_it_died_is_one_message(monkeypatch, compiler, message):
    monkeypatch.setattr(largest_batch, "_compile", getattr(pretended_compilers, compiler))
    with pytest.raises(UserError, match=message):
        largest_batch.buffer_bytes(helpers.config(), "drop", "v5e:3x7")


def test_the_command_prints_every_step_of_the_config(monkeypatch):
    """Four chips and a pretended compiler: consistency steps need twice as much, code a MiB that does not fit."""
    monkeypatch.setattr(tpu_compile, "topology_devices", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(tpu_compile.chips, "find", lambda kind: Chip(1e12, 1e9, 2.0))

    def buffer_bytes(config, variant, topology):
        assert topology == "v5e:2x2"
        needed = config.train.batch_size // 4 * 2**20 * (2 if variant == "consistency" else 1)
        if needed > 2**31:
            raise tpu_compile.DoesNotFitError("the compiler's words")
        return needed

    def compile_program(config, variant, mesh, name):
        needed = buffer_bytes(config, variant, "v5e:2x2") + 2**20
        return tpu_compile.Program(0.0, needed, 0, 0.0, 0.0, {})

    monkeypatch.setattr(largest_batch, "buffer_bytes", buffer_bytes)
    monkeypatch.setattr(largest_batch, "compile_program", compile_program)
    lines = []
    assert largest_batch.largest_batches(helpers.config(train__batch_size=128, mesh__data=-1), "v5e:2x2", lines.append)
    assert lines[0].startswith("v5e:2x2: 4 x cpu")
    assert lines[2:] == [
        "drop",
        "  1536 rows a chip: 1.50 of 2.0 GiB; 2048 do not fit",
        "consistency",
        "  768 rows a chip: 1.50 of 2.0 GiB; 1024 do not fit",
    ]
