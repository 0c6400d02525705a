"""The models that a command of `sctd_jax.probe` names, and what their probes have in common."""

import dataclasses
from collections.abc import Callable

import numpy as np

from sctd_jax.config import ModelConfig
from sctd_jax.data.rows import HELD_OUT, Rows
from sctd_jax.errors import UserError
from sctd_jax.models import Model, open_model
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain.evaluation import eval_rows
from sctd_jax.pretrain.rows import Data
from sctd_jax.pretrain.workdir import open_rows

POOLINGS = ("cls", "mean")  # [CLS], and the mean over a row's real tokens, [CLS] and [SEP] among them


def open_pretrained(path: str, log: Callable[[str], None]) -> Model:
    """`models.open_model` of a model that is not fine-tuned."""
    model = open_model(path, log)
    if model.task is not None:
        raise UserError(f"{path} is a fine-tuned model; expected the pretrained one")
    return model


def held_out(run: Model, count: int, log: Callable[[str], None]) -> tuple[Data, Rows, np.ndarray]:
    """The data of a run, its held-out rows, and the numbers of at most `count` of them, from all over the split.

    `log` is told if the rows must be prepared again.
    """
    data = open_rows(run.path, run.config, log)
    rows = Rows(data.folder, HELD_OUT)
    return data, rows, eval_rows(count, len(rows))


def check_batch(model: Model, batch_size: int, length: int) -> None:
    """Refuse before anything is read a batch of rows of `length` tokens that cannot fit on the first device."""
    train = dataclasses.replace(
        model.config.train, batch_size=batch_size, accumulation=1, consistency_accumulation=0
    )  # fmt: skip
    meshes.check_memory(meshes.one_device(), full_precision(model.config.model), train, length, trained=False)


def full_precision(model: ModelConfig) -> ModelConfig:
    """The network computed in float32, whatever it was trained in: probes of several models shall differ in those."""
    return dataclasses.replace(model, dtype="float32")
