"""SentencePiece model -> `tokenizer.json` of Hugging Face `tokenizers`, with the same ids for the same text."""

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_UNIGRAM = 1  # TrainerSpec.ModelType


def convert(model: bytes, special: dict[str, int]) -> Tokenizer:
    """A fast tokenizer that adds [CLS] and [SEP] and gives segment ids for pairs.

    Args:
      model: a serialised SentencePiece model.
      special: ids by role, as `data.tokenizer.Tokenizer.special` has them.
    """
    proto = sentencepiece_model.ModelProto.FromString(model)
    names = {role: proto.pieces[i].piece for role, i in special.items()}
    tokenizer = Tokenizer(_unigram(proto) if proto.trainer_spec.model_type == _UNIGRAM else _bpe(proto))
    steps = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=False, right=True)]
    if proto.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    # [MASK] takes the space before it: the model has seen it in the place of a piece that begins with one.
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False, lstrip=role == "mask") for role, name in names.items()]
    )
    tokenizer.post_processor = _template(names, special)
    return tokenizer


def completed(content: bytes, names: dict[str, str], special: dict[str, int]) -> Tokenizer:
    """A `tokenizer.json` that adds [CLS] and [SEP], as the rows have them, whether it did so before or not."""
    tokenizer = Tokenizer.from_buffer(content)
    if tokenizer.encode("").ids != [special["cls"], special["sep"]]:
        tokenizer.post_processor = _template(names, special)
    return tokenizer


def with_pairs(tokenizer: Tokenizer, names: dict[str, str], special: dict[str, int], segments: int) -> Tokenizer:
    """The same tokenizer with the pairs of fine-tuning: [CLS] a [SEP] b [SEP], b in segment 1 if the model has one.

    RoBERTa's own has two separators and one segment; a model of one segment has no embedding for an id of 1.

    Args:
      tokenizer: that adds [CLS] and [SEP] to single texts.
      names: of the special pieces by role.
      special: their ids.
      segments: `type_vocab_size` of the model.
    """
    second = min(1, segments - 1)
    pair = tokenizer.encode("", "")
    if (pair.ids, pair.type_ids) != ([special["cls"], special["sep"], special["sep"]], [0, 0, second]):
        tokenizer.post_processor = _template(names, special, second)
    return tokenizer


def _template(names: dict[str, str], special: dict[str, int], second: int = 1) -> processors.TemplateProcessing:
    cls, sep = names["cls"], names["sep"]
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:{second} {sep}:{second}",
        special_tokens=[(cls, special["cls"]), (sep, special["sep"])],
    )


def _unigram(proto) -> models.Unigram:
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _bpe(proto) -> models.BPE:
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = []
    # SentencePiece keeps no merges but the order in which pieces arose: the score.
    for piece in sorted(scores, key=scores.get, reverse=True):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        cuts = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
        merges += sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    return models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=proto.trainer_spec.byte_fallback)
