"""The train step in its variants (full, drop, consistency, late): which variant when, and its loss.

Shapes: B batch, N sequence length, K kept tokens, P predicted positions, D width, V vocabulary.
A reader meets, in order: masking -> encoder (-> token_dropping) -> losses -> update -> metrics.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sctd_jax.config import Config, DroppingConfig
from sctd_jax.data.special import SpecialIds
from sctd_jax.model import token_dropping
from sctd_jax.model.attention import compiler_options
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.objective import losses
from sctd_jax.objective.masking import MaskedBatch, mask_tokens, row_keys
from sctd_jax.pretrain.layer_tokens import rate_at
from sctd_jax.pretrain.model import make_model
from sctd_jax.train.optimizer import make_optimizer
from sctd_jax.train.state import TrainState
from sctd_jax.train.step import Metrics, accumulate, compile_ahead, update

Variant = Literal["full", "drop", "consistency", "late"]
_ORDER = get_args(Variant)

# Independent random streams of a step.
_MASKING, _DROPOUT, _SELECTION = range(3)


def variant_at(config: Config, step: int) -> Variant:
    """Variant that update number `step` (from 0) runs; chosen on the host, so any step can be first."""
    dropping = config.dropping
    if all_full_at(config, step):
        return "full"
    if dropping.method in ("sctd", "full_every") and step % dropping.sc_interval == 0:
        return "consistency" if dropping.method == "sctd" else "full"
    return "late" if dropping.method == "late_mask" else "drop"


def all_full_at(config: Config, step: int) -> bool:
    """Whether a step lies where no step drops: in the whole run of `full`, in the full steps at both ends of others."""
    dropping = config.dropping
    ends = step < dropping.full_steps_first or step >= config.train.steps - dropping.full_steps_last
    return dropping.method == "full" or ends


def program_at(config: Config, step: int) -> str:
    """Name of the program that update number `step` runs: its variant, and those of K, N and rows that change."""
    stage, name = config.at(step), variant_at(config, step)
    lengths, batches = len(config.length_stages) > 1, len(config.batch_stages) > 1
    kept = name in ("drop", "consistency") and (lengths or len(config.keep_stages) > 1)
    parts = [f" of {stage.num_kept}" * kept, f" of {stage.data.seq_len}" * lengths]
    return "".join([name, *parts, f" x {stage.train.batch_size} rows" * batches])


def programs_needed(config: Config) -> dict[str, tuple[Config, Variant]]:
    """Name -> config and variant of every program that a run may need, without walking its steps."""
    first, last = config.dropping.full_steps_first, config.train.steps - config.dropping.full_steps_last
    needed: dict[str, tuple[Config, Variant]] = {}
    for start, end, stage in config.stages(config.train.steps):
        drops = range(max(start, first), min(end, last))
        for step in (start, end - 1, *drops[: config.dropping.sc_interval + 1], *range(max(start, last), end)[:1]):
            needed[program_at(config, step)] = (stage, variant_at(config, step))
    return {name: needed[name] for name in sorted(needed, key=lambda name: _ORDER.index(name.split()[0]))}


def make_train_step(
    config: Config,
    special: SpecialIds,
    variant: Variant,
    word_start_V: np.ndarray | None = None,
    mesh: Mesh | None = None,
    run: Config | None = None,
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """The step (state, tokens_BN) -> (state, metrics) of one variant (docs/method.md 5); pure, for the caller to jit.

    `word_start_V` bool[V] is for whole-word masking. `run` is the config of the run of which `config` is a stage: a
    learning rate by layer-tokens goes by it. `mesh` has the devices that will run the step: they decide how
    attention is computed.
    """
    if run is None and config.optimizer.schedule_by != "steps":
        raise ValueError("a learning rate by layer-tokens needs the config of the whole run")
    model, optimizer = make_model(config, mesh), make_optimizer(config.optimizer)

    def step_fn(state: TrainState, tokens_BN: jax.Array) -> tuple[TrainState, Metrics]:
        assert state.importance_V is not None  # only fine-tuning has no table
        importance_V, key = state.importance_V, jax.random.fold_in(state.key, state.step)
        batch = mask_batch(config, special, jax.random.fold_in(key, _MASKING), tokens_BN, word_start_V, step=state.step)
        predictions = batch.weights_BP.sum()
        # A batch without one maskable token has loss 0 / 1, and no gradient, rather than 0 / 0.
        denominators = (jnp.maximum(predictions, 1.0), tokens_BN.shape[0])

        def loss_fn(params, microbatch, rows_B, index):
            sums, losses_BP = forward_sums(
                config, model, params, importance_V, microbatch, variant,
                dropout_key=jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), index),
                selection_keys_B=row_keys(jax.random.fold_in(key, _SELECTION), rows_B),
            )  # fmt: skip
            loss = losses.combine(
                sums, *denominators, consistency=variant == "consistency", sc_weight=config.dropping.sc_weight,
                full_mlm=config.dropping.sc_full_mlm,
            )  # fmt: skip
            importance = token_dropping.importance_sums(
                config.model.vocab_size, microbatch.targets_BP, losses_BP, microbatch.weights_BP
            )
            return loss, (sums, importance)

        count = config.train.microbatches(variant)
        grads, loss, (sums, (loss_V, count_V)) = accumulate(loss_fn, state.params, batch, count)

        def moved(importance_V):
            return token_dropping.update_importance(
                importance_V, loss_V, count_V, config.dropping.importance_beta, special.frozen
            )

        rate = rate_at(run or config, state.step)
        new_state, metrics = update(optimizer, rate, state, grads, loss, moved)
        metrics["mlm_loss"], metrics["predictions"] = sums.mlm / denominators[0], predictions
        if variant == "consistency":
            if config.dropping.sc_full_mlm:
                metrics["mlm_loss_full_pass"] = sums.mlm_full / denominators[0]
            metrics["sc_global"] = sums.sc_global / denominators[1]
            metrics["sc_local"] = sums.sc_local / denominators[1]
        return new_state, metrics

    return step_fn


def compile_train_step(
    config: Config,
    special: SpecialIds,
    variant: Variant,
    mesh: Mesh,
    layout: TrainState,
    word_start_V: np.ndarray | None = None,
    options: dict[str, str | bool] | None = None,
    run: Config | None = None,
) -> jax.stages.Compiled:
    """`make_train_step` as an executable `(state, tokens_BN) -> (state, metrics)`; the state is donated.

    `layout` is that of `state_layout`; `options` are the compiler's, by name.
    """
    tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.seq_len), jnp.int32)
    step_fn = make_train_step(config, special, variant, word_start_V, mesh, run)
    return compile_ahead(step_fn, layout, tokens, mesh, {**compiler_options(config.model), **(options or {})})


def compile_programs(
    needed: Mapping[str, tuple[Config, Variant]],
    special: SpecialIds,
    mesh: Mesh,
    layout: TrainState,
    word_start_V: np.ndarray | None = None,
    run: Config | None = None,
) -> dict[str, jax.stages.Compiled]:
    """The `programs_needed` by a settled config (`run`), by name: nothing compiles in the middle of a run."""
    return {
        name: compile_train_step(stage, special, variant, mesh, layout, word_start_V, run=run)
        for name, (stage, variant) in needed.items()
    }


def mask_batch(
    config: Config, special: SpecialIds, key: jax.Array, tokens_BN: jax.Array, word_start_V=None, rows_B=None, step=0
) -> MaskedBatch:
    """`mask_tokens` with a config's settings at a step; row numbers default to 0 .. B-1."""
    return mask_tokens(
        key,
        jnp.arange(tokens_BN.shape[0]) if rows_B is None else rows_B,
        tokens_BN,
        config.masking,
        special=special,
        vocab_size=config.model.vocab_size,
        num_predicted=config.num_predicted,
        step=step,
        word_start_V=word_start_V,
    )


