"""FLOPs of the encoder by formula: matrix products only, a multiply-add is 2."""

from sctd_jax.config import ModelConfig


def layer_flops(model: ModelConfig, queries: int, context: int) -> float:
    """Forward FLOPs of one layer and row with `queries` query rows over `context` keys and values."""
    width, ffn = model.hidden_size, model.intermediate_size
    projections = 2 * width * width * (2 * queries + 2 * context)  # query and output; key and value
    attention = 2 * 2 * width * queries * context
    return projections + attention + 2 * 2 * width * ffn * queries
