"""Our parameter tree <-> the names and layouts of `transformers`' BertForMaskedLM."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sctd_jax.config import ModelConfig

WORD_EMBEDDINGS, OUTPUT_BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
_HEAD = "cls.predictions."


def to_bert(
    config: ModelConfig, params: Mapping, table: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Tensors f32 by name, as `BertForMaskedLM` has them; the tied decoder is left to `transformers`.

    Args:
      config: config of the model.
      params: parameters of the model.
      table: `task_names` for a model with a task's head.
    """
    tensors = {}
    for name, path in (table or names(config)).items():
        leaf = np.asarray(_leaf(params, path), np.float32)
        shape = shape_in_bert(config, path, leaf.shape)
        # Torch keeps (out, in); attention's [D, H, d] and [H, d, D] are flattened.
        tensors[name] = np.ascontiguousarray(
            leaf.reshape(shape[::-1]).T if path[-1] == "kernel" else leaf.reshape(shape)
        )
    return tensors


def from_bert(config: ModelConfig, tensors: Mapping[str, np.ndarray], initial: Mapping) -> dict:
    """The inverse of `to_bert`.

    Args:
      config: config of the model.
      tensors: tensors by name, in the shapes that `shape_in_bert` gives; the MLM head's may be missing.
      initial: a parameter tree that gives shapes, and the MLM head where `tensors` has none.
    """
    paths = {path: name for name, path in names(config).items()}

    def leaf(key_path, value):
        path = tuple(key.key for key in key_path)
        if (tensor := tensors.get(paths[path])) is None:
            return value
        tensor = np.asarray(tensor, np.float32)
        return (tensor.T if path[-1] == "kernel" else tensor).reshape(value.shape)

    return jax.tree_util.tree_map_with_path(leaf, initial)


def is_head(name: str) -> bool:
    """Whether a tensor belongs to the MLM head."""
    return name.startswith(_HEAD)


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
        **_norm("bert.embeddings.LayerNorm", *embeddings, "norm"),
        **_dense(_HEAD + "transform.dense", "mlm_head", "dense"),
        **_norm(_HEAD + "transform.LayerNorm", "mlm_head", "norm"),
        OUTPUT_BIAS: ("mlm_head", "bias"),
    }
    for i in range(config.num_layers):
        layer, name = ("encoder", f"layer_{i}"), f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            table |= _dense(f"{name}.attention.self.{part}", *layer, "attention", part)
        table |= _dense(f"{name}.attention.output.dense", *layer, "attention", "output")
        table |= _norm(f"{name}.attention.output.LayerNorm", *layer, "attention_norm")
        table |= _dense(f"{name}.intermediate.dense", *layer, "mlp", "intermediate")
        table |= _dense(f"{name}.output.dense", *layer, "mlp", "output")
        table |= _norm(f"{name}.output.LayerNorm", *layer, "output_norm")
    return table


def task_names(config: ModelConfig, each_token: bool) -> dict[str, tuple[str, ...]]:
    """`names` of a model with a task's head: on each token, or on the pooled [CLS]."""
    table = {name: path for name, path in names(config).items() if not is_head(name)}
    if each_token:
        return table | _dense("qa_outputs", "classifier")
    return table | _dense("bert.pooler.dense", "pooler") | _dense("classifier", "classifier")


def _dense(name: str, *path: str) -> dict[str, tuple[str, ...]]:
    return {f"{name}.weight": (*path, "kernel"), f"{name}.bias": (*path, "bias")}


def _norm(name: str, *path: str) -> dict[str, tuple[str, ...]]:
    return {f"{name}.weight": (*path, "scale"), f"{name}.bias": (*path, "bias")}


def _leaf(params: Mapping, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params
