"""Our parameter tree <-> the names and layouts of `transformers`' BertForMaskedLM."""

from collections.abc import Mapping

import numpy as np

from sctd_jax.config import ModelConfig


def to_bert(config: ModelConfig, params: Mapping) -> dict[str, np.ndarray]:
    """Tensors by name, as `BertForMaskedLM` has them; the tied decoder is left to `transformers`."""
    encoder, head = params["encoder"], params["mlm_head"]
    embeddings = encoder["embeddings"]
    tensors = {
        "bert.embeddings.word_embeddings.weight": embeddings["word"],
        "bert.embeddings.position_embeddings.weight": embeddings["position"],
        "bert.embeddings.token_type_embeddings.weight": embeddings["segment"],
        **_norm("bert.embeddings.LayerNorm", embeddings["norm"]),
        **_dense("cls.predictions.transform.dense", head["dense"], config.hidden_size),
        **_norm("cls.predictions.transform.LayerNorm", head["norm"]),
        "cls.predictions.bias": head["bias"],
    }
    for i in range(config.num_layers):
        layer, name = encoder[f"layer_{i}"], f"bert.encoder.layer.{i}"
        attention, mlp = layer["attention"], layer["mlp"]
        for part in ("query", "key", "value"):
            tensors |= _dense(f"{name}.attention.self.{part}", attention[part], config.hidden_size)
        tensors |= _dense(f"{name}.attention.output.dense", attention["output"], config.hidden_size)
        tensors |= _norm(f"{name}.attention.output.LayerNorm", layer["attention_norm"])
        tensors |= _dense(f"{name}.intermediate.dense", mlp["intermediate"], config.hidden_size)
        tensors |= _dense(f"{name}.output.dense", mlp["output"], config.intermediate_size)
        tensors |= _norm(f"{name}.output.LayerNorm", layer["output_norm"])
    return {name: np.ascontiguousarray(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}


def _dense(name: str, leaf: Mapping, inputs: int) -> dict[str, np.ndarray]:
    """Torch keeps (out, in); attention's [D, H, d] and [H, d, D] are flattened first."""
    kernel = np.asarray(leaf["kernel"])
    return {f"{name}.weight": kernel.reshape(inputs, -1).T, f"{name}.bias": np.asarray(leaf["bias"]).reshape(-1)}


def _norm(name: str, leaf: Mapping) -> dict[str, np.ndarray]:
    return {f"{name}.weight": leaf["scale"], f"{name}.bias": leaf["bias"]}
