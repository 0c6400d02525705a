"""The configuration of fine-tuning and of sweeps, and the Config of a run that follows from it."""

import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import Any, Literal

from sctd_jax import storage
from sctd_jax.config import Config, MeshConfig, OptimizerConfig
from sctd_jax.config import from_dict as config_from_dict
from sctd_jax.errors import UserError
from sctd_jax.fields import BELOW_ONE, LARGEST_SEED, NOT_NEGATIVE, ONE_OR_MORE, Bounds, field, fill, read_float, require
from sctd_jax.sections import TRACK, TRACKED
from sctd_jax.tasks.own import OWN
from sctd_jax.tasks.sentiment import SENTIMENT
from sctd_jax.tasks.table import TASKS
from sctd_jax.tasks.tokens import TOKENS
from sctd_jax.tasks.xnli import XNLI

_GIVEN = Bounds(bool, "is missing", found="")
# Tasks that read a field: files of the user's own, words, languages, and files without a dev set.
_OWN, _WORDS, _LANGUAGES = (("task", *(task.name for task in family)) for family in (OWN, TOKENS, XNLI))
_SPLIT = (*_OWN, *_WORDS[1:], SENTIMENT[0].name)
_KNOWN = Bounds(TASKS.__contains__, f"must be one of {', '.join(TASKS)}", found="; found {!r}")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run. Where 0 is said to be the task's, its value is in `tasks.table`."""

    task: str = field("", "name of a task in docs/finetuning.md", _KNOWN)
    init: str = field("", "workdir of a pretraining run, folder of transformers, or hf:OWNER/NAME", _GIVEN, rerun=True)
    random_init: bool = field(
        False, "take network and tokenizer of `init`, but random weights: what pretraining is worth"
    )
    data_dir: str = field(
        "", "folder of the task's files, a folder above it, or tfds:NAME[/CONFIG]", _GIVEN, rerun=True
    )
    text_field: str = field("text", "field with the text in files of your own", only=_OWN)
    pair_field: str = field("", "field with the second text in files of your own; '' for single texts", only=_OWN)
    label_field: str = field("label", "field with the label in files of your own", only=_OWN)
    tokens_field: str = field(
        "tokens", "field with the words of a sentence; of a column file the column's number", only=_WORDS
    )
    tags_field: str = field(
        "tags", "field with the labels of the words; of a column file the column's number", only=_WORDS
    )
    language: str = field("en", "language of xnli, or two, TRAIN:DEV, to score in another one", only=_LANGUAGES)
    heldout_share: float = field(0.1, "part of a single file that becomes the dev set", BELOW_ONE, only=_SPLIT)
    max_length: int = field(0, "N, tokens of a row at most; 0: the task's", NOT_NEGATIVE)
    epochs: int = field(0, "passes over the training set; 0: the task's", NOT_NEGATIVE)
    batch_size: int = field(0, "examples in the global batch; 0: the task's", NOT_NEGATIVE)
    accumulation: int = field(1, "microbatches of a step", ONE_OR_MORE, rerun=True)
    learning_rate: float = field(0.0, "peak of the rate; 0: the task's", NOT_NEGATIVE)
    warmup_share: float = field(0.1, "share of the steps that warm up", BELOW_ONE)
    weight_decay: float = field(0.01, "share of a weight, times the learning rate, that a step takes off", NOT_NEGATIVE)
    hidden_dropout: float = field(0.1, "dropout after embeddings, attention and the feed-forward part", BELOW_ONE)
    attention_dropout: float = field(0.1, "dropout of attention's probabilities", BELOW_ONE)
    evaluations: int = field(1, "evaluations in an epoch", ONE_OR_MORE)
    patience: int = field(
        0, "evaluations without a better score after which training ends; 0: never", NOT_NEGATIVE, rerun=True
    )
    class_weights: str = field(
        "", "weights of labels in the loss: 'balanced' (all labels count alike), or LABEL=WEIGHT,...; others have 1"
    )
    keep_checkpoints: int = field(1, "newest checkpoints to keep, beside the best", ONE_OR_MORE, rerun=True)
    log_every: int = field(20, "steps between lines of metrics", ONE_OR_MORE, rerun=True)
    track: str = field("", TRACK, TRACKED, rerun=True)
    seed: int = field(
        0, "seed of the head's weights, the order of examples and dropout", NOT_NEGATIVE, most=LARGEST_SEED
    )
    dtype: Literal["float32", "bfloat16"] = field("float32", "type to compute in; parameters are float32")
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predictions of a fine-tuned model for a file. An empty field's name is that of the fine-tuning."""

    init: str = field("", "workdir of a fine-tuning, whose best checkpoint predicts", _GIVEN)
    data_dir: str = field("", "file without labels, laid out as the test file of the model's task", _GIVEN)
    text_field: str = field("", "field with the text in files of your own")
    pair_field: str = field("", "field with the second text in files of your own")
    tokens_field: str = field("", "field with the words of a sentence; of a column file the column's number")
    batch_size: int = field(64, "rows that are computed together", ONE_OR_MORE)
    dtype: Literal["float32", "bfloat16"] = field("float32", "type to compute in")
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Fields that a sweep has in the places of task, init, learning_rate and seed."""

    tasks: str = field("", "names of tasks in docs/finetuning.md, separated by commas")
    inits: str = field("", "values of init, separated by commas; each ends in a folder name of its own")
    learning_rates: str = field("1e-5,2e-5,3e-5,5e-5", "peaks of the rate, separated by commas")
    seeds: int = field(5, "number of seeds, from 0 on", ONE_OR_MORE, most=1000)
    keep_weights: bool = field(False, "keep the weights of cells that are finished")


def from_dict(values: Mapping[str, Any]) -> FinetuneConfig:
    """Nested mapping -> checked FinetuneConfig with the task's values in the places of 0."""
    found = fill("config", FinetuneConfig, values)
    task = TASKS[found.task]
    missing = ("max_length", "epochs", "batch_size", "learning_rate")
    found = dataclasses.replace(found, **{f: getattr(task, f) for f in missing if not getattr(found, f)})
    require(found.max_length >= 16, "max_length", f"must be at least 16, found {found.max_length}")
    require(
        found.batch_size % found.accumulation == 0,
        "batch_size",
        f"({found.batch_size}) must be divisible by config.accumulation ({found.accumulation})",
    )
    return found


