"""Our model section <-> the `config.json` of `transformers`, for each kind of model in `names.LAYOUTS`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sctd_jax.config import ModelConfig
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError, printable
from sctd_jax.fields import checked
from sctd_jax.hf.names import LAYOUTS, first_position
from sctd_jax.sections import SHORTEST_ROW

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
_MODEL = {field.name: field for field in dataclasses.fields(ModelConfig)}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_BASES = {"rope_theta": (_FULL, "global_rope_theta"), "local_rope_theta": (_SLIDING, "local_rope_theta")}
_EVERY = "global_attn_every_n_layers"


@dataclasses.dataclass(frozen=True)
class _Fields:
    activation: str  # the field
    activations: Mapping[str, str]  # theirs -> ours
    # Ours -> theirs, with the values that `transformers` takes where the file is silent.
    optional: Mapping[str, tuple[str, Any]]
    # Fields that would make it another network than ours, with the values that do not.
    required: Mapping[str, tuple[Any, ...]]
    ids: tuple[str, ...]  # fields with the ids of [CLS] and [SEP], in turn
    write: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Mapping[str, Any], list[str]], dict[str, Any]]  # adds what cannot be read to the list


def _write_modernbert(model: ModelConfig) -> dict[str, Any]:
    """Old names for `transformers` 4, and those of 5, where they are fields of each kind of layer."""
    kinds = [_SLIDING if i % model.global_every else _FULL for i in range(model.num_layers)]
    bases = {ours: getattr(model, ours) for ours in _BASES}
    return {
        _EVERY: model.global_every,
        **{old: bases[ours] for ours, (_, old) in _BASES.items()},
        "layer_types": kinds,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": bases[ours]} for ours, (kind, _) in _BASES.items()
        },
        "embedding_dropout": model.hidden_dropout,
        "classifier_activation": _ACTIVATIONS[model.activation],
        "classifier_bias": False,
        "classifier_pooling": "cls",
        "classifier_dropout": model.hidden_dropout,
    }


def _read_modernbert(found: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    for name, like, default in (
        ("embedding_dropout", "mlp_dropout", 0.0), ("classifier_activation", "hidden_activation", "gelu"),
    ):  # fmt: skip
        if found.get(name, default) != found.get(like, default):
            wrong.append(f"{name} is {found.get(name, default)!r:.80}, supported is that of {like}")
    kinds, every = found.get("layer_types"), found.get(_EVERY)
    if every is None:  # transformers 5 writes the kinds alone
        every = 3
        if isinstance(kinds, list) and kinds:
            every = kinds.index(_FULL, 1) if _FULL in kinds[1:] else len(kinds)
    if type(every) is not int or every < 1:
        wrong.append(f"{_EVERY} is {every!r:.80}, expected a number from 1 on")
    elif kinds is not None and (
        not isinstance(kinds, list)
        or len(kinds) != found["num_hidden_layers"]
        or any(kind != (_SLIDING if i % every else _FULL) for i, kind in enumerate(kinds))
    ):
        wrong.append(
            f"layer_types are {kinds!s:.80}, supported is {_FULL} in layers 0, n, 2n ... and {_SLIDING} in the others"
        )
    rotary = found.get("rope_parameters") or {}
    kinds_of_it = rotary.values() if isinstance(rotary, dict) else [rotary]
    if not all(isinstance(of_kind, dict | None) for of_kind in kinds_of_it) or rotary.keys() - {_FULL, _SLIDING}:
        wrong.append(f"rope_parameters are {rotary!s:.80}, expected those of {_FULL} and {_SLIDING}")
        rotary = {}
    fields = {"type_vocab_size": 1, "global_every": every}
    for ours, (kind, old) in _BASES.items():
        of_kind = {"rope_theta": found.get(old, getattr(ModelConfig, ours)), **(rotary.get(kind) or {})}
        fields[ours] = of_kind.pop("rope_theta")
        if of_kind.pop("rope_type", "default") != "default" or of_kind:
            wrong.append(
                f"rope_parameters of {kind} are {rotary[kind]!s:.80}, supported is rope_type 'default' with rope_theta"
            )
        if not isinstance(fields[ours], int | float):
            wrong.append(f"{old} is {fields[ours]!r:.80}, expected a number")
        else:
            _read(old, ours, fields[ours], wrong)
    return fields


_BERT = _Fields(
    activation="hidden_act",
    activations=_ACTIVATIONS_BACK,
    optional={
        "type_vocab_size": ("type_vocab_size", 2),
        "hidden_dropout": ("hidden_dropout_prob", 0.1),
        "attention_dropout": ("attention_probs_dropout_prob", 0.1),
        "layer_norm_eps": ("layer_norm_eps", 1e-12),
        "initializer_range": ("initializer_range", 0.02),
    },
    required={
        "position_embedding_type": (None, "absolute"),
        "is_decoder": (None, False),
        "add_cross_attention": (None, False),
        "tie_word_embeddings": (None, True),
    },
    ids=(),
    write=lambda model: {},
    read=lambda found, wrong: {},
)
# Its MLM head has this GELU whatever the file says of the layers.
_ROBERTA = dataclasses.replace(
    _BERT, activations={"gelu": "gelu", "gelu_python": "gelu"}, ids=("bos_token_id", "eos_token_id")
)
_MODERNBERT = _Fields(
    activation="hidden_activation",
    activations=_ACTIVATIONS_BACK,
    optional={
        "hidden_dropout": ("mlp_dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
        "layer_norm_eps": ("norm_eps", 1e-5),
        "initializer_range": ("initializer_range", 0.02),
        "local_attention": ("local_attention", 128),
    },
    required={
        **{name: (None, False) for name in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")},
        "decoder_bias": (None, True),
        "rope_scaling": (None,),
        "tie_word_embeddings": (None, True),
    },
    ids=("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"),
    write=_write_modernbert,
    read=_read_modernbert,
)
_FIELDS = {
    "bert": _BERT,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _ROBERTA),
    "modernbert": _MODERNBERT,
}


def to_json(model: ModelConfig, special: SpecialIds) -> dict[str, Any]:
    """Content of the `config.json` that `AutoModelForMaskedLM` reads."""
    fields, layout = _FIELDS[model.family], LAYOUTS[model.family]
    if model.activation not in fields.activations.values():
        raise UserError(f"model.activation is {model.activation!r}, but transformers' {layout.title} has 'gelu'")
    sizes = {theirs: getattr(model, ours) for ours, theirs in _SIZES.items()}
    return {
        "architectures": [f"{layout.classes}ForMaskedLM"],
        "model_type": model.family,
        **sizes,
        "max_position_embeddings": model.max_positions + first_position(model.family, special.pad),
        **{theirs: getattr(model, ours) for ours, (theirs, _) in fields.optional.items()},
        fields.activation: _ACTIVATIONS[model.activation],
        **fields.write(model),
        "pad_token_id": special.pad,
        **{name: (special.cls, special.sep)[i % 2] for i, name in enumerate(fields.ids)},
        "tie_word_embeddings": True,
    }


def _read(theirs: str, ours: str, value: Any, wrong: list[str]) -> Any:
    """A number that our field holds; what it does not is added to the list."""
    try:
        return checked(theirs, _MODEL[ours], value)
    except UserError as error:
        wrong.append(str(error))


def from_json(found: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Fields of our model section, without `dtype`. Every number is within the bounds of its field."""
    family = found.get("model_type") or "bert"  # the first checkpoints have none
    if not isinstance(family, str) or family not in LAYOUTS:
        raise UserError(f"{path}: model_type is {printable(repr(family)):.80}, supported are {', '.join(LAYOUTS)}")
    fields, layout, wrong, numbers = _FIELDS[family], LAYOUTS[family], [], {}
    for ours, theirs in _SIZES.items():
        if found.get(theirs) is None:
            wrong.append(f"{theirs} is missing")
        else:
            numbers[ours] = _read(theirs, ours, found[theirs], wrong)
    for ours, (theirs, default) in fields.optional.items():
        numbers[ours] = _read(theirs, ours, found.get(theirs, default), wrong)
    for name, choices in fields.required.items():
        if found.get(name) not in choices:
            wrong.append(f"{name} is {found.get(name)!r:.80}, supported is {choices[-1]!r}")
    activation = found.get(fields.activation, "gelu")
    if not isinstance(activation, str) or activation not in fields.activations:
        wrong.append(f"{fields.activation} is {activation!r:.80}, supported are {', '.join(fields.activations)}")
    own = {} if wrong else fields.read(found, wrong)
    pad_id = found.get("pad_token_id", 1)
    if layout.after_padding and (type(pad_id) is not int or pad_id < 0):
        wrong.append(f"pad_token_id is {pad_id!r:.80}, expected an id, after which positions begin")
    if not wrong:
        width, heads, positions = (numbers[name] for name in ("hidden_size", "num_heads", "max_positions"))
        if width % heads:
            wrong.append(f"num_attention_heads ({heads}) must divide hidden_size ({width})")
        numbers["max_positions"] = positions - first_row(found)
        if numbers["max_positions"] < SHORTEST_ROW:
            after = f" after pad_token_id {pad_id}" if layout.after_padding else ""
            wrong.append(f"max_position_embeddings is {positions}{after}, expected {SHORTEST_ROW} positions at least")
    if wrong:
        raise UserError(f"{path}: no {layout.title} that can be imported: {printable('; '.join(wrong))}")
    return {"family": family, **numbers, "activation": fields.activations[activation], **own}


def first_row(found: Mapping[str, Any]) -> int:
    """Row of the checkpoint's position table that a text's first token reads."""
    return first_position(found.get("model_type") or "bert", found.get("pad_token_id", 1))
