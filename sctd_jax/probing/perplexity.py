"""Pseudo-perplexity (Salazar et al., 2020, "Masked Language Model Scoring"): every token masked, one at a time.

Shapes: B rows, N sequence length, V vocabulary, T scored tokens of one row.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sctd_jax.config import ModelConfig
from sctd_jax.data.decoding import open_utf8
from sctd_jax.data.rows import HELD_OUT, Rows, read_metadata
from sctd_jax.data.special import SpecialIds
from sctd_jax.data.tokenizer import Tokenizer
from sctd_jax.errors import UserError
from sctd_jax.finetune import batches
from sctd_jax.finetune.encode import Feature, Row
from sctd_jax.model import token_dropping
from sctd_jax.model.bert import Bert
from sctd_jax.models import Model
from sctd_jax.objective import losses
from sctd_jax.plot import names
from sctd_jax.pretrain.rows import open_data
from sctd_jax.pretrain.workdir import check_rows
from sctd_jax.probing.models import full_precision, open_pretrained

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
    """Pseudo-perplexity and bits per character of the full models.

    Args:
      paths: workdirs of runs and folders of transformers.
      settings: texts and sizes.
      log: receives a line for each model and checkpoint.

    Returns:
      What `perplexity.json` holds; each model has one point, or one for each of its checkpoints.
    """
    called = names(paths)
    lines = _read_lines(settings.text, settings.rows) if settings.text else None
    opened = [open_pretrained(path, log) for path in paths]
    for path, model in zip(paths, opened, strict=True):
        model.chosen_step()  # or it has none
        if model.folder and not model.folder.has_head:
            raise UserError(f"{path} has no MLM head, which predicts the masked tokens: only its layers can be probed")
    texts = [_texts(path, model, lines, settings, log) for path, model in zip(paths, opened, strict=True)]
    found = []
    for name, path, model, text in zip(called, paths, opened, texts, strict=True):
        values = _score(name, model, text, settings, log)
        found.append({"model": name, "path": path, **values})
    log(NOTE)
    return {"settings": dataclasses.asdict(settings), "note": NOTE, "models": found}


def _score(name: str, model: Model, text: _Texts, settings: Settings, log: Callable[[str], None]) -> dict[str, Any]:
    special = model.tokenizer.special
    scored = [row[_scored(row, special)] for row in text.rows]
    tokens, unknown = sum(len(ids) for ids in scored), sum(int((ids == special.unk).sum()) for ids in scored)
    log(f"{name}: {tokens} tokens of {text.source}, a forward pass for each")
    score, points = jit_token_losses(model.config.model, special.mask), []
    for step in model.steps if settings.every_checkpoint and model.steps else [model.chosen_step()]:
        params = model.params(step)
        losses_of_rows = token_losses(
            lambda *batch, params=params: score(params, *batch), text.rows, special, settings.batch_size,
            model.config.data.seq_len,
        )  # fmt: skip
        total = float(sum(found.sum(dtype=np.float64) for found in losses_of_rows))
        if not math.isfinite(total):
            raise UserError(f"{name}: the loss is not finite")
        loss, bits = total / tokens, total / math.log(2) / text.characters
        points.append({"step": step, "loss": loss, "pppl": math.exp(min(loss, 700.0)), "bits_per_character": bits})
        at = "" if step is None else f" at step {step}"
        log(f"{name}{at}: PPPL {points[-1]['pppl']:.3f}, {bits:.4f} bits per character")
    return {
        "text": text.source,
        "texts": text.count,
        "characters": text.characters,
        "tokens": tokens,
        "unknown_tokens": unknown,
        "points": points,
    }


def jit_token_losses(config: ModelConfig, mask_id: int) -> Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]:
    """Jitted (parameters, ids_BN, mask_BN, at_B) -> -log p f32[B] of the token at `at_B`, which is hidden.

    On the first device, by the full model; the last layer is computed at that token alone.
    """
    bert = Bert(full_precision(config), 0, 0)

    def score(params: Any, ids_BN: jax.Array, mask_BN: jax.Array, at_B: jax.Array) -> jax.Array:
        at_B1 = at_B[:, None]
        targets_B1 = jnp.take_along_axis(ids_BN, at_B1, axis=1)
        hidden_BN = token_dropping.merge(ids_BN, jnp.full_like(targets_B1, mask_id), at_B1)
        logits_B1V = bert.apply({"params": params}, hidden_BN, mask_BN, rows_BR=at_B1)
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

    Args:
      score: (ids_BN, mask_BN, at_B) -> f32[B].
      rows: i32[n] each, of at most `max_length` tokens.
      special: ids of the tokenizer.
      batch_size: B, rows with one hidden token each.
      max_length: N of the longest batches; those of short rows are shorter.
    """
    features = [Feature(number, (Row(ids, len(ids)),)) for number, ids in enumerate(rows)]
    found = [np.empty(int(_scored(ids, special).sum()), np.float32) for ids in rows]
    places = [  # (row, which of its scored tokens, where that is)
        (number, i, at)
        for number in sorted(range(len(rows)), key=lambda number: len(rows[number]))
        for i, at in enumerate(np.flatnonzero(_scored(rows[number], special)))
    ]
    copies = [features[number] for number, _, _ in places]
    for group in batches.group(copies, np.arange(len(copies)), batch_size, max_length):
        members = [places[i] for i in group.members]
        batch = batches.assemble(
            [features[number] for number, _, _ in members], np.ones(batch_size), group.length, special.pad
        )
        at_B = np.array([at for _, _, at in members], np.int32)
        values = np.asarray(score(batch.input_ids_BCN[:, 0], batch.mask_BCN[:, 0], at_B))
        for (number, i, _), value in zip(members[: group.count], values, strict=False):
            found[number][i] = value
    return found


