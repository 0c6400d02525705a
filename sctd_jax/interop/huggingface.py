"""Export a run for Hugging Face `transformers`; needs neither torch nor transformers.

python -m sctd_jax.interop.huggingface export --workdir RUN --out DIR [--step N] [--force]
"""

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save_file

from sctd_jax.data.rows import TOKENIZER_FILE, Metadata
from sctd_jax.errors import UserError, run_command
from sctd_jax.interop import tokenizer_json, weights
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.run import Run, load_run

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def export(workdir: Path, out: Path, *, step: int | None, force: bool, log: Callable[[str], None]) -> None:
    """Write `out` with what `AutoModelForMaskedLM` and `AutoTokenizer` load; it appears only when complete.

    Args:
      workdir: of a run.
      out: a folder that does not exist, unless `force`.
      step: of the checkpoint; None for the newest.
      force: replace `out`.
      log: receives progress lines.

    Raises:
      UserError: no such checkpoint, or `out` exists or cannot be written.
    """
    if out.exists() and not force:
        raise UserError(f"{out} exists already; --force replaces it")
    run = load_run(workdir, step, log)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.incomplete-", dir=out.parent) as temporary:
            ready = Path(temporary, "export")
            ready.mkdir()
            _write(ready, workdir, run)
            if out.exists():
                out.rename(Path(temporary, "replaced"))
            ready.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    log(f"exported step {int(run.state.step)} of {workdir} to {out}")


def _write(folder: Path, workdir: Path, run: Run) -> None:
    names = {role: run.processor.id_to_piece(i) for role, i in run.special.items()}
    tokens = {f"{role}_token": name for role, name in names.items()}
    save_file(
        weights.to_bert(run.config.model, run.state.params), folder / "model.safetensors", metadata={"format": "pt"}
    )
    (folder / "model.safetensors").chmod(0o644)
    model = (workdir / TOKENIZER_FILE).read_bytes()
    (folder / TOKENIZER_FILE).write_bytes(model)
    tokenizer_json.convert(model, run.special).save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", _model_config(run))
    _write_json(folder / "special_tokens_map.json", tokens)
    # Without the class transformers 5 builds a BertTokenizer from the model type, and gets every sentence wrong.
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.config.model.max_positions,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "README.md").write_text(_card(workdir, run))


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _model_config(run: Run) -> dict:
    model = run.config.model
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_positions,
        "type_vocab_size": model.type_vocab_size,
        "hidden_act": _ACTIVATIONS[model.activation],
        "hidden_dropout_prob": model.hidden_dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.layer_norm_eps,
        "initializer_range": model.initializer_range,
        "pad_token_id": run.special["pad"],
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def _card(workdir: Path, run: Run) -> str:
    config, step = run.config, int(run.state.step)
    losses = [line for line in read_metrics(workdir) if line.get("eval/loss") is not None and line["step"] <= step]
    held_out = (
        f"{losses[0]['eval/loss']:.3f} (step {losses[0]['step']}) to {losses[-1]['eval/loss']:.3f} "
        f"(step {losses[-1]['step']})"
        if losses
        else "not measured"
    )
    metadata: Metadata = run.metadata
    text = config.data.input or ("rows prepared before" if config.data.rows else "the embedded trial corpus (sotu)")
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
---

# {workdir.name}

A BERT encoder, pretrained with sctd_jax.

- Method: `{config.dropping.method}`, {config.num_kept} of {config.data.seq_len} tokens in the dropping layers
- Model: {config.model.num_layers} layers x {config.model.hidden_size}, vocabulary {config.model.vocab_size:,}
- Data: {text}; {metadata.documents:,} documents, {metadata.tokens:,} tokens, rows of {metadata.seq_len}
- Steps: {step:,} of {config.train.batch_size} rows
- Held-out MLM loss of the full model: {held_out}
- Command: `{run.command}`
"""


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m sctd_jax.interop.huggingface", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("export", help="a run -> a folder for transformers").add_argument
    add("--workdir", required=True, type=Path)
    add("--out", required=True, type=Path)
    add("--step", type=int, help="of the checkpoint; default the newest")
    add("--force", action="store_true", help="replace --out")
    args = parser.parse_args(argv)

    def command() -> int:
        log = functools.partial(print, flush=True)
        export(args.workdir, args.out, step=args.step, force=args.force, log=log)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
