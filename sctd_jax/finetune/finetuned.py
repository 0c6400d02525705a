"""A fine-tuning's workdir read back."""

import dataclasses
from collections.abc import Callable
from contextlib import closing
from typing import Any

from etils import epath
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.finetune.step import initial_state, shape_of
from sctd_jax.finetune.workdir import read_task
from sctd_jax.parallel.mesh import one_device
from sctd_jax.tasks.table import TASKS
from sctd_jax.train.checkpoint import Best, Checkpoints
from sctd_jax.train.state import TrainState
from sctd_jax.train.step import state_shape
from sctd_jax.train.workdir import read_command, read_config

HIGHEST_SCORE = Best("eval/score", "max")


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What export and a fine-tuning that starts from another one need."""

    config: Config
    task: dict[str, Any]  # `task.json`
    tokenizer: tokenizer.Tokenizer
    command: str  # the last one that wrote here
    state: TrainState


def load_finetuned(
    workdir: epath.Path, step: int | None, log: Callable[[str], None], mesh: Mesh | None = None
) -> Finetuned:
    """Read a workdir.

    Args:
      workdir: of a fine-tuning.
      step: of the checkpoint; None for the best one by the task's metric.
      log: told of damaged checkpoints.
      mesh: that its state shall be on; None for the first device.

    Raises:
      UserError: no such checkpoint.
    """
    task, config = read_task(workdir, log), read_config(workdir, log)
    mesh = mesh or one_device()
    shape = state_shape(lambda: initial_state(config, shape_of(TASKS[task["task"]], task["labels"])), mesh)
    with closing(Checkpoints(workdir, best=HIGHEST_SCORE, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps or step not in (None, *steps):
            raise UserError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}, found {steps}")
        state = checkpoints.restore(shape, log, checkpoints.best_step(log) if step is None else step)
    return Finetuned(config, task, tokenizer.load(tokenizer.find(workdir), kept=True), read_command(workdir), state)
