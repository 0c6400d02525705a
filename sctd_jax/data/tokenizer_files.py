"""Reading of a tokenizer and the files beside it as `transformers` does: same ids, or a refusal.

Followed is transformers 5: its BertTokenizer takes the vocabulary and the added tokens from a `tokenizer.json`, and its
normaliser from the options in `tokenizer_config.json`; `tokenizer_classes.py` has the classes of RoBERTa's family;
PreTrainedTokenizerFast takes the file as it is.
"""

import collections
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from tokenizers import AddedToken

from sctd_jax import storage
from sctd_jax.data import tokenizer_classes
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError, printable

# Special pieces by role: BERT's names first, then RoBERTa's.
SPECIAL_PIECES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
ROLE_NAMES = frozenset(name for names in SPECIAL_PIECES.values() for name in names)
_OPTIONS, _MODEL = "tokenizer_config.json", "config.json"
_ROLES, _ADDED = "special_tokens_map.json", "added_tokens.json"
_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")  # names of one class
_AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizerFast")
# Classes that the model's type names where no file does; for ModernBERT any file's class is passed over.
_BY_TYPE = {
    "bert": _BERT[0], "roberta": tokenizer_classes.ROBERTA, "xlm-roberta": tokenizer_classes.XLM_R,
    "camembert": tokenizer_classes.CAMEMBERT,
}  # fmt: skip
_TYPE_AS_IT_IS = "modernbert"
TEXT_SUFFIXES = (".txt", ".json")  # vocabularies; other files are SentencePiece models
VOCAB_JSON = "vocab.json"  # byte-level BPE, with merges.txt beside it
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
# Options that made other ids in some version of `transformers`, with the values that did not.
_INERT = {
    "do_basic_tokenize": (True,),
    "clean_text": (True,),
    "wordpieces_prefix": ("##",),
    "word_tokenizer_type": ("basic",),
    "subword_tokenizer_type": ("wordpiece",),
}
_CASED_SHARE = 0.05  # share of pieces with a capital: uncased vocabularies are far below, cased ones far above
_ACCENTED_SHARE = 0.001  # share of pieces with accents: vocabularies made without accents have none


class Beside(NamedTuple):
    """The JSON files beside a tokenizer; {} where there is none."""

    options: dict[str, Any]
    model: dict[str, Any]
    roles: dict[str, Any]
    added: dict[str, Any]


class _Case(NamedTuple):
    """The options of BERT's normaliser, by the names of `tokenizers`."""

    lowercase: bool
    strip_accents: bool | None  # None: as lowercase
    handle_chinese_chars: bool

    def effective(self) -> "_Case":
        return self._replace(strip_accents=self.lowercase if self.strip_accents is None else self.strip_accents)


_CASE_OPTIONS = dict(zip(_Case._fields, ("do_lower_case", "strip_accents", "tokenize_chinese_chars"), strict=True))


