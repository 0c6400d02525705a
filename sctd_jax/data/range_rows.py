"""The rows of one range of a text: a pure function of the range, its shards and a file of what was counted."""

import dataclasses
import fnmatch
import functools
import io
import json
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from sctd_jax import storage
from sctd_jax.config import DataConfig
from sctd_jax.data import corpus, ranges, shards, survey, tokenizer, unknown
from sctd_jax.data.packing import Packer
from sctd_jax.data.rows import FREQUENCIES_FILE, HELD_OUT, TRAIN
from sctd_jax.data.tokenise import encoded_batches
from sctd_jax.errors import UserError, printable

SPLITS = (TRAIN, HELD_OUT)
_AT_ONCE = 1 << 10  # rows


@dataclasses.dataclass(frozen=True)
class Job:
    """Settings that all ranges of a text have in common."""

    data: DataConfig
    folder: str  # holds the tokenizer; the shards are written there
    tokenizer_sha256: str
    vocab_size: int  # V of it
    count: int  # number of ranges
    heldout_up_to: float  # highest draw of a document that is held out
    identity: str  # identity of the text and the settings


@dataclasses.dataclass(frozen=True)
class Task:
    """One range."""

    range: ranges.Range
    fingerprints: tuple[str, ...]  # taken of its parts' sources before anything was read
    copies: dict[int, list[int]]  # documents that are left out as copies, by part

    def __str__(self) -> str:
        """Give its range's number, in messages."""
        return str(self.range)


@dataclasses.dataclass
class Counted:
    """Counts of what a range holds; sources by their index."""

    rows: dict[str, int]  # number by split, as in the next two
    documents: dict[str, int]
    digests: dict[str, str]
    frequencies: dict[str, np.ndarray]  # i64[V] of all tokens
    text: dict[int, corpus.SourceCounts]  # counts of its text, where it is taken for the first time
    copies: dict[int, int]
    tokens: dict[int, int]
    words: dict[int, int]
    letters: dict[int, unknown.Letters]
    nul: int
    sizes: dict[str, int]  # bytes of the shards, by split


@dataclasses.dataclass
class Total:
    """Counts of all ranges together; the lists have an entry for each. Ranges are added in any order."""

    rows: dict[str, list[int]]  # numbers by split
    digests: dict[str, list[str]]
    frequencies: dict[str, np.ndarray]
    letters: list[unknown.Letters]  # letters of each source, in their order
    documents: Counter[str] = dataclasses.field(default_factory=Counter)  # numbers by split
    text: dict[int, corpus.SourceCounts] = dataclasses.field(
        default_factory=dict
    )  # counts by source, as in the next three
    copies: Counter[int] = dataclasses.field(default_factory=Counter)
    tokens: Counter[int] = dataclasses.field(default_factory=Counter)
    words: Counter[int] = dataclasses.field(default_factory=Counter)
    nul: int = 0

    def add(self, number: int, counted: Counted) -> None:
        """Add what a range holds."""
        for split in SPLITS:
            self.rows[split][number], self.digests[split][number] = counted.rows[split], counted.digests[split]
            self.frequencies[split] += counted.frequencies[split]
        for index, here in counted.text.items():
            survey.add_counts(self.text, index, here)
        self.documents.update(counted.documents)
        self.copies.update(counted.copies)
        self.tokens.update(counted.tokens)
        self.words.update(counted.words)
        for index, letters in counted.letters.items():
            self.letters[index].total += letters.total
            self.letters[index].unknown += letters.unknown
            self.letters[index].commonest.update(letters.commonest)  # all of them: to forget some depends on the order
        self.nul += counted.nul


def empty_total(job: Job, sources: list[corpus.Source]) -> Total:
    """The total before a range is added."""
    return Total(
        rows={split: [0] * job.count for split in SPLITS},
        digests={split: [""] * job.count for split in SPLITS},
        frequencies={split: np.zeros(job.vocab_size, np.int64) for split in SPLITS},
        letters=[unknown.Letters(source.path) for source in sources],
    )


