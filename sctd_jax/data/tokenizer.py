"""Tokenizer, one view of SentencePiece models and of Hugging Face `tokenizers` files."""

import dataclasses
import functools
import hashlib
import json
import os
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece as spm
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import tokenizers
from etils import epath

from sctd_jax import storage
from sctd_jax.data import tokenizer_files
from sctd_jax.data.cleaning import split_text
from sctd_jax.data.special import SpecialIds
from sctd_jax.data.tokenizer_calls import naming_failures, quiet
from sctd_jax.errors import UserError, printable

# Names of a tokenizer in a folder of rows or a workdir: a SentencePiece model or `tokenizers` JSON.
KEPT = SENTENCEPIECE_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"  # names beside rows and in runs
# Files of a folder of `transformers`, in the order in which they are taken.
_PUBLISHED = (SENTENCEPIECE_FILE, JSON_FILE, "sentencepiece.bpe.model", tokenizer_files.VOCAB_JSON, "vocab.txt")
_EXPORTABLE = (1, 2, 4)  # SentencePiece's unigram, bpe and char
_SPACE = "\u2581"  # SentencePiece's mark of a space before the piece
_SPACE_BYTES = tuple("\u0120\u010a\u0109\u010d\u010b\u010c")  # byte-level BPE's letters for the bytes of white space
_BYTES = tokenizers.decoders.ByteLevel()
_ENCODE_CHARACTERS = 250_000  # encoded at once; a longer text is cut into parts of this length at most
_ENCODE_TEXTS = 256  # texts encoded at a time where the encodings take many times the memory of the ids
# Runs at which a regular expression that tries all ways of cutting them gives up, in a tenth of a second.
_RUNS = [60 * letter + other for letter in string.printable for other in ("", "\u00a7")]
_PROBED_PIECES = 200


