"""Our parameter tree <-> the names and layouts of tensors in `transformers`' classes.

A table has the leaves of which a tensor is made by the tensor's name: one leaf, or several along its first axis, as
ModernBERT's query, key and value. A key of `LAYOUTS` is a value of `model.family`, and the `model_type` of
`transformers`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sctd_jax.config import ModelConfig
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.model.families import FAMILIES

Path = tuple[str, ...]
Table = dict[str, tuple[Path, ...]]
_EMBEDDINGS = ("encoder", "embeddings")
_POSITIONS = (*_EMBEDDINGS, "position")
# Tasks' heads by the ends of their classes' names.
SEQUENCE, CHOICE, ANSWER = "ForSequenceClassification", "ForMultipleChoice", "ForQuestionAnswering"
TOKEN = "ForTokenClassification"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the tensors of a kind of model in `transformers`."""

    title: str  # name in messages and model cards
    classes: str  # beginning of its classes' names
    inner: str  # stands before an encoder's names where a head is beside it
    parts: tuple[str, ...]  # beginnings of an encoder's names without `inner`
    word: str
    output_bias: str
    head: tuple[str, ...]  # beginnings of the MLM head's names
    tied: Mapping[str, str]  # saved a second time by some versions, and what they are tied to
    left_out: tuple[str, ...]  # beginnings of names that pretraining has not: tasks' heads, an index 0, 1, 2 ...
    names: Callable[[ModelConfig], Table]  # all that masked language modelling has
    tasks: Mapping[str, Table]  # pooler and classifier by `SEQUENCE`, `CHOICE`, `ANSWER` and `TOKEN`
    pooler: Callable[[Iterable[str]], Table]  # the pooler in a file with these names, {} if there is none to expect
    after_padding: bool = False  # a first token's position is the id of padding plus 1


def first_position(family: str, pad_id: int) -> int:
    """Row of a checkpoint's position table that a text's first token reads."""
    return pad_id + 1 if LAYOUTS[family].after_padding else 0


def to_torch(config: ModelConfig, paths: tuple[Path, ...], leaves: Mapping[Path, Any], first: int = 0) -> np.ndarray:
    """Our leaves as a tensor f32: torch keeps (out, in), attention's [D, H, d] and [H, d, D] flattened.

    Rows of the position table before the `first_position` are 0: no token reads them but padding, which `transformers`
    initialises so.
    """
    parts = []
    for path in paths:
        leaf = np.asarray(leaves[path], np.float32)
        shape = _shape(config, path, leaf.shape)
        parts.append(leaf.reshape(shape[::-1]).T if path[-1] == "kernel" else leaf.reshape(shape))
    if first and paths == (_POSITIONS,):
        parts.insert(0, np.zeros((first, config.hidden_size), np.float32))
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def from_torch(
    config: ModelConfig, table: Table, tensors: Iterable[tuple[str, np.ndarray]], first: int = 0
) -> dict[str, Any]:
    """Our parameters f32, those of the tensors that are given by name: the inverse of `to_torch`."""
    expected, found = shapes(config), {}
    for name, tensor in tensors:
        paths = table[name]
        tensor = np.asarray(tensor, np.float32)[first if paths == (_POSITIONS,) else 0 :]
        rows = [_shape(config, path, expected[path].shape)[0] for path in paths]
        for path, part in zip(paths, np.split(tensor, np.cumsum(rows)[:-1]), strict=True):
            found[path] = (part.T if path[-1] == "kernel" else part).reshape(expected[path].shape)
    return unflatten_dict(found)


