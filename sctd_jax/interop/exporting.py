"""A run -> a folder for Hugging Face `transformers`; needs neither torch nor transformers."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from etils import epath

from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import METADATA_FILE, Metadata, read_metadata
from sctd_jax.errors import UserError, writing
from sctd_jax.hf import names, write
from sctd_jax.interop.exported import Card, Model, Result, Said, render
from sctd_jax.interop.exporting_task import task_model
from sctd_jax.models import open_run
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.workdir import CHECKPOINTS, TASK_FILE, check_metadata, read_command, read_config

CARD = "README.md"
# Tags of the hub for a method.
_TAGS = {
    "drop": ("token-dropping",), "sctd": ("token-dropping", "sctd"), "full_every": ("token-dropping",),
    "random_ltd": ("random-ltd",), "late_mask": ("late-masking",),
}  # fmt: skip
_FILL_MASK = """from transformers import pipeline

model = "."  # this folder, or the model's name on the hub
print(pipeline("fill-mask", model=model)({text!r}))
"""
_LIMITS = (
    "Whatever is one-sided or wrong in the text of its training may be so in the model; nobody has measured it.",
    "It was trained to fill in hidden words: vectors of sentences want a training of their own.",
)


def export(
    workdir: epath.Path,
    out: Path,
    *,
    step: int | None,
    force: bool,
    log: Callable[[str], None],
    said: Said | None = None,
    precision: write.Precision = write.EXACT,
) -> list[str]:
    """Write `out` with what `AutoTokenizer` and `AutoModelForMaskedLM`, or the task's class, load.

    It appears only when complete; with `force` it takes the place of an export. Without a step the newest one of a
    pretraining is written, the best one of a fine-tuning. `said` has facts for the model card.

    Returns:
      The names of the files written.
    """
    if Path(os.path.abspath(out)).is_relative_to(os.path.abspath(os.fspath(workdir / CHECKPOINTS))):
        raise UserError(f"--out {out} is among the checkpoints of {workdir}: choose another folder")
    try:
        inside = {path.name for path in out.iterdir()} if out.is_dir() else None
        there = out.exists()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    if there:
        if not force:
            raise UserError(f"{out} exists already; --force replaces it")
        if inside is None or CARD not in inside or not all(write.is_ours(name) for name in inside - {CARD}):
            raise UserError(f"{out} exists already and is not just an export, so that --force does not replace it")
    model = (task_model if (workdir / TASK_FILE).is_file() else _pretrained)(workdir, step, log)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.incomplete-", dir=out.parent) as temporary:
            ready = Path(temporary, "export")
            ready.mkdir()
            write.write_folder(
                ready, model.config, model.params, tokenizer.find(workdir), table=model.table, settings=model.settings,
                precision=precision,
            )  # fmt: skip
            (ready / CARD).write_text(render(model, said or Said()), encoding="utf-8")
            written = sorted(path.name for path in ready.iterdir())
            if out.exists():
                out.rename(Path(temporary, "replaced"))
            ready.rename(out)
    rounded = "" if precision.dtype == "float32" else f", its float32 numbers rounded to {precision.dtype}"
    log(f"exported step {model.step} of {workdir} to {out}{rounded}")
    if missing := (said or Said()).missing():
        log(f"its model card ({CARD}) leaves open what only you know: {', '.join(missing)}")
    return written


def _pretrained(workdir: epath.Path, step: int | None, log: Callable[[str], None]) -> Model:
    read_config(workdir)  # or it is no run
    check_metadata(workdir)  # the card would call it untrained
    run = open_run(workdir, log)
    step, found = run.read(step)
    config, method = run.config, run.config.dropping.method
    metadata = read_metadata(workdir) if (workdir / METADATA_FILE).is_file() else None
    by_us = [f"Rows of training had {metadata.seq_len} tokens."] if metadata else []
    lines = read_metrics(workdir) if metadata else []
    losses = [line for line in lines if line.get("eval/loss") is not None and line["step"] <= step]
    there = [line for line in losses if line["step"] == step]
    mask = run.tokenizer.pieces[run.tokenizer.special.mask]
    how, late = "", []
    if metadata and method == "late_mask":
        how, late = f", {_late(config)}", [_late_limit(config, mask, there)]
    facts = _training_facts(config, metadata, step, losses) if metadata else ["Training: none by sctd_jax"]
    is_trial = not (config.data.input or config.data.rows or config.train.init)
    return Model(
        config=config.model,
        params=found["params"],
        table=names.names(config.model),
        settings={},
        card=Card(
            title=workdir.name,
            pipeline="fill-mask",
            how=f"{'pretrained with' if metadata else 'imported into'} sctd_jax",
            facts=[*facts, f"Command: `{read_command(workdir)}`"],
            use=_FILL_MASK.format(text=f"the {mask} of the United States"),
            limits=[f"It reads at most {config.model.max_positions} tokens at once.", *by_us, *late, *_LIMITS],
            tags=[config.model.family, "sctd_jax", *(_TAGS.get(method, ()) if metadata else ())],
            language=["en"] if metadata and is_trial else [],
            results=_held_out(there[-1], how) if there else [],
            scored=False,
        ),
        step=step,
    )


def _held_out(line: dict, how: str) -> list[Result]:
    """Results of an evaluation of pretraining; `how` is more words on how it was measured."""
    data = {"type": "unknown", "name": "held-out rows of the training text"}
    metrics = {
        "loss": "MLM loss of the full model, nats for each predicted token",
        "below_unigram": "nats that this loss lies below that of word frequencies alone",
        "accuracy": "share of the predicted tokens that the full model ranks first",
    }
    return [
        Result(data, metric, f"{words}{how}", line[f"eval/{metric}"])
        for metric, words in metrics.items()
        if line.get(f"eval/{metric}") is not None
    ]


def _late(config: Config) -> str:
    """Words on how the held-out loss of late masking was measured."""
    return f"predicted tokens entering at layer {config.drop_layers[0]}"


def _late_limit(config: Config, mask: str, there: list[dict]) -> str:
    """Limit that late masking sets to fill-mask by the exported network, which shows [MASK] to all layers."""
    losses = (
        f" (held-out loss {line['eval/plain_loss']:.3f}, and {line['eval/loss']:.3f} as it was trained)"
        for line in there
        if line.get("eval/plain_loss") is not None
    )
    return (
        f"It was trained by late masking: layers 0 to {config.drop_layers[0] - 1} never saw a predicted token, which "
        f"entered after them. Fill-mask shows {mask} to all layers, which is not what they were trained for"
        f"{next(losses, '')}. Text without {mask}, as in fine-tuning, is what they know."
    )


def _staged(value: int, schedule: str) -> str:
    return f"at most {value} ({schedule} as STEP:VALUE)" if schedule else str(value)


def _training_facts(config: Config, metadata: Metadata, step: int, losses: list[dict]) -> list[str]:
    held_out = (
        f"{losses[0]['eval/loss']:.3f} (step {losses[0]['step']}) to {losses[-1]['eval/loss']:.3f} "
        f"(step {losses[-1]['step']})"
        if losses
        else "not measured"
    )
    text = config.data.input or ("rows prepared before" if config.data.rows else "the embedded trial corpus (sotu)")
    kept, judged = "", ""
    if config.drops:
        kept = f", {config.after(step).num_kept} of {config.data.seq_len} tokens in the dropping layers"
    if config.dropping.method == "late_mask":
        kept = f", {config.num_visible} of {config.data.seq_len} tokens before layer {config.drop_layers[0]}"
        judged = f", {_late(config)}"
    return [
        f"Method: `{config.dropping.method}`{kept}",
        f"Started from: {config.train.init or 'random weights'}",
        f"Data: {text}; {metadata.documents:,} documents, {metadata.tokens:,} tokens, rows of "
        f"{_staged(metadata.seq_len, config.data.seq_len_schedule)}",
        f"Steps: {step:,} of {_staged(config.train.batch_size, config.train.batch_schedule)} rows",
        f"Held-out MLM loss of the full model{judged}: {held_out}",
    ]
