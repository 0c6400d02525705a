"""Compile a config's train steps for a TPU slice on a machine without one, and say whether they fit.

`libtpu` holds the whole compiler: memory and collectives are those of the executable that the chips would run. What
is computed from data sheets is called an estimate.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import topologies

from sctd_jax.config import Config
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError
from sctd_jax.model.families import check_family
from sctd_jax.model.token_dropping import check_selector
from sctd_jax.parallel import chips
from sctd_jax.parallel.chips import Chip
from sctd_jax.parallel.mesh import describe
from sctd_jax.pretrain.flops import mean_step_flops, step_flops
from sctd_jax.pretrain.model import on_devices, state_layout
from sctd_jax.pretrain.step import Variant, compile_train_step, programs_needed
from sctd_jax.train.step import peak_bytes

_SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
GIB = 2**30
_KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}


@dataclasses.dataclass(frozen=True)
class Program:
    """One train step as compiled for one chip of a slice. Sizes in bytes."""

    seconds: float  # time that compiling took
    needed: int  # HBM that it needs
    state: int  # part of it for parameters, moments, importance table and batch
    flops: float  # a step and chip, by formula
    traffic: float  # bytes that its operations read and write, by XLA's count
    # Kind -> (how many, bytes of their results on one chip); those in the loop over microbatches count once.
    collectives: dict[str, tuple[int, int]]


class DoesNotFitError(Exception):
    """A program that the compiler found no way to place in HBM; the message is the compiler's."""


def compile_for(config: Config, topology: str, log: Callable[[str], None], mfu: float = 0.4) -> bool:
    """Compile every train step that a config needs for a slice such as 'v5e:2x4' and print what it takes.

    True if all of them fit. `mfu` is the model FLOP utilisation to reckon the run's length with, between 0 and 1.
    """
    config, mesh, chip = open_slice(config, topology, log)
    fits, hours = True, chip_hours(config, chip, mfu)
    for name, (stage, variant) in programs_needed(config).items():
        try:
            program = compile_program(stage, variant, mesh, name)
            enough = program.needed <= chip.hbm_bytes
            fits, lines = fits and enough, _describe(program, chip, enough)
        except DoesNotFitError as error:
            fits, lines = False, [f"  HBM          does not fit in {chip.hbm_gib} GiB: {error}"]
        log(name)
        for line in lines:
            log(line)
    log(
        f"the run: {config.train.steps:,} steps are {hours:,.0f} chip-hours at an MFU of {mfu:g} (--mfu, an "
        f"assumption), {hours / mesh.size:,.1f} h on this slice"
    )
    return fits


def chip_hours(config: Config, chip: Chip, mfu: float) -> float:
    """Hours of one chip that a whole run takes, by its formula's FLOPs and a share of the chip's peak."""
    return mean_step_flops(config) * config.train.steps / (mfu * chip.flops * 3600)


def open_slice(config: Config, topology: str, log: Callable[[str], None]) -> tuple[Config, jax.sharding.Mesh, Chip]:
    """A config as it would run on a slice, the slice's mesh and what its chips are; says so."""
    check_selector(config.dropping.selector)  # before libtpu loads, which takes seconds
    check_family(config.model)
    devices = topology_devices(topology)
    config, attention, mesh = on_devices(config, devices)
    chip = chips.find(devices[0].device_kind)
    if chip is None or not chip.hbm_gib:
        raise UserError(f"--topology={topology}: nothing is known here of the HBM of a {devices[0].device_kind}")
    batch = config.train.batch_size
    log(f"{topology}: {mesh.size} x {devices[0].device_kind}, mesh {describe(mesh)}")
    log(f"{batch} rows of {config.data.seq_len} a step, {batch / mesh.size:g} a chip; attention {attention}")
    return config, mesh, chip


