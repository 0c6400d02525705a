"""Our parameter tree <-> the names and layouts of `transformers`' BertForMaskedLM."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sctd_jax.config import ModelConfig
from sctd_jax.model.encoder import MaskedLm

WORD_EMBEDDINGS, OUTPUT_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
HEAD = "cls.predictions."  # beginning of the names of the MLM head's tensors


def to_bert(config: ModelConfig, path: tuple[str, ...], leaf: Any) -> np.ndarray:
    """Our leaf as `transformers` has it, f32: torch keeps (out, in), attention's [D, H, d] and [H, d, D] flattened."""
    leaf = np.asarray(leaf, np.float32)
    shape = shape_in_bert(config, path, leaf.shape)
    return np.ascontiguousarray(leaf.reshape(shape[::-1]).T if path[-1] == "kernel" else leaf.reshape(shape))


def from_bert(config: ModelConfig, tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """Our parameters f32, those of the tensors that are given by name: the inverse of `to_bert`."""
    table, expected = names(config) | POOLER, shapes(config)
    found = {}
    for name, tensor in tensors:
        path = table[name]
        tensor = np.asarray(tensor, np.float32)
        found[path] = (tensor.T if path[-1] == "kernel" else tensor).reshape(expected[path].shape)
    return unflatten_dict(found)


def shapes(config: ModelConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shape of each leaf of encoder, MLM head and pooler by its path."""

    def init() -> Any:
        row_BN = jnp.zeros((1, 1), jnp.int32)
        params = MaskedLm(config, 0, 0).init(jax.random.key(0), row_BN, row_BN == 0)["params"]
        width = config.hidden_size
        return params | {"pooler": {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)}}

    return flatten_dict(jax.eval_shape(init))


def shape_in_bert(config: ModelConfig, path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of our leaf as torch keeps it."""
    if path[-1] == "kernel":
        inputs = config.intermediate_size if path[-3:-1] == ("mlp", "output") else config.hidden_size
        return int(np.prod(shape)) // inputs, inputs
    return (int(np.prod(shape)),) if path[-1] == "bias" else tuple(shape)


def names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The path of our leaf by the name in `transformers`."""
    embeddings = ("encoder", "embeddings")
    table = {
        WORD_EMBEDDINGS: (*embeddings, "word"),
        "bert.embeddings.position_embeddings.weight": (*embeddings, "position"),
        "bert.embeddings.token_type_embeddings.weight": (*embeddings, "segment"),
        **_layer("bert.embeddings.LayerNorm", *embeddings, "norm"),
        **_layer(HEAD + "transform.dense", "mlm_head", "dense"),
        **_layer(HEAD + "transform.LayerNorm", "mlm_head", "norm"),
        OUTPUT_BIAS: ("mlm_head", "bias"),
    }
    for i in range(config.num_layers):
        layer, name = ("encoder", f"layer_{i}"), f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            table |= _layer(f"{name}.attention.self.{part}", *layer, "attention", part)
        table |= _layer(f"{name}.attention.output.dense", *layer, "attention", "output")
        table |= _layer(f"{name}.attention.output.LayerNorm", *layer, "attention_norm")
        table |= _layer(f"{name}.intermediate.dense", *layer, "mlp", "intermediate")
        table |= _layer(f"{name}.output.dense", *layer, "mlp", "output")
        table |= _layer(f"{name}.output.LayerNorm", *layer, "output_norm")
    return table


def task_names(config: ModelConfig, each_token: bool) -> dict[str, tuple[str, ...]]:
    """`names` of a model with a task's head: on each token, or on the pooled [CLS]."""
    table = {name: path for name, path in names(config).items() if not name.startswith(HEAD)}
    if each_token:
        return table | _layer("qa_outputs", "classifier")
    return table | POOLER | _layer("classifier", "classifier")


def _layer(name: str, *path: str) -> dict[str, tuple[str, ...]]:
    weight = "scale" if name.endswith("LayerNorm") else "kernel"
    return {f"{name}.weight": (*path, weight), f"{name}.bias": (*path, "bias")}


# A fine-tuned model's, and BERT's own; pretraining here has none.
POOLER = _layer("bert.pooler.dense", "pooler")