class Tokenized(NamedTuple):
    """A text as n pieces, and where each of them stands in it."""

    ids_n: np.ndarray  # i32
    spans_n2: np.ndarray  # i32, characters start .. end - 1, without the white space before them


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary of V pieces and how text becomes ids and back."""

    pieces: tuple[str, ...]  # pieces by id
    special: SpecialIds
    word_start_V: np.ndarray  # bool[V]: the piece begins a word
    # Functions of the library: ids of texts, and ids with the characters that each stands for.
    ids_of: Callable[[list[str]], Iterable[Sequence[int]]]
    spans_of: Callable[[list[str]], Iterable[tuple[Sequence[int], Iterable[tuple[int, int]]]]]
    text_of: Callable[[list[int]], str]
    is_byte_level: bool = False  # pieces are spelled in byte-level BPE's letters for bytes
    pair_separators: int = 1  # [SEP] between the texts of a pair, by its own template; RoBERTa has two

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids i32[n] of each text, on all cores; never a special one but unk."""
        return [self._ordinary(ids) for ids in self.ids_of(list(texts))]

    def encode_spans(self, texts: Sequence[str]) -> list[Tokenized]:
        """The same ids, with their places.

        A text of more than 250,000 characters is read in parts, whose ends are white space if there is any: the
        libraries take hundreds of bytes for a character. Ids may differ where a part ends within a word.
        """
        parts = []
        for number, text in enumerate(texts):
            start = 0
            for part in split_text(text, _ENCODE_CHARACTERS):
                parts.append((number, start, part))
                start += len(part)
        found: list[list[Tokenized]] = [[] for _ in texts]
        for group in _groups(parts):
            for (number, start, text), (ids, spans) in zip(group, self.spans_of([p[-1] for p in group]), strict=True):
                spans_n2 = np.array([_trimmed(text, *span) for span in spans], np.int32).reshape(-1, 2)
                found[number].append(Tokenized(self._ordinary(ids), spans_n2 + start))
        return [
            some[0] if len(some) == 1 else Tokenized(*map(np.concatenate, zip(*some, strict=True))) for some in found
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self.text_of([int(i) for i in ids])

    def _ordinary(self, ids: Sequence[int]) -> np.ndarray:
        # Some models have their specials among the ordinary pieces, and a document may spell one.
        ids_n = np.array(ids, np.int32)
        return np.where(np.isin(ids_n, self.special.unmaskable), np.int32(self.special.unk), ids_n)

    def word(self, piece_id: int) -> str:
        """A piece as a person reads it, without the mark of a word's beginning."""
        piece = self.pieces[piece_id]
        return _BYTES.decode([piece]).strip() if self.is_byte_level else piece.removeprefix(_SPACE)


def separators(tokenizer: Tokenizer, segments: int) -> int:
    """Number of [SEP] between the texts of a pair: one where segments tell them apart, else the tokenizer's own."""
    return 1 if segments > 1 else tokenizer.pair_separators


def load(path: str | os.PathLike, *, kept: bool = False) -> Tokenizer:
    """Load a SentencePiece model, `tokenizer.json`, `vocab.json` or `vocab.txt` as `transformers` reads it.

    Special ids are read from the vocabulary by name. Truncation and padding that a `tokenizer.json` asks for are left
    out: rows are packed. Added tokens stay whole; the literal text of the five roles stays text.

    Args:
      path: the file, or the folder that holds it; what lies beside it (`tokenizer_config.json` ...) counts.
      kept: whether it lies in a workdir or beside rows, where a kind that is refused today must still open.
    """
    name, content = canonical(path, kept=kept)
    with quiet(), naming_failures(path):
        loaded = _hugging_face(content, path, kept) if name == JSON_FILE else _sentencepiece(content, path)
        if not kept:
            _check_use(loaded, path)
    if name == SENTENCEPIECE_FILE and not kept:
        check_exportable(content, path)
        tokenizer_files.check_sentencepiece(_existing(path), loaded.pieces)
    return loaded


def _check_use(loaded: Tokenizer, path: str | os.PathLike) -> None:
    """Encode probes, so that a tokenizer that fails or knows nothing is refused before any work."""
    for run in _RUNS:  # one by one: the first that fails says enough
        loaded.encode([run])
    step = max(len(loaded.pieces) // _PROBED_PIECES, 1)
    texts = [*string.ascii_letters, *string.digits, *(loaded.word(i) for i in range(0, len(loaded.pieces), step))]
    if all((ids_n == loaded.special.unk).all() for ids_n in loaded.encode(texts)):
        unk = loaded.pieces[loaded.special.unk]
        raise UserError(f"data.tokenizer {path}: it reads every text as {printable(unk)} or as nothing")


def canonical(path: str | os.PathLike, *, kept: bool = False) -> tuple[str, bytes]:
    """File name and content with which a tokenizer is kept in a folder of rows or a workdir, or already is (`kept`)."""
    file = _existing(path)
    if not _becomes_json(file, kept):
        try:
            return SENTENCEPIECE_FILE, file.read_bytes()
        except OSError as error:
            raise UserError(f"data.tokenizer {file}: {error.strerror}") from error
    content = _read(file, kept)[0]
    content.no_truncation()
    content.no_padding()
    return JSON_FILE, content.to_str().encode()


def remarks(path: str | os.PathLike) -> list[str]:
    """Remarks on what `canonical` guesses or finds odd, a line each; errors as there."""
    file = _existing(path)
    if _becomes_json(file):
        return _read(file)[1]
    proto = sentencepiece_model.ModelProto.FromString(file.read_bytes())
    split = [piece.piece for piece in proto.pieces if piece.type == piece.CONTROL]
    split = [piece for piece in split if piece not in tokenizer_files.ROLE_NAMES]
    if not split:
        return []
    return [
        f"{file}: text that spells one of its {len(split)} other control_symbols, such as {printable(split[0])!r}, is "
        "split; only user_defined_symbols stay whole"
    ]


def _becomes_json(file: epath.Path, kept: bool = False) -> bool:
    return file.suffix in tokenizer_files.TEXT_SUFFIXES or (not kept and tokenizer_files.is_shifted(file))


def _existing(path: str | os.PathLike) -> epath.Path:
    file = storage.as_path(path)
    if file.is_dir():
        return find_published(file, "give a file of these")
    if not file.is_file():
        raise UserError(f"data.tokenizer {file}: no such file")
    return storage.regular_file(file, " by data.tokenizer")


def _read(path: epath.Path, kept: bool = False) -> tuple[tokenizers.Tokenizer, list[str]]:
    try:
        with quiet(), naming_failures(path):
            return tokenizer_files.read(path, alone=kept)
    except OSError as error:
        raise UserError(f"data.tokenizer {path}: {error.strerror}") from error


def find_published(folder: epath.Path, advice: str) -> epath.Path:
    """The tokenizer in a folder of `transformers`, which takes the JSON of several; a UserError ends with `advice`."""
    there = [folder / name for name in _PUBLISHED if (folder / name).is_file()]
    if not there:
        raise UserError(f"{folder} holds no tokenizer ({', '.join(_PUBLISHED)}); {advice}")
    # Only the JSON has tokens that were added since.
    if [file.name for file in there[:2]] == list(_PUBLISHED[:2]):
        pieces = load(there[0], kept=True).pieces
        if [piece.strip() for piece in load(there[1]).pieces] != [piece.strip() for piece in pieces]:
            return there[1]
    return there[0]


def find(folder: str | os.PathLike) -> epath.Path:
    """The tokenizer kept in a folder."""
    for name in (SENTENCEPIECE_FILE, JSON_FILE):
        if (file := storage.as_path(folder) / name).is_file():
            return file
    raise UserError(f"{folder} holds no tokenizer ({SENTENCEPIECE_FILE} or {JSON_FILE})")


def of_rows(folder: str | os.PathLike, sha256: str) -> epath.Path:
    """The tokenizer kept in a folder of rows or in a workdir, which was made with the one of this digest."""
    path = find(folder)
    # Its bytes first: another version of `tokenizers` may write them otherwise.
    content = storage.regular_file(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256 and digest(path) != sha256:
        raise UserError(f"{path} is not the tokenizer that what lies beside it was made with: put that one there")
    return path


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of the tokenizer as it is kept."""
    return hashlib.sha256(canonical(path)[1]).hexdigest()


def encoding_digest(path: str | os.PathLike) -> str:
    """Digest for the name of prepared rows: another one where older rows split special tokens that stay whole now."""
    name, content = canonical(path)
    special = [token for token in json.loads(content)["added_tokens"] if token["special"]] if name == JSON_FILE else []
    split_before = any(token["content"] not in tokenizer_files.ROLE_NAMES for token in special)
    return hashlib.sha256(content).hexdigest() + ("-whole" if split_before else "")


def _groups(parts: Sequence[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """Parts of texts, as many as are encoded at once."""
    group: list[tuple[int, int, str]] = []
    size = 0
    for part in parts:
        if group and (len(group) == _ENCODE_TEXTS or size + len(part[-1]) > _ENCODE_CHARACTERS):
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part[-1])
    if group:
        yield group


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _sentencepiece(content: bytes, path: str | os.PathLike) -> Tokenizer:
    try:
        processor = spm.SentencePieceProcessor()
        processor.LoadFromSerializedProto(content)  # unlike the constructor it refuses an empty one
    except RuntimeError as error:
        raise UserError(
            f"data.tokenizer {path}: not a SentencePiece model (nor a .json of `tokenizers` or a vocab.txt)"
        ) from error
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    encode = functools.partial(
        processor.encode, num_threads=int(os.environ.get("RAYON_NUM_THREADS") or os.cpu_count() or 1)
    )

    def spans_of(texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        for text, proto in zip(texts, encode(texts, return_type="proto"), strict=True):
            # SentencePiece counts bytes, the space before a piece included.
            lengths = np.array([len(character.encode()) for character in text], np.int64)
            at = np.append(np.repeat(np.arange(len(text)), lengths), len(text)).tolist()  # character of each byte
            yield [piece.id for piece in proto.pieces], [(at[piece.begin], at[piece.end]) for piece in proto.pieces]

    # The piece that the model gives, whatever other one is called [UNK].
    special = tokenizer_files.special_ids(pieces, path)._replace(unk=processor.unk_id())
    return Tokenizer(tuple(pieces), special, _begin(pieces, _SPACE), encode, spans_of, processor.decode)


def check_exportable(content: bytes, path: str | os.PathLike) -> None:
    """Refuse a SentencePiece model that `interop` could not give to transformers, before a run rather than after it."""
    proto = sentencepiece_model.ModelProto.FromString(content)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kind = sentencepiece_model.TrainerSpec.ModelType.Name(trainer.model_type).lower()
    wrong = [
        text
        for text, found in (
            (f"model_type={kind}", trainer.model_type not in _EXPORTABLE),
            ("add_dummy_prefix=false", not normalizer.add_dummy_prefix),
            ("remove_extra_whitespaces=false", not normalizer.remove_extra_whitespaces),
            ("treat_whitespace_as_suffix=true", trainer.treat_whitespace_as_suffix),
            ("escape_whitespaces=false", not normalizer.escape_whitespaces),
            # SentencePiece spells them in their parts, which `tokenizers` cannot.
            ("pieces marked as unused", any(piece.type == piece.UNUSED for piece in proto.pieces)),
        )
        if found
    ]
    if normalizer.precompiled_charsmap:
        normalize = tokenizers.normalizers.Precompiled(normalizer.precompiled_charsmap).normalize_str
        symbols = {piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED}
        symbols -= tokenizer_files.ROLE_NAMES
        symbols = [symbol.replace("\u2581", " ") for symbol in sorted(symbols)]
        # SentencePiece leaves them as they are in the text that it normalises.
        if other := [symbol for symbol in symbols if normalize(symbol) != symbol]:
            wrong.append(f"user_defined_symbols that its normaliser changes ({printable(', '.join(other[:5]))})")
    if wrong:
        raise UserError(
            f"data.tokenizer {path}: trained with {', '.join(wrong)}: exported, transformers would tokenise otherwise"
        )


def _knows_all_bytes(settings: dict, pieces: Sequence[str], is_byte_level: bool) -> bool:
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet() if is_byte_level else ()
    if settings["model"].get("byte_fallback"):
        letters = [f"<0x{byte:02X}>" for byte in range(256)]
    return bool(letters) and set(letters) <= set(pieces)


def _hugging_face(content: bytes, path: str | os.PathLike, kept: bool) -> Tokenizer:
    settings = json.loads(content)
    model = settings["model"]
    is_byte_level = '"ByteLevel"' in json.dumps([settings["normalizer"], settings["pre_tokenizer"]])
    inner = tokenizers.Tokenizer.from_buffer(content)
    ids = inner.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(ids.values()) + 1)
    for piece, i in ids.items():
        pieces[i] = piece
    for token in settings["added_tokens"]:  # the one of two with an id that text is read as
        pieces[ids[token["content"]]] = token["content"]
    special = tokenizer_files.special_ids(pieces, path)
    # The piece that the model gives, whatever other one is called [UNK].
    unk = model.get("unk_id") if model["type"] == "Unigram" else ids.get(model.get("unk_token"))
    if unk is not None:
        special = special._replace(unk=unk)
    elif not kept and not _knows_all_bytes(settings, pieces, is_byte_level):
        raise UserError(
            f"data.tokenizer {path}: its model has no unk_token in its vocabulary and not all 256 bytes, so that "
            "letters it does not know would be left out or end in an error; set its unk_token"
        )
    pair = inner.encode("", "").ids
    roles = {pieces[i] for i in special}
    for token in settings["added_tokens"]:
        token["special"] = token["content"] in roles
    inner = tokenizers.Tokenizer.from_str(json.dumps(settings))
    # A document that spells "[MASK]" must not get the special id; all other added tokens stay whole.
    inner.encode_special_tokens = True
    if model["type"] == "WordPiece":  # only the prefix continues a word, also after [UNK]
        word_start_V = np.array([not piece.startswith(model["continuing_subword_prefix"]) for piece in pieces])
    else:
        word_start_V = _begin(pieces, _SPACE_BYTES if is_byte_level else _SPACE)
    word_start_V[[ids[token["content"]] for token in settings["added_tokens"]]] = True
    word_start_V[list(special.unmaskable)] = False

    def ids_of(texts: list[str]) -> Iterator[Sequence[int]]:
        for start in range(0, len(texts), _ENCODE_TEXTS):
            with naming_failures(path):
                encodings = inner.encode_batch_fast(texts[start : start + _ENCODE_TEXTS], add_special_tokens=False)
            yield from (encoding.ids for encoding in encodings)

    def spans_of(texts: list[str]) -> list[tuple[Sequence[int], Sequence[tuple[int, int]]]]:
        with naming_failures(path):
            return [(e.ids, e.offsets) for e in inner.encode_batch(texts, add_special_tokens=False)]

    separators = 2 if pair == [special.cls, *[special.sep] * 3] else 1
    return Tokenizer(
        tuple(pieces), special, word_start_V, ids_of, spans_of, inner.decode, is_byte_level, separators
    )  # fmt: skip


def _begin(pieces: Sequence[str], marks: str | tuple[str, ...]) -> np.ndarray:
    """bool[V]: the pieces that begin with one of the marks of a space. Punctuation belongs to the word before it."""
    return np.array([piece.startswith(marks) for piece in pieces])
