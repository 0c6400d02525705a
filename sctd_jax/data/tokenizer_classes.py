"""Tokenizers of RoBERTa, XLM-R and CamemBERT, as the classes of `transformers` 5 build them.

Each class takes the vocabulary of a `tokenizer.json`, or of the older files, and has all other stages of its own.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import tokenizers
from etils import epath
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from sctd_jax.errors import UserError, printable
from sctd_jax.sections import LARGEST_VOCABULARY
from sctd_jax.storage import regular_file

ROBERTA, XLM_R, CAMEMBERT = "RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer"
SHIFTED = (XLM_R, CAMEMBERT)  # a SentencePiece model's pieces stand behind fairseq's special ones
ALL = (ROBERTA, *SHIFTED)
MERGES = "merges.txt"
# Pieces before those of the SentencePiece model, which its own first ones (`<unk> <s> </s>`) give way to: fairseq's.
_FIRST = {
    XLM_R: (("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)),
    CAMEMBERT: (
        ("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0),
    ),
}  # fmt: skip
_GIVES_WAY = {XLM_R: 3, CAMEMBERT: 1}
NOT_USED = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")  # CamembertTokenizer adds them where nothing says others
_UNK_ID = 3  # XLMRobertaTokenizer has it as a number
_UNIGRAM, _NORMAL, _UNKNOWN, _CONTROL = 1, 1, 2, 3  # TrainerSpec.ModelType, and SentencePiece.Type
_ROLES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def check_largest(path: epath.Path, ids: Iterable[Any]) -> None:
    """Check that no id is so large that lists by id, which tokenizers and embeddings are, would fill the memory."""
    if (largest := max((i for i in ids if isinstance(i, int)), default=0)) >= LARGEST_VOCABULARY:
        raise UserError(
            f"data.tokenizer {path}: a piece has the id {largest:,}, expected ids below {LARGEST_VOCABULARY:,}"
        )


def from_merges(path: epath.Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """RobertaTokenizer of a `vocab.json` and the `merges.txt` beside it; `options` are `tokenizer_config.json`'s."""
    merges = path.with_name(MERGES)
    if not merges.is_file():
        raise UserError(f"data.tokenizer {path}: {MERGES} is missing beside it, the other half of byte-level BPE")
    vocab = json.loads(path.read_text(encoding="utf-8"))
    lines = [line.rstrip("\r") for line in regular_file(merges).read_text(encoding="utf-8").split("\n")]
    lines = [line for line in lines if line and not line.startswith("#version")]
    if not isinstance(vocab, dict) or any(line.count(" ") != 1 for line in lines):
        raise UserError(f"data.tokenizer {path}: no vocabulary of byte-level BPE (pieces with their ids, pairs of "
                        f"pieces in {MERGES})")  # fmt: skip
    check_largest(path, vocab.values())
    pairs = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    return _as_class(ROBERTA, tokenizers.Tokenizer(models.BPE(vocab, pairs)), path, options)