@dataclasses.dataclass(frozen=True)
class Cell:
    """One fine-tuning of a sweep."""

    name: str  # CHECKPOINT/TASK/RATE-SEED: its folder
    settings: FinetuneConfig


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All cells, in the order in which they run."""

    cells: tuple[Cell, ...]
    keep_weights: bool


def sweep_from_dict(values: Mapping[str, Any]) -> Sweep:
    """The cells of `configs/sweep.py`: seeds first, so that every rate has a first number early.

    In `data_dir` each task's name takes the place of `{task}`.
    """
    fields = {field.name for field in dataclasses.fields(SweepConfig)}
    own = fill("config", SweepConfig, {name: value for name, value in values.items() if name in fields})
    common = {name: value for name, value in values.items() if name not in fields}
    tasks, inits = _listed("tasks", own.tasks), _listed("inits", own.inits)
    paths = [storage.as_path(init) for init in inits]
    names = [path.name for path in paths]
    models = [os.fspath(path) if storage.is_remote(path) else os.path.realpath(path) for path in paths]
    for number, model in enumerate(models):
        first = models.index(model)
        require(first == number, "inits", f"names one twice: {inits[number]} is {inits[first]}")
    require(len(set(names)) == len(names), "inits", f"must end in different folder names, found {', '.join(names)}")
    try:
        rates = [read_float(rate) for rate in _listed("learning_rates", own.learning_rates)]
    except ValueError as error:
        raise UserError(f"config.learning_rates must be numbers separated by commas: {error}") from error
    require(all(rate > 0 for rate in rates), "learning_rates", f"must be positive, found {own.learning_rates}")
    folders = {f"{rate:g}" for rate in rates}
    require(len(folders) == len(rates), "learning_rates", f"names one twice (by six digits): {own.learning_rates}")
    found = []
    for (init, name), task, seed, rate in itertools.product(
        zip(inits, names, strict=True), tasks, range(own.seeds), rates
    ):
        cell = {"task": task, "init": init, "learning_rate": rate, "seed": seed}
        if isinstance(data_dir := common.get("data_dir"), str):  # else `from_dict` says what it is
            cell["data_dir"] = data_dir.replace("{task}", task)
        one = from_dict({**common, **cell})
        found.append(Cell(f"{name}/{task}/{rate:g}-seed{seed}", one))
    return Sweep(tuple(found), own.keep_weights)


def _listed(field: str, names: str) -> list[str]:
    found = [part.strip() for part in names.split(",") if part.strip()]
    require(bool(found), field, "is missing: names separated by commas")
    require(len(set(found)) == len(found), field, f"names one twice: {names}")
    return found


def run_config(settings: FinetuneConfig, pretrained: Config, steps_per_epoch: int) -> Config:
    """The Config by which mesh, model, optimizer and loop of pretraining run a fine-tuning.

    Betas, epsilon and clipping of the optimizer are BERT's, but Adam's bias is corrected, which fine-tuning needs
    (Mosbach et al., ICLR 2021).
    """
    steps = settings.epochs * steps_per_epoch
    model = dataclasses.replace(
        pretrained.model, dtype=settings.dtype, attention="auto", remat="auto",
        hidden_dropout=settings.hidden_dropout, attention_dropout=settings.attention_dropout,
    )  # fmt: skip
    between = max(steps_per_epoch // settings.evaluations, 1)
    found = Config(
        model=model,
        dropping=dataclasses.replace(
            pretrained.dropping, method="full", keep_schedule="", full_steps_first=0, full_steps_last=0
        ),
        masking=dataclasses.replace(pretrained.masking, rate_schedule=""),
        data=dataclasses.replace(pretrained.data, seq_len=settings.max_length, seq_len_schedule=""),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=settings.learning_rate, warmup_steps=round(settings.warmup_share * steps),
            schedule="linear", beta1=0.9, beta2=0.999, eps=1e-6, eps_place="after_correction",
            weight_decay=settings.weight_decay, decay="kernels", clip_norm=1.0, mu_dtype="float32",
        ),
        train=dataclasses.replace(
            pretrained.train, seed=settings.seed, init=settings.init, init_step=-1, init_takes="params", steps=steps,
            batch_size=settings.batch_size, batch_schedule="", accumulation=settings.accumulation,
            consistency_accumulation=0, eval_every=between, checkpoint_every=between,
            keep_checkpoints=settings.keep_checkpoints, log_every=settings.log_every, track=settings.track,
        ),
        mesh=settings.mesh,
    )  # fmt: skip
    return config_from_dict(dataclasses.asdict(found), new=False)  # a workdir that was written must be readable
