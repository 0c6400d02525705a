"""The models that a command of `sctd_jax.probe` names, opened with their MLM head."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from etils import epath

from sctd_jax import storage
from sctd_jax.config import Config, ModelConfig
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.interop.convert import download_hint
from sctd_jax.interop.importing import read_model
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.run import load_run
from sctd_jax.train.workdir import CONFIG_FILE, TASK_FILE, read_config


@dataclasses.dataclass(frozen=True)
class MaskedLm:
    """A network with its MLM head; parameters are read when they are asked for, onto the first device."""

    config: Config
    tokenizer: tokenizer.Tokenizer
    workdir: epath.Path | None  # of a run of ours
    steps: tuple[int | None, ...]  # that have a checkpoint, ascending; None for a folder of transformers
    params: Callable[[int | None], Any]


def open_masked_lm(path: str, recipe: Mapping, log: Callable[[str], None]) -> MaskedLm:
    """Look at a pretraining workdir, or read a folder of `transformers`.

    Args:
      path: the workdir or folder.
      recipe: sections of a config, for what a folder of transformers does not say.
      log: told of damaged checkpoints.

    Raises:
      UserError: neither the one nor the other, a fine-tuned model, or one without an MLM head.
    """
    check_pretrained(path)
    workdir = storage.as_path(path)
    if (workdir / "checkpoints").is_dir():
        with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
            steps = tuple(checkpoints.steps())
        if not steps:
            raise UserError(f"{path} has no checkpoint")
        return MaskedLm(
            read_config(workdir), tokenizer.load(tokenizer.find(workdir), kept=True), workdir, steps,
            lambda step: load_run(workdir, step, log).state.params,
        )  # fmt: skip
    found = read_model(Path(path), tokenizer_file=None, recipe=recipe)
    for note in found.notes:
        log(note)
    if not found.has_head:
        raise UserError(f"{path} has no MLM head, which predicts the masked tokens: only its layers can be probed")
    for remark in tokenizer.remarks(found.tokenizer_file):
        log(remark)
    return MaskedLm(found.config, tokenizer.load(found.tokenizer_file), None, (None,), lambda step: found.state.params)


def check_pretrained(path: str) -> None:
    """Check that a path is the workdir of a pretraining run or may be a folder of `transformers`.

    Raises:
      UserError: it is neither.
    """
    folder = storage.as_path(path)
    with storage.reaching(folder):
        there, fine_tuned = (folder / CONFIG_FILE).is_file(), (folder / TASK_FILE).is_file()
    if not there:
        raise UserError(
            f"{path}: expected the workdir of a run or a folder of transformers' BERT (no {CONFIG_FILE})"
            f"{download_hint(path)}"
        )
    if fine_tuned:
        raise UserError(f"{path} is a fine-tuned model; expected the pretrained one")


def full_precision(model: ModelConfig) -> ModelConfig:
    """The network computed in float32, whatever it was trained in: probes of several models shall differ in those."""
    return dataclasses.replace(model, dtype="float32")
