"""The configuration: frozen dataclasses, their checks, and ConfigDict -> dataclass.

There are no defaults here: `configs/base.py` has them, and a missing or unknown field fails by name. A change of fields
has a line in `stored.py`. Letters of docs/method.md: N sequence length, K kept, P predicted, L layers.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from sctd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder (docs/method.md 1)."""

    vocab_size: int  # that of the tokenizer
    num_layers: int  # L
    hidden_size: int  # width of the tokens' vectors
    num_heads: int  # of attention; divides hidden_size
    intermediate_size: int  # width within a layer's feed-forward part, usually 4 x hidden_size
    max_positions: int  # the longest row that the model can read
    type_vocab_size: int  # segments; 2 for pairs of texts
    hidden_dropout: float  # after the embeddings, attention and the feed-forward part
    attention_dropout: float  # of the attention's weights
    activation: str  # 'gelu' (erf, BERT and transformers) or 'gelu_tanh' (Model Garden)
    layer_norm_eps: float  # added to the variance
    initializer_range: float  # standard deviation of the first weights
    dtype: str  # compute type; parameters are float32
    attention: str  # 'plain', 'splash' (TPUs) or 'cudnn' (GPUs) for attention_dropout 0, 'auto': what is possible
    remat: str  # recomputed in the backward pass: 'none', 'attention', 'block' (layers), 'auto': attention on TPUs


