"""The largest batch that fits on the device: rows by doubling, then between, each tried by running steps.

Sizes are two to each doubling, as those of `--mode=compile --largest_batch`. Each trial compiles a program, so time may
end first: then the line says between which sizes the answer lies. JAX gives a program three quarters of a GPU's memory
unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.part import Bench
from benchmarks.accelerator.speed import Setting, config_of, out_of_memory
from benchmarks.train_step import CONSISTENCY, FULL, SPECIAL
from sctd_jax.config import Config
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.model import initial_state, state_layout
from sctd_jax.pretrain.step import Variant, compile_train_step
from sctd_jax.train.step import peak_bytes

# Model, method, its step that needs the most, and rows to begin with; most important first.
CELLS: tuple[tuple[str, str, Variant, int], ...] = (
    ("BERT-base", "full", FULL, 64),
    ("BERT-base", "sctd", CONSISTENCY, 64),
    ("BERT-large", "sctd", CONSISTENCY, 32),
    ("BERT-large", "full", FULL, 32),
)
_MOST = 4096  # rows; more is not tried
_SECONDS = 25  # a trial takes about so long on a GPU; with fewer left it is not begun
_TIMED = 3  # steps after the first


@dataclasses.dataclass
class Found:
    """Bounds of the largest batch. Rows; 0: none is known to fit, None: none is known not to."""

    fits: int = 0
    too_many: int | None = None
    finished: bool = False


def search(fits: Callable[[int], bool], first: int, most: int, go_on: Callable[[], bool]) -> Iterator[Found]:
    """Narrow down the largest rows for which `fits` holds, among r * 2**i and 1.5 r * 2**i; a look after each trial.

    `first` is tried first, `most` is the last that may be; `go_on` is asked before each trial.
    """
    found = Found()

    def next_size() -> int | None:
        if found.too_many is None:
            return found.fits * 2 or first
        if not found.fits:
            return found.too_many // 2 or None
        # Halfway, unless one end lies there already.
        return found.fits * 3 // 2 if found.too_many == 2 * found.fits and found.fits > 1 else None

    while (rows := next_size()) and rows <= most:
        if not go_on():
            yield found
            return
        if fits(rows):
            found.fits = rows
        else:
            found.too_many = rows
        yield dataclasses.replace(found)
    found.finished = True
    yield found


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    report: dict[str, Any] = {"device": device.device_kind, "bytes_limit": limit, "cells": []}
    cells = (("BERT-base", "full", FULL, 4),) if bench.smoke else CELLS
    for model, method, variant, first in cells:
        length = 32 if bench.smoke else 512
        cell: dict[str, Any] = {"model": model, "length": length, "method": method, "step": variant, "trials": []}
        report["cells"].append(cell)

        def fits(rows: int, cell=cell) -> bool:
            setting = Setting(cell["model"], cell["length"], rows)
            trial = {"rows": rows} | try_steps(config_of(setting, cell["method"], bench.smoke), cell["step"])
            cell["trials"].append(trial)
            bench.log(f"{cell['model']} {cell['method']}: {trial}")
            return trial["fits"]

        def go_on() -> bool:
            return bench.left() > (1 if bench.smoke else _SECONDS)

        for found in search(fits, first, first if bench.smoke else _MOST, go_on):
            cell |= dataclasses.asdict(found)
            bench.save("batches", report)
        yield line(cell, limit)


def try_steps(config: Config, variant: Variant) -> dict[str, Any]:
    """Whether a train step fits, by running it; and if so its seconds and the bytes that it needs."""
    mesh = meshes.make_mesh(config.mesh)
    rng = np.random.default_rng(0)
    rows = rng.integers(5, config.model.vocab_size, (config.train.batch_size, config.data.seq_len), dtype=np.int32)
    try:
        layout = state_layout(config, SPECIAL, mesh)
        step = compile_train_step(config, SPECIAL, variant, mesh, layout)
        state = jax.jit(lambda: initial_state(config, SPECIAL), out_shardings=meshes.shardings(layout))()
        tokens = meshes.put_batch(mesh, len(rows), rows)
        for count in (1, _TIMED):
            began = time.perf_counter()
            for _ in range(count):
                state, metrics = step(state, tokens)
            jax.block_until_ready((state.params, metrics))
            seconds = (time.perf_counter() - began) / count
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        return {"fits": False}
    return {"fits": True, "seconds": seconds, "peak_bytes": peak_bytes(step)}


def line(cell: dict[str, Any], limit: int | None) -> str:
    """A cell in a line."""
    text = f"{cell['model']} N {cell['length']} {cell['method']} ({cell['step']} step): "
    if cell["fits"]:
        trial = next(trial for trial in cell["trials"] if trial["rows"] == cell["fits"])
        of_limit = f" of {limit / 2**30:.1f}" if limit else ""
        tokens = cell["fits"] * cell["length"] / trial["seconds"]
        text += f"{cell['fits']} rows fit, {trial['peak_bytes'] / 2**30:.1f}{of_limit} GiB, {tokens:,.0f} tokens/s"
    else:
        text += "no rows are known to fit"
    text += f"; {cell['too_many']} do not" if cell["too_many"] else "; more were not tried"
    return text + ("" if cell["finished"] else "; the search was left off for time")
