"""Attention kernel of the device against plain attention: errors, seconds, and what its dropout draws."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.part import Bench
from sctd_jax.config import MeshConfig
from sctd_jax.model import attention
from sctd_jax.model.attention import Attend
from sctd_jax.parallel import mesh as meshes

_REPEATS = 10
_RATE = 0.1
_TOLERANCE = 0.02  # part of the largest number; bfloat16 has 8 bits


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part, one for each shape."""
    device = jax.devices()[0]
    name, kernel = kernel_of(device)
    lengths = (128,) if bench.smoke else (512, 128, 1024)
    shapes = [(rows, n) for n in lengths for rows in ((n, 77) if name == "cudnn" else (n,))]
    report: dict[str, Any] = {"kernel": name, "tolerance": _TOLERANCE, "shapes": [], "left_out_for_time": []}
    for rows, context in shapes:
        if bench.left() < 1:
            report["left_out_for_time"].append([rows, context])
            bench.save("kernels", report)
            yield f"R {rows}, N {context}: left out for time"
            continue
        found = compare(kernel, rows, context, *((2, 2, 8) if bench.smoke else (16, 12, 64)))
        report["shapes"].append(found)
        bench.save("kernels", report)
        yield line(name, found)
    if name != "cudnn" or bench.left() < 1:
        yield "dropout of cuDNN: " + ("left out for time" if name == "cudnn" else f"none, for the kernel is {name}")
        return
    report["dropout"] = drawn()
    bench.save("kernels", report)
    yield "dropout of cuDNN: share of zeros {zeros:.4f}, mean {mean:.4f} of 1, other seed differs: {differs}".format(
        **report["dropout"]
    )


def kernel_of(device: jax.Device) -> tuple[str, Attend]:
    """Name and function of a device's kernel; splash is interpreted on a CPU."""
    if attention.platform_of(device) == "gpu":
        return "cudnn", attention.cudnn(0)
    if device.platform == "gpu":
        return "recomputed", attention.recomputed
    return "splash", attention.splash(meshes.make_mesh(MeshConfig(data=1), [device]), otherwise=attention.plain)


def compare(kernel: Attend, rows: int, context: int, batch: int, heads: int, width: int) -> dict[str, Any]:
    """Errors of output and gradients relative to the largest number, and seconds of both, in bfloat16 with padding."""
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, weights = (
        jax.random.normal(k, (batch, n, heads, width), jnp.bfloat16)
        for k, n in zip(keys, (rows, context, context, rows), strict=True)
    )
    query = query * width**-0.5
    lengths = jnp.maximum(context - jnp.arange(batch) * context // batch, 1)
    mask = jnp.arange(context)[None] < lengths[:, None]

    def numbers(attend: Attend):
        def loss(query, key, value):
            out = attend(query, key, value, mask, 0.0, None)
            return jnp.sum((weights * out).astype(jnp.float32)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    with jax.default_matmul_precision("highest"):
        exact = flat(numbers(attention.plain)(*(x.astype(jnp.float32) for x in (query, key, value))))
    found: dict[str, Any] = {"rows": rows, "context": context, "batch": batch, "heads": heads, "width": width}
    for name, attend in (("kernel", kernel), ("plain", attention.plain)):
        function = numbers(attend)
        ours = flat(function(query, key, value))
        errors = {part: float(np.abs(ours[part] - exact[part]).max() / np.abs(exact[part]).max()) for part in exact}
        found[name] = {"errors": errors, "seconds": seconds(functools.partial(function, query, key, value))}
    return found


def flat(result) -> dict[str, np.ndarray]:
    """Output and gradients by name, in float32."""
    (_, out), gradients = result
    names = ("out", "query", "key", "value")
    return {name: np.asarray(x, np.float32) for name, x in zip(names, (out, *gradients), strict=True)}


def seconds(call) -> float:
    """Median seconds of a compiled call."""
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - began)
    return float(np.median(found))


def drawn() -> dict[str, Any]:
    """Facts about dropout: even probabilities and the unit matrix for values show which of them are 0."""
    n = width = 64
    zeros = jnp.zeros((16, n, 12, width), jnp.bfloat16)
    unit = jnp.broadcast_to(jnp.eye(n, dtype=jnp.bfloat16)[None, :, None], zeros.shape)
    mask = jnp.ones((16, n), bool)
    first, second = (
        np.asarray(jax.jit(lambda v, s=s: attention.cudnn(s)(zeros, zeros, v, mask, _RATE, None))(unit), np.float32)
        for s in (0, 1)
    )
    return {"zeros": (first == 0).mean(), "mean": first.mean() * n, "differs": bool((first != second).any())}


def line(name: str, found: dict[str, Any]) -> str:
    """A shape in a line."""
    kernel, plain = found["kernel"], found["plain"]
    worst = max(kernel["errors"], key=lambda part: (np.isnan(kernel["errors"][part]), kernel["errors"][part]))
    verdict = "ok" if kernel["errors"][worst] < _TOLERANCE else "FAILED"
    return (
        f"R {found['rows']}, N {found['context']}: {name} {1e3 * kernel['seconds']:.2f} ms, plain "
        f"{1e3 * plain['seconds']:.2f} ms; error {kernel['errors'][worst]:.1e} in {worst}, plain "
        f"{plain['errors'][worst]:.1e}: {verdict}"
    )