@dataclasses.dataclass(frozen=True)
class DroppingConfig:
    """Tokens that skip layers, and ScTD's consistency steps (docs/method.md 3 to 5)."""

    method: str  # 'full', 'drop', 'sctd', 'random' = 'drop' by the random selector, or 'random_ltd'
    selector: str  # for 'drop' and 'sctd': a key of model.token_dropping.SELECTORS
    drop_rate: float  # share of a row's N tokens that the dropping layers do not see
    keep_schedule: str  # 'STEP:K,...': keep K tokens from that step on, whatever drop_rate; '': by drop_rate
    random_share: float  # of the kept tokens, with the selector 'importance+random'
    first_layer: int  # first layer with K queries, counted from 0; -1: L/2 - 1 (random_ltd: 1)
    last_layer: int  # last layer without the dropped tokens; -1: L - 2
    importance_init: float  # an id's importance before its first loss
    importance_beta: float  # share of the old importance that a new loss leaves
    sc_interval: int  # Fi: every how many steps a consistency step
    sc_weight: float  # lambda, on the mean KL beside the mean MLM loss
    sc_stop_gradient: bool  # detach the full pass in the KL
    sc_pool: str  # 'cls' or 'mean'
    sc_share_prefix: bool  # compute the layers before the drop once for both passes
    full_steps_first: int  # steps without dropping at the beginning
    full_steps_last: int  # steps without dropping at the end


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Dynamic masking on the device (docs/method.md 2)."""

    rate: float  # share of N that is predicted
    mask_share: float  # of the predicted positions, shown as [MASK]
    random_share: float  # of the predicted positions, shown as a random id
    whole_word: bool  # all pieces of a word or none


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text and how it becomes rows of N tokens."""

    input: str  # sources separated by commas; '' is the embedded trial corpus
    text_field: str  # of JSONL, Parquet and TFDS sources
    documents: str  # in .txt: 'file', 'paragraph' (blank line between) or 'line'
    rows: str  # a folder written by data.prepare; '' prepares `input` under prepared_dir
    prepared_dir: str  # where rows that are prepared from `input` live
    seq_len: int  # N, tokens of a row
    tokenizer: str  # an existing SentencePiece model, tokenizer.json or vocab.txt; '' trains one
    tokenizer_type: str  # of the one that is trained: 'unigram' or 'bpe'
    heldout_share: float  # of the documents
    seed: int  # of what is held out and of the tokenizer's sample
    keep_zwnj: bool  # in a tokenizer that is trained: zero-width non-joiners are letters, not spaces
    allow_unknown: bool  # also a text of which the tokenizer does not know a fifth


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or LAMB and the learning-rate schedule."""

    name: str  # 'adamw' or 'lamb'
    learning_rate: float  # its peak, after the warm-up
    warmup_steps: int  # from 0 to the peak
    schedule: str  # after the warm-up: 'linear' or 'cosine', to 0 at train.steps
    beta1: float  # share of the old first moment that a step leaves
    beta2: float  # of the second moment
    eps: float  # added to the root of the second moment
    eps_place: str  # 'after_correction' of the bias of sqrt(v) (optax, torch) or 'before_correction' (Keras, fairseq)
    weight_decay: float  # share of a weight, times the learning rate, that a step takes off
    decay: str  # 'kernels' (not biases and LayerNorm) or 'all'
    clip_norm: float  # global norm; 0: no clipping
    mu_dtype: str  # of the first moments; the second ones are float32: bfloat16 would round their changes away


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    seed: int  # of the weights, the order of rows, masking and dropout
    init: str  # a workdir whose newest parameters training starts from; '': random weights
    steps: int  # updates in all, those before a resume included
    batch_size: int  # rows in the global batch
    accumulation: int  # microbatches per step
    consistency_accumulation: int  # those of a consistency step, which needs more memory; 0: as the others
    eval_every: int  # steps
    eval_rows: int  # at most; spread evenly over the held-out rows
    checkpoint_every: int  # steps; a multiple of eval_every
    keep_checkpoints: int  # the last k; the best by held-out loss is kept besides
    log_every: int  # steps
    max_bad_steps: int  # non-finite steps in a row before the run stops


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along the mesh axes."""

    data: int  # batch; -1: all devices that the others leave
    fsdp: int  # batch, and the layers' parameters and moments by width
    tensor: int  # heads, FFN width and vocabulary


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig
    dropping: DroppingConfig
    masking: MaskingConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig

    @property
    def drop_layers(self) -> tuple[int, int]:
        """(first, last) dropping layer; (0, 0) where nothing is dropped."""
        if self.dropping.method == "full":
            return 0, 0
        first, last = self.dropping.first_layer, self.dropping.last_layer
        layers = self.model.num_layers
        default = 1 if self.dropping.method == "random_ltd" else layers // 2 - 1
        return default if first < 0 else first, layers - 2 if last < 0 else last

    @property
    def num_kept(self) -> int:
        """K, tokens of a row that the dropping layers see."""
        return round(self.data.seq_len * (1 - self.dropping.drop_rate))

    @property
    def keep_stages(self) -> tuple[tuple[int, int], ...]:
        """(first step, K) of each stage of `keep_schedule`, ascending."""
        if not self.dropping.keep_schedule:
            return ((0, self.num_kept),)
        pairs = (part.split(":") for part in self.dropping.keep_schedule.split(","))
        return tuple((int(step), int(kept)) for step, kept in pairs)

    def at(self, step: int) -> "Config":
        """The config of one step: its stage's K, and no schedule."""
        if not self.dropping.keep_schedule:
            return self
        kept = [kept for first, kept in self.keep_stages if first <= step][-1]
        dropping = dataclasses.replace(self.dropping, keep_schedule="", drop_rate=1 - kept / self.data.seq_len)
        return dataclasses.replace(self, dropping=dropping)

    def after(self, steps: int) -> "Config":
        """The config of the last of so many steps."""
        return self.at(max(steps - 1, 0))

    def microbatches(self, variant: str) -> int:
        """How many microbatches a step of this variant has."""
        own = self.train.consistency_accumulation if variant == "consistency" else 0
        return own or self.train.accumulation

    @property
    def num_predicted(self) -> int:
        """P, prediction slots of a row."""
        return round(self.data.seq_len * self.masking.rate)

    @property
    def selector(self) -> str:
        """Key of `SELECTORS` that this method uses."""
        return "random" if self.dropping.method in ("random", "random_ltd") else self.dropping.selector

    @property
    def num_top(self) -> int:
        """Kept tokens that 'importance+random' chooses by importance; the others are random."""
        return self.num_kept - round(self.num_kept * self.dropping.random_share)


