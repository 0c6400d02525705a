"""A fine-tuned model as `transformers`' BertForSequenceClassification, ...MultipleChoice or ...QuestionAnswering."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from sctd_jax.errors import UserError
from sctd_jax.finetune.finetuned import load_finetuned
from sctd_jax.finetune.tasks import TASKS, Task
from sctd_jax.finetune.workdir import read_task
from sctd_jax.interop import weights
from sctd_jax.interop.exported import Model, card

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
    name = read_task(workdir)["task"]
    task = TASKS[name]
    if task.marked:
        raise UserError(f"{workdir}: the classifier of {name} reads the marked words; transformers has no such class")
    found = load_finetuned(workdir, step, log)
    settings, config = found.task, found.config
    architecture, pipeline = _CLASSES[task.head]
    table = weights.task_names(config.model, task.head == "span")
    facts = [f"Task: `{name}`", f"Started from: {'random weights' if settings['random_init'] else settings['init']}",
             f"Rows of at most {settings['max_length']} tokens"]  # fmt: skip
    return Model(
        config=config.model,
        tokenizer=found.tokenizer,
        tensors=weights.to_bert(config.model, found.state.params, table),
        settings={"architectures": [architecture], **_labels(task, task.names or settings["labels"])},
        card=card(workdir, config.model, pipeline, f"fine-tuned on {name} with sctd_jax", facts, found.command),
        step=int(found.state.step),
    )


def _labels(task: Task, labels: Sequence[str]) -> Mapping[str, Any]:
    if task.head == "regression":
        return {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    if task.head != "classification":
        return {}
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
