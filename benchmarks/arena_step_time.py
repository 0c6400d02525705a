"""Mean step time of every method of an arena in units of its baseline's: what `train_step.py --arena` runs.

A step of a method is the mean over its run at budget 1, each of its programs (drop, consistency, stages of K ...) as
often as the run has it. All methods are timed in turn, so that a machine that slows down slows all of them.
"""

import collections
import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sctd_jax import recipes
from sctd_jax.comparison.table import read_table
from sctd_jax.config import Config
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.model import initial_state, on_devices, state_layout
from sctd_jax.pretrain.step import compile_programs, program_at, programs_needed

_FIRST = 3  # steps of a turn that are not timed
_SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


class _Method:
    """One method's programs, on a state of its own and on random rows."""

    def __init__(self, config: Config):
        settled, _, mesh = on_devices(config)
        needed = programs_needed(settled)
        layout = state_layout(settled, _SPECIAL, mesh)
        self._programs = compile_programs(needed, _SPECIAL, mesh, layout, run=settled)
        self._state = jax.jit(lambda: initial_state(config, _SPECIAL), out_shardings=meshes.shardings(layout))()
        rng, self._rows = np.random.default_rng(0), {}
        for name, (stage, _) in needed.items():
            shape = (stage.train.batch_size, stage.data.seq_len)
            rows = rng.integers(5, config.model.vocab_size, shape, dtype=np.int32)
            rows[:, 0], rows[:, -1] = _SPECIAL.cls, _SPECIAL.sep
            self._rows[name] = meshes.put_batch(mesh, len(rows), rows)
        counts = collections.Counter(program_at(config, step) for step in range(config.train.steps))
        self._shares = {name: count / config.train.steps for name, count in counts.items()}

    def seconds(self, steps: int) -> float:
        """Mean seconds of a step of the run, by the median of `steps` steps of each program.

        The first ones of a turn are not timed: a system may have taken back memory that was idle meanwhile.
        """
        mean = 0.0
        for name, share in self._shares.items():
            seconds = []
            for _ in range(_FIRST + steps):
                began = time.perf_counter()
                self._state, metrics = self._programs[name](self._state, self._rows[name])
                jax.block_until_ready((self._state.params, metrics))
                seconds.append(time.perf_counter() - began)
            mean += share * float(np.median(seconds[_FIRST:]))
        return mean


def _recipe(given: str) -> dict:
    """Fields of the arena's recipe that --arena names."""
    try:
        values = recipes.load(given)
    except UserError as error:  # it speaks of the option of the other commands
        raise UserError(str(error).replace("--config=", "--arena=")) from error
    if recipes.modes(values):
        raise UserError(
            f"--arena={given} is no recipe of an arena: expected is one such as configs/arena/small.py:ROWS"
        )
    return values.to_dict()


def measure(recipe: str, repeats: int, steps: int = 10) -> dict:
    """Content of the JSON file: `step_time` by method (medians over repeats), `spread`, and where it was measured."""
    values = _recipe(recipe)
    # A recipe without a table of methods is refused by `read_table`.
    names = tuple(values["methods"]) if isinstance(values.get("methods"), Mapping) else ()
    everything = {"methods": names, "budgets": (1.0,), "seeds": (0,)}
    table = read_table(values | {"rounds": (everything,)}, dict.fromkeys(names, 1.0))
    methods = {cell.method: _Method(cell.config) for cell in table.cells}
    found = []
    for repeat in range(repeats + 1):  # the first one warms up
        seconds = {name: method.seconds(steps) for name, method in methods.items()}
        if repeat:
            found.append(seconds)
    ratios = {name: [one[name] / one[table.baseline] for one in found] for name in methods}
    return {
        "recipe": recipe,
        "step_time": {name: round(float(np.median(values)), 4) for name, values in ratios.items()},
        "spread": {name: [round(min(values), 4), round(max(values), 4)] for name, values in ratios.items()},
        "seconds": {name: [round(one[name], 5) for one in found] for name in methods},
        "machine": {
            "jax": jax.__version__, "device": jax.devices()[0].device_kind, "cpus": os.cpu_count(),
            "date": time.strftime("%Y-%m-%d"), "repeats": repeats, "steps": steps,
        },
        "model": dataclasses.asdict(table.cells[0].config.model),
    }  # fmt: skip


def report(found: dict, out: Path | None) -> None:
    """Print the figures, and write them where `--step-time` of the arena finds them."""
    print("{:<24} {:>9} {:>15} {:>9}".format("method", "step time", "spread", "seconds"))
    for name, ratio in found["step_time"].items():
        low, high = found["spread"][name]
        print(f"{name:<24} {ratio:9.3f} {f'{low:.3f}-{high:.3f}':>15} {np.median(found['seconds'][name]):9.4f}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "step_time.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {out / 'step_time.json'}")