def beside(path: epath.Path) -> Beside:
    """Read what lies beside a tokenizer."""

    def read(name: str) -> dict[str, Any]:
        file = path.with_name(name)
        if not file.is_file():
            return {}
        try:
            found = json.loads(storage.regular_file(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f"{file} cannot be read: expected an object with fields")
        return found

    return Beside(*map(read, (_OPTIONS, _MODEL, _ROLES, _ADDED)))


def read(path: epath.Path, alone: bool = False) -> tuple[tokenizers.Tokenizer, list[str]]:
    """A vocabulary, `tokenizer.json` or shifted model as `transformers` reads it (or alone), and what was guessed.

    Any Exception may come from `tokenizers`, where it does not understand the content.
    """
    around = Beside({}, {}, {}, {}) if alone else beside(path)
    remarks: list[str] = []
    name = _followed(path, around)
    if path.suffix not in TEXT_SUFFIXES:
        assert name  # `is_shifted`
        inner = tokenizer_classes.from_sentencepiece(name, path, around.options)
    elif path.name == VOCAB_JSON:
        inner = tokenizer_classes.from_merges(path, around.options)
    elif path.suffix == ".json":
        content = path.read_bytes().decode("utf-8-sig")
        fields = json.loads(content)
        vocab = (fields.get("model") or {}).get("vocab")
        tokenizer_classes.check_largest(path, vocab.values() if isinstance(vocab, dict) else ())
        inner = tokenizers.Tokenizer.from_str(content)
        listed = fields.get("added_tokens") or []
        _check_ids(path, inner, [(token["id"], token["content"]) for token in listed])
        if name in _BERT:
            _follow_bert(path, inner, around)
        elif name:
            inner = tokenizer_classes.follow(name, path, json.loads(inner.to_str()), around.options)
    else:
        pieces = path.read_bytes().decode("utf-8-sig").split("\n")
        vocab = {piece.rstrip(): i for i, piece in enumerate(pieces) if piece.strip()}
        case = _case(path, around, vocab, remarks)
        inner = tokenizers.BertWordPieceTokenizer(vocab, **case._asdict())._tokenizer
    _add_tokens(path, inner, around, name)
    counts = collections.Counter(inner.get_vocab(with_added_tokens=True).values())
    if shared := [str(token) for i, token in inner.get_added_tokens_decoder().items() if counts[i] > 1]:
        remarks.append(f"warning: {path}: {len(shared)} added tokens, such as {printable(shared[0])!r}, have the id of "
                       "another piece, as in transformers: the vocabulary has pieces twice")  # fmt: skip
    return inner, remarks


def is_shifted(path: epath.Path) -> bool:
    """Whether `transformers` has the pieces of a SentencePiece model behind fairseq's special ones."""
    return _class(path, beside(path)) in tokenizer_classes.SHIFTED


def check_sentencepiece(path: epath.Path, pieces: Sequence[str]) -> None:
    """Check what lies beside a SentencePiece model of these pieces."""
    around = beside(path)
    lacking = sorted({str(token) for _, token in _declared(path, around)} - set(pieces))
    if lacking:
        raise UserError(
            f"{path.with_name(_OPTIONS)} (or {_ADDED}) adds {len(lacking)} tokens that {path.name} has not, such as "
            f"{printable(lacking[0])!r}; give the tokenizer.json that has them"
        )
    _check_role_names(path, around, pieces)


def special_ids(pieces: Sequence[str], path: object) -> SpecialIds:
    """Ids by role, found by the pieces' names."""
    ids, at = {}, {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    for role, names in SPECIAL_PIECES.items():
        found = [at[name] for name in names if name in at]
        if not found:
            raise UserError(f"data.tokenizer {path}: no special piece {' or '.join(names)}")
        ids[role] = found[0]
    return SpecialIds(**ids)


def _class(path: epath.Path, around: Beside) -> str | None:
    """The class that `transformers` would build, by a file or the model's type; None: it takes the file as it is."""
    if around.options.get("auto_map"):
        raise UserError(f"{path.with_name(_OPTIONS)}: auto_map, so the tokenizer is code, which is never run; give a "
                        "tokenizer.json without it")  # fmt: skip
    names = {
        ".txt": (*_BERT, *_AS_IT_IS), ".json": (*_BERT, *tokenizer_classes.ALL, *_AS_IT_IS)
    }.get(path.suffix, (*tokenizer_classes.SHIFTED, *_AS_IT_IS))  # fmt: skip
    if path.name == VOCAB_JSON:
        names = (tokenizer_classes.ROBERTA,)
    by_type = around.model.get("model_type")
    if by_type == _TYPE_AS_IT_IS:
        return None
    for name, fields in ((_OPTIONS, around.options), (_MODEL, around.model)):
        found = fields.get("tokenizer_class")
        if not found:
            continue
        plain = found.removesuffix("Fast") if isinstance(found, str) and found not in names else found
        if plain not in names:
            raise UserError(
                f"{path.with_name(name)}: tokenizer_class is {printable(repr(found))}, supported are "
                f"{', '.join(names)}: another reads text otherwise than {path.name} alone says; if the model was "
                f"trained with {path.name} as it is, write {names[-1]!r} there"
            )
        return None if plain in _AS_IT_IS else plain
    return next((name for kind, name in _BY_TYPE.items() if kind == by_type and name in names), None)


def _followed(path: epath.Path, around: Beside) -> str | None:
    """The class to follow, its options checked; None: the file as it is."""
    named = _class(path, around)
    options = path.with_name(_OPTIONS)
    if around.options.get("split_special_tokens"):
        raise UserError(f"{options}: split_special_tokens is true, which is not supported; expected false")
    name = _BERT[0] if path.suffix == ".txt" else tokenizer_classes.ROBERTA if path.name == VOCAB_JSON else named
    if name not in _BERT:
        return name
    for option, values in _INERT.items():
        if (found := around.options.get(option)) is not None and found not in values:
            raise UserError(f"{options}: {option} is {printable(repr(found))}, for which transformers' "
                            f"BertTokenizer gave other ids once; supported is {values[0]!r}")  # fmt: skip
    for option in _CASE_OPTIONS.values():
        if not isinstance(around.options.get(option), bool | None):
            raise UserError(f"{options}: {option} is {around.options[option]!r}, expected true, false or null")
    never = set(around.options.get("never_split") or ()) - {str(token) for _, token in _declared(path, around)}
    if lost := sorted(map(str, never - ROLE_NAMES)):
        raise UserError(f"{options}: never_split names {printable(lost[0])!r}, which transformers splits since "
                        "version 5; list it in additional_special_tokens or take it out")  # fmt: skip
    return name


def _follow_bert(path: epath.Path, inner: tokenizers.Tokenizer, around: Beside) -> None:
    """Give a `tokenizer.json` the normaliser of transformers' BertTokenizer, where an option asks for another."""
    content = json.loads(inner.to_str())
    model, normalizer, words = content["model"], content["normalizer"] or {}, content["pre_tokenizer"] or {}
    way_out = f'if {path.name} is right as it is, write "tokenizer_class": "PreTrainedTokenizerFast" in {_OPTIONS}'
    own = [
        text
        for text, is_own in (
            (f"a {model['type']} model", model["type"] != "WordPiece"),
            ("a continuing_subword_prefix", model.get("continuing_subword_prefix", "##") != "##"),
            ("a max_input_chars_per_word", model.get("max_input_chars_per_word", 100) != 100),
            ("a normalizer", normalizer.get("type") != "BertNormalizer" or not normalizer.get("clean_text", True)),
            ("a pre_tokenizer", words.get("type") != "BertPreTokenizer"),
        )
        if is_own
    ]
    if own:
        raise UserError(f"{path} has {', '.join(own)} of its own, which transformers' BertTokenizer does not read; "
                        f"{way_out}")  # fmt: skip
    have = _Case(*(normalizer[field] for field in _Case._fields))
    lowercase, strip_accents, chinese = (around.options.get(option) for option in _CASE_OPTIONS.values())
    want = _Case(lowercase is not False, strip_accents, chinese is not False)
    other = [field for field in _Case._fields if getattr(have.effective(), field) != getattr(want.effective(), field)]
    for field in other:
        option = _CASE_OPTIONS[field]
        causes = {option, "do_lower_case"} if field == "strip_accents" else {option}
        if all(around.options.get(cause) is None for cause in causes):
            raise UserError(
                f"{path} has {field} {getattr(have, field)}, but transformers' BertTokenizer takes "
                f"{getattr(want, field)} where {_OPTIONS} does not say {option}: write there which one is right"
            )
    if other:
        inner.normalizer = tokenizers.normalizers.BertNormalizer(clean_text=True, **want._asdict())


def _case(path: epath.Path, around: Beside, vocab: dict[str, int], remarks: list[str]) -> _Case:
    """The normaliser for a `vocab.txt`; where nothing says whether it keeps case and accents, the pieces show it."""
    words = [piece for piece in vocab if not re.fullmatch(r"[\[<].+[\]>]", piece)]  # special pieces have capitals
    options: list[Any] = [around.options.get(option) for option in _CASE_OPTIONS.values()]
    lowercase, strip_accents, chinese = options
    said = lowercase is not None
    if not said:
        cased = sum(piece != piece.lower() for piece in words)
        lowercase = cased <= _CASED_SHARE * len(words)
        if not lowercase:
            remarks.append(
                f"{path}: nothing says do_lower_case; case is kept, as {cased:,} of {len(words):,} pieces have "
                f"capitals (transformers lower-cases without {_OPTIONS})"
            )
    stripped = lowercase if strip_accents is None else strip_accents
    accented = sum(piece != _without_accents(piece) for piece in words) if stripped else 0
    if accented > _ACCENTED_SHARE * len(words):
        if said or strip_accents is not None:
            remarks.append(f"warning: {path}: {accented:,} of {len(words):,} pieces have accents and will never occur, "
                           f"as {_OPTIONS} asks to strip accents")  # fmt: skip
        else:
            strip_accents = False
            remarks.append(
                f"{path}: nothing says strip_accents; accents are kept, as {accented:,} of {len(words):,} pieces have "
                f"them (transformers strips them without {_OPTIONS})"
            )
    return _Case(lowercase, strip_accents, chinese is not False)


def _without_accents(piece: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", piece) if unicodedata.category(c) != "Mn")


def _declared(path: epath.Path, around: Beside) -> list[tuple[int | None, AddedToken]]:
    """Tokens that the files beside a tokenizer add to it, in that order, each with its id if one is given."""
    options, roles = around.options, around.roles

    def token(found: Any, **flags: bool) -> AddedToken:
        fields = found if isinstance(found, dict) else {"content": found}
        if not isinstance(fields.get("content"), str) or not fields["content"]:
            raise UserError(f"{path.parent}: an added token is {printable(repr(found))[:80]}, expected its text")
        return AddedToken(fields["content"], **({flag: fields[flag] for flag in _FLAGS if flag in fields} | flags))

    def named(fields: dict[str, Any]) -> list[Any]:
        return [value for name, value in fields.items() if name.endswith("_token") and isinstance(value, str | dict)]

    def several(fields: dict[str, Any], *names: str) -> list[Any]:
        values = [fields.get(name) or [] for name in names]
        if not all(isinstance(group, list | dict) for group in values):
            raise TypeError(f"{' or '.join(names)} is no list")
        return [item for group in values for item in (group.values() if isinstance(group, dict) else group)]

    special = [token(found, special=True) for found in named(options)]
    try:
        extra = several(options, *_EXTRA)
        if "added_tokens_decoder" in options:
            with_ids = [(int(i), token(found)) for i, found in (options["added_tokens_decoder"] or {}).items()]
        else:
            special += [token(found, special=True) for found in named(roles)]
            extra += several(roles, "extra_special_tokens")
            are_special = {str(found) for found in special} | {str(token(found)) for found in extra}
            with_ids = [
                (int(i), token(name, special=name in are_special, normalized=name not in are_special))
                for name, i in around.added.items()
            ]
            extra += several(roles, "additional_special_tokens")
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path.parent}: added tokens cannot be read: {error}") from error
    known = {str(found) for _, found in with_ids}
    more = [found for found in (*special, *(token(found, special=True) for found in extra)) if str(found) not in known]
    return sorted(with_ids, key=lambda pair: pair[0]) + [(None, found) for found in more]


def _add_tokens(path: epath.Path, inner: tokenizers.Tokenizer, around: Beside, name: str | None) -> None:
    pieces = list(inner.get_vocab(with_added_tokens=True))
    roles = {pieces[i] for i in special_ids(pieces, path)}
    declared = _declared(path, around)
    if name == tokenizer_classes.CAMEMBERT and not any(
        fields.get(kind) for fields in (around.options, around.roles) for kind in _EXTRA
    ):
        declared += [(None, AddedToken(token, special=True)) for token in tokenizer_classes.NOT_USED]
    tokens = [pair for pair in declared if str(pair[1]) not in roles]
    held = {str(token) for token in inner.get_added_tokens_decoder().values()}
    lost = sorted(held - {str(token) for _, token in tokens} - roles)
    if name and lost and "added_tokens_decoder" in around.options:
        raise UserError(
            f"{path}: the added token {printable(lost[0])!r} is not in added_tokens_decoder of {_OPTIONS}, "
            f"by which transformers' {name} goes; add it there or take it out here"
        )
    inner.add_tokens([token for i, token in tokens if i is not None or str(token) not in held])
    _check_ids(path, inner, [(i, str(token)) for i, token in declared])
    _check_role_names(path, around, pieces)


def _check_ids(path: epath.Path, inner: tokenizers.Tokenizer, tokens: Sequence[tuple[int | None, str]]) -> None:
    ids = inner.get_vocab(with_added_tokens=True)
    for expected, name in tokens:
        if expected not in (None, ids[name]):
            raise UserError(f"{path}: the added token {printable(name)!r} gets the id {ids[name]} there, but its file "
                            f"says {expected}; expected ids that follow the vocabulary")  # fmt: skip


def _check_role_names(path: epath.Path, around: Beside, pieces: Sequence[str]) -> None:
    """Refuse a file that gives a role to another piece: roles are found by name, and it would be passed over."""
    ids = special_ids(pieces, path)
    for name, fields in ((_OPTIONS, around.options), (_ROLES, around.roles)):
        for role, i in ids._asdict().items():
            found = fields.get(f"{role}_token")
            found = found.get("content") if isinstance(found, dict) else found
            if found not in (None, pieces[i]):
                raise UserError(
                    f"{path.with_name(name)}: {role}_token is {printable(repr(found))}, but {pieces[i]} in {path.name};"
                    f" supported is {' or '.join(SPECIAL_PIECES[role])}, the first that is there"
                )
