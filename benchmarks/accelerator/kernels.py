"""Attention kernel of the device against plain attention: errors, seconds, and what its dropout draws.

What is wrong, by these bounds, is named under `wrong` in the JSON, and the part counts as failed.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.comparing import worst
from benchmarks.accelerator.part import Bench
from sctd_jax.config import MeshConfig, ModelConfig
from sctd_jax.model import attention
from sctd_jax.model.attention import Attend, Window
from sctd_jax.parallel import mesh as meshes

_REPEATS = 10
_RATE = 0.1
_TOLERANCE = 0.02  # part of the largest number; bfloat16 has 8 bits
_OFF = 0.005  # difference that the share of zeros may have to the rate; that of 786,432 draws has a tenth of it


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part, one for each shape."""
    device = jax.devices()[0]
    name, kernel = kernel_of(device)
    lengths = (128,) if bench.smoke else (512, 128, 1024)
    shapes: list[tuple[int, int, int | None]] = [
        (rows, n, None) for n in lengths for rows in ((n, 77) if name == "cudnn" else (n,))
    ]
    # ModernBERT's local layers, in rows long enough for blocks.
    shapes.append((128, 128, 16) if bench.smoke else (1024, 1024, 64))
    report: dict[str, Any] = {
        "kernel": name, "tolerance": _TOLERANCE, "shapes": [], "left_out_for_time": [], "wrong": [],
    }  # fmt: skip
    for rows, context, reach in shapes:
        title = title_of(rows, context, reach)
        if bench.left() < 1:
            report["left_out_for_time"].append(title)
            bench.save("kernels", report)
            yield f"{title}: left out for time"
            continue
        found = compare(kernel, rows, context, reach, *((2, 2, 8) if bench.smoke else (16, 12, 64)))
        report["shapes"].append(found)
        if not worst_of(found)[0] < _TOLERANCE:  # NaN is not
            report["wrong"].append(title)
        bench.save("kernels", report)
        # cuDNN's has no such windows.
        yield line(title, "recomputed" if reach and name == "cudnn" else name, found)
    if name != "cudnn" or bench.left() < 1:
        yield "dropout of cuDNN: " + ("left out for time" if name == "cudnn" else f"none, for the kernel is {name}")
        return
    report["dropout"] = found = drawn(attention.cudnn)
    report["wrong"] += [f"dropout: {what}" for what in wrong_dropout(found)]
    bench.save("kernels", report)
    yield dropout_line(found)


def kernel_of(device: jax.Device) -> tuple[str, Attend]:
    """Name and function of a device's kernel; splash is interpreted on a CPU."""
    if attention.platform_of(device) == "gpu":
        return "cudnn", attention.cudnn(0)
    if device.platform == "gpu":
        return "recomputed", attention.recomputed
    return "splash", attention.splash(meshes.make_mesh(MeshConfig(data=1), [device]), otherwise=attention.plain)


def title_of(rows: int, context: int, reach: int | None) -> str:
    """A shape's name."""
    return f"R {rows}, N {context}" + (f", {reach} tokens on either side" if reach else "")


