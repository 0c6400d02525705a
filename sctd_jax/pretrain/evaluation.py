"""Held-out evaluation: the full model on fixed masks, and for the dropping methods the drop pass beside it.

Late masking is judged as it trains, on the rows, positions and shown ids of every other method; beside it stands the
loss with [MASK] in all layers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.data.rows import HELD_OUT, Rows
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError
from sctd_jax.objective import losses
from sctd_jax.objective.masking import row_keys
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.model import make_model
from sctd_jax.pretrain.rows import Data
from sctd_jax.pretrain.step import Narrowing, loss_rows, mask_batch, select, visible
from sctd_jax.train.state import TrainState

# Masks of the evaluation: the same for every run, method and seed, so that curves compare.
EVAL_SEED = 20230524


def make_evaluate(
    config: Config, data: Data, mesh: Mesh, layout: TrainState, logs_V: np.ndarray | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """A function from a state to its held-out metrics, over `train.eval_rows` rows; drop passes with its last step's K.

    `logs_V` are `frequencies.log_frequencies`; without them the metrics are not compared with word frequencies.
    It raises a UserError if not one token of these rows can be predicted.
    """
    rows = Rows(data.folder, HELD_OUT)
    chosen = eval_rows(config.train.eval_rows, len(rows))
    batch_size = config.train.batch_size // config.train.accumulation
    mine = meshes.host_rows(mesh, batch_size)

    @functools.cache  # one compilation for each K
    def eval_step(stage: Config) -> Callable:
        eval_fn = make_eval_step(stage, data.tokenizer.special, data.word_start_V, mesh, logs_V)
        return meshes.jit_eval_step(mesh, eval_fn, layout)

    def evaluate(state: TrainState) -> dict[str, float]:
        step_fn = eval_step(config.after(int(state.step)))
        totals: dict[str, Any] = {}
        for start in range(0, len(chosen), batch_size):
            at = start + np.arange(batch_size)[mine]
            # The last batch is filled up with its own rows, which then do not count.
            numbers = chosen[np.minimum(at, len(chosen) - 1)]
            host_batch = (rows.read(numbers), numbers.astype(np.int32), at < len(chosen))
            on_mesh = (meshes.put_batch(mesh, batch_size, x) for x in host_batch)
            sums = step_fn(state, *on_mesh)
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
        if not totals["predictions"]:
            raise UserError(f"{data.folder}: the held-out rows have no token to predict, expected rows of text")
        return summarize({name: float(value) for name, value in totals.items()})

    return evaluate


def eval_rows(count: int, available: int) -> np.ndarray:
    """Numbers of at most `count` held-out rows, spread evenly over all: neighbours come from one document."""
    count = min(count, available)
    return np.arange(count) * available // count


def selection_keys(rows_B: jax.Array) -> jax.Array:
    """A key per held-out row for selectors that draw, independent of those of its masks."""
    return row_keys(jax.random.key(EVAL_SEED + 1), rows_B)


def make_eval_step(
    config: Config,
    special: SpecialIds,
    word_start_V: np.ndarray | None = None,
    mesh: Mesh | None = None,
    logs_V: np.ndarray | None = None,
):
    """(state, tokens_BN, rows_B, valid_B) -> sums, for `summarize`.

    The drop pass keeps the config's K; under a schedule, pass `config.after(steps)`. `rows_B` are held-out row
    numbers, which fix the masks; rows with `valid_B` False do not count. The loss of word
    frequencies, `logs_V`, is summed over the same predictions.
    """
    model = make_model(config, mesh)
    late = config.dropping.method == "late_mask"

    def eval_step(state: TrainState, tokens_BN: jax.Array, rows_B: jax.Array, valid_B: jax.Array):
        importance_V = state.importance_V
        assert importance_V is not None  # only fine-tuning has no table
        batch = mask_batch(config, special, jax.random.key(EVAL_SEED), tokens_BN, word_start_V, rows_B)
        weights_BP = batch.weights_BP * valid_B[:, None]
        rows_BR = loss_rows(batch)

        def network(bert):
            narrow = Narrowing(config, importance_V, batch, selection_keys(rows_B))

            def branch(kept_BK):
                output, states = bert.encoder.suffix(
                    x_BND, batch.mask_BN, kept_BK=kept_BK, rows_BR=rows_BR, narrow=narrow
                )
                vectors = [*(bert.encoder.normed(x[:, 0]) for x in states[-2:-1]), states[-1][:, 0]]
                return bert.mlm_logits(output[:, 1:]), vectors

            x_BND, _ = bert.encoder.prefix(batch.input_ids_BN, batch.mask_BN)
            plain = branch(None)
            if late:
                x_BND, _ = bert.encoder.prefix(batch.input_ids_BN, batch.mask_BN, visible_BM=visible(config, batch))
                return branch(None), None, plain
            if not config.drops:
                return plain, None, None
            return plain, branch(select(config, importance_V, batch, selection_keys(rows_B), x_BND)), None

        passes: Any = model.apply({"params": state.params}, method=network)
        (logits_BPV, full_cls), drop_pass, plain_pass = passes
        correct_BP = jnp.argmax(logits_BPV, axis=-1) == batch.targets_BP
        sums = {
            "predictions": weights_BP.sum(),
            "rows": valid_B.astype(jnp.float32).sum(),
            "loss": jnp.sum(losses.cross_entropy(logits_BPV, batch.targets_BP) * weights_BP),
            "correct": jnp.sum(correct_BP * weights_BP),
        }
        if logs_V is not None:
            unigram_BP = -jnp.take(jnp.asarray(logs_V, jnp.float32), batch.targets_BP, mode="clip")
            sums["unigram_loss"] = jnp.sum(unigram_BP * weights_BP)
        if plain_pass is not None:
            sums["plain_loss"] = jnp.sum(losses.cross_entropy(plain_pass[0], batch.targets_BP) * weights_BP)
        if drop_pass is not None:
            drop_logits_BPV, drop_cls = drop_pass
            drop_loss_BP = losses.cross_entropy(drop_logits_BPV, batch.targets_BP)
            sums["drop_loss"] = jnp.sum(drop_loss_BP * weights_BP)
            for name, full_BD, drop_BD in zip(("local", "global"), full_cls, drop_cls, strict=True):
                sums[f"cosine_{name}"] = jnp.sum(cosine(full_BD, drop_BD) * valid_B)
        return sums

    return eval_step


def cosine(a_BD: jax.Array, b_BD: jax.Array) -> jax.Array:
    """Cosine f32[B] between sentence vectors; 1 where one is 0, as the mean over a row of padding is."""
    a_BD, b_BD = a_BD.astype(jnp.float32), b_BD.astype(jnp.float32)
    norms_B = jnp.linalg.norm(a_BD, axis=-1) * jnp.linalg.norm(b_BD, axis=-1)
    return jnp.where(norms_B > 0, jnp.sum(a_BD * b_BD, axis=-1) / jnp.where(norms_B > 0, norms_B, 1.0), 1.0)


def summarize(sums: dict[str, float]) -> dict[str, float]:
    """Sums over all held-out batches -> metrics.

    `cosine_local` and `cosine_global` are the mean cosine between the full and the drop pass's [CLS] after
    layers L-2 and L-1 (1: dropping changes nothing). `below_unigram` is how many nats the loss lies below that of word
    frequencies alone, and `plain_loss` late masking's loss with [MASK] in all layers.
    """
    predictions, rows = sums["predictions"], sums["rows"]
    loss = sums["loss"] / predictions
    metrics = {
        "eval/loss": loss,
        "eval/perplexity": math.exp(min(loss, 700.0)),
        "eval/accuracy": sums["correct"] / predictions,
    }
    if "unigram_loss" in sums:
        metrics["eval/unigram_loss"] = sums["unigram_loss"] / predictions
        metrics["eval/below_unigram"] = metrics["eval/unigram_loss"] - loss
    if "plain_loss" in sums:
        metrics["eval/plain_loss"] = sums["plain_loss"] / predictions
    if "drop_loss" in sums:
        metrics["eval/drop_loss"] = sums["drop_loss"] / predictions
        metrics["eval/cosine_local"] = sums["cosine_local"] / rows
        metrics["eval/cosine_global"] = sums["cosine_global"] / rows
    return metrics
