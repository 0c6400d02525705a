"""Pseudo-perplexity (Salazar et al., 2020, "Masked Language Model Scoring"): every token masked, one at a time.

Shapes: B rows, N sequence length, V vocabulary, T scored tokens of one row.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sctd_jax.config import ModelConfig
from sctd_jax.data.decoding import open_utf8, whole_lines
from sctd_jax.data.special import SpecialIds
from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError
from sctd_jax.finetune import batches
from sctd_jax.finetune.encode import Feature, Row
from sctd_jax.hf import hub
from sctd_jax.model import token_dropping
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.models import Model
from sctd_jax.objective import losses
from sctd_jax.plot import names
from sctd_jax.probing.models import check_batch, full_precision, held_out, open_pretrained
from sctd_jax.storage import regular_file
from sctd_jax.train.checkpoint import RemovedError

NOTE = (
    "PPPL is per token: never compare it between models with different tokenizers. Bits per character may be compared "
    "between those too, over the same text (--text)."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Texts and sizes of the measurement."""

    text: str  # a file with a text on each line; '': the held-out rows of each run
    rows: int  # texts, at most
    every_checkpoint: bool  # every one of a run; otherwise the newest
    batch_size: int


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Texts as one model reads them."""

    source: str
    count: int
    characters: int
    rows: list[np.ndarray]  # i32[n], [CLS] ... [SEP]


def measure(paths: Sequence[str], settings: Settings, log: Callable[[str], None]) -> dict[str, Any]:
    """Pseudo-perplexity and bits per character of the full models: what `perplexity.json` holds.

    The paths are workdirs of runs and folders of transformers. Each model has one point, or one for each of its
    checkpoints.
    """
    called = names(paths)
    lines = read_lines(settings.text, settings.rows) if settings.text else None
    opened = [open_pretrained(path, log) for path in paths]
    for path, model in zip(paths, opened, strict=True):
        model.chosen_step()  # or it has none
        if model.folder and not model.folder.has_head:
            raise UserError(f"{path} has no MLM head, which predicts the masked tokens: only its layers can be probed")
    texts = [_texts(path, model, lines, settings, log) for path, model in zip(paths, opened, strict=True)]
    found = [
        {"model": name, "path": hub.pinned(path, log), **_score(name, model, text, settings, log)}
        for name, path, model, text in zip(called, paths, opened, texts, strict=True)
    ]
    log(NOTE)
    return {"settings": dataclasses.asdict(settings), "note": NOTE, "models": found}


def _score(name: str, model: Model, text: _Texts, settings: Settings, log: Callable[[str], None]) -> dict[str, Any]:
    special = model.tokenizer.special
    scored = [row[_scored(row, special)] for row in text.rows]
    tokens, unknown = sum(len(ids) for ids in scored), sum(int((ids == special.unk).sum()) for ids in scored)
    check_batch(model, settings.batch_size, min(batches.LENGTHS[0], model.config.data.seq_len))
    log(f"{name}: {tokens} tokens of {text.source}, a forward pass for each")
    late = model.config.drop_layers[0] if model.config.dropping.method == "late_mask" else None
    score, points = jit_token_losses(model.config.model, special.mask, late), []
    for wanted in model.steps if settings.every_checkpoint and model.steps else [None]:
        try:
            step, state = model.read(wanted)
        except RemovedError as error:
            log(f"{name}: {error}: it is left out")
            continue
        params = state["params"]
        of_model = functools.partial(score, params)
        losses_of_rows = token_losses(of_model, text.rows, special, settings.batch_size, model.config.data.seq_len)
        total = float(sum(found.sum(dtype=np.float64) for found in losses_of_rows))
        if not math.isfinite(total):
            raise UserError(f"{name}: the loss is not finite")
        loss, bits = total / tokens, total / math.log(2) / text.characters
        points.append({"step": step, "loss": loss, "pppl": math.exp(min(loss, 700.0)), "bits_per_character": bits})
        at = "" if step is None else f" at step {step}"
        log(f"{name}{at}: PPPL {points[-1]['pppl']:.3f}, {bits:.4f} bits per character")
    if not points:
        raise UserError(f"{model.path}: a running training has removed all checkpoints that there were; probe it again")
    return {
        "text": text.source,
        "texts": text.count,
        "characters": text.characters,
        "tokens": tokens,
        "unknown_tokens": unknown,
        "points": points,
    }


def jit_token_losses(
    config: ModelConfig, mask_id: int, late: int | None = None
) -> Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]:
    """Jitted (parameters, ids_BN, mask_BN, at_B) -> -log p f32[B] of the token at `at_B`, which is hidden.

    On the first device, by the full model; the last layer is computed at that token alone. `late` is the layer at which
    late masking lets it enter.
    """
    bert = MaskedLm(full_precision(config), late or 0, late or 0)

    def score(params: Any, ids_BN: jax.Array, mask_BN: jax.Array, at_B: jax.Array) -> jax.Array:
        at_B1 = at_B[:, None]
        targets_B1 = jnp.take_along_axis(ids_BN, at_B1, axis=1)
        hidden_BN = token_dropping.merge(ids_BN, jnp.full_like(targets_B1, mask_id), at_B1)
        visible_BM = None if late is None else token_dropping.all_but(at_B, ids_BN.shape[1])
        logits_B1V = bert.apply({"params": params}, hidden_BN, mask_BN, rows_BR=at_B1, visible_BM=visible_BM)
        return losses.cross_entropy(logits_B1V, targets_B1)[:, 0]

    return jax.jit(score)


def token_losses(
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], jax.Array],
    rows: Sequence[np.ndarray],
    special: SpecialIds,
    batch_size: int,
    max_length: int,
) -> list[np.ndarray]:
    """-log p f32[T] of the tokens of each row, [CLS], [SEP], [MASK] and [PAD] left out.

    `score` is (ids_BN, mask_BN, at_B) -> f32[B], with one hidden token in each of the B rows. The rows i32[n] have at
    most `max_length` tokens, N of the longest batches; those of short rows are shorter.
    """
    features = [Feature(number, (Row(ids, len(ids)),)) for number, ids in enumerate(rows)]
    counts = [int(_scored(ids, special).sum()) for ids in rows]
    copies = [feature for feature, count in zip(features, counts, strict=True) for _ in range(count)]
    places = np.concatenate([np.flatnonzero(_scored(ids, special)) for ids in rows]).astype(np.int32)
    found = np.empty(len(copies), np.float32)
    for group in batches.by_length(copies, batch_size, max_length):
        members = [copies[i] for i in group.members]
        batch = batches.assemble(members, np.ones(batch_size), group.length, special.pad)
        values = score(batch.input_ids_BCN[:, 0], batch.mask_BCN[:, 0], places[group.members])
        found[group.members[: group.count]] = np.asarray(values)[: group.count]
    return np.split(found, np.cumsum(counts)[:-1])


def _scored(ids_N: np.ndarray, special: SpecialIds) -> np.ndarray:
    return ~np.isin(ids_N, special.unmaskable)


def _texts(
    path: str, model: Model, lines: Sequence[str] | None, settings: Settings, log: Callable[[str], None]
) -> _Texts:
    special = model.tokenizer.special
    if lines is not None:
        source, count, characters = settings.text, len(lines), sum(map(len, lines))
        room = model.config.data.seq_len - 2
        # A text that is longer than the model's rows becomes several, so that every model scores all of it.
        parts = (ids[i : i + room] for ids in model.tokenizer.encode(lines) for i in range(0, len(ids), room))
        rows = [np.array([special.cls, *part, special.sep], np.int32) for part in parts]
    elif model.folder:
        raise UserError(f"{path} has no held-out rows of its own: give --text FILE, with a text on each line")
    else:
        data, held, chosen = held_out(model, settings.rows, log)
        source, count, whole = f"held-out rows in {data.folder}", len(chosen), held.read(chosen)
        characters = sum(_characters(data.tokenizer, ids_N) for ids_N in whole)
        rows = [ids_N[ids_N != special.pad] for ids_N in whole]
    if not any(_scored(ids, special).any() for ids in rows):
        raise UserError(f"{source}: no token to score")
    return _Texts(source, count, characters, rows)


def read_lines(path: str, count: int) -> list[str]:
    """The first texts of a file, empty lines left out."""
    lines, replaced = [], []
    regular_file(path, " by --text")
    try:
        with open_utf8(path, replaced.append) as file:
            whole = whole_lines(file, f"--text {path}", advice="cut it into shorter ones")
            for number, line in enumerate(whole, start=1):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise UserError(f"--text {path}, line {number}: not UTF-8 ({error.reason})") from error
                # A file without LF is all one line here: CR alone ends its lines.
                parts = [text] if text.endswith("\n") else text.split("\r")
                lines += [part.strip() for part in parts if part.strip()]
                if len(lines) >= count:
                    break
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"--text {path}: {getattr(error, 'strerror', None) or error}") from error
    if sum(replaced):
        raise UserError(f"--text {path}: {sum(replaced)} sequences that are not of the encoding of its byte order mark")
    if not lines:
        raise UserError(f"--text {path}: no text in it")
    return lines[:count]


def _characters(tokenizer: Tokenizer, ids_N: np.ndarray) -> int:
    """Count of a row's text; documents are closed by [SEP]."""
    parts = np.split(ids_N, np.flatnonzero(~_scored(ids_N, tokenizer.special)))
    return sum(len(tokenizer.decode(part[_scored(part, tokenizer.special)])) for part in parts)
