"""Packed rows on disk: a TFDS dataset in ArrayRecord shards, beside its tokenizer and `prepared.json`.

    tfds.builder_from_directory(folder).as_data_source("train")[0]["input_ids"]

reads it anywhere, without tensorflow and without this package.
"""

import contextlib
import copy
import dataclasses
import hashlib
import os
import typing
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError

from sctd_jax import storage
from sctd_jax.data.shard_cache import Held, ShardCache
from sctd_jax.data.shards import beginning
from sctd_jax.data.shuffle import WINDOW
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable
from sctd_jax.sections import LONGEST_ROW

TRAIN, HELD_OUT = "train", "validation"
METADATA_FILE = "prepared.json"
FREQUENCIES_FILE = "frequencies.npy"  # number i64[V] of each piece in the training rows, where preparation counted it
# Rows of a split whose digest is its fingerprint, evenly spread: few beside an epoch, and one of each shard at least.
_SAMPLE, _ROWS_PER_SAMPLE = 256, 1 << 16
_OPEN = 128  # half of the shards that are open at most: each is a file descriptor and half a megabyte of its index
_THREADS = 16  # shards that are read at a time


_KINDS = {  # words of messages
    int: "a whole number, not negative", float: "a finite number from 0 on", str: "a text", dict: "an object",
    list[str]: "a list of texts", dict[str, int]: "counts by name", list[dict[str, float]]: "a list of counts by name",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Content of `prepared.json`."""

    seq_len: int
    vocab_size: int
    tokenizer_sha256: str
    rows: int
    heldout_rows: int
    tokens: int  # tokens of both splits without padding and special tokens
    documents: int
    heldout_documents: int
    empty_documents: int
    replaced_bytes: int  # invalid UTF-8 sequences that became U+FFFD
    sources: list[str]
    settings: dict  # settings of the preparation
    # Fields from here on have defaults: older preparations have none of them.
    letters: int = 0  # characters that are no white space; 0: not counted
    unknown_letters: int = 0  # letters that are [UNK] in the rows
    commonest_unknown: dict[str, int] = dataclasses.field(default_factory=dict)  # the first hundred
    by_source: list[dict[str, float]] = dataclasses.field(default_factory=list)  # counts, in the order of `sources`
    heldout_up_to: float = 0.0  # highest draw that is held out; 0: not recorded
    unigram_loss: float = 0.0  # `frequencies.cross_entropy` of the held-out rows; 0: not recorded
    rows_digest: str = ""  # digest of all rows in their order; '': not recorded


def read_metadata(folder: str | os.PathLike) -> Metadata:
    """Metadata of a finished preparation; fields that this version does not know are left out."""
    path = storage.as_path(folder) / METADATA_FILE
    if not storage.exists(path):
        raise UserError(f"{folder} holds no prepared rows (no {METADATA_FILE}); write them with sctd_jax.data.prepare")
    types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Metadata)}
    advice = f"prepare the rows again; a run's is a copy of the {METADATA_FILE} of its rows"
    content = storage.read_json(path, advice)
    try:
        found = Metadata(**{name: value for name, value in content.items() if name in types})
    except TypeError as error:
        raise UserError(f"{path} is damaged: {printable(error)}; {advice}") from error
    for name, type_ in (types | {"settings.input": list[str]}).items():
        value = found.settings.get("input", []) if "." in name else getattr(found, name)
        if not _fits(value, type_) or (name in ("seq_len", "vocab_size") and not value):
            said = f"{name} must be {_KINDS.get(type_, type_)}, found {printable(repr(value)):.40}"
            raise UserError(f"{path} is damaged: {said}; {advice}")
    return found


def _fits(value: Any, type_: Any) -> bool:
    """Whether a value of JSON is of a type with all that is in it; numbers are finite, and none is negative."""
    kind, inner = typing.get_origin(type_) or type_, typing.get_args(type_)
    if type(value) not in (kind, int if kind is float else kind):
        return False
    if kind in (int, float):
        return 0 <= value < 2**63
    within = value.values() if kind is dict else value if kind is list else ()
    return not inner or all(_fits(one, inner[-1]) for one in within)


def on_disk(folder: str | os.PathLike, log: Callable[[str], None], whole: bool = True) -> Path:
    """The folder itself, or a copy on this host's disk of one in a bucket: ArrayRecord reads files only.

    With `whole` false the training shards stay in the bucket, and `Rows` copies them when it reads them.
    """
    if not storage.is_remote(folder):
        if Path(folder, "config.json").exists() and not Path(folder, "features.json").exists():
            raise UserError(f"{folder} is a run, which holds no rows: name the folder that its config.json has as "
                            "data.rows, or the one in data.prepared_dir")  # fmt: skip
        return Path(folder)
    identity, folder = repr(read_metadata(folder)), storage.as_path(folder)
    if not whole:
        return storage.local_copy(folder, identity, log, leave=f"*-{TRAIN}.*")
    advice = "; --config.data.shuffle=shards copies what is read at a time alone"
    return storage.local_copy(folder, identity, log, advice=advice)


class Rows:
    """Random access to the rows of one split, which are numbered through its shards.

    Args:
      folder: folder that `prepare` wrote, or the copy of `on_disk`.
      split: `TRAIN` or `HELD_OUT`.
      cache_bytes: bytes for copies of shards that stayed in a bucket; unused where all are here.
      log: receives what goes wrong with those and is tried again.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        cache_bytes: int = 1 << 34,
        log: Callable[[str], None] = lambda line: None,
    ):
        self.folder = folder
        info = open_folder(folder).info
        if split not in info.splits or "input_ids" not in info.features or len(info.features["input_ids"].shape) != 1:
            raise UserError(f"{folder} holds no rows of the split {split}; prepare them again")
        self._features, found = info.features, info.splits[split]
        self.seq_len: int = self._features["input_ids"].shape[0] or 0
        lengths, rows = found.shard_lengths, sum(found.shard_lengths)
        if not 0 < self.seq_len <= LONGEST_ROW or min(lengths, default=-1) < 0 or rows >= 2**63:
            what = f"{rows:,} {split} rows of {self.seq_len:,} tokens in {len(lengths):,} shards"
            raise UserError(f"{folder} describes {what}, which cannot be; prepare them again")
        self.lengths_S = np.array(lengths, np.int64)
        self._ends_S = np.cumsum(self.lengths_S)
        try:
            self._names = found.filename_template.sharded_filenames(len(self.lengths_S))
        except ValueError as error:
            raise UserError(f"{folder}/dataset_info.json is damaged: {printable(error)}; prepare them again") from error
        # A record is one TFDS message: parsing what is the same in all takes longer than reading.
        self._begin = beginning(self._features, self.seq_len)
        self._size = len(self._begin) + 4 * self.seq_len
        self._cache = self._open_cache(split, cache_bytes, log)
        self._opened: dict[int, _Shard] = {}  # the one that was read last is last

    def _open_cache(self, split: str, cache_bytes: int, log: Callable[[str], None]) -> ShardCache | None:
        if split != TRAIN or not (path := storage.as_path(self.folder) / storage.ORIGIN_FILE).exists():
            return None
        origin = storage.read_json(path)
        missing = [
            name
            for name, length in zip(self._names, self.lengths_S, strict=True)
            if length and name not in origin["sizes"]
        ]
        if missing:
            raise UserError(f"{origin['folder']} lacks {len(missing):,} of its shards, {missing[0]} first; copy them "
                            "there, or prepare the rows again")  # fmt: skip
        return ShardCache(origin["folder"], origin["sizes"], os.path.basename(self.folder), cache_bytes, log)

    @property
    def all_here(self) -> bool:
        """Whether no shard stayed in a bucket."""
        return self._cache is None

    def __len__(self) -> int:
        return int(self.lengths_S.sum())

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows i32[len(numbers), N]; many at a time is several times faster than one by one."""
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {len(self)}")
        shards = self.shards_of(numbers)
        places = numbers - (self._ends_S - self.lengths_S)[shards]
        order, tokens_BN = np.argsort(shards, kind="stable"), np.empty((len(numbers), self.seq_len), np.int32)
        groups = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if len(order) else []

        def read(mine: np.ndarray) -> None:
            tokens_BN[mine] = self._read(int(shards[mine[0]]), places[mine].tolist())

        for start in range(0, len(groups), _OPEN):
            some = groups[start : start + _OPEN]
            self._close(list(self._opened)[:-_OPEN])
            with ThreadPoolExecutor(min(len(some), _THREADS)) as pool:
                list(pool.map(read, some))
        return tokens_BN

    def _read(self, shard: int, places: list[int]) -> np.ndarray:
        """Rows i32[len(places), N] of one shard."""
        try:
            opened = self._opened.get(shard) or self._open(shard)
            self._opened[shard] = self._opened.pop(shard)
            records = opened.reader.read(places)
            if (begin := self._begin) and all(len(r) == self._size and r.startswith(begin) for r in records):
                whole = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), self._size)
                return np.ascontiguousarray(whole[:, len(begin) :]).view("<i4")
            return np.stack([self._features.deserialize_example_np(record)["input_ids"] for record in records])
        except (OSError, RuntimeError, ValueError, DecodeError) as error:
            self._close([shard])
            name, said = self._names[shard], printable(error)
            if not self._cache:
                path = os.path.join(self.folder, name)
                raise UserError(f"the rows in {path} cannot be read: {said}; prepare them again") from error
            self._cache.remove(name)
            raise UserError(
                f"the copy of {self._cache.origin}/{name} cannot be read ({said}) and was removed: run the command "
                "again, and if the shard itself is damaged prepare the rows again"
            ) from error

    def _open(self, shard: int) -> "_Shard":
        name = self._names[shard]
        held = self._cache.hold(name) if self._cache else None
        try:
            path = os.fspath(held.path if held else os.path.join(self.folder, name))
            opened = _Shard(ArrayRecordReader(storage.regular_file(path), options="readahead_buffer_size:0"), held)
            if (count := opened.reader.num_records()) < self.lengths_S[shard]:
                opened.reader.close()
                raise ValueError(f"{count:,} rows, {self.lengths_S[shard]:,} in dataset_info.json")
        except BaseException:
            if held:
                held.release()
            raise
        self._opened[shard] = opened
        return opened

    def shards_of(self, numbers: np.ndarray) -> np.ndarray:
        """The shards that rows stand in."""
        return np.searchsorted(self._ends_S, numbers, side="right")

    def want(self, now: Sequence[int], ahead: Sequence[int]) -> None:
        """Have shards copied from a bucket, those that are read now and then those that are read next."""
        if self._cache:
            self._cache.want([self._names[i] for i in now], [self._names[i] for i in ahead])

    def keep(self, shards: Collection[int]) -> None:
        """Close all shards but these."""
        self._close([shard for shard in self._opened if shard not in shards])

    def copied_at_once(self, lanes: int) -> int:
        """Bytes at most of the copies of shards that so many lanes read from; 0 where all are here."""
        sizes = list(self._cache.sizes.values()) if self._cache else []
        # A window may begin and end within a shard.
        return min(lanes * (WINDOW + 2) * max(sizes, default=0), sum(sizes))

    def some(self, count: int) -> "Rows":
        """The rows of `count` shards, spread evenly, where the shards stayed in a bucket; else these."""
        full = np.flatnonzero(self.lengths_S)
        if not self._cache or len(full) <= count:
            return self
        fewer, chosen = copy.copy(self), full[np.linspace(0, len(full) - 1, count).round().astype(int)]
        fewer.lengths_S, fewer._names = self.lengths_S[chosen], [self._names[i] for i in chosen]
        fewer._ends_S, fewer._opened = np.cumsum(fewer.lengths_S), {}
        return fewer

    def _close(self, shards: Collection[int]) -> None:
        for shard in shards:
            if opened := self._opened.pop(shard, None):
                opened.reader.close()
                if opened.held:
                    opened.held.release()


class _Shard(NamedTuple):
    reader: ArrayRecordReader
    held: Held | None  # the copy that is read, if it is one


def fingerprint(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Count of the rows in a folder on a disk, digest of some of them and of what describes them, by split.

    A resume with other rows is noticed by it. Files are not compared: the same rows may be compressed otherwise by
    another version of a library. No row is read of shards that stayed in a bucket.
    """
    metadata, found = read_metadata(folder), {}
    described = hashlib.sha256()
    for name in (METADATA_FILE, "dataset_info.json"):
        with contextlib.suppress(OSError):  # said below
            described.update(storage.regular_file(Path(folder, name)).read_bytes())
    for split, expected in ((TRAIN, metadata.rows), (HELD_OUT, metadata.heldout_rows)):
        found[split] = {"rows": expected, "described": described.hexdigest()[:16]}
        try:
            rows = Rows(folder, split)
            count = len(rows)
            if count != expected:
                raise UserError(f"the rows in {folder} are damaged: {count:,} {split} rows in dataset_info.json, "
                                f"{expected:,} in prepared.json; prepare them again")  # fmt: skip
            if not rows.all_here:
                continue
            numbers = np.linspace(0, count - 1, min(count, max(_SAMPLE, count // _ROWS_PER_SAMPLE))).round().astype(int)
            tokens_RN = rows.read(np.unique(numbers)) if count else np.zeros((0, metadata.seq_len), np.int32)
        except UserError:
            raise
        except Exception as error:  # TFDS and protobuf raise many kinds
            said = printable(str(error).strip().partition("\n")[0] or repr(error))
            raise UserError(f"the rows in {folder} cannot be read ({said}); prepare them again") from error
        problem = None
        if tokens_RN.shape[1] != metadata.seq_len:
            problem = f"{split} rows of {tokens_RN.shape[1]} tokens, {metadata.seq_len} in prepared.json"
        elif tokens_RN.size and not 0 <= tokens_RN.min() <= tokens_RN.max() < metadata.vocab_size:
            problem = f"{split} rows with ids that a vocabulary of {metadata.vocab_size:,} has not"
        if problem:
            raise UserError(f"the rows in {folder} are damaged: {problem}; prepare them again")
        digest = hashlib.sha256(np.ascontiguousarray(tokens_RN, "<i4").tobytes()).hexdigest()[:16]
        found[split]["sha256"] = digest
    return found


def same_rows(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether two of `fingerprint`'s values for a split are of the same rows, by what both of them have.

    Rows that were read decide; else, where a bucket kept them, what describes them.
    """
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    both = one.keys() & other.keys()
    names = {"rows", "sha256" if "sha256" in both else "described"}
    return names <= both and all(one[name] == other[name] for name in names)
