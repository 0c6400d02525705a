"""What fine-tuning starts from: the workdir of a pretraining or of a fine-tuning, or a folder of `transformers`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.finetune.finetuned import load_finetuned
from sctd_jax.interop.importing import read_model
from sctd_jax.train.checkpoint import CONFIG_FILE, TASK_FILE
from sctd_jax.train.run import load_run, read_config


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network and its tokenizer; the parameters are read when they are asked for."""

    config: Config
    tokenizer: tokenizer.Tokenizer
    tokenizer_file: epath.Path
    encoder: Callable[[Mesh], Any]  # the encoder's parameters


def open_pretrained(init: str, recipe: Mapping, log: Callable[[str], None]) -> Pretrained:
    """Look at what `config.init` names.

    Args:
      init: the workdir or folder.
      recipe: sections of a config, for what a folder of transformers does not say.
      log: told of damaged checkpoints.

    Raises:
      UserError: neither the one nor the other.
    """
    path = storage.as_path(init)
    with storage.reaching(path):
        ours, there = (path / "checkpoints").is_dir(), (path / CONFIG_FILE).is_file()
    if ours:
        file = tokenizer.find(path)
        load = load_finetuned if (path / TASK_FILE).is_file() else load_run

        def encoder(mesh: Mesh) -> Any:
            return load(path, None, log, mesh).state.params["encoder"]

        return Pretrained(read_config(path), tokenizer.load(file), file, encoder)
    if not there:
        raise UserError(f"config.init {init}: expected the workdir of a run or a folder of transformers' BERT")
    found = read_model(Path(init), tokenizer_file=None, recipe=recipe)
    file = storage.as_path(found.tokenizer_file)
    return Pretrained(found.config, tokenizer.load(file), file, lambda mesh: found.state.params["encoder"])