def topology_devices(topology: str) -> list[jax.Device]:
    """The chips of a slice that is not here."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(f"compiling for a TPU needs libtpu: pip install 'jax[tpu]=={jax.__version__}'")
    # A v4 chip's two cores are one device, as on the machines that are lent out; the others have no choice.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # libtpu's own, of several types
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--topology={topology}: {reason} (known are v4, v5e, v5p and v6e with the sizes of their slices, such as "
            "v5e:2x4, v6e:4x4, v5p:2x2x2, v4:2x2x2)"
        ) from error
    return found


def compile_program(config: Config, variant: Variant, mesh: jax.sharding.Mesh, name: str) -> Program:
    """One train step for the chips of a mesh."""
    began = time.monotonic()
    compiled = compile_step(config, variant, mesh, name)
    return Program(
        seconds=time.monotonic() - began,
        needed=hbm_bytes(compiled),
        state=compiled.memory_analysis().argument_size_in_bytes,
        flops=step_flops(config, variant) / mesh.size,
        # XLA counts the body of a loop once.
        traffic=compiled.cost_analysis().get("bytes accessed", 0.0) * config.train.microbatches(variant),
        collectives=collectives(compiled.as_text()),
    )


def compile_step(
    config: Config, variant: Variant, mesh: jax.sharding.Mesh, name: str, options: dict[str, str] | None = None
) -> jax.stages.Compiled:
    """One train step for the chips of a mesh, with options of the compiler."""
    word_start_V = np.ones(config.model.vocab_size, bool) if config.masking.whole_word else None
    try:
        layout = state_layout(config, _SPECIAL, mesh)
        return compile_train_step(config, _SPECIAL, variant, mesh, layout, word_start_V, options, run=config)
    except jax.errors.JaxRuntimeError as error:
        message = str(error).strip().splitlines()[0]
        if not ("RESOURCE_EXHAUSTED" in message and "hbm" in message.lower()):
            raise UserError(f"the TPU compiler failed on the {name} step: {message}") from error
        raise DoesNotFitError(message.removeprefix("RESOURCE_EXHAUSTED: ")) from error


def hbm_bytes(compiled: jax.stages.Compiled) -> int:
    """HBM of a chip that a program and its buffers take."""
    return peak_bytes(compiled) + compiled.memory_analysis().generated_code_size_in_bytes


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Collectives of an optimised program by kind: their number, and the bytes of their results on one device."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for result, kind, start in re.findall(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(", hlo):
        shapes = [
            _BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(",") if n], initial=1))
            for dtype, dims in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result)
        ]
        if start and kind == "all-gather":  # operands, then results
            shapes = shapes[len(shapes) // 2 :]
        if start and kind == "collective-permute":  # operand, result, contexts
            shapes = shapes[1:2]
        counts[kind] += 1
        sizes[kind] += sum(shapes)
    return {kind: (counts[kind], sizes[kind]) for kind in _KINDS if counts[kind]}


def _describe(program: Program, chip: Chip, fits: bool) -> list[str]:
    moved = ", ".join(f"{count} {kind} {size / 2**20:,.1f} MiB" for kind, (count, size) in program.collectives.items())
    compute, memory = program.flops / chip.flops, program.traffic / chip.bandwidth
    return [
        f"  HBM          {program.needed / GIB:.2f} of {chip.hbm_gib} GiB a chip: "
        f"{'fits' if fits else 'does not fit'} "
        f"(state and batch {program.state / GIB:.2f})",
        f"  FLOPs        {program.flops:.3g} a chip and step",
        f"  collectives  {moved or 'none'}",
        f"  compiled     in {program.seconds:.0f} s",
        f"  estimate     about {1e3 * max(compute, memory):.1f} ms a step: a roofline from the chip's data sheet "
        f"(matrix products {1e3 * compute:.1f} ms at {chip.flops / 1e12:g} TFLOP/s, memory traffic {1e3 * memory:.1f} "
        f"ms at {chip.bandwidth / 1e9:g} GB/s)",
    ]
