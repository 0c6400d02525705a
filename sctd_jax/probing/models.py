"""The models that a command of `sctd_jax.probe` names."""

import dataclasses
from collections.abc import Callable

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError
from sctd_jax.models import Model, open_model


def open_pretrained(path: str, log: Callable[[str], None]) -> Model:
    """`models.open_model` of a model that is not fine-tuned."""
    model = open_model(path, log)
    if model.task is not None:
        raise UserError(f"{path} is a fine-tuned model; expected the pretrained one")
    return model


def full_precision(model: ModelConfig) -> ModelConfig:
    """The network computed in float32, whatever it was trained in: probes of several models shall differ in those."""
    return dataclasses.replace(model, dtype="float32")
