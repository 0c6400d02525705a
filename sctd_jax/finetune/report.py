"""Lines of a fine-tuning for a person."""

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from etils import epath
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.errors import printable
from sctd_jax.finetune.config import FinetuneConfig
from sctd_jax.tasks.splits import TaskData
from sctd_jax.tasks.table import TASKS
from sctd_jax.train import trainer
from sctd_jax.train.metrics import duration

_LABELS = 10  # labels of the user's own that are listed


def start_table(
    settings: FinetuneConfig,
    config: Config,
    mesh: Mesh,
    data: TaskData,
    steps_per_epoch: int,
    floors: Mapping[str, float],
) -> list[str]:
    """Lines that say what is about to run; `floors` are those of `scoring.floors`."""
    task, model = TASKS[settings.task], config.model
    counts = [f"{len(data.train):,} training", *(f"{len(part):,} {name}" for name, part in data.dev.items())]
    counts += [f"{len(part):,} {name}{'' if task.scored else ' (without labels)'}" for name, part in data.test.items()]
    rows = [
        ("model", f"{model.num_layers} layers x {model.hidden_size}, {model.num_heads} heads, {model.dtype}"),
        ("start", "random weights" if settings.random_init else settings.init),
        ("task", f"{settings.task}, {task.head}; {', '.join(counts)} examples"),
        ("steps", f"{config.train.steps:,} of {settings.batch_size} rows ({settings.epochs} epochs of "
                  f"{steps_per_epoch:,}), at most {settings.max_length} tokens"),
        ("rate", f"{settings.learning_rate:g}, seed {settings.seed}"),
    ]  # fmt: skip
    if floors:
        shares = ", ".join(f"{share:.3f}" for share in floors.values())
        what = ("floor", "the score on dev of each word's most frequent label in training")
        what = what if task.floor else ("majority", "the accuracy of the most frequent label on dev")
        rows.insert(-1, (what[0], f"{shares}: {what[1]}"))
    if data.labels and not task.labels:  # nothing else has named those of the user's files yet
        words = task.head == "token_classification"
        of_train = Counter(n for e in data.train for n in (e.tags or () if words else (e.label,)))
        listed = [f"{label} {of_train[i]:,}" for i, label in enumerate(data.labels[:_LABELS])]
        more = [f"{len(data.labels) - _LABELS:,} more"] if len(data.labels) > _LABELS else []
        what = f"{len(data.labels):,}, training {'words' if words else 'rows'}"
        rows.insert(-2, ("labels", f"{what}: {printable(', '.join(listed + more))}"))
    return trainer.start_lines(mesh, rows)


def evaluation_lines(step: int, metrics: Mapping[str, float]) -> list[str]:
    """One line for one evaluation."""
    return [f"eval at step {step}: {_listed(metrics)}"]


def _listed(metrics: Mapping[str, float], prefix: str = "eval/") -> str:
    return ", ".join(
        f"{name.removeprefix(prefix)} {value:.3f}" for name, value in metrics.items() if name.startswith(prefix)
    )


def summary(
    workdir: epath.Path, settings: FinetuneConfig, data: TaskData, result: Mapping[str, Any], steps: int
) -> list[str]:
    """Lines for the end of a run."""
    return [
        f"done: {steps:,} steps, {duration(result['seconds'])} of training, evaluation and saving",
        f"best checkpoint: step {result['step']}: {_listed(result)}",
        *([f"on the test set: {_listed(result, 'test/')}"] if "test/score" in result else []),
        *(f"as said before: {note}" for note in data.notes),
        f"predictions of {', '.join([*data.dev, *data.test])}: {workdir / 'predictions'}",
        f"curves: python -m sctd_jax.plot {shlex.quote(str(workdir))}",
        f"all on one page: python -m sctd_jax.report {shlex.quote(str(workdir))}",
        "to transformers:",
        f"  python -m sctd_jax.interop.huggingface export --workdir {shlex.quote(str(workdir))} --out DIR",
    ]
