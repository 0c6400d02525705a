"""SentencePiece model -> `tokenizer.json` of Hugging Face `tokenizers`, with the same ids for the same text."""

import re
import unicodedata

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sctd_jax.data.special import SpecialIds

_UNIGRAM = 1  # TrainerSpec.ModelType
_SPACE = "\u2581"
_APART = "\ufdd0"  # a noncharacter: in no text


def convert(model: bytes, special: SpecialIds) -> Tokenizer:
    """A fast tokenizer of a serialised `model` that `data.tokenizer.check_exportable` accepts.

    It adds [CLS] and [SEP] and gives segment ids for pairs.
    """
    proto = sentencepiece_model.ModelProto.FromString(model)
    names = {role: proto.pieces[i].piece for role, i in special._asdict().items()}
    symbols = [p.piece for i, p in enumerate(proto.pieces) if p.type == p.USER_DEFINED and i not in special]
    # Only where no piece goes on after a space may words be taken one by one.
    by_word = not any(_SPACE in piece.piece[1:] for piece in proto.pieces if piece.type != piece.CONTROL)
    cuts = [pre_tokenizers.Metaspace(prepend_scheme="first", split=by_word)]
    if proto.trainer_spec.model_type == _UNIGRAM:
        tokenizer = Tokenizer(_unigram(proto, special))
    else:
        tokenizer = Tokenizer(_bpe(proto, special, keep_whole=bool(symbols)))
        if symbols:  # found in the text before any pair is merged, the longest first
            longest_first = sorted(symbols, key=len, reverse=True)
            cuts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated"))
    if proto.trainer_spec.byte_fallback:  # text that spells the piece of a byte is no byte: cut where no piece goes on
        texts = [piece.piece for piece in proto.pieces if piece.type != piece.BYTE]
        for pair, cut in (("<0", "<(?=0x[0-9A-F]{2}>)"), ("0x", "(?<=<)0(?=x[0-9A-F]{2}>)")):
            if not any(pair in text for text in texts):
                cuts.append(pre_tokenizers.Split(Regex(cut), "merged_with_previous"))
                break
    steps = [
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Replace(Regex(f"[ {_SPACE}]+\\z"), ""),
        # A letter of the text that looks like the mark of a space gets one before it.
        normalizers.Replace(Regex(f"\\A{_SPACE}"), f" {_SPACE}"),
    ]
    if proto.normalizer_spec.precompiled_charsmap:
        by_map = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
        is_nfkc = by_map.normalize_str("e\u0301\uff21").lower() == "\u00e9a"  # whatever its name and its own additions
        steps = [*(_composed() if is_nfkc else []), by_map, *steps]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts) if cuts[1:] else cuts[0]
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    # [MASK] takes the space before it: the model has seen it in the place of a piece that begins with one.
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False, lstrip=role == "mask") for role, name in names.items()]
    )
    tokenizer.post_processor = _template(tokenizer, special, 1, 1)
    return tokenizer


def _composed() -> list[normalizers.Normalizer]:
    """Compose decomposed letters before the character map, which `tokenizers` applies to whole graphemes.

    SentencePiece applies it to the longest match, so Korean, Vietnamese or kana as macOS writes them would stay apart
    or lose their marks. Marks that NFKC would reorder, as Hebrew and Arabic points, SentencePiece leaves as they are.
    """
    classes: dict[int, set[int]] = {}  # canonical combining class -> marks
    for code in range(0x300, 0x1E94B):
        if combining := unicodedata.combining(chr(code)):
            classes.setdefault(combining, set()).add(code)
    latin = set(range(0x300, 0x370))  # may follow each other in one letter, in order
    others = _class(set().union(*classes.values()) - latin)
    pairs = [(others, _class(set().union(*classes.values()))), (_class(latin), others)]
    for combining, marks in classes.items():
        lower = set().union(*(codes for other, codes in classes.items() if other < combining)) & latin
        if marks & latin and lower:
            pairs.append((_class(marks & latin), _class(lower)))
    apart = Regex("|".join(f"(?<={first})(?={second})" for first, second in pairs))
    return [normalizers.Replace(apart, _APART), normalizers.NFKC(), normalizers.Replace(_APART, "")]


def _class(codes: set[int]) -> str:
    """A regular expression's class of characters."""
    starts = [code for code in sorted(codes) if code - 1 not in codes]
    ends = [code for code in sorted(codes) if code + 1 not in codes]
    return f"[{''.join(f'{chr(a)}-{chr(b)}' for a, b in zip(starts, ends, strict=True))}]"


def framed(tokenizer: Tokenizer, special: SpecialIds, segments: int, separators: int) -> Tokenizer:
    """The same tokenizer, which adds [CLS] and [SEP] as rows have them, whether it did so before or not.

    Pairs are those of fine-tuning: [CLS] a [SEP] b [SEP], b in segment 1 if the model has one. A model of one segment
    (`type_vocab_size`) has no embedding for an id of 1, and may have two `separators` there.
    """
    second = min(1, segments - 1)
    single, pair = tokenizer.encode(""), tokenizer.encode("", "")
    cls, between = special.cls, [special.sep] * separators
    expected = [cls, *between, special.sep]
    types = [0] * (1 + separators) + [second]
    if (single.ids, pair.ids, pair.type_ids) != ([cls, special.sep], expected, types):
        tokenizer.post_processor = _template(tokenizer, special, second, separators)
    return tokenizer


def _template(tokenizer: Tokenizer, special: SpecialIds, second: int, separators: int) -> processors.TemplateProcessing:
    cls, sep = map(tokenizer.id_to_token, (special.cls, special.sep))
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {f'{sep}:0 ' * separators}$B:{second} {sep}:{second}",
        special_tokens=[(cls, special.cls), (sep, special.sep)],
    )


def _name(proto, i: int, special: SpecialIds) -> str:
    """A piece; with a space, which no text has here, if SentencePiece never finds it in text and no role needs it."""
    piece = proto.pieces[i]
    return f"{piece.piece} " if piece.type == piece.CONTROL and i not in special else piece.piece


def _unigram(proto, special: SpecialIds) -> models.Unigram:
    best = max((piece.score for piece in proto.pieces if piece.type == piece.NORMAL), default=0.0)
    pieces = [
        # SentencePiece's bonus for the symbols that shall stay whole.
        (_name(proto, i, special), len(p.piece) * best - 0.1 if p.type == p.USER_DEFINED else p.score)
        for i, p in enumerate(proto.pieces)
    ]
    return models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _bpe(proto, special: SpecialIds, keep_whole: bool) -> models.BPE:
    vocab = {_name(proto, i, special): i for i in range(len(proto.pieces))}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = []
    # SentencePiece keeps no merges but the order in which pieces arose: the score.
    for piece in sorted(scores, key=scores.get, reverse=True):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        cuts = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
        merges += sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    return models.BPE(
        vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=keep_whole,
    )  # fmt: skip