def shapes(config: ModelConfig) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shape of each leaf of encoder, MLM head and pooler by its path.

    Two layers are traced, whatever their number: those behind the first are alike.
    """
    traced = dataclasses.replace(config, num_layers=min(config.num_layers, 2))

    def init() -> Any:
        row_BN, key = jnp.zeros((1, 1), jnp.int32), jax.random.key(0)
        params = MaskedLm(traced, 0, 0).init(key, row_BN, row_BN == 0)["params"]
        pooler = FAMILIES[config.family].summary(config).init(key, jnp.zeros((1, 1, config.hidden_size)))
        return params | {"pooler": pooler["params"]}

    found = flatten_dict(jax.eval_shape(init))
    last = {path: shape for path, shape in found.items() if path[:2] == ("encoder", "layer_1")}
    for i in range(2, config.num_layers):
        found |= {("encoder", f"layer_{i}", *path[2:]): shape for path, shape in last.items()}
    return found


def shape_in_torch(
    config: ModelConfig, paths: tuple[Path, ...], leaves: Mapping[Path, Any], first: int = 0
) -> tuple[int, ...]:
    """Shape of `to_torch`'s tensor; the leaves may be shapes alone."""
    parts = [_shape(config, path, leaves[path].shape) for path in paths]
    return sum(part[0] for part in parts) + (first if paths == (_POSITIONS,) else 0), *parts[0][1:]


def _shape(config: ModelConfig, path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] == "kernel":
        inputs = config.intermediate_size if path[-3:-1] == ("mlp", "output") else config.hidden_size
        return int(np.prod(shape)) // inputs, inputs
    return (int(np.prod(shape)),) if path[-1] == "bias" else tuple(shape)


def names(config: ModelConfig) -> Table:
    """The table of a model for masked language modelling."""
    return LAYOUTS[config.family].names(config)


def task_names(config: ModelConfig, head: str) -> Table:
    """The table of a model with a task's head: `SEQUENCE`, `CHOICE`, `ANSWER` or `TOKEN`."""
    layout = LAYOUTS[config.family]
    encoder = {name: paths for name, paths in layout.names(config).items() if not name.startswith(layout.head)}
    return encoder | layout.tasks[head]


def _linear(name: str, *path: str) -> Table:
    return {f"{name}.weight": ((*path, "kernel"),), f"{name}.bias": ((*path, "bias"),)}


def _norm(name: str, *path: str) -> Table:
    return {f"{name}.weight": ((*path, "scale"),), f"{name}.bias": ((*path, "bias"),)}


def _bert_names(inner: str, dense: str, norm: str, bias: str, config: ModelConfig) -> Table:
    table = {
        f"{inner}embeddings.word_embeddings.weight": ((*_EMBEDDINGS, "word"),),
        f"{inner}embeddings.position_embeddings.weight": (_POSITIONS,),
        f"{inner}embeddings.token_type_embeddings.weight": ((*_EMBEDDINGS, "segment"),),
        **_norm(f"{inner}embeddings.LayerNorm", *_EMBEDDINGS, "norm"),
        **_linear(dense, "mlm_head", "dense"),
        **_norm(norm, "mlm_head", "norm"),
        bias: (("mlm_head", "bias"),),
    }
    for i in range(config.num_layers):
        layer, name = ("encoder", f"layer_{i}"), f"{inner}encoder.layer.{i}"
        for part in ("query", "key", "value"):
            table |= _linear(f"{name}.attention.self.{part}", *layer, "attention", part)
        table |= _linear(f"{name}.attention.output.dense", *layer, "attention", "output")
        table |= _norm(f"{name}.attention.output.LayerNorm", *layer, "attention_norm")
        table |= _linear(f"{name}.intermediate.dense", *layer, "mlp", "intermediate")
        table |= _linear(f"{name}.output.dense", *layer, "mlp", "output")
        table |= _norm(f"{name}.output.LayerNorm", *layer, "output_norm")
    return table


_BERT_PARTS = ("embeddings.", "encoder.", "pooler.")
_BERT_POOLER = _linear("bert.pooler.dense", "pooler")
_BERT = Layout(
    title="BERT",
    classes="Bert",
    inner="bert.",
    parts=_BERT_PARTS,
    word="bert.embeddings.word_embeddings.weight",
    output_bias="cls.predictions.bias",
    head=("cls.predictions.",),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    left_out=("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids", "classifier.", "qa_outputs."),
    names=functools.partial(
        _bert_names, "bert.", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
    ),
    tasks={
        SEQUENCE: _BERT_POOLER | _linear("classifier", "classifier"),
        CHOICE: _BERT_POOLER | _linear("classifier", "classifier"),
        ANSWER: _linear("qa_outputs", "classifier"),
        TOKEN: _linear("classifier", "classifier"),
    },
    pooler=lambda names: _BERT_POOLER,
)  # fmt: skip

