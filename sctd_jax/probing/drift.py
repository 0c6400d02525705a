"""Distance by which token dropping moves the sentence vectors, over the training of a run and by layer.

Shapes: B rows, N sequence length, D width, S layers from the first dropping one on.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sctd_jax.config import Config
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError
from sctd_jax.model import token_dropping
from sctd_jax.models import Model
from sctd_jax.objective import losses
from sctd_jax.plot import curve, names
from sctd_jax.pretrain.evaluation import EVAL_SEED, cosine, selection_keys
from sctd_jax.pretrain.model import make_model
from sctd_jax.pretrain.step import Narrowing, mask_batch, select
from sctd_jax.probing.models import POOLINGS, full_precision, held_out, open_pretrained
from sctd_jax.train.metrics import read_metrics

_CURVES = {"local": "eval/cosine_local", "global": "eval/cosine_global"}
_BATCH = 16
NOTE = (
    "Between the full and the drop pass over held-out rows. The cosine is 1 where dropping changes nothing; the KL is "
    "that of the consistency loss, 0 there. 'local' and 'global' are the cosines of [CLS] after the last layer but one "
    "and after the last; layers count from 0. A mean is over a row's real tokens, in a dropping layer over the kept."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    rows: int  # largest number of held-out rows for the layers, chosen as the run's evaluation does; 0: only the curve


def measure(paths: Sequence[str], settings: Settings, log: Callable[[str], None]) -> dict[str, Any]:
    """Drift of runs over their training, and by layer of their newest checkpoints: what `drift.json` holds.

    The paths are workdirs of runs that drop tokens and were evaluated. A run whose rows or checkpoints are gone has
    `layers` null and `layers_missing`.
    """
    called, runs = names(paths), [open_pretrained(path, log) for path in paths]
    curves = [_curves(run) for run in runs]
    found = []
    for name, path, run, values in zip(called, paths, runs, curves, strict=True):
        layers, missing = None, "left out by --rows 0"
        if settings.rows:
            try:
                layers, missing = by_layer(run, settings.rows, log), None
            except UserError as error:  # the curve is there all the same
                missing = str(error)
                log(f"{name}: no layers: {missing}")
        found.append({"model": name, "path": path, **values, "layers": layers, "layers_missing": missing})
        log(_line(found[-1]))
    return {"settings": dataclasses.asdict(settings), "note": NOTE, "models": found}


def _curves(run: Model) -> dict[str, Any]:
    method = run.config.dropping.method
    if not run.config.drops:
        raise UserError(f"{run.path} drops no tokens (dropping.method = {method}): there is no drift")
    lines = read_metrics(run.path)
    points = {name: [(step, value) for step, _, value in curve(lines, metric)] for name, metric in _CURVES.items()}
    missing = [_CURVES[name] for name, found in points.items() if not found]
    if missing:
        raise UserError(f"{run.path}: no {', '.join(missing)} in its metrics; was it evaluated?")
    return {
        "method": method,
        **{name: {"step": [s for s, _ in found], "cosine": [v for _, v in found]} for name, found in points.items()},
    }


def by_layer(run: Model, count: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Means over at most `count` held-out rows, masked as in the run's evaluation, by its newest checkpoint."""
    step, state = run.read(names=("params", "importance_V"))
    data, rows, chosen = held_out(run, count, log)
    compare = jit_compare(run.config.after(step), data.tokenizer.special, data.word_start_V)
    parts = []
    for start in range(0, len(chosen), _BATCH):
        # The last batch is filled up with its own rows, which then do not count.
        numbers = chosen[np.minimum(start + np.arange(_BATCH), len(chosen) - 1)]
        tokens_BN = rows.read(numbers)
        values = compare(state["params"], state["importance_V"], tokens_BN, numbers.astype(np.int32))
        parts.append(np.asarray(values, np.float64)[..., : len(chosen) - start])
    means = np.concatenate(parts, axis=-1).mean(axis=-1)
    first, layers = run.config.drop_layers[0], run.config.model.num_layers
    return {
        "step": step,
        "rows": len(chosen),
        "layer": list(range(first, layers)),
        **{
            pooling: {"cosine": means[0, :, i].tolist(), "kl": means[1, :, i].tolist()}
            for i, pooling in enumerate(POOLINGS)
        },
    }


def jit_compare(config: Config, special: SpecialIds, word_start_V: np.ndarray | None) -> Callable[..., jax.Array]:
    """Jitted (parameters, importance_V, tokens_BN, rows_B) -> (cosine, KL) f32[2, S, 2, B], by POOLINGS."""
    model = make_model(dataclasses.replace(config, model=full_precision(config.model)))

    def compare(params: Any, importance_V: jax.Array, tokens_BN: jax.Array, rows_B: jax.Array) -> jax.Array:
        key = jax.random.key(EVAL_SEED)  # the newest point of a curve is found again
        batch = mask_batch(config, special, key, tokens_BN, word_start_V, rows_B)

        def both(bert):
            x_BND, _ = bert.encoder.prefix(batch.input_ids_BN, batch.mask_BN)
            kept_BK = select(config, importance_V, batch, selection_keys(rows_B), x_BND)
            narrow = Narrowing(config, importance_V, batch, selection_keys(rows_B))
            passes = [
                bert.encoder.suffix(x_BND, batch.mask_BN, kept_BK=kept, narrow=narrow)[1] for kept in (None, kept_BK)
            ]
            # The consistency loss sees them so; the last state has gone through the final norm already.
            layers = range(config.drop_layers[0], config.model.num_layers)
            kept_of_layers = [narrow.after(layer, kept_BK) for layer in layers]
            return kept_of_layers, [(*(bert.encoder.normed(x) for x in states[:-1]), states[-1]) for states in passes]

        def pooled(x_BRD: jax.Array, kept_BK: jax.Array, pooling: str) -> jax.Array:
            whole = x_BRD.shape[1] == batch.mask_BN.shape[1]
            return losses.pool(
                x_BRD, batch.mask_BN if whole else token_dropping.gather(batch.mask_BN, kept_BK), pooling
            )

        kept_of_layers, states = model.apply({"params": params}, method=both)
        pairs = [
            [(pooled(full, kept_BK, pooling), pooled(drop, kept_BK, pooling)) for pooling in POOLINGS]
            for full, drop, kept_BK in zip(*states, kept_of_layers, strict=True)
        ]
        return jnp.stack([jnp.stack([jnp.stack([f(*two) for two in row]) for row in pairs]) for f in (cosine, _kl)])

    return jax.jit(compare)


def _kl(full_BD: jax.Array, drop_BD: jax.Array) -> jax.Array:
    return jax.vmap(losses.consistency_kl)(full_BD[:, None], drop_BD[:, None])


def _line(found: dict[str, Any]) -> str:
    ends = "; ".join(
        f"{name} cosine {found[name]['cosine'][0]:.4f} at step {found[name]['step'][0]}, "
        f"{found[name]['cosine'][-1]:.4f} at step {found[name]['step'][-1]}"
        for name in _CURVES
    )
    return f"{found['model']} ({found['method']}): {ends}"
