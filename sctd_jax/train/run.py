"""A workdir read back: what export and a run that starts from it begin with."""

import dataclasses
import os
from collections.abc import Callable

from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import METADATA_FILE, Metadata, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.parallel.mesh import one_device
from sctd_jax.pretrain.model import initial_state
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.state import TrainState
from sctd_jax.train.step import state_shape
from sctd_jax.train.workdir import TASK_FILE, is_trained, read_command, read_config

# Of the model, by a run that starts from another one's parameters.
_FREE_TO_CHANGE = ("hidden_dropout", "attention_dropout", "initializer_range", "dtype", "attention", "remat")


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything in a workdir that does not need the rows."""

    config: Config
    metadata: Metadata | None  # of the rows; None where an imported model has not been trained yet
    tokenizer: tokenizer.Tokenizer
    command: str  # the last one that wrote here
    state: TrainState


def load_run(workdir: str | os.PathLike, step: int | None, log: Callable[[str], None], mesh: Mesh | None = None) -> Run:
    """Read a workdir.

    Args:
      workdir: of a run.
      step: of the checkpoint; None for the newest that is whole.
      log: told of damaged checkpoints.
      mesh: that its state shall be on; None for the first device.

    Raises:
      UserError: not a run's workdir, or no such checkpoint.
    """
    workdir = storage.as_path(workdir)
    config = read_config(workdir, log)
    if (workdir / TASK_FILE).is_file():
        raise UserError(f"{workdir} holds a fine-tuned model; expected the workdir of a pretraining run")
    pieces = tokenizer.load(tokenizer.find(workdir), kept=True)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps or step not in (None, *steps):
            raise UserError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}, found {steps}")
        mesh = mesh or one_device()
        state = checkpoints.restore(state_shape(lambda: initial_state(config, pieces.special), mesh), log, step)
    finally:
        checkpoints.close()
    assert state is not None  # there are checkpoints
    metadata = read_metadata(workdir) if (workdir / METADATA_FILE).is_file() else None
    if metadata is None and is_trained(workdir):
        log(f"warning: {workdir / METADATA_FILE} is missing, which says what rows this run is trained on")
    return Run(config, metadata, pieces, read_command(workdir), state)


def check_init(config: Config) -> None:
    """Check before any long work that a config can start from its `train.init`.

    Raises:
      UserError: that is no run's workdir, or has another network or tokenizer.
    """
    init = storage.as_path(config.train.init)
    theirs = dataclasses.asdict(read_config(init).model)
    other = [
        f"model.{field} ({theirs[field]!r} there, {value!r} now)"
        for field, value in dataclasses.asdict(config.model).items()
        if field not in _FREE_TO_CHANGE and theirs[field] != value
    ]
    if other:
        raise UserError(f"config.train.init {init} is another network: {', '.join(other)}")
    kept = tokenizer.find(init)
    rows = config.data.rows
    path = tokenizer.find(storage.as_path(rows)) if rows else config.data.tokenizer
    # The pieces, not the file: a vocab.txt and a tokenizer.json of one model give the same ids.
    if not path or tokenizer.load(path, kept=bool(rows)).pieces != tokenizer.load(kept, kept=True).pieces:
        raise UserError(
            f"config.data.{f'rows {rows} were' if rows else 'input would be'} prepared with another tokenizer than "
            f"that of config.train.init: use --config.data.tokenizer={kept}"
        )
