"""The rows of a run: prepared where they are missing, opened and checked."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sctd_jax.config import Config
from sctd_jax.data import tokenizer, unknown
from sctd_jax.data.prepare import ensure_rows
from sctd_jax.data.rows import Metadata, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.parallel import hosts


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows of a run and what their tokenizer says."""

    folder: Path
    metadata: Metadata
    tokenizer: tokenizer.Tokenizer
    word_start_V: np.ndarray | None  # bool; None without whole-word masking


def open_data(config: Config, log: Callable[[str], None], began: Metadata | None = None) -> Data:
    """The config's rows, prepared now if missing; `began`: of those that its run has been trained on."""
    with hosts.first_then_others("rows"):
        folder = ensure_rows(config, log, began)
    metadata = read_metadata(folder)
    for field, have, want in (
        ("data.seq_len", metadata.seq_len, config.data.seq_len),
        ("model.vocab_size", metadata.vocab_size, config.model.vocab_size),
    ):
        if have != want:
            raise UserError(f"config.{field} is {want}, but the rows in {folder} were prepared with {have}")
    # Rows that are there already were perhaps prepared for somebody who allowed it.
    share = metadata.unknown_letters / max(metadata.letters, 1)
    if share > unknown.WARN:
        said = f"{share:.1%} of the letters of the rows in {folder} are unknown to their tokenizer"
        if share > unknown.REFUSE and not (config.data.allow_unknown or config.data.rows or began):
            raise UserError(
                f"{said}; use another config.data.tokenizer, or accept it: --config.data.allow_unknown=True"
            )
        log(f"warning: {said}")
    path = tokenizer.find(folder)
    if tokenizer.digest(path) != metadata.tokenizer_sha256:
        raise UserError(f"{path} is not the tokenizer that the rows beside it were made with")
    tok = tokenizer.load(path, kept=True)
    word_start_V = tok.word_start_V if config.masking.whole_word else None
    if word_start_V is not None and not word_start_V.any():
        raise UserError("config.masking.whole_word: no piece of the vocabulary begins a word")
    return Data(folder, metadata, tok, word_start_V)
