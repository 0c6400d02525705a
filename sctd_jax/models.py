"""A model on disk: the workdir of a pretraining or of a fine-tuning, or a folder of `transformers`."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from sctd_jax import storage, stored
from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import METADATA_FILE, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.hf import hub
from sctd_jax.hf.convert import download_hint
from sctd_jax.hf.names import shapes
from sctd_jax.hf.read import Folder, read_folder
from sctd_jax.model.families import FAMILIES
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.parallel.sharding import shard
from sctd_jax.train import workdir as workdirs
from sctd_jax.train.checkpoint import LOWEST_LOSS, Best, Checkpoints, RemovedError
from sctd_jax.train.workdir import CHECKPOINTS, COMMAND_FILE, CONFIG_FILE, TASK_FILE

HIGHEST_SCORE = Best("eval/score", "max")  # the best checkpoint of a fine-tuning
# Fields of the network that a run may have otherwise than the one whose parameters it starts from.
_FREE_TO_CHANGE = (
    "model.hidden_dropout", "model.attention_dropout", "model.initializer_range", "model.dtype", "model.attention",
    "model.remat",
)  # fmt: skip
_ROTARY = ("model.max_positions", "model.rope_theta", "model.local_rope_theta")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that was looked at; its parameters are read when they are asked for."""

    path: epath.Path
    config: Config  # the run's; of a folder of transformers, the defaults around its network
    tokenizer: tokenizer.Tokenizer
    tokenizer_file: epath.Path
    task: Mapping[str, Any] | None  # `task.json` of a fine-tuned model
    folder: Folder | None  # a folder of transformers
    steps: tuple[int, ...]  # those that have a checkpoint, ascending; none in a folder of transformers
    log: Callable[[str], None]  # told of damaged checkpoints

    def chosen_step(self) -> int | None:
        """The newest step, of a fine-tuned model the best one; None in a folder of transformers."""
        if self.folder:
            return None
        with closing(self._checkpoints()) as checkpoints:
            return self._chosen(checkpoints)

    def _chosen(self, checkpoints: Checkpoints) -> int:
        if not (steps := checkpoints.steps()):
            advice = " (finished cells of a sweep keep theirs only with config.keep_weights)"
            raise UserError(f"{self.path} has no checkpoint{'' if self.task is None else advice}")
        best = None if self.task is None else checkpoints.best_step(self.log)
        return steps[-1] if best is None else best

    def identified(self) -> tuple[int | None, str]:
        """`chosen_step`, and a text that changes with its parameters."""
        if self.folder:
            return None, self.folder.digest
        with closing(self._checkpoints()) as checkpoints:
            return self._kept_up(checkpoints, checkpoints.identity)

    def read(
        self, step: int | None = None, mesh: Mesh | None = None, names: Sequence[str] = ("params",)
    ) -> tuple[int | None, dict[str, Any]]:
        """The fields `names` of a checkpoint's `TrainState`, and its step; a folder of transformers has only `params`.

        Without `step` it is the newest checkpoint that is whole, or the best one of a fine-tuned model; without `mesh`
        they are placed on the first device. One that a running training removes meanwhile is no longer the newest or
        best; of a `step` that is a RemovedError.
        """
        mesh = mesh or meshes.one_device()
        if self.folder:
            found = {"params": self.folder.params()}
            return None, jax.device_put(found, meshes.shardings(shard(mesh, found)))

        def read(step: int | None) -> tuple[int, dict[str, Any]]:
            found = checkpoints.restore_parts(names, mesh, self.log, step)
            assert found is not None  # there is a checkpoint
            if "params" in names:
                self._check_network(found[1]["params"])
            return found

        with closing(self._checkpoints()) as checkpoints:
            there = checkpoints.steps()
            if step is not None and step not in there:
                kind = RemovedError if step in self.steps else UserError
                raise kind(f"{self.path} has no checkpoint of step {step}, found {there}")
            if step is not None:
                return read(step)
            if self.task is not None:
                return self._kept_up(checkpoints, read)[1]
            self._chosen(checkpoints)  # or it has none
            return read(None)

    def _kept_up(self, checkpoints: Checkpoints, read: Callable[[int], Any]) -> tuple[int, Any]:
        """The chosen step and what `read` makes of it; chosen anew where a training removes it meanwhile."""
        while True:
            step = self._chosen(checkpoints)
            try:
                return step, read(step)
            except RemovedError as error:
                self.log(f"{error}: another one is taken")
                checkpoints.look_again()
                hosts.check_same({f"the list of checkpoints of {self.path}": checkpoints.steps()})

    def _check_network(self, params: Mapping[str, Any]) -> None:
        """Check that a checkpoint's parameters are those of the network of `config.json`, which is another file."""
        path, model = self.path / CONFIG_FILE, self.config.model
        layers = sum(name.startswith("layer_") for name in params["encoder"])
        word = params["encoder"]["embeddings"]["word"]
        there = {"num_layers": layers, "vocab_size": word.shape[0], "hidden_size": word.shape[1]}
        for field, value in there.items():  # before anything of their sizes is built
            if value != getattr(model, field):
                raise UserError(
                    f"{path} is damaged: model.{field} is {getattr(model, field)}, its checkpoint has {value}"
                )
        found, expected = flatten_dict(params), shapes(model)
        for at in sorted({at for at in expected if at[0] == "encoder"} | (found.keys() & expected.keys())):
            mine, its = expected[at].shape, found[at].shape if at in found else "none"
            if mine != its:
                raise UserError(
                    f"{path} is damaged: {'/'.join(at)} has the shape {its} in its checkpoint, expected {mine}"
                )

    def params(self, step: int | None = None, mesh: Mesh | None = None) -> dict[str, Any]:
        """Parameters by `read`: `encoder`, and `mlm_head`, `pooler` and a task's head where they are."""
        return self.read(step, mesh)[1]["params"]

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path, best=LOWEST_LOSS if self.task is None else HIGHEST_SCORE, read_only=True)


