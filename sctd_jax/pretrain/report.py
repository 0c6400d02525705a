"""Lines for a person: the table at the start, evaluation lines, the summary, fill-mask examples."""

import functools
import itertools
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from sctd_jax import schedules
from sctd_jax.config import Config, DataConfig, DroppingConfig
from sctd_jax.data.rows import HELD_OUT, Rows
from sctd_jax.data.shuffle import LANES, WINDOW
from sctd_jax.data.tokenizer import find
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.model.token_dropping import all_but
from sctd_jax.parallel.mesh import replicated
from sctd_jax.pretrain.flops import mean_plain_step_flops, mean_step_flops
from sctd_jax.pretrain.layer_tokens import rate_at
from sctd_jax.pretrain.rows import Data
from sctd_jax.pretrain.step import all_full_at
from sctd_jax.train import trainer
from sctd_jax.train.metrics import duration, read_metrics
from sctd_jax.train.state import TrainState
from sctd_jax.train.workdir import CHECKPOINTS

_SLOW_STEP_SECONDS = 5.0
_EXAMPLES, _CANDIDATES, _CONTEXT = 6, 3, 12


def start_table(
    config: Config,
    attention: str,
    mesh: Mesh,
    data: Data,
    unigram_loss: float,
    state: TrainState,
    before: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Lines that say what is about to run; `before` are the lines of metrics of a run that goes on."""
    model, dropping, metadata = config.model, config.dropping, data.metadata
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(state.params))
    flops, plain = mean_step_flops(config), mean_plain_step_flops(config)
    near = f" (local but for every {model.global_every})" if model.global_every > 1 else ""
    stood = ""
    for line in before:
        if line["step"] <= int(state.step) and line.get("eval/below_unigram") is not None:
            stood = f"; at step {line['step']:,} {line['eval/loss']:.3f}{_beside_frequencies(line)}"
    rows = [
        ("model", f"{model.family}, {model.num_layers} layers x {model.hidden_size}{near}, {model.num_heads} heads, "
                  f"{model.dtype}, {parameters / 1e6:,.1f} M parameters"),
        ("attention", attention),
        ("data", f"{metadata.rows:,} rows of {metadata.seq_len} tokens, {metadata.heldout_rows:,} held out; "
                 f"vocabulary {metadata.vocab_size:,}; {data.folder}"),
        *(("", f"{rows.metadata.rows:,} rows of {length} tokens; {rows.folder}")
          for length, rows in data.by_length().items() if rows is not data),
        ("frequencies", f"{unigram_loss:.3f} nats: held-out loss of word frequencies alone, to be left behind{stood}"),
        ("steps", f"{int(state.step):,} to {config.train.steps:,} of {_staged(config.batch_stages)} rows "
                  f"({_epochs(config, data)})"),
        ("method", method(dropping)),
    ]  # fmt: skip
    if config.data.shuffle == "shards":
        rows.append(("shuffle", f"by shards, {WINDOW} shards' worth of rows at a time in up to {LANES} lanes"))
    if config.masking.rate_schedule:
        rates = _staged(schedules.parse(config.masking.rate_schedule, float))
        rows.append(("masking", f"{rates} of the tokens, {config.masking.rate:g} in evaluations"))
    if dropping.method == "late_mask":
        enter = f"enter at layer {config.drop_layers[0]} of 0 to {model.num_layers - 1}"
        rows.append(("masked tokens", f"{enter}; before it {config.num_visible} of {config.data.seq_len} tokens"))
    if config.drops:
        first, last = config.drop_layers
        counts = f"{_staged(config.keep_stages)} of {config.data.seq_len}"
        if config.data.seq_len_schedule:
            stages = config.stages(config.train.steps)
            counts = _staged([(start, f"{stage.num_kept} of {stage.data.seq_len}") for start, _, stage in stages])
        layers = f"layers {first} to {last} of 0 to {model.num_layers - 1}"
        fewer = "".join(f", {k} from layer {i} on" for i, k in schedules.parse(dropping.keep_by_layer, int))
        kept = f"{counts} in {layers}{fewer}, selector {config.selector}"
        rows.append(("kept tokens", kept))
    rows.append(("FLOPs", f"{flops:.3g} a step, {flops / plain:.2f} of a plain full-token step"))
    lines = trainer.start_lines(mesh, rows)
    if not config.data.input and not config.data.rows:
        lines.append(
            "note: this is the embedded trial corpus (US State of the Union addresses, 12 MB), enough to try the "
            "tool, not to pretrain a useful model. Your own text: --config.data.input='folder/**/*.txt'"
        )  # fmt: skip
    return lines


def _staged(stages: Sequence[tuple[int, Any]]) -> str:
    """Values and the steps from which they hold."""
    runs = [next(group) for _, group in itertools.groupby(stages, key=lambda stage: stage[1])]
    return ", then ".join(f"{value}" + (f" from step {start:,}" if start else "") for start, value in runs)


def _epochs(config: Config, data: Data) -> str:
    """Passes over the rows of each length."""
    read = dict.fromkeys(data.by_length(), 0)
    for start, end, stage in config.stages(config.train.steps):
        read[stage.data.seq_len] += (end - start) * stage.train.batch_size
    shares = {length: read[length] / rows.metadata.rows for length, rows in data.by_length().items()}
    if len(shares) == 1:
        return f"{shares[config.data.seq_len]:,.1f} epochs"
    return ", ".join(f"{share:,.1f} epochs of {length} tokens" for length, share in sorted(shares.items()))


def method(dropping: DroppingConfig) -> str:
    """The method of a run, in words."""
    text = {
        "full": "full-token training",
        "drop": "token dropping",
        "full_every": f"token dropping, a full step every {dropping.sc_interval}",
        "late_mask": "late masking",
        "random": "random token dropping",
        "random_ltd": "random-LTD, random tokens of its own for each layer",
        "sctd": f"ScTD, a consistency step every {dropping.sc_interval}, lambda {dropping.sc_weight:g}"
        + ("" if dropping.sc_full_mlm else ", without the full pass's MLM term"),
    }[dropping.method]
    if dropping.method != "full" and (dropping.full_steps_first or dropping.full_steps_last):
        text += f"; full-token steps: first {dropping.full_steps_first:,}, last {dropping.full_steps_last:,}"
    return text


def cpu_warning(flops: Mapping[str, float]) -> list[str]:
    """Warning, on a CPU, of how long a step of each program will take by its FLOPs, if that is long."""
    if jax.default_backend() != "cpu":
        return []
    rate = matmul_flops_per_second()
    # A whole step reaches about half of the rate of one large product.
    seconds = {name: count / (0.5 * rate) for name, count in flops.items()}
    if max(seconds.values()) < _SLOW_STEP_SECONDS:
        return []
    steps = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    return [
        f"warning: on this CPU ({rate / 1e9:.0f} GFLOP/s) a step will take about {steps} (minutes:seconds). "
        "configs/tiny.py is made for CPUs; this config wants a TPU or GPU"
    ]  # fmt: skip


def matmul_flops_per_second() -> float:
    """Achieved FLOP/s of a plain f32 product on the default device; takes well under a second."""
    size, repeats = 1024, 5
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    started = time.monotonic()
    for _ in range(repeats):
        a = product(a, a)
    a.block_until_ready()
    return repeats * 2 * size**3 / (time.monotonic() - started)


def evaluation_lines(step: int, metrics: dict[str, float]) -> list[str]:
    """One line for an evaluation, and one for its drop pass."""
    lines = [
        f"eval at step {step}: held-out loss {metrics['eval/loss']:.3f}, perplexity "
        f"{metrics['eval/perplexity']:.1f}, accuracy {metrics['eval/accuracy']:.1%}{_beside_frequencies(metrics)}"
    ]
    if "eval/plain_loss" in metrics:
        lines.append(f"  with [MASK] in all layers, as fill-mask shows it, {metrics['eval/plain_loss']:.3f}")
    if "eval/drop_loss" in metrics:
        lines.append(
            f"  drop pass {metrics['eval/drop_loss']:.3f}, [CLS] cosine of full and drop pass "
            f"{metrics['eval/cosine_local']:.3f} (last layer but one) {metrics['eval/cosine_global']:.3f} (last)"
        )
    return lines


def _beside_frequencies(metrics: Mapping[str, Any]) -> str:
    """Distance of a loss from that of word frequencies, with its side; '' where that is not known."""
    below = metrics.get("eval/below_unigram")
    if below is None or math.isnan(below):
        return ""
    return f", {abs(below):.2f} nats {'below' if below > 0 else 'above'} word frequencies"


def no_context(config: Config, step: int, metrics: Mapping[str, Any]) -> list[str]:
    """Warning of a run whose loss lies not below that of word frequencies; none where it does, or that is not known."""
    below = metrics.get("eval/below_unigram")
    if below is None or not below <= 0:  # not where it is NaN, which is another illness
        return []
    optimizer = config.optimizer
    return [
        f"warning: after {step:,} of {config.train.steps:,} steps the model has learned nothing from context (held-out "
        f"loss {metrics['eval/loss']:.3f}{_beside_frequencies(metrics)}). What usually cures it: a lower "
        f"optimizer.learning_rate ({optimizer.learning_rate}), a longer optimizer.warmup_steps "
        f"({optimizer.warmup_steps:,}), more train.steps"
    ]


def without_effect(config: Config) -> list[str]:
    """Lines about values at which a part of the method does nothing."""
    dropping, masking, steps = config.dropping, config.masking, config.train.steps
    sctd = dropping.method == "sctd"
    ranked = config.drops and dropping.selector.startswith("importance")
    found = {
        "optimizer.learning_rate is 0: no parameter changes": config.optimizer.learning_rate == 0,
        "masking.mask_share and masking.random_share are 0: every token that is to be predicted is shown": (
            masking.mask_share == masking.random_share == 0
        ),
        f"dropping.sc_interval is {dropping.sc_interval:,}, of {steps:,} train.steps: one consistency step at most": (
            sctd and dropping.sc_interval >= steps
        ),
        "dropping.sc_weight is 0: consistency steps match no meaning": sctd and dropping.sc_weight == 0,
        "dropping.importance_beta is 1: the importance of a token stays what it is": (
            ranked and dropping.importance_beta == 1
        ),
    }
    return [f"warning: config.{line}" for line, is_so in found.items() if is_so]


def without_peak(config: Config) -> list[str]:
    """Warning of a run whose learning rate never comes to its peak."""
    optimizer, steps = config.optimizer, config.train.steps
    decay = optimizer.decay_steps if optimizer.schedule == "wsd" else 0
    if optimizer.warmup_steps + decay <= steps:
        return []
    said = f" and optimizer.decay_steps ({decay:,})" if decay else ""
    return [
        f"warning: the rate never comes to optimizer.learning_rate ({optimizer.learning_rate}): the run has {steps:,} "
        f"steps, fewer than optimizer.warmup_steps ({optimizer.warmup_steps:,}){said}"
    ]


def blank(metrics: Mapping[str, float]) -> str:
    """Name of what a step without a prediction lacked, and why; '' for one that had some."""
    return "" if metrics["predictions"] else "no prediction (all tokens of its rows are special tokens)"


def summary(config: Config, workdir: epath.Path, result: trainer.Result, seconds: float) -> list[str]:
    """Lines for the end of a run."""
    state = result.state
    lines = [f"done: {result.step:,} steps, {duration(seconds)} in this run"]
    if evaluations := [line for line in read_metrics(workdir) if line.get("eval/loss") is not None]:
        first, last = evaluations[0], evaluations[-1]
        lines.append(
            f"held-out loss {first['eval/loss']:.3f} (step {first['step']}) -> {last['eval/loss']:.3f} "
            f"(step {last['step']}){_beside_frequencies(last)}"
        )
        lines += no_context(config, last["step"], last)
    if int(state.skipped):
        lines.append(f"{int(state.skipped):,} steps were skipped for non-finite numbers")
    best = "" if result.best_step is None else f" (lowest held-out loss: step {result.best_step})"
    lines.append(f"checkpoint: {workdir / CHECKPOINTS / str(result.step)}{best}")
    lines.append(f"curves: python -m sctd_jax.plot {shlex.quote(str(workdir))}")
    lines.append(f"all on one page: python -m sctd_jax.report {shlex.quote(str(workdir))}")
    if config.optimizer.schedule == "wsd" and not config.optimizer.decay_steps:
        return [
            *lines,
            "to train longer: this command with more --config.train.steps; to let the rate fall, from any checkpoint: "
            f"{_another(config.data, workdir)} --config.train.init_takes=state, --config.optimizer.decay_steps and as "
            "many more --config.train.steps",
        ]
    return [*lines, f"to train longer, with a warm-up of its own: {_longer(config.data, workdir)}"]


def _longer(data: DataConfig, workdir: epath.Path) -> str:
    """Why not by more steps in the same workdir: `schedule_lines`."""
    return f"a new run from these weights, by {_another(data, workdir)} and the steps to add as --config.train.steps"


def _another(data: DataConfig, workdir: epath.Path) -> str:
    # Rows that were prepared have the tokenizer of the weights.
    tokenizer = "" if data.rows else f" --config.data.tokenizer={shlex.quote(str(find(workdir)))}"
    return f"this command with --workdir=ANOTHER --config.train.init={shlex.quote(str(workdir))}{tokenizer}"


def schedule_lines(config: Config, before: Config, workdir: epath.Path, step: int) -> list[str]:
    """Lines that warn of what another length or learning rate than `before` changes at once, where a run goes on.

    `step` is the number of updates that it has done, at least one.
    """
    if step == config.train.steps:
        return []

    def rate(config: Config, step: int) -> float:
        return float(rate_at(config, step))

    was, now = rate(before, step - 1), rate(config, step)
    unchanged = rate(before, min(step, before.train.steps - 1))
    changes = ", ".join(
        f"{section}.{name} was {old} and is {new}"
        for section, name in (
            ("train", "steps"),
            *(("optimizer", name) for name in ("learning_rate", "warmup_steps", "decay_steps", "decay_shape")),
        )
        if (old := getattr(getattr(before, section), name)) != (new := getattr(getattr(config, section), name))
    )
    lines = []
    if not math.isclose(now, unchanged, rel_tol=0.01):
        peaks = (c.optimizer.learning_rate or 1.0 for c in (before, config))
        old, new = (f"{rate:.3g} ({rate / peak:.1%} of the peak)" for rate, peak in zip((was, now), peaks, strict=True))
        lines.append(
            f"warning: the learning rate goes from {old} at step {step:,} to {new} at step {step + 1:,} at once, "
            f"for {changes}"
        )
        if now > was:
            lines.append(
                "the loss may rise before it falls; a lower optimizer.learning_rate makes the jump smaller. With a "
                f"warm-up of its own: {_longer(config.data, workdir)}"
            )
    if all_full_at(before, step - 1) and not all_full_at(config, step):
        lines.append(f"warning: after full-token steps the run drops tokens again, for {changes}")
    return lines


def fill_mask_examples(model: MaskedLm, data: Data, mesh: Mesh, state: TrainState, late: bool = False) -> list[str]:
    """The full model's guesses for one hidden word in each of a few held-out rows; `late` has it enter late."""
    rows = Rows(data.folder, HELD_OUT)
    step = max(len(rows) // _EXAMPLES, 1)
    tokens_BN = rows.read(range(0, min(len(rows), step * _EXAMPLES), step))
    words = {i: position for i, row in enumerate(tokens_BN) if (position := _a_word(row, data)) is not None}
    if not words:
        return []
    tokens_BN, positions = tokens_BN[list(words)], np.array(list(words.values()))
    hidden_BN, special = tokens_BN.copy(), data.tokenizer.special
    hidden_BN[np.arange(len(words)), positions] = special.mask

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def predict(params, input_ids_BN, rows_BR):
        visible_BM = all_but(rows_BR[:, 0], input_ids_BN.shape[1]) if late else None
        logits: Any = model.apply(
            {"params": params}, input_ids_BN, input_ids_BN != special.pad, rows_BR=rows_BR, visible_BM=visible_BM
        )
        return jax.lax.top_k(jax.nn.softmax(logits[:, 0]), _CANDIDATES)

    scores, ids = predict(state.params, hidden_BN, positions[:, None])
    mask = data.tokenizer.pieces[special.mask]
    lines = ["fill-mask on held-out text (the model's guesses, and the word that was hidden):"]
    for row, position, guesses, chances in zip(tokens_BN, positions, np.asarray(ids), np.asarray(scores), strict=True):
        left = data.tokenizer.decode(row[max(position - _CONTEXT, 1) : position])
        right = data.tokenizer.decode(row[position + 1 : position + 1 + _CONTEXT])
        best = " | ".join(f"{data.tokenizer.word(i)} {p:.0%}" for i, p in zip(guesses, chances, strict=True))
        lines += [
            f"  ... {left.strip()} {mask} {right.strip()} ...",
            f"      {best}   (was: {data.tokenizer.word(row[position])})",
        ]
    return lines


def _a_word(row: np.ndarray, data: Data) -> int | None:
    """The position nearest to the middle of the row that holds a whole word."""
    starts = data.tokenizer.word_start_V[row]
    words = [i for i in range(1, len(row) - 1) if starts[i] and starts[i + 1] and data.tokenizer.word(row[i]).isalpha()]
    return min(words, key=lambda i: abs(i - len(row) // 2)) if words else None