_CHOICES = {
    "model.activation": ("gelu", "gelu_tanh"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "plain", "splash", "cudnn"),
    "model.remat": ("auto", "none", "attention", "block"),
    "dropping.method": ("full", "drop", "sctd", "random", "random_ltd"),
    "dropping.selector": ("importance", "random", "importance+random", "norm"),
    "dropping.sc_pool": ("cls", "mean"),
    "data.documents": ("file", "paragraph", "line"),
    "data.tokenizer_type": ("unigram", "bpe"),
    "optimizer.name": ("adamw", "lamb"),
    "optimizer.schedule": ("linear", "cosine"),
    "optimizer.eps_place": ("after_correction", "before_correction"),
    "optimizer.mu_dtype": ("float32", "bfloat16"),
    "optimizer.decay": ("kernels", "all"),
}
_MAX_STAGES = 6  # of keep_schedule: each is compiled
# Half-open shares [0, 1) where 1 would leave nothing, and plain shares [0, 1].
_BELOW_ONE = ("model.hidden_dropout", "model.attention_dropout", "dropping.drop_rate", "data.heldout_share",
              "optimizer.beta1", "optimizer.beta2")  # fmt: skip
_SHARES = ("masking.mask_share", "masking.random_share", "dropping.importance_beta", "dropping.random_share")
_AT_LEAST_ONE = (
    "model.vocab_size", "model.num_layers", "model.hidden_size", "model.num_heads", "model.intermediate_size",
    "model.type_vocab_size", "dropping.sc_interval", "train.batch_size", "train.accumulation", "train.eval_every",
    "train.eval_rows", "train.checkpoint_every", "train.keep_checkpoints", "train.log_every", "train.max_bad_steps",
    "train.steps", "mesh.fsdp", "mesh.tensor",
)  # fmt: skip
_NOT_NEGATIVE = (
    "dropping.sc_weight", "dropping.full_steps_first", "dropping.full_steps_last", "optimizer.warmup_steps",
    "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm", "train.seed", "data.seed",
    "train.consistency_accumulation",
)  # fmt: skip
_POSITIVE = ("model.layer_norm_eps", "model.initializer_range", "optimizer.eps")


