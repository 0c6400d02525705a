"""Seconds and tokens/s of full, drop, consistency and averaged ScTD steps, interleaved in one run.

python benchmarks/train_step.py [--config configs/tiny.py] [--repeats 7]

Without --config: 12 layers x 256, 4 heads, FFN 1024, V 8192, N 128, K 64, P 19, batch 16, dropout 0.1, f32. Rows are
random ids on one device. Medians, with the spread; only ratios within one run count, absolute times drift.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import base
from sctd_jax.config import Config, from_dict
from sctd_jax.objective.masking import SpecialIds
from sctd_jax.parallel import mesh as meshes
from sctd_jax.train.flops import plain_step_flops, step_flops
from sctd_jax.train.state import initial_state
from sctd_jax.train.step import make_train_step

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
VARIANTS = ("full", "drop", "consistency")


def default_config():
    """The 12 x 256 setting of docs and issues."""
    config = base.get_config()
    config.model.update(
        vocab_size=8192, hidden_size=256, num_heads=4, intermediate_size=1024, max_positions=128, dtype="float32"
    )
    config.data.seq_len = 128
    config.train.batch_size = 16
    return config


def load_config(path: str | None) -> Config:
    """A config file, on one device, or the default setting; always with ScTD, so that all variants exist."""
    if path is None:
        values = default_config()
    else:
        spec = importlib.util.spec_from_file_location("recipe", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        values = module.get_config()
    values.mesh.data = 1
    values.dropping.method = "sctd"
    return from_dict(values.to_dict())


def measure(config: Config, repeats: int) -> dict[str, np.ndarray]:
    """Seconds f64[repeats] per variant; every repeat times each variant once, on a state of its own."""
    mesh = meshes.make_mesh(config)
    rng = np.random.default_rng(0)
    rows = rng.integers(5, config.model.vocab_size, (config.train.batch_size, config.data.seq_len), dtype=np.int32)
    rows[:, 0], rows[:, -1] = SPECIAL.cls, SPECIAL.sep
    tokens = meshes.put_batch(mesh, rows)
    steps = {v: meshes.jit_train_step(mesh, make_train_step(config, SPECIAL, v)) for v in VARIANTS}
    new_state = meshes.jit_init(mesh, lambda: initial_state(config, SPECIAL))
    states = {variant: new_state() for variant in VARIANTS}
    seconds = {variant: [] for variant in VARIANTS}
    for repeat in range(-1, repeats):  # the first round compiles
        for variant in VARIANTS:
            started = time.perf_counter()
            states[variant], metrics = steps[variant](states[variant], tokens)
            jax.block_until_ready((states[variant].params, metrics))
            if repeat >= 0:
                seconds[variant].append(time.perf_counter() - started)
    return {variant: np.array(values) for variant, values in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    config = load_config(args.config)
    seconds = measure(config, args.repeats)
    interval = config.dropping.sc_interval
    seconds["ScTD average"] = ((interval - 1) * seconds["drop"] + seconds["consistency"]) / interval
    flops = {variant: step_flops(config, variant) for variant in VARIANTS}
    flops["ScTD average"] = ((interval - 1) * flops["drop"] + flops["consistency"]) / interval
    tokens, plain = config.train.batch_size * config.data.seq_len, plain_step_flops(config)
    print(f"{'step':>14} {'seconds':>8} {'spread':>15} {'tokens/s':>9} {'of full':>8} {'FLOPs of plain':>15}")
    for name, values in seconds.items():
        median, spread = np.median(values), f"{values.min():.3f}-{values.max():.3f}"
        ratio = np.median(values / seconds["full"])
        print(f"{name:>14} {median:8.3f} {spread:>15} {tokens / median:9,.0f} {ratio:8.2f} {flops[name] / plain:15.2f}")


if __name__ == "__main__":
    main()
