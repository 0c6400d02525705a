"""FLOPs of a step by formula (matrix products only, a multiply-add is 2).

Letters of docs/method.md: N sequence length, K kept tokens, P predicted positions, D width, F FFN width, V vocabulary.
"""

from sctd_jax.config import Config
from sctd_jax.model.flops import layer_flops
from sctd_jax.pretrain.step import Variant, needs_all_rows


def _head(config: Config) -> float:
    width, vocab = config.model.hidden_size, config.model.vocab_size
    return config.num_predicted * (2 * width * width + 2 * width * vocab)


def forward_flops(config: Config, variant: Variant) -> float:
    """Forward FLOPs of one row in one variant, with the savings of docs/method.md 6."""
    length, kept, last = config.data.seq_len, config.num_kept, config.model.num_layers - 1
    rows = length if needs_all_rows(config.dropping, variant) else config.num_predicted + 1
    head = _head(config)
    first_drop, last_drop = config.drop_layers
    prefix = first_drop * layer_flops(config.model, length, length)
    top = layer_flops(config.model, rows, length) + head
    full_middle = (last - first_drop) * layer_flops(config.model, length, length)
    first_context = kept if config.dropping.method == "random_ltd" else length
    drop_middle = (
        layer_flops(config.model, kept, first_context)
        + (last_drop - first_drop) * layer_flops(config.model, kept, kept)
        + (last - 1 - last_drop) * layer_flops(config.model, length, length)
    )
    if variant == "full":
        return prefix + full_middle + top
    if variant == "drop":
        return prefix + drop_middle + top
    prefixes = 1 if config.dropping.sc_share_prefix else 2
    return prefixes * prefix + full_middle + drop_middle + 2 * top


def step_flops(config: Config, variant: Variant) -> float:
    """FLOPs of one training step on the global batch: the backward pass costs twice the forward."""
    return 3 * config.train.batch_size * forward_flops(config, variant)


def mean_step_flops(config: Config) -> float:
    """FLOPs of a step averaged over the run's schedule."""
    steps, stages = config.train.steps, config.keep_stages
    ends = [start for start, _ in stages[1:]] + [steps]
    total = 0.0
    for (start, _), end in zip(stages, ends, strict=True):
        counts = _counts(config, min(start, steps), min(end, steps))
        total += sum(count * step_flops(config.at(start), variant) for variant, count in counts.items())
    return total / steps


def _counts(config: Config, start: int, end: int) -> dict[Variant, int]:
    """Number of the steps start .. end - 1 that run each variant."""
    dropping = config.dropping
    if dropping.method == "full":
        return {"full": end - start}
    first = min(max(start, dropping.full_steps_first), end)
    last = max(first, min(end, config.train.steps - dropping.full_steps_last))
    consistency = 0
    if dropping.method == "sctd":
        consistency = -(-last // dropping.sc_interval) - -(-first // dropping.sc_interval)
    return {"full": end - start - (last - first), "drop": last - first - consistency, "consistency": consistency}


def plain_step_flops(config: Config) -> float:
    """FLOPs of BERT as published with its head on the P predicted rows: nothing dropped, all rows of the last layer."""
    length, layers = config.data.seq_len, config.model.num_layers
    return 3 * config.train.batch_size * (layers * layer_flops(config.model, length, length) + _head(config))