def from_dict(sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Nested mapping -> checked Config.

    Raises:
      UserError: a section or field is unknown, missing, of the wrong type or impossible.
    """
    config = fill("config", Config, sections)
    _check(config)
    return config


def fill(where: str, type_: type, values: Mapping[str, Any]) -> Any:
    """A mapping -> a dataclass of plain values and dataclasses, by names and types alone.

    Args:
      where: what the mapping is called in messages.
      type_: the dataclass.
      values: one for each of its fields.

    Raises:
      UserError: a field is unknown, missing or of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a section with fields, found {values!r}")
    fields = {field.name: field.type for field in dataclasses.fields(type_)}
    _same_names(where, values, fields)
    return type_(**{name: _typed(f"{where}.{name}", expected, values[name]) for name, expected in fields.items()})


def _typed(where: str, expected: type, value: Any) -> Any:
    if dataclasses.is_dataclass(expected):
        return fill(where, expected, value)
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise UserError(f"{where} must be of type {expected.__name__}, found {value!r}")
    return value


def _same_names(where: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in found:
        if name not in expected:
            raise UserError(f"{where}.{name} is unknown; the fields of {where} are {', '.join(expected)}")
    for name in expected:
        if name not in found:
            raise UserError(f"{where}.{name} is missing (a recipe has a value for every field)")


def require(condition: bool, field: str, message: str) -> None:
    """Raise UserError about config.FIELD unless the condition holds."""
    if not condition:
        raise UserError(f"config.{field} {message}")


def _check(config: Config) -> None:
    def value(field: str) -> Any:
        section, name = field.split(".")
        return getattr(getattr(config, section), name)

    for field, choices in _CHOICES.items():
        require(value(field) in choices, field, f"must be one of {', '.join(choices)}; found {value(field)!r}")
    for field in _BELOW_ONE:
        require(0 <= value(field) < 1, field, f"must be at least 0 and below 1, found {value(field)}")
    for field in _SHARES:
        require(0 <= value(field) <= 1, field, f"must be between 0 and 1, found {value(field)}")
    for field in _AT_LEAST_ONE:
        require(value(field) >= 1, field, f"must be at least 1, found {value(field)}")
    for field in _NOT_NEGATIVE:
        require(value(field) >= 0, field, f"must not be negative, found {value(field)}")
    for field in _POSITIVE:
        require(value(field) > 0, field, f"must be positive, found {value(field)}")
    _check_model(config)
    _check_masking(config)
    _check_dropping(config)
    _check_train(config)


def _check_model(config: Config) -> None:
    length, most = config.data.seq_len, config.model.max_positions
    width, heads = config.model.hidden_size, config.model.num_heads
    require(width % heads == 0, "model.num_heads", f"must divide model.hidden_size ({width}), found {heads}")
    require(length >= 8, "data.seq_len", f"must be at least 8, found {length}")
    require(length <= most, "data.seq_len", f"({length}) must not exceed model.max_positions ({most})")


def _check_masking(config: Config) -> None:
    masking = config.masking
    require(0 < masking.rate < 1, "masking.rate", f"must be between 0 and 1, found {masking.rate}")
    require(
        masking.mask_share + masking.random_share <= 1,
        "masking.mask_share",
        f"({masking.mask_share}) and masking.random_share ({masking.random_share}) must not exceed 1 together",
    )
    require(
        1 <= config.num_predicted <= config.data.seq_len - 2,
        "masking.rate",
        f"{masking.rate} of data.seq_len ({config.data.seq_len}) is {config.num_predicted} predictions a row; "
        f"1 to {config.data.seq_len - 2} are possible",
    )


def _check_dropping(config: Config) -> None:
    dropping, layers = config.dropping, config.model.num_layers
    if dropping.method == "full":
        return
    require(layers >= 4, "model.num_layers", f"must be at least 4 to drop tokens, found {layers}")
    first, last = config.drop_layers
    require(
        0 <= first <= last <= layers - 2,
        "dropping.first_layer",
        f"and last_layer must be in order and before the last layer (0 <= first <= last <= {layers - 2}), "
        f"found {first} and {last}",
    )
    _check_schedule(config)
    for field, kept in [("drop_rate", config.num_kept), *(("keep_schedule", kept) for _, kept in config.keep_stages)]:
        require(
            config.num_predicted + 2 <= kept <= config.data.seq_len,
            f"dropping.{field}",
            f"{getattr(dropping, field)} keeps K = {kept} of N = {config.data.seq_len} tokens, but [CLS], [SEP] "
            f"and P = {config.num_predicted} masked positions need {config.num_predicted + 2}: change it or lower "
            "masking.rate",
        )
    require(
        config.selector != "importance+random" or config.num_predicted + 2 <= config.num_top,
        "dropping.random_share",
        f"{dropping.random_share} leaves {config.num_top} tokens to importance, but [CLS], [SEP] and "
        f"P = {config.num_predicted} masked positions need {config.num_predicted + 2}: lower it",
    )


def _check_schedule(config: Config) -> None:
    schedule = config.dropping.keep_schedule
    if not schedule:
        return
    pattern = rf"0:\d+(,\d+:\d+){{0,{_MAX_STAGES - 1}}}"
    starts = [step for step, _ in config.keep_stages] if re.fullmatch(pattern, schedule) else []
    require(
        bool(starts) and starts == sorted(set(starts)),
        "dropping.keep_schedule",
        f"must be STEP:K,STEP:K,... with at most {_MAX_STAGES} ascending steps from 0 on, found {schedule!r}",
    )


def _check_train(config: Config) -> None:
    train, dropping = config.train, config.dropping
    for field, variant in (("accumulation", "drop"), ("consistency_accumulation", "consistency")):
        count = config.microbatches(variant)
        require(
            train.batch_size % count == 0,
            "train.batch_size",
            f"({train.batch_size}) must be divisible by train.{field} ({count})",
        )
    require(
        train.checkpoint_every % train.eval_every == 0,
        "train.checkpoint_every",
        f"({train.checkpoint_every}) must be a multiple of train.eval_every ({train.eval_every}), so that each "
        "checkpoint has a held-out loss",
    )
    require(
        dropping.full_steps_first + dropping.full_steps_last <= train.steps,
        "dropping.full_steps_first",
        f"({dropping.full_steps_first}) and full_steps_last ({dropping.full_steps_last}) must not exceed "
        f"train.steps ({train.steps}) together",
    )
    data = config.mesh.data
    require(data == -1 or data >= 1, "mesh.data", f"must be -1 (all devices) or at least 1, found {data}")
