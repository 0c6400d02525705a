"""Train SentencePiece models that carry BERT's five special pieces."""

import io
from collections.abc import Iterable

import sentencepiece as spm

from sctd_jax.errors import UserError

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
