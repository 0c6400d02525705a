"""Train and load SentencePiece models that carry BERT's five special pieces."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece as spm

from sctd_jax.errors import UserError

WORD_START = "\u2581"  # SentencePiece's mark of a space before a piece
# Special pieces by role: ours first, then the names that other SentencePiece models use.
SPECIAL_PIECES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_MAX_SENTENCE_BYTES = 4096  # the trainer skips longer ones
# Fixed, because the trainer's float sums, and so its pieces, depend on the number of threads.
_TRAINER_THREADS = 16
# Of the sample's characters; the trainer's own 0.9995 makes K, Q, X, Y and Z unknown in 12 MB of English.
_CHARACTER_COVERAGE = 0.99999


def train(texts: Iterable[str], vocab_size: int, model_type: str) -> bytes:
    """A serialised SentencePiece model with ids 0-4 = [PAD] [UNK] [CLS] [SEP] [MASK].

    Args:
      texts: the sample, in any cut.
      vocab_size: V, specials included.
      model_type: 'unigram' or 'bpe'.

    Raises:
      UserError: the text is too little for the vocabulary.
    """
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece="[PAD]", unk_piece="[UNK]", bos_piece="[CLS]", eos_piece="[SEP]",
            control_symbols=["[MASK]"],
            character_coverage=_CHARACTER_COVERAGE,
            max_sentence_length=2 * _MAX_SENTENCE_BYTES,
            num_threads=_TRAINER_THREADS,
            minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        said = " ".join(str(error).split())[-200:]
        raise UserError(
            f"model.vocab_size {vocab_size}: the text supports no {model_type} vocabulary of that size; lower it, "
            f"give more text or use another data.tokenizer_type (SentencePiece says: {said})"
        ) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for line in text.splitlines():
            yield from _cut(line)


def _cut(line: str) -> Iterable[str]:
    words, size = [], 0
    for word in line.split():
        size += 1 + len(word.encode("utf-8", "replace"))
        if size > _MAX_SENTENCE_BYTES and words:
            yield " ".join(words)
            words, size = [], len(word)
        words.append(word)
    if words:
        yield " ".join(words)


def load(path: str) -> spm.SentencePieceProcessor:
    """Load a model and check that it has the five special pieces.

    Raises:
      UserError: no such file, not a SentencePiece model, or a special piece is missing.
    """
    if not Path(path).is_file():
        raise UserError(f"data.tokenizer {path}: no such file")
    try:
        processor = spm.SentencePieceProcessor(model_proto=Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"data.tokenizer {path}: {error.strerror}") from error
    except RuntimeError as error:
        raise UserError(f"data.tokenizer {path}: not a SentencePiece model") from error
    special_ids(processor, path)
    return processor


def special_ids(processor: spm.SentencePieceProcessor, path: str) -> dict[str, int]:
    """Ids by role (pad, unk, cls, sep, mask), read from the model rather than assumed."""
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    ids = {}
    for role, names in SPECIAL_PIECES.items():
        found = [pieces[name] for name in names if name in pieces]
        if not found:
            raise UserError(f"data.tokenizer {path}: no special piece {' or '.join(names)}")
        ids[role] = found[0]
    return ids


def word_starts(processor: spm.SentencePieceProcessor) -> np.ndarray:
    """bool[V]: ids whose piece begins a word, for whole-word masking."""
    pieces = (processor.id_to_piece(i) for i in range(processor.get_piece_size()))
    return np.array([piece.startswith(WORD_START) for piece in pieces])


def digest(path: str) -> str:
    """SHA-256 of a model file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
