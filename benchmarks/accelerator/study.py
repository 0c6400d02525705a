"""The methods against each other at equal training time, on the embedded trial corpus: 12 x 384, N 128.

A first look, no result: the corpus is 12 MB, which an accelerator reads many times in a minute, and one seed says
nothing of the spread. The real study, with text enough, seeds and fine-tuning, is the arena's (sctd_jax/arena.py).
random-LTD keeps half of the tokens throughout, without its growing schedule.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator.part import Bench
from benchmarks.accelerator.rows import prepare_rows
from configs import base
from sctd_jax.config import Config, from_dict
from sctd_jax.data.loader import Loader, prefetch
from sctd_jax.data.rows import TRAIN, Rows
from sctd_jax.model.attention import platform_of
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.evaluation import make_evaluate
from sctd_jax.pretrain.model import initial_state, settle, state_layout
from sctd_jax.pretrain.rows import Data, open_data
from sctd_jax.pretrain.step import compile_programs, program_at, programs_needed
from sctd_jax.train.state import TrainState

METHODS = ("full", "sctd", "drop", "random_ltd", "random")
SMOKE_METHODS = ("drop",)
_TIMED = 20  # steps by which the number of steps is reckoned: two intervals of ScTD
_EVALUATIONS = 5
_LONGEST = 600.0  # seconds that a method trains at most


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part."""
    with tempfile.TemporaryDirectory(prefix="accelerator-", ignore_cleanup_errors=True) as name:
        rows = Path(name, "rows")
        sizes = config_of("full", bench.smoke, rows, 1)
        prepare_rows(bench, rows, sizes.data.seq_len, sizes.model.vocab_size)
        # Half of what is left is for compiling, which each method does twice.
        methods = SMOKE_METHODS if bench.smoke else METHODS
        seconds = min(bench.left() / (2 * len(methods)), 0.5 if bench.smoke else _LONGEST)
        report: dict[str, Any] = {"training_seconds": seconds, "batch_size": sizes.train.batch_size, "methods": {}}
        bench.save("study", report)
        longest = 0.0
        for method in methods:
            if bench.left() < max(longest, 1.5 * seconds):
                report.setdefault("left_out_for_time", []).append(method)
                bench.save("study", report)
                yield f"{method:<10} left out for time"
                continue
            began = time.monotonic()
            found = train(bench, method, rows, seconds)
            longest = max(longest, time.monotonic() - began)
            report["methods"][method] = found
            bench.save("study", report)
            curve = ", ".join(f"{point['loss']:.3f}" for point in found["curve"])
            yield (
                f"{method:<10} {found['seconds']:.0f} s, {found['steps']} steps, {found['tokens'] / 1e6:.1f} M tokens; "
                f"held-out loss {curve}"
            )


def config_of(method: str, smoke: bool, rows: Path, steps: int) -> Config:
    """The recipe of a method, the same for all but for its number of steps."""
    values = base.get_config()
    if smoke:
        values.model.update(
            vocab_size=512, num_layers=4, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=32,
            dtype="float32",
        )  # fmt: skip
        values.data.seq_len, values.train.batch_size = 32, 8
    else:
        values.model.update(
            vocab_size=8192, num_layers=12, hidden_size=384, num_heads=6, intermediate_size=1536, max_positions=128
        )
        values.data.seq_len, values.train.batch_size = 128, 256
    values.model.attention_dropout = 0.0
    values.data.rows = str(rows)
    values.dropping.method = method
    values.optimizer.update(learning_rate=1e-3, warmup_steps=max(steps // 10, 1))
    values.mesh.data = 1
    values.train.update(steps=steps, eval_rows=512)
    return from_dict(values.to_dict())


def train(bench: Bench, method: str, rows: Path, seconds: float) -> dict[str, Any]:
    """Train a method for so many seconds on the first device; its held-out losses by seconds and tokens."""
    mesh = meshes.make_mesh(config_of(method, bench.smoke, rows, 1).mesh, jax.devices()[:1])

    def prepared(steps: int):
        config = config_of(method, bench.smoke, rows, steps)
        settled, attention = settle(config, platform_of(mesh.devices.flat[0]))
        data = open_data(config, bench.log)
        began = time.monotonic()
        special = data.tokenizer.special
        layout = state_layout(settled, special, mesh)
        programs = compile_programs(programs_needed(settled), special, mesh, layout, data.word_start_V)
        bench.log(
            f"{method}: compiled {', '.join(programs)} in {time.monotonic() - began:.0f} s; attention {attention}"
        )
        return config, settled, data, layout, programs

    # The schedule of the rate is part of the program, and its length is known when the speed is.
    config, _, data, layout, programs = prepared(10_000)
    first = range(_TIMED)
    _, warm = _train(config, data, mesh, programs, _first(config, data, layout), first)
    state, took = _train(config, data, mesh, programs, _first(config, data, layout), first)
    steps = max(int(seconds * _TIMED / min(took, warm)), _EVALUATIONS)
    bench.log(f"{method}: {1e3 * took / _TIMED:.1f} ms a step, so {steps} steps")

    config, settled, data, layout, programs = prepared(steps)
    evaluate = make_evaluate(settled, data, mesh, layout)
    state, total, curve = _first(config, data, layout), 0.0, []
    evaluate(state)  # compiled now
    edges = [steps * i // _EVALUATIONS for i in range(_EVALUATIONS + 1)]
    for start, end in itertools.pairwise(edges):
        state, took = _train(config, data, mesh, programs, state, range(start, end))
        total += took
        tokens = end * config.train.batch_size * config.data.seq_len
        curve.append({"step": end, "seconds": total, "tokens": tokens, "loss": evaluate(state)["eval/loss"]})
    return {
        "seconds": total, "steps": steps, "tokens": curve[-1]["tokens"], "curve": curve,
        "config": dataclasses.asdict(config),
    }  # fmt: skip


def _first(config: Config, data: Data, layout: TrainState) -> TrainState:
    return jax.jit(lambda: initial_state(config, data.tokenizer.special), out_shardings=meshes.shardings(layout))()


def _train(config: Config, data: Data, mesh: jax.sharding.Mesh, programs, state, steps: range):
    """State after the steps, and their seconds."""
    batch_size = config.train.batch_size
    loader = Loader(Rows(data.folder, TRAIN), batch_size=batch_size, seed=config.train.seed)
    began = time.monotonic()
    with closing(prefetch(lambda step: meshes.put_batch(mesh, batch_size, loader.batch(step)), steps)) as batches:
        for step, batch in zip(steps, batches, strict=True):
            state, _ = programs[program_at(config, step)](state, batch)
    jax.block_until_ready(state.params)
    return state, time.monotonic() - began