def compare(
    kernel: Attend, rows: int, context: int, reach: int | None, batch: int, heads: int, width: int
) -> dict[str, Any]:
    """Errors of output and gradients relative to the largest number, and seconds of both, in bfloat16 with padding.

    A query sees `reach` tokens on either side, by default all; rows are whole then.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, weights = (
        jax.random.normal(k, (batch, n, heads, width), jnp.bfloat16)
        for k, n in zip(keys, (rows, context, context, rows), strict=True)
    )
    query = query * width**-0.5
    lengths = jnp.maximum(context - jnp.arange(batch) * context // batch, 1)
    mask = jnp.arange(context)[None] < lengths[:, None]

    places = jnp.arange(context)[None]
    # Given places, plain attention computes all pairs rather than blocks near the diagonal.
    pairs, near = ([Window(reach, *x)] if reach else [] for x in ((places, places), (None, None)))

    def numbers(attend: Attend, window: list[Window]):
        def loss(query, key, value):
            out = attend(query, key, value, mask, 0.0, None, *window)
            if window:  # padding far from the text sees nothing, and what it is given is nobody's
                out = jnp.where(mask[:, :, None, None], out, 0)
            return jnp.sum((weights * out).astype(jnp.float32)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    with jax.default_matmul_precision("highest"):
        exact = flat(numbers(attention.plain, pairs)(*(x.astype(jnp.float32) for x in (query, key, value))))
    found: dict[str, Any] = {"rows": rows, "context": context, "reach": reach}
    found |= {"batch": batch, "heads": heads, "width": width}
    for name, attend, window in (("kernel", kernel, near), ("plain", attention.plain, pairs)):
        function = numbers(attend, window)
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


def drawn(kernel: Callable[[int], Attend]) -> dict[str, Any]:
    """Facts about the dropout of a kernel by seed, each in its program's first execution, and in a second one.

    Even probabilities and the unit matrix for values show which probabilities are 0.
    """
    n = width = 64
    zeros = jnp.zeros((16, n, 12, width), jnp.bfloat16)
    unit = jnp.broadcast_to(jnp.eye(n, dtype=jnp.bfloat16)[None, :, None], zeros.shape)
    mask = jnp.ones((16, n), bool)

    # Options of a training program.
    options = attention.compiler_options(ModelConfig(attention="cudnn", attention_dropout=_RATE))

    def program(seed: int):
        attend = kernel(seed)
        return jax.jit(lambda value: attend(zeros, zeros, value, mask, _RATE, None)).lower(unit).compile(options)

    first, same, other = (program(seed) for seed in (0, 0, 1))
    drawn, of_same, of_other, later = (np.asarray(p(unit), np.float32) for p in (first, same, other, first))
    return {
        "rate": _RATE,
        "zeros": float((drawn == 0).mean()),
        "mean": float(drawn.mean() * n),
        "same seed, same bits": bool((drawn == of_same).all()),
        "other seed, other bits": bool((drawn != of_other).any()),
        "next execution, other bits": bool((drawn != later).any()),
    }


def wrong_dropout(found: dict[str, Any]) -> list[str]:
    """Facts of `drawn` that are wrong."""
    right = {
        f"the share of zeros is {found['rate']}": abs(found["zeros"] - found["rate"]) < _OFF,
        "the mean stays": abs(found["mean"] - 1) < 2 * _OFF,
        **{name: fact for name, fact in found.items() if isinstance(fact, bool)},
    }
    return [f"not so: {what}" for what, holds in right.items() if not holds]


def dropout_line(found: dict[str, Any]) -> str:
    """The facts of `drawn` in a line."""
    verdict = "; ".join(wrong_dropout(found)) or "same seed, same bits; other seed or execution, other bits"
    wrong = "WRONG: " if wrong_dropout(found) else ""
    return f"dropout of cuDNN: share of zeros {found['zeros']:.4f}, mean {found['mean']:.4f} of 1; {wrong}{verdict}"


def worst_of(found: dict[str, Any]) -> tuple[float, str]:
    """The largest error of the kernel, NaN above all, and what has it."""
    return worst((error, part) for part, error in found["kernel"]["errors"].items())


def line(title: str, name: str, found: dict[str, Any]) -> str:
    """A shape in a line."""
    error, part = worst_of(found)
    verdict = "ok" if error < _TOLERANCE else f"WRONG: the bound is {_TOLERANCE}"
    return (
        f"{title}: {name} {1e3 * found['kernel']['seconds']:.2f} ms, plain "
        f"{1e3 * found['plain']['seconds']:.2f} ms; error {error:.1e} in {part}, plain "
        f"{found['plain']['errors'][part]:.1e}: {verdict}"
    )
