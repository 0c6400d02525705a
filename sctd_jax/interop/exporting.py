"""A run -> a folder for Hugging Face `transformers`; needs neither torch nor transformers."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from sctd_jax.data import tokenizer
from sctd_jax.errors import UserError
from sctd_jax.hf import config_json as bert_config
from sctd_jax.hf import names as weights
from sctd_jax.hf import tokenizer_json
from sctd_jax.interop.exported import Card, Model, Result, Said, render
from sctd_jax.interop.exporting_task import task_model
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.run import Run, load_run
from sctd_jax.train.workdir import TASK_FILE, check_metadata, read_config

_CARD, _WEIGHTS, _CONFIG = "README.md", "model.safetensors", "config.json"
_TOKENS, _TOKENIZER_CONFIG = "special_tokens_map.json", "tokenizer_config.json"
# What a method is called on the hub.
_TAGS = {"drop": ("token-dropping",), "sctd": ("token-dropping", "sctd"), "random_ltd": ("random-ltd",)}
_WRITTEN = {
    _CARD, _WEIGHTS, _CONFIG, _TOKENS, _TOKENIZER_CONFIG, tokenizer.SENTENCEPIECE_FILE, tokenizer.JSON_FILE,
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
) -> None:
    """Write `out` with what `AutoTokenizer` and `AutoModelForMaskedLM`, or the task's class, load.

    It appears only when complete.

    Args:
      workdir: of a pretraining or a fine-tuning.
      out: a folder that does not exist, unless `force`.
      step: of the checkpoint; None for the newest, of a fine-tuning for the best.
      force: replace `out` if it is an export.
      log: receives progress lines.
      said: what the model card shall say besides.

    Raises:
      UserError: no such checkpoint, or `out` exists or cannot be written.
    """
    if out.exists():
        if not force:
            raise UserError(f"{out} exists already; --force replaces it")
        if not out.is_dir() or {path.name for path in out.iterdir()} - _WRITTEN or not (out / _CARD).is_file():
            raise UserError(f"{out} exists already and is not just an export, so that --force does not replace it")
    model = (task_model if (workdir / TASK_FILE).is_file() else _pretrained)(workdir, step, log)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.incomplete-", dir=out.parent) as temporary:
            ready = Path(temporary, "export")
            ready.mkdir()
            _write(ready, workdir, model)
            (ready / _CARD).write_text(render(model, said or Said()), encoding="utf-8")
            if out.exists():
                out.rename(Path(temporary, "replaced"))
            ready.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
    log(f"exported step {model.step} of {workdir} to {out}")
    if missing := (said or Said()).missing():
        log(f"its model card ({_CARD}) leaves open what only you know: {', '.join(missing)}")


def _pretrained(workdir: epath.Path, step: int | None, log: Callable[[str], None]) -> Model:
    read_config(workdir)  # or it is no run
    check_metadata(workdir)  # the card would call it untrained
    run = load_run(workdir, step, log)
    trained, method = run.metadata is not None, run.config.dropping.method
    by_us = [f"Rows of training had {run.metadata.seq_len} tokens."] if trained else []
    losses = _held_out_losses(workdir, int(run.state.step)) if trained else []
    there = [line for line in losses if line["step"] == int(run.state.step)]
    name, data = "MLM loss of the full model, nats for each predicted token", "held-out rows of the training text"
    mask = run.tokenizer.pieces[run.tokenizer.special.mask]
    return Model(
        config=run.config.model,
        tokenizer=run.tokenizer,
        tensors=weights.to_bert(run.config.model, run.state.params),
        settings={},
        card=Card(
            title=workdir.name,
            pipeline="fill-mask",
            how=f"{'pretrained with' if trained else 'imported into'} sctd_jax",
            facts=[*(_training_facts(run, losses) if trained else ["Training: none by sctd_jax"]),
                   f"Command: `{run.command}`"],
            use=_FILL_MASK.format(text=f"the {mask} of the United States"),
            limits=[f"It reads at most {run.config.model.max_positions} tokens at once.", *by_us, *_LIMITS],
            tags=["bert", "sctd_jax", *(_TAGS.get(method, ()) if trained else ())],
            language=["en"] if trained and _is_trial(run) else [],
            results=[Result({"type": "unknown", "name": data}, "loss", name, line["eval/loss"]) for line in there[-1:]],
            scored=False,
        ),
        step=int(run.state.step),
    )  # fmt: skip


def _write(folder: Path, workdir: epath.Path, model: Model) -> None:
    special = model.tokenizer.special
    names = {role: model.tokenizer.pieces[i] for role, i in special._asdict().items()}
    tokens = {f"{role}_token": name for role, name in names.items()}
    save_file(model.tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _WEIGHTS).chmod(0o644)
    name, content = tokenizer.canonical(tokenizer.find(workdir), kept=True)
    if name == tokenizer.SENTENCEPIECE_FILE:
        tokenizer.check_exportable(content, workdir / name)
        (folder / name).write_bytes(content)
        fast = tokenizer_json.convert(content, special)
    else:
        fast = tokenizer_json.completed(content, names, special)
    fast = tokenizer_json.with_pairs(fast, names, special, model.config.type_vocab_size)
    more = [str(t) for t in fast.get_added_tokens_decoder().values() if t.special and str(t) not in names.values()]
    (folder / tokenizer.JSON_FILE).write_text(fast.to_str(), encoding="utf-8")
    _write_json(folder / _CONFIG, bert_config.to_json(model.config, special.pad) | model.settings)
    _write_json(folder / _TOKENS, tokens)
    # Without the class transformers 5 builds a BertTokenizer from the model type, and gets every sentence wrong.
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_positions,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **tokens,
        **({"additional_special_tokens": more} if more else {}),
    }
    _write_json(folder / _TOKENIZER_CONFIG, tokenizer_config)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _held_out_losses(workdir: epath.Path, step: int) -> list[dict]:
    return [line for line in read_metrics(workdir) if line.get("eval/loss") is not None and line["step"] <= step]


def _is_trial(run: Run) -> bool:
    return not (run.config.data.input or run.config.data.rows or run.config.train.init)


def _training_facts(run: Run, losses: list[dict]) -> list[str]:
    config, metadata, step = run.config, run.metadata, int(run.state.step)
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
        f"Data: {text}; {metadata.documents:,} documents, {metadata.tokens:,} tokens, rows of {metadata.seq_len}",
        f"Steps: {step:,} of {config.train.batch_size} rows",
        f"Held-out MLM loss of the full model: {held_out}",
    ]