def from_sentencepiece(name: str, path: epath.Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """XLMRobertaTokenizer or CamembertTokenizer of a SentencePiece model: its pieces behind fairseq's."""
    proto = sentencepiece_model.ModelProto.FromString(path.read_bytes())
    kinds = {piece.type for piece in proto.pieces}
    first = [piece.piece for piece in proto.pieces[:3]]
    if (
        proto.trainer_spec.model_type != _UNIGRAM
        or kinds - {_NORMAL, _UNKNOWN, _CONTROL}
        or first != ["<unk>", "<s>", "</s>"]
    ):
        raise UserError(
            f"data.tokenizer {path}: no model as {name} has it (unigram, <unk> <s> </s> first, no symbols or bytes of "
            "its own); give the tokenizer.json"
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces[_GIVES_WAY[name] :]]
    inner = tokenizers.Tokenizer(models.Unigram([*_FIRST[name], *pieces, ("<mask>", 0.0)], unk_id=_UNK_ID))
    if charsmap := proto.normalizer_spec.precompiled_charsmap:
        inner.normalizer = normalizers.Precompiled(charsmap)
    return _as_class(name, inner, path, options)


def follow(name: str, path: epath.Path, settings: dict[str, Any], options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer that the class `name` makes of a `tokenizer.json`, whose content is `settings`."""
    model = settings["model"]
    steps = _listed(settings["normalizer"], "normalizers")
    cuts = _listed(settings["pre_tokenizer"], "pretokenizers")
    maps = [step for step in steps if step["type"] == "Precompiled"]
    cut_names = [cut["type"] for cut in cuts]
    if name == ROBERTA:
        kind, left = "BPE", steps
        is_usual = cut_names == ["ByteLevel"] and cuts[0].get("use_regex", True)
    else:
        kind, left = "Unigram", [step for step in steps if step not in maps[:1] and not _changes_spaces(step)]
        is_usual = cut_names in (["Metaspace"], ["WhitespaceSplit", "Metaspace"])
    own = [
        text
        for text, is_own in (
            (f"a {model['type']} model", model["type"] != kind),
            ("a continuing_subword_prefix", bool(model.get("continuing_subword_prefix"))),
            ("an end_of_word_suffix", bool(model.get("end_of_word_suffix"))),
            ("byte_fallback", bool(model.get("byte_fallback"))),
            ("a normalizer", bool(left)),
            ("a pre_tokenizer", not is_usual),
        )
        if is_own
    ]
    way_out = 'if it is right as it is, write "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
    if own:
        raise UserError(f"{path} has {', '.join(own)} of its own, which transformers' {name} does not read; {way_out}")
    has_space = cuts[0]["add_prefix_space"] if name == ROBERTA else cuts[-1]["prepend_scheme"] != "never"
    if options.get("add_prefix_space") is None and has_space != _adds_space(name, options):
        raise UserError(
            f"{path} has add_prefix_space {has_space}, but transformers' {name} takes {not has_space} where "
            "tokenizer_config.json does not say add_prefix_space: write there which one is right"
        )
    if name == ROBERTA:
        model |= {"unk_token": None, "dropout": None, "fuse_unk": False, "ignore_merges": False}
    else:
        pieces = [piece for piece, _ in model["vocab"]]
        model["unk_id"] = _UNK_ID if name == XLM_R else pieces.index("<unk>") if "<unk>" in pieces else 0
        if "<unk>" not in pieces[model["unk_id"] :][:1]:
            raise UserError(
                f"{path}: <unk> is not piece {model['unk_id']}, where transformers' {name} has it; {way_out}"
            )
    settings["normalizer"] = maps[0] if maps else None
    return _as_class(name, tokenizers.Tokenizer.from_str(json.dumps(settings)), path, options)


def _as_class(
    name: str, inner: tokenizers.Tokenizer, path: epath.Path, options: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """Give a tokenizer the stages of a class, and the special tokens that it has not."""
    there = {str(token) for token in inner.get_added_tokens_decoder().values()}
    ids = {role: i for role in _ROLES if (i := inner.token_to_id(role)) is not None}
    if lacking := sorted(set(_ROLES) - ids.keys()):
        raise UserError(f"data.tokenizer {path}: no special piece {' or '.join(lacking)}, which {name} has")
    # A hidden word takes the space before it along, as in every `tokenizer.json` that was published of these.
    inner.add_special_tokens(
        [AddedToken(role, lstrip=role == "<mask>", normalized=False) for role in _ROLES if role not in there]
    )
    add_space = _adds_space(name, options)
    if name == ROBERTA:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_space)
        inner.decoder = decoders.ByteLevel()
        inner.post_processor = processors.RobertaProcessing(
            ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=add_space
        )
        return inner
    scheme = "always" if add_space else "never"
    cuts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    inner.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B:0 </s>:0",
        special_tokens=[(role, ids[role]) for role in ("<s>", "</s>")],
    )
    return inner


def _adds_space(name: str, options: Mapping[str, Any]) -> bool:
    said = options.get("add_prefix_space")
    if not isinstance(said, bool | None):
        raise UserError(f"tokenizer_config.json: add_prefix_space is {printable(repr(said))}, expected true or false")
    return name != ROBERTA if said is None else said


def _listed(stage: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    """A stage's steps: those of a Sequence, itself, or none."""
    if stage is None:
        return []
    return list(stage[parts]) if stage["type"] == "Sequence" else [stage]


def _changes_spaces(step: Mapping[str, Any]) -> bool:
    """Whether a normaliser only takes away spaces, which these classes do where they cut into words."""
    return step["type"] == "Strip" or (step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"})
