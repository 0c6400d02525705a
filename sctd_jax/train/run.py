"""A workdir read back: what export, import and later use of a run begin with."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import sentencepiece

from sctd_jax.config import Config, from_dict
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import TOKENIZER_FILE, Metadata, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.objective.masking import SpecialIds
from sctd_jax.train.checkpoint import COMMAND_FILE, CONFIG_FILE, Checkpoints
from sctd_jax.train.state import TrainState, initial_state


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything in a workdir that does not need the rows."""

    config: Config
    metadata: Metadata
    processor: sentencepiece.SentencePieceProcessor
    special: dict[str, int]  # ids by role
    command: str  # the last one that trained here
    state: TrainState


def load_run(workdir: Path, step: int | None, log: Callable[[str], None]) -> Run:
    """Read a workdir, its state on the first device.

    Args:
      workdir: of a run.
      step: of the checkpoint; None for the newest that is whole.
      log: told of damaged checkpoints.

    Raises:
      UserError: not a run's workdir, or no such checkpoint.
    """
    if not (workdir / CONFIG_FILE).is_file():
        raise UserError(f"{workdir} is not the workdir of a run (no {CONFIG_FILE})")
    config = from_dict(json.loads((workdir / CONFIG_FILE).read_text()))
    path = str(workdir / TOKENIZER_FILE)
    processor = tokenizer.load(path)
    special = tokenizer.special_ids(processor, path)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps or step not in (None, *steps):
            raise UserError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}, found {steps}")
        shape = jax.eval_shape(lambda: initial_state(config, SpecialIds(**special)))
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shape = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shape)
        state = checkpoints.restore(shape, log, step)
    finally:
        checkpoints.close()
    command = (workdir / COMMAND_FILE).read_text().strip()
    return Run(config, read_metadata(workdir), processor, special, command, state)
