"""Seconds, tokens/s, MFU, memory and time to compile of every kind of step at published sizes, in bfloat16.

The steps of a setting are timed in turn, so that their ratios count. Where they do not fit in the device's memory, the
setting is tried again with half the rows, which its line says.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import train_step
from benchmarks.accelerator.part import Bench
from benchmarks.train_step import CONSISTENCY, DROP, FULL, PLAIN, Timing
from configs import base, large
from sctd_jax.config import Config, from_dict
from sctd_jax.model.attention import platform_of
from sctd_jax.parallel import chips
from sctd_jax.pretrain.model import settle

RANDOM_LTD = "random-LTD"
_REPEATS = 9
_SECONDS = 60  # a setting takes about so long on a GPU, most of it compiling; with fewer left it is not begun


@dataclasses.dataclass(frozen=True)
class Setting:
    """One size of model and batch."""

    model: str  # BERT-base or BERT-large
    length: int  # N
    rows: int
    attention_dropout: float = 0.0

    @property
    def title(self) -> str:
        """Its name in the table."""
        return f"{self.model} N {self.length}, {self.rows} rows, attention dropout {self.attention_dropout:g}"


SETTINGS = (  # most important first
    Setting("BERT-base", 512, 64),
    Setting("BERT-large", 512, 32),
    Setting("BERT-base", 128, 256),
    Setting("BERT-base", 512, 64, attention_dropout=0.1),
)


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part, one for each kind of step of each setting."""
    device = jax.devices()[0]
    chip = chips.find(device.device_kind)
    report: dict[str, Any] = {
        "device": device.device_kind, "peak_flops": chip and chip.flops, "settings": [], "left_out_for_time": [],
    }  # fmt: skip
    if not chip:
        yield f"no MFU: the peak of a {device.device_kind} is not known"
    settings = (Setting("BERT-base", 32, 4),) if bench.smoke else SETTINGS
    for setting in settings:
        if bench.left() < (1 if bench.smoke else _SECONDS):
            report["left_out_for_time"].append(setting.title)
            bench.save("speed", report)
            yield f"{setting.title}: left out for time"
            continue
        fits, timings = measure(setting, bench.smoke)
        if fits is None:
            yield f"{setting.title}: not even one row fits in the device's memory"
            continue
        values = figures(timings, chip and chip.flops)
        report["settings"].append(dataclasses.asdict(fits) | {"asked_rows": setting.rows, "steps": values})
        bench.save("speed", report)
        yield fits.title + ("" if fits == setting else f" ({setting.rows} do not fit)")
        yield from (line(kind, found) for kind, found in values.items())


def config_of(setting: Setting, method: str, smoke: bool) -> Config:
    """The recipe of a setting on one device, with attention as the device computes it."""
    values = (large if setting.model == "BERT-large" else base).get_config()
    values.model.update(max_positions=setting.length, attention_dropout=setting.attention_dropout, dtype="bfloat16")
    if smoke:
        values.model.update(vocab_size=512, num_layers=4, hidden_size=32, num_heads=4, intermediate_size=64)
    values.data.seq_len, values.train.batch_size, values.train.accumulation = setting.length, setting.rows, 1
    values.mesh.data, values.dropping.method = 1, method
    return settle(from_dict(values.to_dict()), platform_of(jax.devices()[0]))[0]


def measure(setting: Setting, smoke: bool) -> tuple[Setting | None, list[Timing]]:
    """The setting with as many of its rows as fit, halved as often as needed, and its timings; None if no row fits."""
    kinds = {"sctd": (PLAIN, FULL, DROP, CONSISTENCY), "random_ltd": (DROP,)}
    while setting.rows:
        try:
            return setting, [
                train_step.measure(
                    setting.title, config_of(setting, method, smoke), steps, 2 if smoke else _REPEATS, None
                )
                for method, steps in kinds.items()
            ]
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        setting = dataclasses.replace(setting, rows=setting.rows // 2)
    return None, []


def figures(timings: list[Timing], peak: float | None) -> dict[str, dict[str, float | None]]:
    """Figures of each kind of step, by its name."""
    found = {}
    for timing, names in zip(timings, ({}, {DROP: RANDOM_LTD}), strict=True):
        tokens = timing.config.train.batch_size * timing.config.data.seq_len
        for kind, seconds in timing.seconds.items():
            median = float(np.median(seconds))
            found[names.get(kind, kind)] = {
                "seconds": median, "lowest": float(seconds.min()), "highest": float(seconds.max()),
                "tokens_per_second": tokens / median, "flops": timing.flops[kind],
                "mfu": timing.flops[kind] / median / peak if peak else None,
                "peak_bytes": timing.memory.get(kind), "compile_seconds": timing.compile_seconds.get(kind),
            }  # fmt: skip
    return found


def line(kind: str, values: dict[str, float | None]) -> str:
    """The figures of a kind of step."""
    text = f"  {kind:<13} {1e3 * values['seconds']:8.1f} ms {values['tokens_per_second']:11,.0f} tokens/s"
    if values["mfu"] is not None:
        text += f"  MFU {values['mfu']:.1%}"
    if values["peak_bytes"] is not None:  # an average has none
        text += f"  {values['peak_bytes'] / 2**30:.2f} GiB, compiled in {values['compile_seconds']:.0f} s"
    return text