COUNTS = "range-*.npz"  # files that say that a range is finished
UNFINISHED = ".range-"  # beginning of the names of folders in which ranges are written


def counts_name(number: int) -> str:
    """Name of the counts file of a range."""
    return COUNTS.replace("*", f"{number:05d}")


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: str, digest: str) -> tokenizer.Tokenizer:
    return tokenizer.load(tokenizer.find(folder))


def prepare(job: Job, task: Task, advance: Callable[[int], object] = lambda characters: None) -> Counted:
    """Write the shards of a range and then what they hold; `advance` is told of characters as they are tokenised."""
    tok, data, range_ = _tokenizer(job.folder, job.tokenizer_sha256), job.data, task.range
    check_unchanged(task)
    counts = corpus.Counts()
    indices = [part.file for part in range_.parts]
    tokens, words, nul = Counter[int](), Counter[int](), 0
    letters = {index: unknown.Letters() for index in indices}
    copies = Counter({range_.parts[part].file: len(left_out) for part, left_out in task.copies.items()})
    out = storage.as_path(job.folder)
    with tempfile.TemporaryDirectory(
        prefix=UNFINISHED, dir=None if storage.is_remote(out) else out, ignore_cleanup_errors=True
    ) as name:
        paths = {split: Path(name, shards.shard_name(split, range_.number, job.count)) for split in SPLITS}
        writers = {split: shards.ShardWriter(path, data.seq_len) for split, path in paths.items()}
        packers = {split: Packer(data.seq_len, tok.special) for split in SPLITS}
        frequencies = {split: np.zeros(len(tok.pieces), np.int64) for split in SPLITS}

        def write(split: str, rows_RN: np.ndarray) -> None:
            for start in range(0, len(rows_RN), _AT_ONCE):
                block_RN = rows_RN[start : start + _AT_ONCE]
                writers[split].add(block_RN)
                frequencies[split] += np.bincount(block_RN.ravel(), minlength=len(tok.pieces))

        pieces = survey.read([part.source for part in range_.parts], data, counts)
        for batch, encoded, odd_letters in encoded_batches(tok, _chosen(pieces, job, task)):
            for piece, ids, odd in zip(batch, encoded, odd_letters, strict=True):
                index = indices[piece.part]
                tokens[index] += len(ids)
                words[index] += piece.words
                letters[index].total += piece.letters
                letters[index].add(odd)
                nul += piece.nul * (range_.repeat == 0)
                packers[HELD_OUT if piece.draw <= job.heldout_up_to else TRAIN].add(ids, piece.document)
                advance(len(piece.text))
            for split, packer in packers.items():
                write(split, packer.full())
        for split, packer in packers.items():
            write(split, packer.finish())
        digests = {split: writer.close() for split, writer in writers.items()}
        check_unchanged(task)
        text: dict[int, corpus.SourceCounts] = {}
        for index, here in zip(indices, counts.sources, strict=True):
            survey.add_counts(text, index, here if range_.repeat == 0 else corpus.SourceCounts())
        counted = Counted(
            rows={split: writer.rows for split, writer in writers.items()},
            documents={split: packer.documents for split, packer in packers.items()},
            digests=digests, frequencies=frequencies, text=text, copies=dict(copies) if range_.repeat == 0 else {},
            tokens=dict(tokens), words=dict(words), letters=letters, nul=nul,
            sizes={split: path.stat().st_size for split, path in paths.items()},
        )  # fmt: skip
        paths["counts"] = Path(name, counts_name(range_.number))
        paths["counts"].write_bytes(_packed(counted, job.identity))
        for path in paths.values():  # the counts last: they say that the range is finished
            if storage.is_remote(out):
                storage.upload_file(path, out / path.name)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())  # a machine that loses power must not leave the name without the content
                os.replace(path, out / path.name)
    return counted


def _chosen(pieces, job: Job, task: Task):
    """The pieces of documents that are taken: of their source's share, no copies, held out once at most."""
    part, number, document = -1, -1, -1  # number of the document within its part is the second
    for piece in pieces:
        if piece.part != part:
            part, number = piece.part, -1
            left_out = set(task.copies.get(part, ()))
        if piece.document != document:
            document, number = piece.document, number + 1
        taken = survey.is_taken(piece.draw, task.range.parts[part].share) and number not in left_out
        if taken and (task.range.repeat == 0 or piece.draw > job.heldout_up_to):
            yield piece