# A classifier of texts has a dense layer of its own in the place of the pooler.
_ROBERTA_DENSE, _ROBERTA_POOLER = _linear("classifier.dense", "pooler"), _linear("roberta.pooler.dense", "pooler")
_ROBERTA = Layout(
    title="RoBERTa",
    classes="Roberta",
    inner="roberta.",
    parts=_BERT_PARTS,
    word="roberta.embeddings.word_embeddings.weight",
    output_bias="lm_head.bias",
    head=("lm_head.",),
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    left_out=("roberta.pooler.", "roberta.embeddings.position_ids", "classifier.", "qa_outputs."),
    names=functools.partial(_bert_names, "roberta.", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    tasks={
        SEQUENCE: _ROBERTA_DENSE | _linear("classifier.out_proj", "classifier"),
        CHOICE: _ROBERTA_POOLER | _linear("classifier", "classifier"),
        ANSWER: _linear("qa_outputs", "classifier"),
        TOKEN: _linear("classifier", "classifier"),
    },
    pooler=lambda names: _ROBERTA_DENSE if set(names) & _ROBERTA_DENSE.keys() else _ROBERTA_POOLER,
    after_padding=True,
)


def _modernbert_names(config: ModelConfig) -> Table:
    table = {
        "model.embeddings.tok_embeddings.weight": ((*_EMBEDDINGS, "word"),),
        "model.embeddings.norm.weight": ((*_EMBEDDINGS, "norm", "scale"),),
        "model.final_norm.weight": (("encoder", "final_norm", "norm", "scale"),),
        "head.dense.weight": (("mlm_head", "dense", "kernel"),),
        "head.norm.weight": (("mlm_head", "norm", "scale"),),
        "decoder.bias": (("mlm_head", "bias"),),
    }
    for i in range(config.num_layers):
        layer, name = ("encoder", f"layer_{i}"), f"model.layers.{i}"
        attention, mlp = (*layer, "attention"), (*layer, "mlp")
        if i:
            table[f"{name}.attn_norm.weight"] = ((*layer, "attention_norm", "scale"),)
        table[f"{name}.attn.Wqkv.weight"] = tuple((*attention, part, "kernel") for part in ("query", "key", "value"))
        table[f"{name}.attn.Wo.weight"] = ((*attention, "output", "kernel"),)
        table[f"{name}.mlp_norm.weight"] = ((*layer, "mlp_norm", "scale"),)
        table[f"{name}.mlp.Wi.weight"] = ((*mlp, "intermediate", "kernel"), (*mlp, "gate", "kernel"))
        table[f"{name}.mlp.Wo.weight"] = ((*mlp, "output", "kernel"),)
    return table


_MODERNBERT_POOLER = {
    "head.dense.weight": (("pooler", "dense", "kernel"),),
    "head.norm.weight": (("pooler", "norm", "scale"),),
}
_MODERNBERT = Layout(
    title="ModernBERT",
    classes="ModernBert",
    inner="model.",
    parts=("embeddings.", "layers.", "final_norm."),
    word="model.embeddings.tok_embeddings.weight",
    output_bias="decoder.bias",
    head=("head.", "decoder."),
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    left_out=("classifier.",),
    names=_modernbert_names,
    tasks=dict.fromkeys((SEQUENCE, CHOICE, ANSWER, TOKEN), _MODERNBERT_POOLER | _linear("classifier", "classifier")),
    # The MLM head's first half by the same names: without a decoder it is a fine-tuned model's.
    pooler=lambda names: {} if any(name.startswith("decoder.") for name in names) else _MODERNBERT_POOLER,
)

LAYOUTS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": dataclasses.replace(_ROBERTA, title="XLM-R", classes="XLMRoberta"),
    "camembert": dataclasses.replace(_ROBERTA, title="CamemBERT", classes="Camembert"),
    "modernbert": _MODERNBERT,
}
