"""Facts of the machine and of what is installed on it."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax

from benchmarks.accelerator.part import Bench
from sctd_jax.parallel import chips

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu", "torch", "transformers")
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part."""
    device, memory = jax.devices()[0], None
    if stats := device.memory_stats():
        memory = stats.get("bytes_limit")
    chip = chips.find(device.device_kind)
    facts = {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "device_bytes": memory,
        "peak_bf16_flops": chip.flops if chip else None,
        "runtime": device.client.platform_version,
        "nvidia_smi": _answer("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "python": platform.python_version(),
        "versions": {name: version for name in (*_PACKAGES, *_PLUGINS) if (version := _version(name))},
        "cpus": os.cpu_count(),
        "commit": _answer("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "environment": {name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ},
    }
    bench.save("machine", facts)
    yield f"{facts['devices']} x {facts['device']}, {facts['cpus']} CPUs, Python {facts['python']}"
    yield ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    if facts["nvidia_smi"]:
        yield f"nvidia-smi: {facts['nvidia_smi']}"
    if chip is None and device.platform != "cpu":
        yield f"the peak of {device.device_kind} is not known (sctd_jax/parallel/chips.py): no MFU"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _answer(*command: str) -> str | None:
    """Output of a command, or None where it is not there or fails."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else None
