"""RoBERTa (Liu et al., 2019), and with other vocabularies XLM-R and CamemBERT: BERT's network.

What differs is outside the network. A checkpoint's position table begins with two rows that no token reads, for its
first position is the id of <pad> plus 1: `hf/` leaves them out and puts them back. There is one kind of segment
(`type_vocab_size`), LayerNorm has epsilon 1e-5 (`layer_norm_eps`), and its head has other names.
"""

import dataclasses

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError
from sctd_jax.model import bert


def check(model: ModelConfig) -> None:
    """Raise UserError for what BERT may have and this family has not."""
    bert.check(model)
    if model.activation != "gelu":
        raise UserError(
            f"config.model.activation must be gelu where model.family is {model.family}, as in transformers; found "
            f"{model.activation}"
        )


FAMILY = dataclasses.replace(bert.FAMILY, check=check)