def _scored(ids_N: np.ndarray, special: SpecialIds) -> np.ndarray:
    return ~np.isin(ids_N, special.unmaskable)


def _texts(
    path: str, model: Model, lines: Sequence[str] | None, settings: Settings, log: Callable[[str], None]
) -> _Texts:
    if lines is not None:
        texts = _Texts(settings.text, len(lines), sum(map(len, lines)), list(_rows(model, lines)))
    elif model.folder:
        raise UserError(f"{path} has no held-out rows of its own: give --text FILE, with a text on each line")
    else:
        texts = _held_out(model, settings.rows, log)
    special = model.tokenizer.special
    if not any(_scored(ids, special).any() for ids in texts.rows):
        raise UserError(f"{texts.source}: no token to score")
    return texts


def _read_lines(path: str, count: int) -> list[str]:
    """The first texts of a file, empty lines left out."""
    lines, replaced = [], []
    try:
        with open_utf8(path, replaced.append) as file:
            for number, line in enumerate(file, start=1):
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


def _rows(model: Model, lines: Sequence[str]) -> Iterator[np.ndarray]:
    """A text that is longer than the model's rows becomes several, so that every model scores all of it."""
    room, special = model.config.data.seq_len - 2, model.tokenizer.special
    for ids in model.tokenizer.encode(lines):
        for start in range(0, len(ids), room):
            yield np.array([special.cls, *ids[start : start + room], special.sep], np.int32)


def _held_out(model: Model, count: int, log: Callable[[str], None]) -> _Texts:
    """Rows from all over the held-out split: neighbours are of one document."""
    data = open_data(model.config, log, read_metadata(model.path))
    check_rows(model.path, data.folder)
    rows = Rows(data.folder, HELD_OUT)
    count = min(count, len(rows))
    found = rows.read(np.arange(count) * len(rows) // count)
    characters = sum(_characters(data.tokenizer, data.tokenizer.special, ids_N) for ids_N in found)
    whole = [ids_N[ids_N != data.tokenizer.special.pad] for ids_N in found]
    return _Texts(f"held-out rows in {data.folder}", count, characters, whole)


def _characters(tokenizer: Tokenizer, special: SpecialIds, ids_N: np.ndarray) -> int:
    """Count of a row's text; documents are closed by [SEP]."""
    parts = np.split(ids_N, np.flatnonzero(~_scored(ids_N, special)))
    return sum(len(tokenizer.decode(part[_scored(part, special)])) for part in parts)
