"""Our model section <-> the `config.json` of `transformers`' BERT."""

from collections.abc import Mapping
from typing import Any

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
# The same functions under their other names.
_ACTIVATIONS_BACK = {
    "gelu": "gelu", "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
_SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
# Fields with the values that `transformers` takes where the file is silent.
_OPTIONAL = {
    "type_vocab_size": ("type_vocab_size", 2),
    "hidden_dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "initializer_range": ("initializer_range", 0.02),
}
# Fields that would make it another network than ours, with the values that do not.
_REQUIRED = {
    "model_type": (None, "bert"),
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "tie_word_embeddings": (None, True),
}


def to_json(model: ModelConfig, pad_id: int) -> dict[str, Any]:
    """Content of the `config.json` that `AutoModelForMaskedLM` reads."""
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        **{theirs: getattr(model, ours) for ours, theirs in _SIZES.items()},
        **{theirs: getattr(model, ours) for ours, (theirs, _) in _OPTIONAL.items()},
        "hidden_act": _ACTIVATIONS[model.activation],
        "pad_token_id": pad_id,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def from_json(found: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Fields of our model section, without `dtype`."""
    wrong = [f"{name} is missing" for name in _SIZES.values() if type(found.get(name)) is not int]
    for name, choices in _REQUIRED.items():
        if found.get(name) not in choices:
            wrong.append(f"{name} is {found.get(name)!r}, supported is {choices[-1]!r}")
    activation = found.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS_BACK:
        wrong.append(f"hidden_act is {activation!r}, supported are {', '.join(_ACTIVATIONS_BACK)}")
    if wrong:
        raise UserError(f"{path}: no BERT that can be imported: {'; '.join(wrong)}")
    return {
        **{ours: found[theirs] for ours, theirs in _SIZES.items()},
        **{ours: found.get(theirs, default) for ours, (theirs, default) in _OPTIONAL.items()},
        "activation": _ACTIVATIONS_BACK[activation],
    }
