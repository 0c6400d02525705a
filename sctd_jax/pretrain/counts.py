"""Number of the steps of a run that are of each variant, by formula."""

from typing import Any

import jax
import jax.numpy as jnp

from sctd_jax.config import Config


def variant_counts(config: Config, start: int, end: int, to: jax.Array | int | None = None) -> dict[str, Any]:
    """Number of the steps start .. end - 1 that run each `step.Variant`, as `variant_at` has them.

    With `to`, a number that a program may compute, those of them before step `to` alone.
    """
    dropping, clip = config.dropping, jnp.clip if isinstance(to, jax.Array) else _clip
    to = end if to is None else clip(to, start, end)
    if dropping.method == "full":
        return {"full": to - start}
    first = min(max(start, dropping.full_steps_first), end)
    last = max(first, min(end, config.train.steps - dropping.full_steps_last))
    done = clip(to, first, last)  # between the full steps at both ends
    full, rare = to - start - (done - first), 0
    if dropping.method == "late_mask":
        return {"full": full, "late": done - first}
    if dropping.method in ("sctd", "full_every"):
        rare = -(-done // dropping.sc_interval) + (-first // dropping.sc_interval)
    if dropping.method == "full_every":
        return {"full": full + rare, "drop": done - first - rare}
    return {"full": full, "drop": done - first - rare, "consistency": rare}


def _clip(value: Any, least: int, most: int) -> int:
    # Not NumPy's: FLOPs of a run exceed its integers.
    return min(max(value, least), most)
