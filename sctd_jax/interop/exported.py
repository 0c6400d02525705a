"""Content of an export, of a pretrained or of a fine-tuned model, and its model card.

The card's metadata are those of huggingface/hub-docs, modelcard.md. What is not known is left out.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError, printable
from sctd_jax.hf.names import LAYOUTS, Table

_FORMS = {
    "license": (r"[a-z0-9][a-z0-9.+-]*", "an id of huggingface.co/docs/hub/repositories-licenses, as apache-2.0"),
    "language": (r"[a-z]{2,3}(-[A-Za-z]+)?|multilingual|code", "an ISO 639 code, as en"),
    "base-model": (r"[\w.-]+/[\w.-]+", "the owner/name of a model of the hub, as google-bert/bert-base-uncased"),
    "dataset": (r"[\w.-]+(/[\w.-]+)?", "the owner/name of a dataset of the hub, as wikimedia/wikipedia"),
}
_PAPERS = """@inproceedings{hou-etal-2022-token,
  title = {Token Dropping for Efficient {BERT} Pretraining},
  author = {Hou, Le and Pang, Richard Yuanzhe and Zhou, Tianyi and Wu, Yuexin and Song, Xinying and Song, Xiaodan and
            Zhou, Denny},
  booktitle = {Proceedings of the 60th Annual Meeting of the Association for Computational Linguistics
               (Volume 1: Long Papers)},
  year = {2022},
  pages = {3774--3784},
  doi = {10.18653/v1/2022.acl-long.262}
}

@inproceedings{zhong-etal-2023-revisiting,
  title = {Revisiting Token Dropping Strategy in Efficient {BERT} Pretraining},
  author = {Zhong, Qihuang and Ding, Liang and Liu, Juhua and Liu, Xuebo and Zhang, Min and Du, Bo and Tao, Dacheng},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics
               (Volume 1: Long Papers)},
  year = {2023},
  pages = {10391--10405},
  doi = {10.18653/v1/2023.acl-long.579}
}"""


@dataclasses.dataclass(frozen=True)
class Said:
    """Facts that only the user knows of a model; '' and () where nothing was said."""

    license: str = ""
    language: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()  # names on the hub
    dataset: tuple[str, ...] = ()  # names on the hub

    def __post_init__(self):
        """Check what the hub would refuse."""
        for field, values in dataclasses.asdict(self).items():
            name = field.replace("_", "-")
            for value in (values,) * bool(values) if isinstance(values, str) else values:
                if not re.fullmatch(_FORMS[name][0], value):
                    raise UserError(f"--{name} {printable(value)}: expected {_FORMS[name][1]}")

    def missing(self) -> list[str]:
        """The flags that would say more."""
        return [f"--{name.replace('_', '-')}" for name, value in dataclasses.asdict(self).items() if not value]


@dataclasses.dataclass(frozen=True)
class Result:
    """One score, as the hub's model-index has it."""

    dataset: Mapping[str, str]  # `type` (a dataset of the hub or "unknown"), `name`, and perhaps `config`, `split`
    metric: str  # names on the hub
    name: str
    value: float


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts that are known of a model without asking."""

    title: str
    pipeline: str  # names on the hub
    how: str  # the model was made: "pretrained with sctd_jax"
    facts: Sequence[str]  # about its training
    use: str  # Python that runs where the folder is the working directory
    limits: Sequence[str]
    tags: Sequence[str]
    language: Sequence[str] = ()
    base_model: Sequence[str] = ()  # names on the hub
    dataset: Sequence[str] = ()  # names on the hub
    results: Sequence[Result] = ()
    scored: bool = True  # whether the hub knows the metrics of the results


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as `transformers` will have it."""

    config: ModelConfig
    params: Mapping[str, Any]
    table: Table  # leaves of `params` by the names of the tensors
    settings: Mapping[str, Any]  # fields of config.json that differ from those of a model for masked language modelling
    card: Card
    step: int


def render(model: Model, said: Said) -> str:
    """The README.md of an export."""
    card, network = model.card, model.config
    results = []
    for dataset, group in itertools.groupby(card.results, key=lambda result: result.dataset):
        metrics = [{"type": one.metric, "value": round(one.value, 6), "name": one.name} for one in group]
        results.append({"task": {"type": card.pipeline}, "dataset": dict(dataset), "metrics": metrics})
    metadata = {
        "language": list(said.language or card.language),
        "license": said.license or "unknown",  # an id of the hub
        "library_name": "transformers",
        "pipeline_tag": card.pipeline,
        "tags": list(card.tags),
        "base_model": list(said.base_model or card.base_model),
        "datasets": list(said.dataset or card.dataset),
        "metrics": list(dict.fromkeys(result.metric for result in card.results)) if card.scored else [],
        "model-index": [{"name": card.title, "results": results}] if results else [],
    }
    metadata = {name: value for name, value in metadata.items() if value}
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    license_line = said.license or "not stated; ask its author before you use or share the model"
    facts = [
        f"Model: {network.num_layers} layers x {network.hidden_size}, vocabulary {network.vocab_size:,}",
        *card.facts,
        f"License: {license_line}",
    ]
    scores = [
        f"| {printable(' '.join(result.dataset[key] for key in ('name', 'split') if key in result.dataset))} | "
        f"{result.name} | {result.value:.4f} |"
        for result in card.results
    ]
    table = ["| data | metric | value |", "|---|---|---|", *scores] if scores else ["None is recorded for this step."]
    parts = [
        f"---\n{head}---",
        f"# {printable(card.title)}",
        f"Encoder: {LAYOUTS[network.family].title}, {card.how}.",
        _bullets(facts),
        "## Use",
        f"```python\n{card.use}```",
        "## Scores",
        "\n".join(table),
        "## Limits",
        _bullets(card.limits),
        "## Citation",
        "The methods of `sctd_jax` are token dropping and semantic-consistent token dropping (ScTD):",
        f"```bibtex\n{_PAPERS}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {printable(line)}" for line in lines)
