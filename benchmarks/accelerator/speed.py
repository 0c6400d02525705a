"""Seconds, tokens/s, MFU, memory and time to compile of every kind of step at published sizes, in bfloat16.

The steps of a setting are timed in turn, so that their ratios count, and in turn with them `transformers`'
`BertForMaskedLM` (benchmarks/peer_pytorch.py) on the same device, in a process of its own. Where they do not fit in the
device's memory, the setting is tried again with half the rows, which its line says.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import train_step
from benchmarks.accelerator.part import Bench
from benchmarks.train_step import CONSISTENCY, DROP, FULL, PEER, PLAIN, Timing
from configs import base, large
from sctd_jax.config import Config, from_dict
from sctd_jax.errors import UserError
from sctd_jax.model.attention import platform_of
from sctd_jax.parallel import chips
from sctd_jax.pretrain.model import settle

RANDOM_LTD = "random-LTD"
_REPEATS = 7
_STEPS = 4  # steps between two looks at the clock, so that their dispatch is hidden as it is in training
_SECONDS = 60  # a setting takes about so long on a GPU, most of it compiling; with fewer left it is not begun
_PEER_SECONDS = 60  # the peer about so long besides


@dataclasses.dataclass(frozen=True)
class Setting:
    """One size of model and batch."""

    model: str  # BERT-base or BERT-large
    length: int  # N
    rows: int
    attention_dropout: float = 0.0
    attention: str = "auto"  # model.attention; with dropout auto is plain

    @property
    def title(self) -> str:
        """Its name in the table."""
        kernel = "" if self.attention == "auto" else f" in {self.attention}"
        return f"{self.model} N {self.length}, {self.rows} rows, attention dropout {self.attention_dropout:g}{kernel}"


SETTINGS = (  # most important first
    Setting("BERT-base", 512, 64),
    Setting("BERT-large", 512, 32),
    Setting("BERT-base", 128, 256),
    Setting("BERT-base", 512, 64, 0.1),
    Setting("BERT-base", 512, 64, 0.1, "cudnn"),
    Setting("BERT-large", 512, 32, 0.1, "cudnn"),
    Setting("BERT-base", 128, 256, 0.1, "cudnn"),
)


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part, one for each kind of step of each setting."""
    # The peer wants the device's memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = jax.devices()[0]
    chip = chips.find(device.device_kind)
    peer, why = find_peer(device)
    report: dict[str, Any] = {
        "device": device.device_kind, "peak_flops": chip and chip.flops, "peer": str(peer or why), "settings": [],
        "refused": [], "does_not_fit": [], "left_out_for_time": [],
    }  # fmt: skip
    if not chip:
        yield f"no MFU: the peak of a {device.device_kind} is not known"
    if not peer:
        yield f"{PEER}: {why}"
    for setting in (Setting("BERT-base", 32, 4),) if bench.smoke else SETTINGS:
        if bench.left() < (1 if bench.smoke else _SECONDS):
            report["left_out_for_time"].append(setting.title)
            bench.save("speed", report)
            yield f"{setting.title}: left out for time"
            continue
        if refusal := refused(setting, bench.smoke):
            report["refused"].append({"setting": setting.title, "why": refusal})
            bench.save("speed", report)
            yield f"{setting.title}: not run: {refusal}"
            continue
        with_peer, reason = peer, why
        if peer and not bench.smoke and bench.left() < _SECONDS + _PEER_SECONDS:
            with_peer, reason = None, "left out for time"
        fits, timings, failure = measure(setting, bench.smoke, with_peer)
        if fits is None:
            report["does_not_fit"].append(setting.title)
            bench.save("speed", report)
            yield f"{setting.title}: not even one row fits in the device's memory"
            continue
        values = figures(timings, chip and chip.flops)
        attention = timings[0].config.model.attention
        report["settings"].append(
            dataclasses.asdict(fits)
            | {"asked_rows": setting.rows, "attention": attention, "steps": values}
            | {"peer": timings[0].peer or failure or reason}
        )
        bench.save("speed", report)
        yield f"{fits.title}, {attention} attention" + ("" if fits == setting else f" ({setting.rows} rows do not fit)")
        yield from (line(kind, found) for kind, found in values.items())
        if peer:
            yield f"  {PEER}: {timings[0].peer or failure or reason}"


