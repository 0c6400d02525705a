"""A fine-tuned model as the `transformers` class of its family for texts, choices, answers or words."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from sctd_jax.errors import UserError
from sctd_jax.finetune.workdir import check_outputs, read_task
from sctd_jax.hf import hub
from sctd_jax.hf import names as weights
from sctd_jax.interop.exported import Card, Model, Result
from sctd_jax.models import open_run
from sctd_jax.tasks.table import TASKS
from sctd_jax.tasks.task import Task
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.workdir import read_command

# Head -> the end of the class's name in transformers and the pipeline that runs it.
_CLASSES = {
    "classification": (weights.SEQUENCE, "text-classification"),
    "regression": (weights.SEQUENCE, "text-classification"),
    "multiple_choice": (weights.CHOICE, "multiple-choice"),
    "span": (weights.ANSWER, "question-answering"),
    "token_classification": (weights.TOKEN, "token-classification"),
}
_METRICS = {"macro_f1": "f1", "f1a": "f1", "mcc": "matthews_correlation", "pearson": "pearsonr",
            "spearman": "spearmanr", "em": "exact_match", "accuracy_mm": "accuracy"}  # fmt: skip
_PIPELINE = """from transformers import pipeline

model = "."  # this folder, or the model's name on the hub
print(pipeline("text-classification", model=model)({texts}{more}))
"""
_NETWORK = """import torch
from transformers import {auto}, AutoTokenizer

model = "."  # this folder, or the model's name on the hub
tokenizer, network = AutoTokenizer.from_pretrained(model), {auto}.from_pretrained(model)
"""
_CHOOSE = """start, choices = "The cup fell.", ["It broke.", "It sang."]
inputs = tokenizer([start] * len(choices), choices, padding=True, return_tensors="pt")
with torch.no_grad():
    print(network(**{name: value[None] for name, value in inputs.items()}).logits.softmax(-1))
"""
_ANSWER = """inputs = tokenizer("Where is the cup?", "The cup is on the table.", return_tensors="pt")
with torch.no_grad():
    found = network(**inputs)
start = int(found.start_logits.argmax())
end = start + int(found.end_logits[0, start:].argmax())
print(tokenizer.decode(inputs["input_ids"][0][start : end + 1]))
"""
_WORDS = """import re
from transformers import pipeline

model = "."  # this folder, or the model's name on the hub
text = "Anna lives in Rotterdam ."  # words, marks of punctuation too, are separated by spaces, as in training
tokens = pipeline("token-classification", model=model, ignore_labels=[])(text)
for word in re.finditer(r"\\S+", text):  # its label is that of its first token
    inside = (t for t in tokens if t["end"] > word.start() and t["start"] < word.end() and t["word"] != "\u2581")
    print(word[0], next(inside, {"entity": "not read"})["entity"])
"""
_FIRST_TOKENS = "A word's label is that of its first token, which the code above reads and the scores are about."
_LATER = (
    "Later tokens have learned to be inside of the same entity, so that the pipeline's "
    '`aggregation_strategy="simple"` finds such spans too.'
)
_NOTHING = (
    "Later tokens have learned nothing. The pipeline's `aggregation_strategy` reads them too: it finds what the code "
    "above finds only where each word is one token."
)
_ENDS = "The pipeline's `aggregation_strategy` takes each label with E-, S-, L- or U- for a type of its own."
_USES = {
    "multiple_choice": _NETWORK.format(auto="AutoModelForMultipleChoice") + _CHOOSE,
    "span": _NETWORK.format(auto="AutoModelForQuestionAnswering") + _ANSWER,
    "token_classification": _WORDS,
}


def task_model(workdir: epath.Path, step: int | None, log: Callable[[str], None]) -> Model:
    """The model of a fine-tuning at a step, None for the best by its task's metric; `log` hears of damaged steps."""
    settings = read_task(workdir, log)
    name = settings["task"]
    task = TASKS[name]
    if task.marked:
        raise UserError(f"{workdir}: the classifier of {name} reads the marked words; transformers has no such class")
    run = open_run(workdir, log)
    reached, found = run.read(step)
    check_outputs(workdir, task, task.names or settings["labels"], found["params"])
    model, (head, pipeline) = run.config.model, _CLASSES[task.head]
    architecture = weights.LAYOUTS[model.family].classes + head
    started = "random weights" if settings["random_init"] else settings["init"]
    limits = [
        f"It reads at most {model.max_positions} tokens at once; rows of fine-tuning had at most "
        f"{settings['max_length']}.",
        "Its scores are of the development set, by which checkpoints are chosen: of other text expect less.",
        "Whatever is one-sided or wrong in the texts of its training may be so in the model; nobody has measured it.",
    ]
    if task.head == "token_classification":
        ends = any(re.match("[ESLU]-", label) for label in settings["labels"])
        limits[1:1] = [f"{_FIRST_TOKENS} {_LATER if task.later and not ends else _NOTHING}", *([_ENDS] if ends else [])]
    dataset, _ = task.hub
    return Model(
        config=model,
        params=found["params"],
        table=weights.task_names(model, head),
        settings={"architectures": [architecture], **_labels(task, task.names or settings["labels"])},
        card=Card(
            title=workdir.name,
            pipeline=pipeline,
            how=f"fine-tuned on {name} with sctd_jax",
            facts=[
                f"Task: `{name}`",
                f"Started from: {started}",
                f"Step: {reached:,}",
                f"Command: `{read_command(workdir)}`",
            ],
            use=_USES.get(task.head) or _classify(task, settings),
            limits=limits,
            tags=[model.family, "sctd_jax", name],
            language=["en"] if dataset else [],
            base_model=_base_model(started),
            dataset=[dataset] if dataset else [],
            results=_results(workdir, task, settings, reached),
        ),
        step=reached,
    )


def _base_model(started: str) -> list[str]:
    """Model of the hub that a fine-tuning started from, where that is one: a folder of its cache is called by it."""
    if hub.is_one(started):
        return [hub.parse(started)[0]]
    return ["/".join(ids) for ids in re.findall(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", started)]


def _classify(task: Task, settings: Mapping[str, Any]) -> str:
    single = task.single or (not task.folder and not settings["pair_field"])
    texts = '"a text"' if single else '{"text": "a text", "text_pair": "another text"}'
    return _PIPELINE.format(texts=texts, more=', function_to_apply="none"' if task.head == "regression" else "")


def _results(workdir: epath.Path, task: Task, settings: Mapping[str, Any], step: int) -> list[Result]:
    """Scores of the exported step on the development set."""
    lines = [line for line in read_metrics(workdir) if line["step"] == step and line.get("eval/score") is not None]
    known, config = task.hub

    def dataset(metric: str) -> dict[str, str]:
        if not known:
            return {"type": "unknown", "name": epath.Path(settings["data_dir"]).name or "files of the user's"}
        parts = [f"_{name}" for name, part in task.parts.items() if metric.endswith(part.metric)]
        split = f"validation{parts[-1] if parts else ''}"  # the suffix of the first part's metrics is empty
        return {"type": known, "name": task.folder, **({"config": config} if config else {}), "split": split}

    return [
        Result(dataset(metric), _METRICS.get(metric, metric), metric, lines[-1][f"eval/{metric}"])
        for metric in (task.metrics if lines else ())
        if lines[-1].get(f"eval/{metric}") is not None
    ]


def _labels(task: Task, labels: Sequence[str]) -> Mapping[str, Any]:
    if task.head == "regression":
        return {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    if task.head not in ("classification", "token_classification"):
        return {}
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        **({"problem_type": "single_label_classification"} if task.head == "classification" else {}),
    }