def select(
    config: Config, importance_V: jax.Array, batch: MaskedBatch, keys_B: jax.Array, state_BND: jax.Array
) -> jax.Array:
    """Positions i32[B, K] that dropping keeps, by the config's selector; no gradient flows through the choice.

    For random-LTD i32[S, B, K]: each dropping layer draws its own. `keys_B` are for selectors that draw; `state_BND` is
    the output of `Encoder.prefix`, the tokens' state where dropping begins.
    """
    importance_V, state_BND = _masks_first(importance_V, batch), jax.lax.stop_gradient(state_BND)

    def positions(keys_B):
        tokens = (batch.input_ids_BN, batch.mask_BN, state_BND, keys_B)
        return _keep(config, importance_V, *tokens, num_kept=config.num_kept)

    if config.dropping.method != "random_ltd":
        return positions(keys_B)
    first, last = config.drop_layers
    draws = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys_B) for i in range(first, last + 1)]
    return jnp.stack([positions(draw_B) for draw_B in draws])


def _masks_first(importance_V: jax.Array, batch: MaskedBatch) -> jax.Array:
    # Above the other ids that are never dropped: in rows of many [UNK] or [SEP] these would displace it. K is at least
    # P + 2. Here rather than in the table, so that it holds for tables of older runs too.
    return importance_V.at[batch.mask_id].set(2 * token_dropping.NEVER_DROP_BONUS)