def check_unchanged(task: Task) -> None:
    """Refuse a source that is no longer what it was when the preparation began."""
    for part, before in zip(task.range.parts, task.fingerprints, strict=True):
        try:
            same = corpus.fingerprint(part.source, fresh=True) == before
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"{printable(part.source.path)} changed while it was read; prepare again when nothing writes to it"
            )


def finished(job: Job) -> Iterator[tuple[int, Counted | None]]:
    """(number, what it holds) of each range that was finished; None where its shards do not hold what was written.

    A bucket keeps what it was given: only the counts of its ranges are read.
    """
    folder, remote = storage.as_path(job.folder), storage.is_remote(job.folder)

    def counted(number: int) -> Counted | None:
        found = _unpacked((folder / counts_name(number)).read_bytes(), job.identity)
        if found is None or remote:
            return found
        for split, size in found.sizes.items():
            shard = Path(folder, shards.shard_name(split, number, job.count))
            try:
                if shard.stat().st_size != size or shards.digest(shard, job.data.seq_len) != found.digests[split]:
                    return None
            except (OSError, RuntimeError):
                return None
        return found

    with storage.reaching(folder):
        there = {path.name for path in folder.iterdir()}
        numbers = [number for number in range(job.count) if counts_name(number) in there]
        with ThreadPoolExecutor(storage.REQUESTS) as pool:
            for start in range(0, len(numbers), 8 * storage.REQUESTS):
                some = numbers[start : start + 8 * storage.REQUESTS]
                yield from zip(some, pool.map(counted, some), strict=True)


def check_there(job: Job) -> None:
    """Raise UserError if a shard is missing: nodes of a cluster may have written to disks of their own."""
    folder = storage.as_path(job.folder)
    names = {shards.shard_name(split, number, job.count) for split in SPLITS for number in range(job.count)}
    with storage.reaching(folder):
        missing = sorted(names - {path.name for path in folder.iterdir()})
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing):,} of {len(names):,} shards that were written, {missing[0]} first: it must "
            "be a folder that all nodes share, or one in a bucket"
        )


def own_files(folder: epath.Path) -> list[epath.Path]:
    """Files in a folder of an unfinished preparation that are its own."""
    patterns = (COUNTS, f"{UNFINISHED}*", "packed_rows-*", FREQUENCIES_FILE, *tokenizer.KEPT)
    with storage.reaching(folder):
        return [path for path in folder.iterdir() if any(fnmatch.fnmatch(path.name, one) for one in patterns)]


def _packed(counted: Counted, identity: str) -> bytes:
    fields = vars(counted) | {
        "identity": identity,
        "text": {index: vars(here) for index, here in counted.text.items()},
        "letters": {index: vars(here) for index, here in counted.letters.items()},
    }
    del fields["frequencies"]
    file = io.BytesIO()
    arrays: dict[str, Any] = {"fields": np.array(json.dumps(fields)), **counted.frequencies}
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _unpacked(content: bytes, identity: str) -> Counted | None:
    """Content of a counts file; None if it is damaged, or of other text or settings."""
    try:
        with np.load(io.BytesIO(content)) as file:
            fields: dict[str, Any] = json.loads(str(file["fields"]))
            frequencies = {split: file[split] for split in SPLITS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if fields.pop("identity", None) != identity:
        return None

    def by_index(name: str, make: Callable[[Any], Any]) -> dict[int, Any]:
        return {int(index): make(value) for index, value in fields[name].items()}

    fields |= {name: by_index(name, int) for name in ("copies", "tokens", "words")}
    fields["text"] = by_index("text", lambda value: corpus.SourceCounts(**value))
    fields["letters"] = by_index(
        "letters", lambda value: unknown.Letters(**value | {"commonest": Counter(value["commonest"])})
    )
    return Counted(**fields, frequencies=frequencies)
