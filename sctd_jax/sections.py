"""The sections of the configuration: frozen dataclasses with one line for each field.

A line has the field's type or choices, its default, its meaning as `--help` prints it, its bounds and whether a rerun
may change it. A new field has a line in `stored.py` too. Letters of docs/method.md: N sequence length, K kept tokens,
P predicted tokens, L layers.
"""

import dataclasses
import math
from typing import Literal

from sctd_jax.fields import BELOW_ONE, LARGEST_SEED, NOT_NEGATIVE, ONE_OR_MORE, POSITIVE, SHARE, Bounds, at_least, field

SHORTEST_ROW = 8  # tokens
LONGEST_ROW = 1 << 17  # tokens, so that what preparation holds of some rows stays below a GB
LARGEST_VOCABULARY = 1 << 24  # pieces; trainers of tokenizers count in 32 bits, and loop for ever near their end
_LAYER = Bounds(lambda layer: layer >= -1, "must be a layer from 0 on, or -1", stored=False)
_IMPORTANCE = dataclasses.replace(NOT_NEGATIVE, stored=False)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder (docs/method.md 1)."""

    family: Literal["bert", "roberta", "xlm-roberta", "camembert", "modernbert"] = field(
        "bert", "kind of network, a key of model.families.FAMILIES and the model_type of transformers"
    )
    vocab_size: int = field(30522, "pieces of the tokenizer", ONE_OR_MORE, most=LARGEST_VOCABULARY)
    num_layers: int = field(12, "L, layers", ONE_OR_MORE, most=1000)
    hidden_size: int = field(768, "D, width of a token's state", ONE_OR_MORE)
    num_heads: int = field(12, "attention heads; divides hidden_size", ONE_OR_MORE)
    intermediate_size: int = field(3072, "width inside a feed-forward part, usually 4 x hidden_size", ONE_OR_MORE)
    max_positions: int = field(512, "length of the longest row that the model can read")
    type_vocab_size: int = field(2, "kinds of segments; 2 for pairs of texts", ONE_OR_MORE)
    hidden_dropout: float = field(
        0.1, "dropout after embeddings, attention, feed-forward (modernbert: method.md 12)", BELOW_ONE
    )
    attention_dropout: float = field(0.1, "dropout of attention's probabilities", BELOW_ONE)
    activation: Literal["gelu", "gelu_tanh"] = field("gelu", "'gelu' (erf, BERT) or 'gelu_tanh' (Model Garden)")
    layer_norm_eps: float = field(1e-12, "number added to the variance", POSITIVE, most=1)
    initializer_range: float = field(0.02, "standard deviation of the first weights", POSITIVE, most=1)
    global_every: int = field(
        1, "layers 0, n, 2n ... attend to all tokens, the others near by (modernbert)", ONE_OR_MORE
    )
    local_attention: int = field(128, "tokens around each that a local layer sees, half on either side", at_least(2))
    rope_theta: float = field(160_000.0, "base of the rotary positions in layers that attend to all tokens", POSITIVE)
    local_rope_theta: float = field(10_000.0, "base of the rotary positions in local layers", POSITIVE)
    dtype: Literal["float32", "bfloat16"] = field("bfloat16", "type to compute in; parameters are float32")
    attention: Literal["auto", "plain", "splash", "cudnn"] = field(
        "auto",
        "'splash' (TPUs): no attention_dropout; 'cudnn' (GPUs): its own; 'auto': what is possible",
        rerun=True,
    )
    remat: Literal["auto", "none", "attention", "block"] = field(
        "auto", "what the backward pass recomputes; 'block': whole layers; 'auto': 'attention' on TPUs", rerun=True
    )


_DROPS = ("method", "drop", "sctd", "full_every", "random", "random_ltd")
_STARTS = (*_DROPS, "late_mask")
CHOOSERS = ("drop", "sctd", "full_every")


@dataclasses.dataclass(frozen=True)
class DroppingConfig:
    """Tokens that skip layers, and ScTD's consistency steps (docs/method.md 3 to 5)."""

    method: Literal["full", "drop", "sctd", "random", "random_ltd", "full_every", "late_mask"] = field(
        "sctd", "way to train; 'random' is 'drop' with the selector 'random'"
    )
    selector: str = field(
        "importance",
        "key of model.token_dropping.SELECTORS, for 'drop', 'sctd' and 'full_every'",
        only=("method", *CHOOSERS),
    )
    drop_rate: float = field(
        0.5, "share of a row's N tokens that the dropping layers do not see", BELOW_ONE, only=_DROPS
    )
    keep_schedule: str = field("", "'STEP:K,...': K tokens to keep from each step on; '': by drop_rate", only=_DROPS)
    keep_by_layer: str = field(
        "",
        "'LAYER:K,...': fewer tokens from each of these dropping layers on; '': as many in all",
        only=("method", *CHOOSERS),
    )
    random_share: float = field(
        0.5,
        "random part of the kept tokens, with the selector 'importance+random'",
        SHARE,
        only=("selector", "importance+random"),
    )
    first_layer: int = field(
        -1,
        "first layer with K queries, counted from 0; -1: L/2 - 1 (random_ltd: 1); of late_mask the first that sees "
        "masked tokens; -1: L - 2",
        _LAYER,
        only=_STARTS,
    )
    last_layer: int = field(-1, "last layer without the dropped tokens; -1: L - 2", _LAYER, only=_DROPS)
    importance_init: float = field(10.0, "importance of an id before its first loss", _IMPORTANCE)
    importance_beta: float = field(0.95, "share of the old importance that a new loss leaves", SHARE)
    sc_interval: int = field(
        10,
        "Fi: every how many steps a consistency step, or with 'full_every' a full step",
        ONE_OR_MORE,
        only=("method", "sctd", "full_every"),
    )
    sc_weight: float = field(
        0.05, "lambda: weight of the mean KL beside the mean MLM loss", NOT_NEGATIVE, only=("method", "sctd")
    )
    sc_full_mlm: bool = field(
        True,
        "half of a consistency step's MLM loss is the full pass's; false: all of it the drop pass's",
        only=("method", "sctd"),
    )
    sc_stop_gradient: bool = field(False, "detach the full pass in the KL", only=("method", "sctd"))
    sc_pool: Literal["cls", "mean"] = field(
        "cls", "states that the KL compares: [CLS] or the mean of all tokens", only=("method", "sctd")
    )
    sc_share_prefix: bool = field(
        True, "compute the layers before the drop once for both passes", only=("method", "sctd")
    )
    full_steps_first: int = field(0, "steps without dropping at the beginning", NOT_NEGATIVE, only=_STARTS)
    full_steps_last: int = field(0, "steps without dropping at the end", NOT_NEGATIVE, only=_STARTS)


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Dynamic masking on the device (docs/method.md 2)."""

    rate: float = field(0.15, "share of N that is predicted", Bounds(lambda rate: 0 < rate < 1, SHARE.says))
    mask_share: float = field(0.8, "share of the predicted positions that is shown as [MASK]", SHARE)
    random_share: float = field(0.1, "share of the predicted positions that is shown as a random id", SHARE)
    whole_word: bool = field(False, "predict all pieces of a word or none")
    rate_schedule: str = field("", "'STEP:RATE,...': rates from each step on; evaluations have rate. '': always rate")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text and how it becomes rows of N tokens."""

    input: str = field(
        "", "sources separated by commas, '\\,' within a name; '': the embedded trial corpus", rerun=True
    )
    text_field: str = field("text", "field or column with the text; 'article.body' for one within another", rerun=True)
    encoding: str = field(
        "", "encoding of text files without a byte order mark, such as latin-1; '': UTF-8", rerun=True
    )
    documents: Literal["file", "paragraph", "line"] = field(
        "file", "what a document is in .txt; blank lines end a paragraph", rerun=True
    )
    rows: str = field("", "folder that data.prepare wrote; '' prepares `input` under prepared_dir", rerun=True)
    prepared_dir: str = field("data/prepared", "folder of the rows that are prepared from `input`", rerun=True)
    seq_len: int = field(512, "N, tokens of a row", at_least(SHORTEST_ROW), most=LONGEST_ROW)
    seq_len_schedule: str = field(
        "", "'STEP:N,...': tokens of a row from each step on, seq_len at most; evaluations have seq_len"
    )
    tokenizer: str = field("", "tokenizer to use: a file, or the folder of a model or run; '' trains one", rerun=True)
    # The 12 MB of the trial corpus support no unigram vocabulary of 30,522 pieces.
    tokenizer_type: Literal["unigram", "bpe", "byte_bpe"] = field("bpe", "kind of the tokenizer that is trained")
    heldout_share: float = field(0.01, "share of the documents that evaluations read", BELOW_ONE)
    seed: int = field(0, "seed of what is held out and of the tokenizer's sample", NOT_NEGATIVE, most=LARGEST_SEED)
    keep_zwnj: bool = field(True, "a tokenizer that is trained takes zero-width non-joiners for letters, not spaces")
    normal_form: Literal["", "NFC", "NFD", "NFKC", "NFKD"] = field("", "Unicode's form that the text is brought into")
    longest_line: int = field(0, "lines of more characters are left out; 0: none", NOT_NEGATIVE)
    shortest_document: int = field(0, "documents of fewer characters are left out", NOT_NEGATIVE)
    drop_copies: bool = field(False, "of documents that differ in white space alone, the first is read")
    allow_unknown: bool = field(False, "take also a text of which the tokenizer does not know a fifth", rerun=True)
    shuffle: Literal["rows", "shards"] = field(
        "rows", "order of the rows; 'shards' needs few shards at a time, which alone are copied from a bucket"
    )
    cache_gb: float = field(
        50.0, "GB of this host's disk for shards of buckets", POSITIVE, rerun=True, only=("shuffle", "shards")
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The rule of the updates and the learning-rate schedule."""

    name: Literal["adamw", "lamb", "muon", "stable_adamw"] = field(
        "adamw", "rule of the updates; 'muon': of the layers' and the head's matrices, the rest by AdamW"
    )
    learning_rate: float = field(1e-4, "peak of the rate, after the warm-up", NOT_NEGATIVE, rerun=True)
    warmup_steps: int = field(10_000, "steps from 0 to the peak", NOT_NEGATIVE, rerun=True)
    schedule: Literal["linear", "cosine", "wsd"] = field(
        "linear", "way from the peak to 0 at train.steps; 'wsd': at the peak until decay_steps before it"
    )
    schedule_by: Literal["steps", "layer_tokens"] = field(
        "steps", "what moves the schedule on; 'layer_tokens': the share of those that all layers of the run see"
    )
    decay_steps: int = field(
        0, "steps from the peak to 0 with 'wsd'; 0: at the peak to the end", NOT_NEGATIVE, rerun=True
    )
    decay_shape: Literal["1-sqrt", "linear"] = field(
        "1-sqrt", "curve of these steps", rerun=True, only=("schedule", "wsd")
    )
    muon_beta: float = field(
        0.95, "share of the old momentum that a step of 'muon' leaves", BELOW_ONE, only=("name", "muon")
    )
    beta1: float = field(0.9, "share of the old first moment that a step leaves", BELOW_ONE)
    beta2: float = field(0.999, "share of the old second moment that a step leaves", BELOW_ONE)
    eps: float = field(1e-6, "number added to the root of the second moment", POSITIVE)
    eps_place: Literal["after_correction", "before_correction"] = field(
        "after_correction", "eps stands after the correction of v's bias (optax, torch) or before it (Keras, fairseq)"
    )
    weight_decay: float = field(0.01, "share of a weight, times the learning rate, that a step takes off", NOT_NEGATIVE)
    decay: Literal["kernels", "all"] = field("kernels", "what decays; 'kernels': all but biases and LayerNorm")
    clip_norm: float = field(1.0, "largest global norm of a gradient; 0: no clipping", NOT_NEGATIVE, most=math.inf)
    # The second moments stay float32: bfloat16 would round their changes away.
    mu_dtype: Literal["float32", "bfloat16"] = field("float32", "type of the first moments")


TRACKERS = ("wandb", "mlflow", "trackio")  # names of libraries, and of the extras in pyproject.toml that install them


def tracker_names(track: str) -> list[str]:
    """Names in a field `track`, each once."""
    return list(dict.fromkeys(name.strip() for name in track.split(",") if name.strip()))


TRACK = "trackers to tell what metrics.jsonl and TensorBoard files have; '': none"
TRACKED = Bounds(
    lambda track: set(tracker_names(track)) <= set(TRACKERS),
    f"must be names of {', '.join(TRACKERS)}, separated by commas",
    found="; found {!r}",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    seed: int = field(0, "seed of the weights, the order of rows, masking and dropout", NOT_NEGATIVE, most=LARGEST_SEED)
    init: str = field("", "workdir that training starts from; '': random weights", rerun=True)
    init_step: int = field(-1, "step of its checkpoint to start from; -1: the newest", at_least(-1), rerun=True)
    init_takes: Literal["params", "state"] = field(
        "params", "'state': optimizer, importance table and step too, so that its run goes on here", rerun=True
    )
    steps: int = field(250_000, "updates in all, those before a resume included", ONE_OR_MORE, rerun=True)
    batch_size: int = field(256, "rows in the global batch", ONE_OR_MORE)
    batch_schedule: str = field("", "'STEP:ROWS,...': rows in the global batch from each step on, batch_size at most")
    accumulation: int = field(1, "microbatches of a step", ONE_OR_MORE, rerun=True)
    consistency_accumulation: int = field(
        0, "microbatches of a consistency step; 0: accumulation", NOT_NEGATIVE, rerun=True
    )
    eval_every: int = field(2_500, "steps between evaluations", ONE_OR_MORE, rerun=True)
    eval_rows: int = field(256, "held-out rows of an evaluation at most, spread evenly", ONE_OR_MORE, rerun=True)
    checkpoint_every: int = field(2_500, "steps between checkpoints; a multiple of eval_every", ONE_OR_MORE, rerun=True)
    keep_checkpoints: int = field(2, "newest checkpoints to keep, beside the best", ONE_OR_MORE, rerun=True)
    log_every: int = field(50, "steps between lines of metrics", ONE_OR_MORE, rerun=True)
    track: str = field("", TRACK, TRACKED, rerun=True)
    max_bad_steps: int = field(20, "non-finite steps in a row that end the run", ONE_OR_MORE, rerun=True)

    def microbatches(self, variant: str) -> int:
        """Microbatches of a step of a variant."""
        own = self.consistency_accumulation if variant == "consistency" else 0
        return own or self.accumulation


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along the mesh axes."""

    data: int = field(
        -1,
        "parts of the batch; -1: all devices that the others leave",
        Bounds(lambda data: data == -1 or data >= 1, "must be -1 (all devices) or at least 1"),
        rerun=True,
    )
    fsdp: int = field(
        1, "parts of the batch, and of the layers' parameters and moments by width", ONE_OR_MORE, rerun=True
    )
    tensor: int = field(1, "parts of the heads, the feed-forward width and the vocabulary", ONE_OR_MORE, rerun=True)