def _keep(config: Config, importance_V, input_ids_BN, mask_BN, state_BND, keys_B, *, num_kept: int) -> jax.Array:
    # A stage of few kept tokens has room for all [MASK].
    num_top = max(config.top_of(num_kept), config.num_predicted + 2)
    tokens = token_dropping.Candidates(importance_V, input_ids_BN, mask_BN, state_BND, keys_B, num_top)
    return token_dropping.keep_highest(token_dropping.SELECTORS[config.selector](tokens), mask_BN, num_kept)


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """Choice at the layers of `keep_by_layer`, an `encoder.Narrow`: the selector's, among the tokens that are there."""

    config: Config
    importance_V: jax.Array
    batch: MaskedBatch
    keys_B: jax.Array
    kept: dict[int, jax.Array] = dataclasses.field(default_factory=dict)  # layer -> the positions that it chose

    def __call__(self, layer: int, x_BKD: jax.Array, kept_BK: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Rows [B, J] of the states before a layer that go on, and their positions; None where all do."""
        count = self.config.kept_by_layer[layer - self.config.drop_layers[0]]
        if count == kept_BK.shape[1]:
            return None
        ids_BK, mask_BK = (token_dropping.gather(x, kept_BK) for x in (self.batch.input_ids_BN, self.batch.mask_BN))
        keys_B = jax.vmap(lambda key: jax.random.fold_in(key, layer))(self.keys_B)
        tokens = (ids_BK, mask_BK, jax.lax.stop_gradient(x_BKD), keys_B)
        rows_BJ = _keep(self.config, _masks_first(self.importance_V, self.batch), *tokens, num_kept=count)
        self.kept[layer] = token_dropping.gather(kept_BK, rows_BJ)
        return rows_BJ, self.kept[layer]

    def after(self, layer: int, kept_BK: jax.Array) -> jax.Array:
        """Positions of the tokens that came out of a dropping layer, `kept_BK` of them out of the first."""
        chosen = [self.kept[at] for at in sorted(self.kept) if at <= layer]
        return chosen[-1] if chosen else kept_BK


def visible(config: Config, batch: MaskedBatch) -> jax.Array:
    """Positions i32[B, N - P], ascending, that the layers before masked tokens enter see (docs/method.md 13).

    Left out are the predicted positions, whatever is shown there, and where a row has fewer than P of them padding, and
    where that does not suffice tokens at its empty slots, which the masking drew.
    """
    slots_BN = jnp.zeros(batch.mask_BN.shape, jnp.float32)
    slots_BN = token_dropping.merge(slots_BN, 1.0 + batch.weights_BP, batch.positions_BP)  # 2 at predictions
    score_BN = jnp.where(batch.mask_BN, 2.0 - slots_BN, 0.0)
    return token_dropping.keep_highest(score_BN, slots_BN < 2.0, config.num_visible)


def loss_rows(batch: MaskedBatch) -> jax.Array:
    """Rows i32[B, P + 1] at which the loss reads the last layer: [CLS], then predicted positions (docs/method.md 6)."""
    cls_B1 = jnp.zeros_like(batch.positions_BP[:, :1])
    return jnp.concatenate([cls_B1, batch.positions_BP], axis=1)


def needs_all_rows(dropping: DroppingConfig, variant: str) -> bool:
    """Whether the loss reads every row of the last layer rather than `loss_rows`."""
    return variant == "consistency" and dropping.sc_pool == "mean"


def forward_sums(
    config: Config,
    model: MaskedLm,
    params: Any,
    importance_V: jax.Array,
    batch: MaskedBatch,
    variant: Variant,
    *,
    dropout_key: jax.Array | None,
    selection_keys_B: jax.Array,
) -> tuple[losses.Sums, jax.Array]:
    """Loss sums of one (micro)batch, and the MLM loss [B, P] that moves the importance table.

    No gradient flows into `importance_V`. Without a `dropout_key` there is no dropout; `selection_keys_B` are for
    selectors that draw.
    """
    rows_BR = loss_rows(batch)
    all_rows = needs_all_rows(config.dropping, variant)
    narrow = Narrowing(config, importance_V, batch, selection_keys_B)

    def network(bound: MaskedLm):
        encoder, deterministic = bound.encoder, dropout_key is None

        def prefix(visible_BM=None):
            return encoder.prefix(
                batch.input_ids_BN, batch.mask_BN, visible_BM=visible_BM, deterministic=deterministic
            )[0]

        def branch(x_BND, kept_BK, rows_BR, mlm=True):
            output, states = encoder.suffix(
                x_BND, batch.mask_BN, kept_BK=kept_BK, rows_BR=None if all_rows else rows_BR, narrow=narrow,
                deterministic=deterministic,
            )  # fmt: skip
            loss_BP = None
            if mlm:
                predicted = token_dropping.gather(output, batch.positions_BP) if all_rows else output[:, 1:]
                loss_BP = losses.cross_entropy(bound.mlm_logits(predicted), batch.targets_BP)
            return loss_BP, (*map(encoder.normed, states[-2:-1]), states[-1])

        x_BND, kept_BK = prefix(visible(config, batch) if variant == "late" else None), None
        # The state of the pass that drops counts, where a consistency step has two prefixes.
        if variant in ("drop", "consistency"):
            kept_BK = select(config, importance_V, batch, selection_keys_B, x_BND)
        trained = branch(x_BND, kept_BK, rows_BR)
        if variant != "consistency" or kept_BK is None:
            return kept_BK, trained, None
        kept_BK = narrow.after(config.drop_layers[1], kept_BK)
        if not config.dropping.sc_share_prefix:
            x_BND = prefix()
        if config.dropping.sc_full_mlm:
            return kept_BK, trained, branch(x_BND, None, rows_BR)
        return kept_BK, trained, branch(x_BND, None, rows_BR[:, :1], mlm=False)  # the KL reads [CLS] alone

    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    passes: Any = model.apply({"params": params}, rngs=rngs, method=network)
    kept_BK, (loss_BP, drop_states), full_pass = passes
    zero = jnp.zeros(())
    sums = losses.Sums(jnp.sum(loss_BP * batch.weights_BP), zero, zero, zero)
    if full_pass is not None:
        full_loss_BP, full_states = full_pass
        sc_local, sc_global = _consistency(config, batch, kept_BK, full_states, drop_states)
        mlm_full = zero if full_loss_BP is None else jnp.sum(full_loss_BP * batch.weights_BP)
        sums = losses.Sums(sums.mlm, mlm_full, sc_global, sc_local)
    return sums, jax.lax.stop_gradient(loss_BP)


def _consistency(config: Config, batch: MaskedBatch, kept_BK: jax.Array, full_states, drop_states):
    """(SC_local, SC_global): KL of the sentence vectors after layers L-2 and L-1."""
    last_kept = config.drop_layers[1] == config.model.num_layers - 2
    masks = [token_dropping.gather(batch.mask_BN, kept_BK) if last_kept else batch.mask_BN, batch.mask_BN]
    pool = config.dropping.sc_pool
    for drop_mask, full, drop in zip(masks, full_states, drop_states, strict=True):
        full_BD = losses.pool(full, batch.mask_BN, pool)
        if config.dropping.sc_stop_gradient:
            full_BD = jax.lax.stop_gradient(full_BD)
        yield losses.consistency_kl(full_BD, losses.pool(drop, drop_mask, pool))
