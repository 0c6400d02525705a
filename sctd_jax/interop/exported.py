"""What an export holds, of a pretrained or of a fine-tuned model."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from sctd_jax.config import ModelConfig
from sctd_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as `transformers` has it."""

    config: ModelConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]  # of config.json, other than those of BertForMaskedLM
    card: str
    step: int


def card(workdir: epath.Path, model: ModelConfig, pipeline: str, how: str, facts: Iterable[str], command: str) -> str:
    """The README.md of an export.

    Args:
      workdir: that it comes from.
      model: its network.
      pipeline: of transformers.
      how: it was made.
      facts: about its training.
      command: the last one that trained it.
    """
    facts = [
        f"Model: {model.num_layers} layers x {model.hidden_size}, vocabulary {model.vocab_size:,}",
        *facts,
        f"Command: `{command}`",
    ]
    lines = "\n".join(f"- {fact}" for fact in facts)
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
---

# {workdir.name}

A BERT encoder, {how}.

{lines}
"""
