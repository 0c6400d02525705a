"""A fine-tuned model as `transformers`' BertForSequenceClassification, ...MultipleChoice or ...QuestionAnswering."""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sctd_jax.config import from_dict
from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.finetune.loop import HIGHEST_SCORE
from sctd_jax.finetune.step import shape_of, state_shape
from sctd_jax.finetune.tasks import TASKS, Task
from sctd_jax.finetune.workdir import read_task
from sctd_jax.interop import weights
from sctd_jax.interop.exported import Model, card
from sctd_jax.parallel.mesh import AXES
from sctd_jax.train.checkpoint import COMMAND_FILE, CONFIG_FILE, Checkpoints

# Head -> the class in transformers and the pipeline that runs it.
_CLASSES = {
    "classification": ("BertForSequenceClassification", "text-classification"),
    "regression": ("BertForSequenceClassification", "text-classification"),
    "multiple_choice": ("BertForMultipleChoice", "multiple-choice"),
    "span": ("BertForQuestionAnswering", "question-answering"),
}


def task_model(workdir: epath.Path, step: int | None, log: Callable[[str], None]) -> Model:
    """The model of a fine-tuning's workdir.

    Args:
      workdir: of the fine-tuning.
      step: of the checkpoint; None for the best one by the task's metric.
      log: told of damaged checkpoints.

    Raises:
      UserError: no such checkpoint, or a head that transformers has not.
    """
    found = read_task(workdir)
    name, task = found["task"], TASKS[found["task"]]
    if task.marked:
        raise UserError(
            f"{workdir}: the classifier of {name} reads the marked words beside [CLS]; transformers has no such class"
        )
    config = from_dict(json.loads((workdir / CONFIG_FILE).read_text()))
    pieces = tokenizer.load(tokenizer.find(workdir))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    shape = state_shape(config, shape_of(task, found["labels"]), mesh)
    with closing(Checkpoints(workdir, best=HIGHEST_SCORE, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps or step not in (None, *steps):
            raise UserError(f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}, found {steps}")
        state = checkpoints.restore(shape, log, checkpoints.best_step() if step is None else step)
    architecture, pipeline = _CLASSES[task.head]
    table = weights.task_names(config.model, task.head == "span")
    command = (workdir / COMMAND_FILE).read_text().strip()
    facts = [f"Task: `{name}`", f"Started from: {'random weights' if found['random_init'] else found['init']}",
             f"Rows of at most {found['max_length']} tokens"]  # fmt: skip
    return Model(
        config=config.model,
        tokenizer=pieces,
        tensors=weights.to_bert(config.model, state.params, table),
        settings={"architectures": [architecture], **_labels(task, found["labels"])},
        card=card(workdir, config.model, pipeline, f"fine-tuned on {name} with sctd_jax", facts, command),
        step=int(state.step),
    )


def _labels(task: Task, labels: list[str]) -> Mapping[str, Any]:
    if task.head == "regression":
        return {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    if task.head != "classification":
        return {}
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
