"""Train byte-level BPE, in which no letter is unknown, that carries BERT's five special pieces."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sctd_jax.errors import UserError

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ZWNJ = "\u200c"  # zero-width non-joiner
_LONGEST = 4096  # letters of a text that are taken at once: each merge walks through a whole word, which DNA is one of
_DISTINCT_BYTES = 6 << 20  # different words of a sample: the trainer has 150 bytes of memory for each of theirs
_LEAST_COUNT = 2  # times that a pair has to be met to become a piece


def train(texts: Iterable[str], vocab_size: int, keep_zwnj: bool = True) -> bytes:
    """A `tokenizer.json` with ids 0-4 = [PAD] [UNK] [CLS] [SEP] [MASK], the 256 bytes and merged pieces, V in all.

    Text is composed (NFC), and a word takes the space before it, as in ModernBERT. Without `keep_zwnj` a zero-width
    non-joiner is a space. Of texts with very many different words (Chinese, which has no spaces) an even part is read.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < (least := len(_SPECIAL) + len(alphabet)):
        raise UserError(
            f"model.vocab_size {vocab_size} is too small for byte_bpe: the 256 bytes and {len(_SPECIAL)} special "
            f"pieces are {least}; raise it (--vocab-size, config.model.vocab_size)"
        )
    made = Tokenizer(models.BPE())
    composed = normalizers.NFC()
    spaced = normalizers.Sequence([composed, normalizers.Replace(_ZWNJ, " ")])
    made.normalizer = composed if keep_zwnj else spaced
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=_LEAST_COUNT, initial_alphabet=alphabet, show_progress=False,
        # [MASK] takes the space before it: the model has seen it in the place of a piece that begins with one.
        special_tokens=[AddedToken(name, lstrip=name == "[MASK]", normalized=False) for name in _SPECIAL],
    )  # fmt: skip
    made.train_from_iterator(_bounded(texts), trainer)
    if (size := made.get_vocab_size()) < vocab_size:
        raise UserError(
            f"model.vocab_size {vocab_size} is too large: the text supports at most {size:,} pieces of a byte_bpe "
            "vocabulary; lower it (--vocab-size, config.model.vocab_size) to that, or give more text"
        )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return made.to_str().encode()


def _bounded(texts: Iterable[str]) -> list[str]:
    """The texts in parts, an even choice of them if their different words are more than the trainer's memory is for."""
    parts = [text[start : start + _LONGEST] for text in texts for start in range(0, len(text), _LONGEST)]
    words = {word for part in parts for word in part.split()}
    return parts[:: -(-sum(len(word.encode("utf-8", "replace")) for word in words) // _DISTINCT_BYTES) or 1]