def open_model(path: str, log: Callable[[str], None], field: str = "") -> Model:
    """Look at what a path names: a workdir, a folder of `transformers`, or as `hf:OWNER/NAME` one of the hub.

    `log` is told of damaged checkpoints, and of what is unusual in a folder of `transformers`; `field` names the
    setting that has the path, for the message that it is neither.
    """
    of_hub = hub.is_one(path)
    place = epath.Path(hub.download(path, log)) if of_hub else storage.as_path(path)
    with storage.reaching(place):
        ours = not of_hub and ((place / COMMAND_FILE).is_file() or (place / CHECKPOINTS).is_dir())
        there = (place / CONFIG_FILE).is_file()
    if ours:
        return open_run(place, log)
    if not there:
        raise UserError(
            f"{f'{field} ' if field else ''}{path}: expected the workdir of a run or a folder of transformers "
            f"(no {CONFIG_FILE}){download_hint(path)}"
        )
    folder = read_folder(Path(place))
    for note in folder.notes:
        log(note)
    return Model(place, folder.config, folder.tokenizer, epath.Path(folder.tokenizer_file), None, folder, (), log)


def open_run(workdir: epath.Path, log: Callable[[str], None]) -> Model:
    """Look at the workdir of a run; arguments as in `open_model`."""
    config, task = workdirs.read_config(workdir, log), None
    rows = read_metadata(workdir) if (workdir / METADATA_FILE).is_file() else None
    if (workdir / TASK_FILE).is_file():
        task = stored.read(workdir / TASK_FILE, stored.TASK).values
    elif rows is None and workdirs.is_trained(workdir):
        log(f"warning: {workdir / METADATA_FILE} is missing, which says what rows this run is trained on")
    # An import has none, nor has a fine-tuning by earlier code.
    sha256 = rows.tokenizer_sha256 if rows else task["tokenizer_sha256"] if task else ""
    file = tokenizer.of_rows(workdir, sha256) if sha256 else tokenizer.find(workdir)
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        steps = tuple(checkpoints.steps())
    return Model(workdir, config, tokenizer.load(file, kept=True), file, task, None, steps, log)


def open_init(config: Config, log: Callable[[str], None]) -> Model:
    """The run at `train.init`, looked at before any long work: a config must be able to start from it."""
    if hub.is_one(config.train.init):
        raise UserError(
            f"config.train.init {config.train.init}: expected the workdir of a run; a model of the hub becomes one by "
            f"python -m sctd_jax.interop.huggingface import --from {shlex.quote(config.train.init)} --workdir WORKDIR"
        )
    init = open_run(storage.as_path(config.train.init), log)
    if init.task is not None:
        raise UserError(f"{init.path} holds a fine-tuned model; expected the workdir of a pretraining run")
    there, now = (dict(stored.flat({"model": dataclasses.asdict(it.model)})) for it in (init.config, config))
    # Rotary positions have no parameters: ModernBERT itself went from rows of 1,024 to 8,192 with another base.
    rotary = () if FAMILIES[config.model.family].position_table else _ROTARY
    if other := workdirs.differences(there, now, (*_FREE_TO_CHANGE, *rotary)):
        raise UserError(f"config.train.init {init.path} is another network: {other}")
    if other := workdirs.differences({n: there[n] for n in rotary}, {n: now[n] for n in rotary}, ()):
        log(f"starting from {init.path} with other positions: {other}")
    rows = config.rows_folders[0]
    path = tokenizer.find(storage.as_path(rows)) if rows else config.data.tokenizer
    # The pieces, not the file: a vocab.txt and a tokenizer.json of one model give the same ids.
    if not path or tokenizer.load(path, kept=bool(rows)).pieces != init.tokenizer.pieces:
        raise UserError(
            f"config.data.{f'rows {rows} were' if rows else 'input would be'} prepared with another tokenizer than "
            f"that of config.train.init: use --config.data.tokenizer={shlex.quote(str(init.tokenizer_file))}"
        )
    return init
