"""FLOPs of a step by formula (matrix products only, a multiply-add is 2).

Letters of docs/method.md: N sequence length, K kept tokens, P predicted positions, D width, F FFN width, V vocabulary.
"""

import itertools

from sctd_jax.config import Config
from sctd_jax.model.families import layer_flops, whole_row_flops
from sctd_jax.pretrain.counts import variant_counts
from sctd_jax.pretrain.step import needs_all_rows


def _head(config: Config) -> float:
    width, vocab = config.model.hidden_size, config.model.vocab_size
    return config.num_predicted * (2 * width * width + 2 * width * vocab)


def forward_flops(config: Config, variant: str) -> float:
    """Forward FLOPs of one row in one variant, with the savings of docs/method.md 6."""
    model, length, kept, last = config.model, config.data.seq_len, config.num_kept, config.model.num_layers - 1
    all_rows = needs_all_rows(config.dropping, variant)
    rows = length if all_rows else config.num_predicted + 1
    first_drop, last_drop = config.drop_layers
    first_context = kept if config.dropping.method == "random_ltd" else length
    prefix = whole_row_flops(model, range(first_drop), length)
    full_middle = whole_row_flops(model, range(first_drop, last), length)
    top = layer_flops(model, last, rows, length, all_tokens=all_rows) + _head(config)
    counts = config.kept_by_layer if config.drops else (kept,)
    drop_middle = (
        layer_flops(model, first_drop, kept, first_context)
        + sum(
            # Tokens that leave at a layer are among its keys and values.
            layer_flops(model, first_drop + i, queries, context)
            for i, (context, queries) in enumerate(itertools.pairwise(counts), start=1)
        )
        + whole_row_flops(model, range(last_drop + 1, last), length)
    )
    if variant == "full":
        return prefix + full_middle + top
    if variant == "late":
        visible = config.num_visible
        return sum(layer_flops(model, i, visible, visible) for i in range(first_drop)) + full_middle + top
    if variant == "drop":
        return prefix + drop_middle + top
    prefixes = 1 if config.dropping.sc_share_prefix else 2
    full_top = top
    if not config.dropping.sc_full_mlm:  # no head, and of the last layer [CLS] alone
        full_top = layer_flops(model, last, length if all_rows else 1, length, all_tokens=all_rows)
    return prefixes * prefix + full_middle + drop_middle + top + full_top


def step_flops(config: Config, variant: str) -> float:
    """FLOPs of one training step on the global batch: the backward pass costs twice the forward."""
    return 3 * config.train.batch_size * forward_flops(config, variant)


def run_flops(config: Config, steps: int) -> float:
    """FLOPs of a run's first `steps` training steps."""
    total = 0.0
    for start, end, stage in config.stages(steps):
        counts = variant_counts(config, start, end)
        total += sum(count * step_flops(stage, variant) for variant, count in counts.items())
    return total


def mean_step_flops(config: Config) -> float:
    """FLOPs of a step averaged over the run's schedule."""
    return run_flops(config, config.train.steps) / config.train.steps


def mean_plain_step_flops(config: Config) -> float:
    """`plain_step_flops` averaged over the run's lengths and batches."""
    stages = config.stages(config.train.steps)
    return sum((end - start) * plain_step_flops(stage) for start, end, stage in stages) / config.train.steps


def plain_step_flops(config: Config) -> float:
    """FLOPs of the model as published, its head on the P rows: nothing dropped, all rows of the last layer."""
    layers = whole_row_flops(config.model, range(config.model.num_layers), config.data.seq_len)
    return 3 * config.train.batch_size * (layers + _head(config))
