"""The configuration of fine-tuning: `configs/finetune.py` as a dataclass, and the run's Config that follows from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sctd_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, fill, require
from sctd_jax.config import from_dict as config_from_dict
from sctd_jax.tasks.table import TASKS


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run. Where 0 is said to be the task's, its value is in `tasks.table`."""

    task: str  # one of those in docs/finetuning.md
    init: str  # a pretraining workdir, or a folder of transformers
    random_init: bool  # take network and tokenizer of `init`, but random weights: what pretraining is worth
    data_dir: str  # the task's files, a folder above them, or tfds:NAME[/CONFIG]
    text_field: str  # of the user's files
    pair_field: str  # of the user's files; '' for single texts
    label_field: str  # of the user's files
    heldout_share: float  # of a single file, which becomes the dev set
    max_length: int  # N, tokens of a row at most; 0: the task's
    epochs: int  # 0: the task's
    batch_size: int  # examples in the global batch; 0: the task's
    accumulation: int  # microbatches per step
    learning_rate: float  # 0: the task's
    warmup_share: float  # of the steps
    weight_decay: float  # as config.optimizer.weight_decay of pretraining
    hidden_dropout: float  # after the embeddings, attention and the feed-forward part
    attention_dropout: float  # of the attention's weights
    evaluations: int  # per epoch
    keep_checkpoints: int  # the last k; the best by the task's metric is kept besides
    log_every: int  # steps
    seed: int  # of the head's weights, the order of examples and dropout
    dtype: str  # compute type
    mesh: MeshConfig


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What a sweep has in the places of task, init, learning_rate and seed."""

    tasks: str  # of those in docs/finetuning.md, separated by commas
    inits: str  # as init, separated by commas; each ends in a folder name of its own
    learning_rates: str  # separated by commas
    seeds: int  # how many, from 0 on
    keep_weights: bool  # of cells that are finished


_AT_LEAST_ONE = ("accumulation", "evaluations", "keep_checkpoints", "log_every")
_NOT_NEGATIVE = ("max_length", "epochs", "batch_size", "learning_rate", "weight_decay", "seed")


def from_dict(values: Mapping[str, Any]) -> FinetuneConfig:
    """Nested mapping -> checked FinetuneConfig with the task's values in the places of 0.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or impossible.
    """
    found = fill("config", FinetuneConfig, values)
    require(found.task in TASKS, "task", f"must be one of {', '.join(TASKS)}; found {found.task!r}")
    for field in ("init", "data_dir"):
        require(bool(getattr(found, field)), field, "is missing")
    for field in _AT_LEAST_ONE:
        require(getattr(found, field) >= 1, field, f"must be at least 1, found {getattr(found, field)}")
    for field in _NOT_NEGATIVE:
        require(getattr(found, field) >= 0, field, f"must not be negative, found {getattr(found, field)}")
    for field in ("warmup_share", "heldout_share", "hidden_dropout", "attention_dropout"):
        require(0 <= getattr(found, field) < 1, field, f"must be at least 0 and below 1, found {getattr(found, field)}")
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


def check_length(settings: FinetuneConfig, model: ModelConfig) -> None:
    """Check that a model has positions enough.

    Raises:
      UserError: it has fewer than `max_length`.
    """
    require(
        settings.max_length <= model.max_positions,
        "max_length",
        f"({settings.max_length}) must not exceed the {model.max_positions} positions of {settings.init}",
    )


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
        masking=pretrained.masking,
        data=dataclasses.replace(pretrained.data, seq_len=settings.max_length),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=settings.learning_rate, warmup_steps=round(settings.warmup_share * steps),
            schedule="linear", beta1=0.9, beta2=0.999, eps=1e-6, eps_place="after_correction",
            weight_decay=settings.weight_decay, decay="kernels", clip_norm=1.0, mu_dtype="float32",
        ),
        train=dataclasses.replace(
            pretrained.train, seed=settings.seed, init=settings.init, steps=steps, batch_size=settings.batch_size,
            accumulation=settings.accumulation, consistency_accumulation=0, eval_every=between,
            checkpoint_every=between, keep_checkpoints=settings.keep_checkpoints, log_every=settings.log_every,
        ),
        mesh=settings.mesh,
    )  # fmt: skip
    return config_from_dict(dataclasses.asdict(found))  # a workdir that was written must be readable
