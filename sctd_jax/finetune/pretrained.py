"""What fine-tuning starts from: the workdir of a pretraining or of a fine-tuning, or a folder of `transformers`."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.finetune.finetuned import HIGHEST_SCORE, load_finetuned
from sctd_jax.interop.convert import download_hint
from sctd_jax.interop.importing import read_model
from sctd_jax.train.checkpoint import LOWEST_LOSS, Checkpoints
from sctd_jax.train.run import load_run
from sctd_jax.train.workdir import COMMAND_FILE, CONFIG_FILE, TASK_FILE, read_config


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network and its tokenizer; the parameters are read when they are asked for."""

    config: Config
    tokenizer: tokenizer.Tokenizer
    tokenizer_file: epath.Path
    identity: str  # changes with the parameters
    params: Callable[[Mesh], dict[str, Any]]  # `encoder`, and `pooler` where it has one


def open_pretrained(init: str, recipe: Mapping, log: Callable[[str], None]) -> Pretrained:
    """Look at what `config.init` names.

    Args:
      init: the workdir or folder.
      recipe: sections of a config, for what a folder of transformers does not say.
      log: told of damaged checkpoints, and of what is unusual in a folder.

    Raises:
      UserError: none of the three.
    """
    path = storage.as_path(init)
    with storage.reaching(path):
        ours, there = (path / COMMAND_FILE).is_file(), (path / CONFIG_FILE).is_file()
    if ours:
        return _from_workdir(path, log)
    if not there:
        raise UserError(
            f"config.init {init}: expected the workdir of a run or a folder of transformers' BERT{download_hint(init)}"
        )
    found = read_model(Path(init), tokenizer_file=None, recipe=recipe)
    for note in found.notes:
        log(note)
    params = {"encoder": found.state.params["encoder"]} | ({"pooler": found.pooler} if found.pooler else {})
    file = storage.as_path(found.tokenizer_file)
    for remark in tokenizer.remarks(file):
        log(remark)
    return Pretrained(found.config, tokenizer.load(file), file, found.digest, lambda mesh: params)


def _from_workdir(workdir: epath.Path, log: Callable[[str], None]) -> Pretrained:
    finetuned = (workdir / TASK_FILE).is_file()
    with closing(Checkpoints(workdir, best=HIGHEST_SCORE if finetuned else LOWEST_LOSS, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"config.init {workdir} has no checkpoint (finished cells of a sweep keep theirs only with "
                            "config.keep_weights)")  # fmt: skip
        step = (checkpoints.best_step(log) if finetuned else None) or steps[-1]
        identity = checkpoints.identity(step)

    def params(mesh: Mesh) -> dict[str, Any]:
        found = (load_finetuned if finetuned else load_run)(workdir, step, log, mesh).state.params
        return {name: found[name] for name in ("encoder", "pooler") if name in found}

    file = tokenizer.find(workdir)
    return Pretrained(read_config(workdir), tokenizer.load(file, kept=True), file, identity, params)