def find_peer(device: jax.Device) -> tuple[Path | None, str]:
    """A Python with torch and transformers for a device, or None and why."""
    if device.platform not in ("gpu", "cpu"):
        return None, f"not compared: it is not run on a {device.platform.upper()}"
    return train_step.peer_python(), "not compared: no torch and transformers are here; make peer, or make interop"


def refused(setting: Setting, smoke: bool) -> str | None:
    """Why this device does not compute attention as a setting asks, or None."""
    if setting.attention == "auto":
        return None
    try:
        config_of(setting, "sctd", smoke)
    except UserError as error:
        return str(error)
    return None


def config_of(setting: Setting, method: str, smoke: bool) -> Config:
    """The recipe of a setting on one device, with attention as the device computes it."""
    values = (large if setting.model == "BERT-large" else base).get_config()
    values.model.update(
        max_positions=setting.length, attention_dropout=setting.attention_dropout, attention=setting.attention,
        dtype="bfloat16",
    )  # fmt: skip
    if smoke:
        values.model.update(vocab_size=512, num_layers=4, hidden_size=32, num_heads=4, intermediate_size=64)
    values.data.seq_len, values.train.batch_size, values.train.accumulation = setting.length, setting.rows, 1
    values.mesh.data, values.dropping.method = 1, method
    return settle(from_dict(values.to_dict()), platform_of(jax.devices()[0]))[0]


def measure(setting: Setting, smoke: bool, peer: Path | None = None) -> tuple[Setting | None, list[Timing], str | None]:
    """Measure a setting with as many of its rows as fit, halved as often as needed, in turn with the peer's step.

    Returns:
      The setting with the rows that fit, or None if no row fits; its timings; and what has ended the peer, without
      which ours are measured then.
    """
    kinds = {"sctd": (PLAIN, FULL, DROP, CONSISTENCY), "random_ltd": (DROP,)}
    repeats, steps, failure = (2, 1, None) if smoke else (_REPEATS, _STEPS, None)
    while setting.rows:
        try:
            return setting, [
                train_step.measure(
                    setting.title, config_of(setting, method, smoke), of_method, repeats,
                    peer if method == "sctd" else None, steps,
                )
                for method, of_method in kinds.items()
            ], failure  # fmt: skip
        except UserError as error:
            if not peer:
                raise
            peer, failure = None, str(error)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            setting = dataclasses.replace(setting, rows=setting.rows // 2)
    return None, [], failure


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether an error says that the device's memory does not suffice."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def figures(timings: list[Timing], peak: float | None) -> dict[str, dict[str, float | None]]:
    """Figures of each kind of step, by its name; `times_peer` is how often a step runs while the peer's runs once."""
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
    peer = found.get(PEER, {}).get("seconds")
    return {kind: {**values, "times_peer": peer and peer / values["seconds"]} for kind, values in found.items()}


def line(kind: str, values: dict[str, float | None]) -> str:
    """The figures of a kind of step."""
    text = f"  {kind:<13} {1e3 * values['seconds']:8.1f} ms {values['tokens_per_second']:11,.0f} tokens/s"
    if values["mfu"] is not None:
        text += f"  MFU {values['mfu']:.1%}"
    if values["times_peer"] is not None:
        text += f"  {values['times_peer']:.2f} x {PEER}"
    if values["peak_bytes"] is not None:  # an average has none
        text += f"  {values['peak_bytes'] / 2**30:.2f} GiB, compiled in {values['compile_seconds']:.0f} s"
    return text
