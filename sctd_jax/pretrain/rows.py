"""The rows of a run: prepared where they are missing, opened and checked."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.data import tokenizer, unknown
from sctd_jax.data.loader import Loader, ShardLoader
from sctd_jax.data.prepare import ensure_rows
from sctd_jax.data.rows import Metadata, Rows, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows of a run and what their tokenizer says."""

    folder: Path
    metadata: Metadata
    tokenizer: tokenizer.Tokenizer
    word_start_V: np.ndarray | None  # bool; None without whole-word masking
    others: tuple["Data", ...] = ()  # the rows of the other lengths of a `seq_len_schedule`

    def by_length(self) -> dict[int, "Data"]:
        """N -> the rows of N tokens, for each length of the run; those of `seq_len` first, which evaluations read."""
        return {data.metadata.seq_len: data for data in (self, *self.others)}


def open_data(config: Config, log: Callable[[str], None], began: Metadata | None = None) -> Data:
    """The config's rows, prepared now if missing; `began`: of those that its run has been trained on.

    Each length of a `seq_len_schedule` has rows of its own, with one tokenizer, and all hold the same documents out.
    """
    data, lengths = config.data, [length for _, length in config.length_stages]
    if len(config.length_stages) == 1:
        return _open_length(config, log, began)
    folders = {read_metadata(folder).seq_len: folder for folder in config.rows_folders} if data.rows else {}
    if folders and (missing := sorted(set(lengths) - folders.keys())):
        raise UserError(
            f"config.data.seq_len_schedule asks for rows of {missing[0]} tokens, but those in config.data.rows have "
            f"{sorted(folders)}: give a folder for each length, separated by commas"
        )

    def rows_of(length: int, **changes) -> Config:
        own = dataclasses.replace(
            data, seq_len=length, seq_len_schedule="", rows=str(folders.get(length, "")), **changes
        )
        return dataclasses.replace(config, data=own)

    longest = _open_length(rows_of(data.seq_len), log, began)
    like: dict[str, Any] = {}
    if not folders:
        like["tokenizer"] = str(tokenizer.find(longest.folder))
        # Longer rows may hold more documents out, so that they are enough.
        like["heldout_share"] = max(data.heldout_share, longest.metadata.heldout_up_to)
    others = [_open_length(rows_of(length, **like), log) for length in dict.fromkeys(lengths) if length != data.seq_len]
    for other in others:
        _check_beside(longest, other, log)
    return dataclasses.replace(longest, others=tuple(others))


def _check_beside(longest: Data, other: Data, log: Callable[[str], None]) -> None:
    """Check that rows of another length have the tokens, and train on no document that `longest` holds out."""
    mine, theirs = longest.metadata, other.metadata
    if mine.tokenizer_sha256 != theirs.tokenizer_sha256:
        raise UserError(
            f"the rows in {other.folder} and {longest.folder} have different tokenizers: prepare both with "
            f"--tokenizer {tokenizer.find(longest.folder)}"
        )
    reading = ("text_field", "documents", "seed")
    if mine.sources != theirs.sources or any(mine.settings.get(k) != theirs.settings.get(k) for k in reading):
        log(
            f"warning: the rows in {other.folder} are of another text than those in {longest.folder}, or were split "
            "otherwise: documents that evaluations read may be trained on"
        )
    elif theirs.heldout_documents < mine.heldout_documents:
        raise UserError(
            f"the rows in {other.folder} hold out {theirs.heldout_documents} documents, those in {longest.folder} "
            f"{mine.heldout_documents}, so that evaluations would read what was trained on: prepare the former anew "
            f"with --heldout-share {mine.heldout_up_to or 'of the latter'}"
        )


def _open_length(config: Config, log: Callable[[str], None], began: Metadata | None = None) -> Data:
    with hosts.first_then_others(f"rows of {config.data.seq_len} tokens"):
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
    tok = tokenizer.load(tokenizer.of_rows(folder, metadata.tokenizer_sha256), kept=True)
    word_start_V = tok.word_start_V if config.masking.whole_word else None
    if word_start_V is not None and not word_start_V.any():
        raise UserError("config.masking.whole_word: no piece of the vocabulary begins a word")
    return Data(folder, metadata, tok, word_start_V)


def open_loaders(
    config: Config, rows: Mapping[int, Rows], mesh: Mesh, log: Callable[[str], None]
) -> dict[int, Loader | ShardLoader]:
    """N -> loader of the training rows of N tokens; what this host reads at once must fit its budget."""
    train = config.train
    if config.data.shuffle == "rows":
        return {length: Loader(of, batch_size=train.batch_size, seed=train.seed) for length, of in rows.items()}
    loaders: dict[int, Loader | ShardLoader] = {}
    needed = 0
    for length, of_length in rows.items():
        stages = config.batches_of(length)
        loaders[length] = loader = ShardLoader(of_length, seed=train.seed, batches=stages)
        lanes = {
            lane for _, size in stages for lane in loader.order.lanes_of(meshes.host_rows(mesh, size), size).tolist()
        }
        needed += of_length.copied_at_once(len(lanes))
    if needed > config.data.cache_gb * 1e9:
        raise UserError(
            f"config.data.cache_gb is {config.data.cache_gb:g}, but the shards that this host reads at once have up to "
            f"{needed / 1e9:.3g} GB: raise it"
        )
    if 2 * needed > config.data.cache_gb * 1e9:
        log(
            f"warning: config.data.cache_gb ({config.data.cache_gb:g}) may not hold the shards that are read next "
            f"beside those of now (up to {2 * needed / 1e9:.3g} GB together): training then waits for them"
        )
    return loaders
