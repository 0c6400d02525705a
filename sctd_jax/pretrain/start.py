"""The first state of a run that starts from another one: its parameters alone, or all of its state."""

import dataclasses
from collections.abc import Callable
from contextlib import closing

from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.config import Config
from sctd_jax.data.rows import same_rows
from sctd_jax.errors import UserError
from sctd_jax.models import Model, open_init
from sctd_jax.pretrain.rows import Data
from sctd_jax.pretrain.workdir import fingerprints, folders
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.state import TrainState
from sctd_jax.train.workdir import ROWS_FILE


def open_start(config: Config, log: Callable[[str], None]) -> Model:
    """The run at `train.init`, looked at before any long work: a config must be able to start from its checkpoint."""
    init, train = open_init(config, log), config.train
    if train.init_step >= 0 and train.init_step not in init.steps:
        raise UserError(
            f"config.train.init_step is {train.init_step}, but {init.path} has checkpoints of {list(init.steps)}"
        )
    if train.init_takes == "params":
        return init
    step = train.init_step if train.init_step >= 0 else init.chosen_step()
    assert step is not None  # only a folder of transformers has no steps
    if step >= train.steps:
        raise UserError(
            f"config.train.steps is {train.steps}, but {init.path} has trained {step} already, which count with "
            "train.init_takes=state: give more"
        )
    # Fields that decide which arrays the optimizer's state has.
    for name, kind in (("name", str), ("mu_dtype", str), ("clip_norm", bool)):
        there, now = (getattr(of.optimizer, name) for of in (init.config, config))
        if kind(there) != kind(now):
            raise UserError(
                f"config.optimizer.{name} is {now}, but {init.path} has {there}: its optimizer's state does not fit; "
                "set it to that, or train.init_takes=params"
            )
    return init


def first_state(
    init: Model, config: Config, data: Data, mesh: Mesh, state: TrainState, log: Callable[[str], None]
) -> TrainState:
    """`state` with what `train.init_takes` says of a checkpoint of `init`; `log` is told what, and of the data.

    `state` has the layout on the mesh.
    """
    wanted = config.train.init_step if config.train.init_step >= 0 else None
    if config.train.init_takes == "params":
        step, found = init.read(wanted, mesh)
        log(f"starting from the parameters of {init.path} at step {step}")
        return dataclasses.replace(state, params=found["params"])
    with closing(Checkpoints(init.path, read_only=True)) as checkpoints:
        taken = checkpoints.restore(state, log, wanted)
    assert taken is not None  # `open_start` has found checkpoints
    step = int(taken.step)
    log(f"going on from step {step:,} of {init.path}: its parameters, optimizer state, importance table and random key")
    log(_order_line(init, config, data, step))
    return taken


def _order_line(init: Model, config: Config, data: Data, step: int) -> str:
    """A line on the rows from `step` on, beside those that `init` was trained on: none comes twice without a word."""
    path, there = init.path / ROWS_FILE, init.config
    theirs, ours = storage.read_json(path) if storage.exists(path) else {}, fingerprints(*folders(data))
    if theirs.keys() != ours.keys() or not all(same_rows(theirs[split], ours[split]) for split in ours):
        return (
            f"warning: the rows in {data.folder} are others than those of {init.path}: text that both have is trained "
            "again"
        )
    places = [
        {"seed": f"{of.train.seed:,}", "tokens a row": f"{of.at(step).data.seq_len:,}",
         "rows before": f"{of.rows_before(step):,}", "shuffle": of.data.shuffle}
        for of in (there, config)
    ]  # fmt: skip
    if config.data.shuffle == "shards":  # each column of a batch has rows of its own
        for place, of in zip(places, (there, config), strict=True):
            place["rows a batch"] = of.train.batch_schedule or f"{of.train.batch_size:,}"
    if places[0] != places[1]:
        differ = ", ".join(f"{name} {a} there, {places[1][name]} here"
                           for name, a in places[0].items() if a != places[1][name])  # fmt: skip
        return (
            f"warning: the order of the rows is another than that of {init.path} ({differ}): rows that it was trained "
            "on may come again before the others"
        )
    return f"the rows go on where that run stood, at row {config.rows_before(step):,} of the same order"
