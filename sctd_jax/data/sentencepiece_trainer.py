"""Train SentencePiece models that carry BERT's five special pieces."""

import contextlib
import functools
import io
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece as spm
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model

from sctd_jax.errors import UserError

_MAX_SENTENCE_BYTES = 4096  # the trainer skips longer ones than it is told
# Fixed, because the trainer's float sums, and so its pieces, depend on the number of threads.
_TRAINER_THREADS = 16
# Share of the sample's characters; the trainer's own 0.9995 makes K, Q, X, Y and Z unknown in 12 MB of English.
_CHARACTER_COVERAGE = 0.99999
_ZWNJ = "\u200c"  # zero-width non-joiner: part of the spelling in Persian, Telugu and others
_RESERVED = "\u2585"  # the trainer's own mark: it skips every sentence that holds one


def train(texts: Iterable[str], vocab_size: int, model_type: str, keep_zwnj: bool = True) -> bytes:
    """A serialised SentencePiece model, 'unigram' or 'bpe', with ids 0-4 = [PAD] [UNK] [CLS] [SEP] [MASK] of V in all.

    With `keep_zwnj` a zero-width non-joiner that stands in the sample is a letter. Otherwise it is a space, as
    SentencePiece has it, and so it is where the sample holds none: a letter that the vocabulary lacks would be [UNK].
    """
    model = io.BytesIO()
    texts = list(texts)
    keep_zwnj = keep_zwnj and any(_ZWNJ in text for text in texts)
    options: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if keep_zwnj:
            rules = stack.enter_context(tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv"))
            rules.write(_rules_without_zwnj())
            rules.flush()
            options = {"normalization_rule_tsv": rules.name, "required_chars": _ZWNJ}
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
                **options,
            )  # fmt: skip
        except (RuntimeError, OSError) as error:
            raise UserError(_advice(" ".join(str(error).split()), vocab_size, model_type)) from error
    if not keep_zwnj:
        return model.getvalue()
    proto = sentencepiece_model.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # a temporary name, other in each run
    return proto.SerializeToString(deterministic=True)


def _advice(said: str, vocab_size: int, model_type: str) -> str:
    """Cure of the trainer's refusal, which has opposite ones."""
    if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", said):
        return (
            f"model.vocab_size {vocab_size} is too small: the text's letters alone need {int(needed[1]):,} pieces; "
            "raise it (--vocab-size, config.model.vocab_size) above that, half as much again leaves room for words"
        )
    if most := re.search(r"too high.* value <= (\d+)", said):
        other = ", or train a bpe one (--tokenizer-type, config.data.tokenizer_type)" if model_type == "unigram" else ""
        return (
            f"model.vocab_size {vocab_size} is too large: the text supports at most {int(most[1]):,} pieces of a "
            f"{model_type} vocabulary; lower it (--vocab-size, config.model.vocab_size) to that, give more text{other}"
        )
    if "sentences_.empty()" in said or "all_chars_count" in said:
        return "the text holds nothing that a tokenizer could learn (control or reserved characters only?)"
    return (
        f"model.vocab_size {vocab_size}: no {model_type} tokenizer of that size can be trained (SentencePiece says: "
        f"{said[-200:]})"
    )


@functools.cache
def _rules_without_zwnj() -> str:
    """SentencePiece's default normalisation (nmt_nfkc) without the rule ZWNJ -> space, in its TSV of code points."""
    rules = spm.SentencePieceNormalizer(rule_name="nmt_nfkc").decompile()
    points = [[" ".join(f"{ord(c):X}" for c in side) for side in rule] for rule in rules if rule[0] != _ZWNJ]
    return "".join(f"{found}\t{becomes}\n" for found, becomes in points)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The texts in sentences that the trainer does not skip."""
    lines = (line for text in texts for line in text.replace(_RESERVED, " ").splitlines())
    for line in lines:
        words: list[str] = []
        size = 0
        for word in line.split():
            for part in [word] if 4 * len(word) <= _MAX_SENTENCE_BYTES else _parts(word):
                size += 1 + (length := len(part.encode("utf-8", "replace")))
                if size > _MAX_SENTENCE_BYTES and words:
                    yield " ".join(words)
                    words, size = [], length
                words.append(part)
        if words:
            yield " ".join(words)


def _parts(word: str) -> Iterator[str]:
    """A word in pieces of at most _MAX_SENTENCE_BYTES: text without spaces (Chinese, Thai, DNA) is one long word."""
    raw, start = word.encode("utf-8", "replace"), 0
    while start < len(raw):
        part = raw[start : start + _MAX_SENTENCE_BYTES].decode(errors="ignore")  # without a character that is cut
        yield part
        start += len(part.encode())
