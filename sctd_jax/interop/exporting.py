"""A run -> a folder for Hugging Face `transformers`; needs neither torch nor transformers."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from etils import epath

from sctd_jax.config import Config
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import METADATA_FILE, Metadata, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.hf import names, write
from sctd_jax.interop.exported import Card, Model, Result, Said, render
from sctd_jax.interop.exporting_task import task_model
from sctd_jax.models import open_run
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.workdir import TASK_FILE, check_metadata, read_command, read_config

_CARD = "README.md"
# Tags of the hub for a method.
_TAGS = {
    "drop": ("token-dropping",), "sctd": ("token-dropping", "sctd"), "full_every": ("token-dropping",),
    "random_ltd": ("random-ltd",),
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
) -> None:
    """Write `out` with what `AutoTokenizer` and `AutoModelForMaskedLM`, or the task's class, load.

    It appears only when complete; with `force` it takes the place of an export. Without a step the newest one of a
    pretraining is written, the best one of a fine-tuning. `said` has facts for the model card.
    """
    if out.exists():
        if not force:
            raise UserError(f"{out} exists already; --force replaces it")
        inside = {path.name for path in out.iterdir()}
        if _CARD not in inside or not all(write.is_ours(name) for name in inside - {_CARD}):
            raise UserError(f"{out} exists already and is not just an export, so that --force does not replace it")
    model = (task_model if (workdir / TASK_FILE).is_file() else _pretrained)(workdir, step, log)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.incomplete-", dir=out.parent) as temporary:
            ready = Path(temporary, "export")
            ready.mkdir()
            write.write_folder(
                ready, model.config, model.params, tokenizer.find(workdir), table=model.table, settings=model.settings,
                precision=precision,
            )  # fmt: skip
            (ready / _CARD).write_text(render(model, said or Said()), encoding="utf-8")
            if out.exists():
                out.rename(Path(temporary, "replaced"))
            ready.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    rounded = "" if precision.dtype == "float32" else f", its float32 numbers rounded to {precision.dtype}"
    log(f"exported step {model.step} of {workdir} to {out}{rounded}")
    if missing := (said or Said()).missing():
        log(f"its model card ({_CARD}) leaves open what only you know: {', '.join(missing)}")


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
    name, data = "MLM loss of the full model, nats for each predicted token", "held-out rows of the training text"
    mask = run.tokenizer.pieces[run.tokenizer.special.mask]
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
            limits=[f"It reads at most {config.model.max_positions} tokens at once.", *by_us, *_LIMITS],
            tags=[config.model.family, "sctd_jax", *(_TAGS.get(method, ()) if metadata else ())],
            language=["en"] if metadata and is_trial else [],
            results=[Result({"type": "unknown", "name": data}, "loss", name, line["eval/loss"]) for line in there[-1:]],
            scored=False,
        ),
        step=step,
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
    dropping = config.dropping.method != "full"
    kept = f", {config.after(step).num_kept} of {config.data.seq_len} tokens in the dropping layers" if dropping else ""
    return [
        f"Method: `{config.dropping.method}`{kept}",
        f"Started from: {config.train.init or 'random weights'}",
        f"Data: {text}; {metadata.documents:,} documents, {metadata.tokens:,} tokens, rows of "
        f"{_staged(metadata.seq_len, config.data.seq_len_schedule)}",
        f"Steps: {step:,} of {_staged(config.train.batch_size, config.train.batch_schedule)} rows",
        f"Held-out MLM loss of the full model: {held_out}",
    ]
