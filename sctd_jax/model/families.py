"""The families of encoders that `model.family` names."""

from collections.abc import Iterable

from sctd_jax.config import ModelConfig
from sctd_jax.model import bert, modernbert, roberta
from sctd_jax.model.family import Family

# RoBERTa's network has three names, so that an export is of the class that was imported.
FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), roberta.FAMILY),
    "modernbert": modernbert.FAMILY,
}


def layer_flops(model: ModelConfig, layer: int, queries: int, context: int, all_tokens: bool = False) -> float:
    """Forward FLOPs of layer number `layer` for a row with `queries` query rows over `context` keys and values.

    `all_tokens` says that the queries and the context are the row's tokens: what lies outside a local window is then
    left out.
    """
    return FAMILIES[model.family].layer_flops(model, layer, queries, context, all_tokens)


def whole_row_flops(model: ModelConfig, layers: Iterable[int], length: int) -> float:
    """Forward FLOPs of some layers for a row of `length` tokens, all of them computed."""
    return sum(layer_flops(model, i, length, length, all_tokens=True) for i in layers)


def check_family(model: ModelConfig) -> None:
    """Raise UserError where the family cannot have a field's value."""
    FAMILIES[model.family].check(model)
