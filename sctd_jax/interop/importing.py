"""A checkpoint in `transformers`' format -> a workdir that later runs start from."""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax

from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError, writing
from sctd_jax.hf import hub
from sctd_jax.hf.read import around, listed, read_folder
from sctd_jax.pretrain.model import initial_state
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.workdir import write_config


def import_model(
    source: str | Path,
    workdir: Path,
    *,
    tokenizer_file: Path | None,
    recipe: Mapping[str, Mapping[str, Any]],
    log: Callable[[str], None],
) -> None:
    """Make `workdir` a run at step 0 with the parameters of a checkpoint, as `hf.read.read_folder` reads it.

    The source is a folder or file as there, or `hf:OWNER/NAME[@REVISION]`, and then the command that `workdir` keeps
    has the commit. A `tokenizer_file` stands for the one beside the weights. The folder `workdir`, which must not exist
    yet, appears only when complete; its config has the sections of `recipe`, but for the network. `log` receives what
    was left out or initialised, and the next command.
    """
    if os.path.lexists(workdir):  # a link may lead nowhere
        raise UserError(f"{workdir} exists already; choose another --workdir")
    given, command = str(source), sys.orig_argv
    if hub.is_one(given):
        source, origin = hub.download(given, log), hub.pinned(given, log)
        command = [argument.replace(given, origin) for argument in command]
    else:
        origin = given
    found = read_folder(Path(source), tokenizer_file)
    config = around(found.network, recipe)
    state = jax.jit(lambda: initial_state(config, found.tokenizer.special))()
    params = {name: values for name, values in found.params().items() if name in state.params}
    state = state.replace(params=state.params | jax.device_put(params))
    with writing(workdir):
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{workdir.name}.incomplete-", dir=workdir.parent) as temporary:
            ready = Path(temporary, "workdir")
            ready.mkdir()
            name, content = tokenizer.canonical(found.tokenizer_file)
            (ready / name).write_bytes(content)
            with closing(Checkpoints(ready)) as checkpoints:
                checkpoints.save(state, None)
                checkpoints.wait()
            write_config(ready, config, command)
            ready.rename(workdir)
    model = config.model
    log(f"imported {found.tensors} tensors of {origin} to {workdir}: {model.num_layers} layers x "
        f"{model.hidden_size}, vocabulary {model.vocab_size:,}")  # fmt: skip
    for note in found.notes:
        log(note)
    if found.left_out:
        log(f"left out, which this network has not: {listed(found.left_out)}")
    if not found.has_head:
        log("there is no MLM head in it: the head starts from random weights, which pretraining trains")
    log(f"pretrain on: python -m sctd_jax.main --config=configs/continued.py:{workdir} "
        "--config.data.input='folder/**/*.txt' --workdir=runs/continued")  # fmt: skip
