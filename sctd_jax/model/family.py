"""A family of encoders, without the dropping that all of them share (`encoder.Encoder`)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from sctd_jax.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """The modules and formulas of a family; `families.FAMILIES` has one for each `model.family`.

    Modules are Linen classes. With B batch, N sequence length, R query rows, P predicted positions, D width:
    """

    position_table: bool  # positions are learnt, so that no parameters fit another `max_positions`
    embeddings: type[nn.Module]  # (config)(input_ids_BN, segment_ids_BN, deterministic) -> x_BND; has `word` [V, D]
    # (config, attend, number)(x_BND, mask_BN, positions_BN | None, rows_BR | None, deterministic) -> x_BRD
    block: type[nn.Module]
    final_norm: type[nn.Module] | None  # (config)(x_BND) -> x_BND, after the last layer
    mlm_head: type[nn.Module]  # (config)(x_BPD, word_VD) -> logits f32[B, P, V]
    summary: type[nn.Module]  # (config)(x_BRD f32) -> x_BRD, which a task's classifier reads at [CLS]
    # Pretrained parameters by name -> those that `summary` starts from, None if there are none.
    summary_params: Callable[[Mapping[str, Any]], Any]
    summary_of_tokens: bool  # a classifier of each token reads the summary too
    # (config, layer, queries, context, all_tokens) -> forward FLOPs of a layer and row by formula: matrix products
    # only, a multiply-add is 2. `all_tokens`: the queries and the context are a row's N tokens.
    layer_flops: Callable[[ModelConfig, int, int, int, bool], float]
    check: Callable[[ModelConfig], None]  # raises UserError for fields that the family cannot have
