"""Documents -> packed rows on disk, once per text, tokenizer and length.

python -m sctd_jax.data.prepare --input 'books/**/*.txt' --input tfds:NAME --out DIR \
    --vocab-size 30522 --seq-len 512 [--tokenizer existing.model|tokenizer.json|vocab.txt]
"""

import dataclasses
import functools
import hashlib
import heapq
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from etils import epath
from tqdm import tqdm

from sctd_jax import storage
from sctd_jax.arguments import CommandParser
from sctd_jax.config import Config
from sctd_jax.data import corpus, sentencepiece_trainer, tokenizer
from sctd_jax.data.packing import Packer
from sctd_jax.data.rows import HELD_OUT, METADATA_FILE, TRAIN, Metadata, Rows, RowWriter, on_disk, read_metadata
from sctd_jax.errors import TryAgainError, UserError, run_command

MIN_HELDOUT_ROWS = 64
_SAMPLE_BYTES = 40 << 20  # text that the tokenizer is trained on: under 1 GB of memory
_CHARS_PER_TOKEN = 16  # generous: how much text the held-out candidates must hold
_BATCH_CHARS = 8 << 20  # text that is tokenised in one call, over all cores


@dataclasses.dataclass(frozen=True)
class Settings:
    """What determines the rows, besides the text."""

    input: tuple[str, ...]
    text_field: str
    documents: str
    seq_len: int
    vocab_size: int
    tokenizer: str
    tokenizer_type: str
    heldout_share: float
    seed: int


def settings_of(config: Config) -> Settings:
    """The settings of a run's rows."""
    data = config.data
    inputs = tuple(text.strip() for text in data.input.split(",") if text.strip())
    return Settings(
        inputs, data.text_field, data.documents, data.seq_len, config.model.vocab_size, data.tokenizer,
        data.tokenizer_type, data.heldout_share, data.seed,
    )  # fmt: skip


def ensure_rows(config: Config, log: Callable[[str], None]) -> Path:
    """The folder on this host's disk with a config's rows, prepared now if they are missing.

    Raises:
      UserError: as `prepare`, or `data.rows` does not fit the config.
    """
    if config.data.rows:
        folder = storage.as_path(config.data.rows)
    else:
        settings = settings_of(config)
        sources = corpus.find_sources(settings.input)
        name = f"n{settings.seq_len}-v{settings.vocab_size}-{identity(settings, sources)}"
        folder = storage.as_path(config.data.prepared_dir) / name
        with storage.reaching(folder):
            there = (folder / METADATA_FILE).is_file()
        if not there:
            prepare(settings, folder, log)
    return on_disk(folder, log)


def identity(settings: Settings, sources: list[corpus.Source]) -> str:
    """Hash of everything that the rows depend on: another text, tokenizer or length has another one."""
    values = dataclasses.asdict(settings) | {"sources": [corpus.fingerprint(source) for source in sources]}
    if settings.tokenizer:
        values["tokenizer"] = tokenizer.digest(settings.tokenizer)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def prepare(settings: Settings, out: epath.Path, log: Callable[[str], None]) -> Metadata:
    """Tokenise and pack the text into `out`, which appears only when it is complete.

    Args:
      settings: what to prepare.
      out: a folder that does not exist yet, on a disk or in a bucket.
      log: receives progress lines.

    Raises:
      UserError: bad input, too little text, an unusable tokenizer, `out` exists, or the disk is full.
    """
    in_bucket = storage.is_remote(out)
    with storage.reaching(out):
        if (out / METADATA_FILE if in_bucket else out).exists():
            raise UserError(f"{out} exists already; choose another folder or remove it")
    if in_bucket:
        storage.check_writable(out)
    _check(settings)
    sources = corpus.find_sources(settings.input)
    work = None
    try:
        if not in_bucket:
            out.parent.mkdir(parents=True, exist_ok=True)
        beside = None if in_bucket else out.parent
        work = Path(tempfile.mkdtemp(prefix=f"{out.name}.incomplete-", dir=beside))
        metadata = _prepare_into(work, settings, sources, log)
        work.chmod(0o755)
        if in_bucket:
            work = _upload(work, out)
        else:
            work.rename(out)
    except OSError as error:
        if (out / METADATA_FILE).is_file():  # another run has prepared the same rows meanwhile
            return read_metadata(out)
        raise UserError(f"cannot write prepared rows to {out}: {error}") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    log(f"prepared rows: {out}")
    return metadata


def _upload(work: Path, out: epath.Path) -> Path:
    """Copy finished rows into a bucket; they stay on the disk if that fails."""
    try:
        storage.upload(work, out, last=METADATA_FILE)
    except UserError as error:
        kept = work.rename(work.with_name(work.name.replace(".incomplete-", ".prepared-")))
        raise TryAgainError(f"{error}; the prepared rows are in {kept}: copy them there, prepared.json last") from error
    return work


def _check(settings: Settings) -> None:
    for name, value, least in (
        ("seq_len", settings.seq_len, 8),
        ("vocab_size", settings.vocab_size, 6),
        ("seed", settings.seed, 0),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}, found {value}")
    if not 0 <= settings.heldout_share < 1:
        raise UserError(f"heldout_share must be at least 0 and below 1, found {settings.heldout_share}")
    if settings.tokenizer:
        pieces = len(tokenizer.load(settings.tokenizer).pieces)
        if pieces != settings.vocab_size:
            raise UserError(
                f"model.vocab_size is {settings.vocab_size}, but the tokenizer {settings.tokenizer} "
                f"has {pieces} pieces; set it to that"
            )


def _prepare_into(work: Path, settings: Settings, sources: list[corpus.Source], log: Callable) -> Metadata:
    started = time.monotonic()
    log(f"reading {len(sources)} source{'s' * (len(sources) != 1)}")
    survey = _survey(settings, sources)
    counts = survey.counts
    if not counts.documents:
        raise UserError(f"input {', '.join(settings.input)}: no text in {counts.empty} empty documents")
    log(f"{counts.documents:,} documents, {counts.characters / 1e6:,.1f} M characters, {counts.empty:,} empty")
    if counts.replaced:
        log(f"warning: {counts.replaced:,} invalid UTF-8 sequences were replaced by U+FFFD")

    if settings.tokenizer:
        name, model = tokenizer.canonical(settings.tokenizer)
    else:
        log(f"training a {settings.tokenizer_type} tokenizer of {settings.vocab_size:,} pieces")
        model = sentencepiece_trainer.train(survey.sample, settings.vocab_size, settings.tokenizer_type)
        name = tokenizer.SENTENCEPIECE_FILE
    (work / name).write_bytes(model)
    pieces = tokenizer.load(work / name)
    threshold = _heldout_threshold(settings, survey, pieces)
    counts = corpus.Counts()
    writer, heldout_documents, tokens = _write_rows(work, settings, sources, pieces, threshold, counts, survey)
    rows, heldout = writer.counts[TRAIN], writer.counts[HELD_OUT]
    if heldout < MIN_HELDOUT_ROWS or rows < MIN_HELDOUT_ROWS:
        raise UserError(
            f"the text gives {rows} training and {heldout} held-out rows of {settings.seq_len} tokens from "
            f"{counts.documents} documents, but {MIN_HELDOUT_ROWS} of each are needed: give more text, a smaller "
            "data.seq_len, or (one file, many texts) data.documents=paragraph or line"
        )
    metadata = Metadata(
        seq_len=settings.seq_len,
        vocab_size=settings.vocab_size,
        tokenizer_sha256=tokenizer.digest(work / name),
        rows=rows,
        heldout_rows=heldout,
        tokens=tokens,
        documents=counts.documents,
        heldout_documents=heldout_documents,
        empty_documents=counts.empty,
        replaced_bytes=counts.replaced,
        sources=[corpus.fingerprint(source) for source in sources],
        settings=dataclasses.asdict(settings),
    )
    for split, expected in writer.counts.items():
        if len(Rows(work, split)) != expected:
            raise UserError(f"{work}: split {split} reads back {len(Rows(work, split))} rows of {expected}")
    (work / METADATA_FILE).write_text(json.dumps(dataclasses.asdict(metadata), indent=2) + "\n")
    log(f"{rows:,} training and {heldout:,} held-out rows of {settings.seq_len} tokens "
        f"in {time.monotonic() - started:.0f} s")  # fmt: skip
    return metadata


@dataclasses.dataclass
class _Survey:
    """What one pass over the text collects, in bounded memory."""

    counts: corpus.Counts
    sample: list[str]
    candidates: list[tuple[float, int]]  # (draw, characters) of held-out candidates, by draw


def _survey(settings: Settings, sources: list[corpus.Source]) -> _Survey:
    """Count, and sample without knowing the size of the text: the lowest random draws stay."""
    counts = corpus.Counts()
    rng = np.random.default_rng(np.random.Philox(settings.seed))
    sample = _LowestDraws(_SAMPLE_BYTES)
    candidates = _LowestDraws((MIN_HELDOUT_ROWS + 1) * settings.seq_len * _CHARS_PER_TOKEN)
    document, size = -1, 0
    for chunk in corpus.read(sources, text_field=settings.text_field, documents=settings.documents, counts=counts):
        if chunk.document != document:
            if size:
                candidates.offer(heldout_draw(settings.seed, document), size, size)
            document, size = chunk.document, 0
        size += len(chunk.text)
        if not settings.tokenizer:
            lines = chunk.text.splitlines()
            for i in np.flatnonzero((draws := rng.random(len(lines))) < sample.limit):
                sample.offer(draws[i], len(lines[i].encode("utf-8", "replace")), lines[i])
    if size:
        candidates.offer(heldout_draw(settings.seed, document), size, size)
    return _Survey(counts, [text for _, text in sample.sorted()], candidates.sorted())


class _LowestDraws:
    """The items with the lowest draws whose sizes fill a budget (and not one more than needed)."""

    def __init__(self, budget: int):
        self._budget, self._total, self._heap, self.limit = budget, 0, [], 1.0

    def offer(self, draw: float, size: int, item) -> None:
        """Take the item if its draw is among the lowest."""
        if draw >= self.limit:
            return
        heapq.heappush(self._heap, (-draw, size, item))
        self._total += size
        while self._total - self._heap[0][1] >= self._budget:
            self.limit = -self._heap[0][0]
            self._total -= heapq.heappop(self._heap)[1]

    def sorted(self) -> list[tuple[float, object]]:
        """(draw, item), lowest first."""
        return sorted((-negative, item) for negative, _, item in self._heap)


def heldout_draw(seed: int, document: int) -> float:
    """Uniform in [0, 1), a pure function of the seed and the document's number."""
    digest = hashlib.blake2b(f"{seed}:{document}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _heldout_threshold(settings: Settings, survey: _Survey, pieces: tokenizer.Tokenizer) -> float:
    """Documents that draw at most this are held out: `heldout_share`, more if that gives too few rows."""
    text = "\n".join(survey.sample[:1000])[:100_000]
    per_token = len(text) / max(len(pieces.encode([text])[0]), 1) if text else _CHARS_PER_TOKEN
    # A quarter more than the sample suggests, and one row for the cut at the end.
    needed = 1.25 * per_token * (MIN_HELDOUT_ROWS + 1) * settings.seq_len
    total, threshold = 0, settings.heldout_share
    for draw, characters in survey.candidates:
        if total >= needed:
            break
        total += characters
        threshold = max(threshold, draw)
    return threshold


def _write_rows(
    work: Path, settings: Settings, sources, pieces: tokenizer.Tokenizer, threshold: float, counts, survey: _Survey
):
    ids = pieces.special
    packers = {split: Packer(settings.seq_len, ids["cls"], ids["sep"], ids["pad"]) for split in (TRAIN, HELD_OUT)}
    writer = RowWriter(work, settings.seq_len)
    chunks = corpus.read(sources, text_field=settings.text_field, documents=settings.documents, counts=counts)
    heldout_documents = tokens = 0
    unit = {"unit": "char", "unit_scale": True, "desc": "tokenising", "disable": None}
    with tqdm(total=survey.counts.characters, **unit) as progress:
        for batch, encoded in _encode_ahead(pieces, _with_ends(_batches(chunks))):
            for (chunk, ends), piece_ids in zip(batch, encoded, strict=True):
                split = HELD_OUT if heldout_draw(settings.seed, chunk.document) <= threshold else TRAIN
                heldout_documents += ends and split == HELD_OUT
                tokens += len(piece_ids)
                writer.add(split, packers[split].add(piece_ids, ends))
                progress.update(len(chunk.text))
    for split, packer in packers.items():
        writer.add(split, packer.finish())
    writer.close()
    return writer, heldout_documents, tokens


def _encode_ahead(pieces: tokenizer.Tokenizer, batches: Iterator[list]) -> Iterator[tuple[list, list[np.ndarray]]]:
    """Each batch with its ids; the tokenizer works on all cores while the batch before is packed and written."""

    def encode(batch):
        return batch, pieces.encode([chunk.text for chunk, _ in batch])

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for batch in batches:
            following = pool.submit(encode, batch)
            if pending is not None:
                yield pending.result()
            pending = following
        yield pending.result()


def _batches(chunks: Iterator[corpus.Chunk]) -> Iterator[list[corpus.Chunk]]:
    batch, size = [], 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    yield batch


def _with_ends(batches: Iterator[list[corpus.Chunk]]) -> Iterator[list[tuple[corpus.Chunk, bool]]]:
    """Each chunk with whether it ends its document, which only the next chunk tells."""
    held: list[corpus.Chunk] = []
    for batch in batches:
        batch = held + batch
        held = batch[-1:]
        ends = [a.document != b.document for a, b in itertools.pairwise(batch)]
        yield list(zip(batch, ends, strict=False))
    yield [(chunk, True) for chunk in held]


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.data.prepare", description=__doc__.split("\n")[0])
    add = parser.add_argument
    sources = "file, folder, glob or tfds:NAME[/CONFIG][@SPLIT]; repeatable; none: the embedded trial corpus"
    add("--input", action="append", default=[], metavar="SOURCE", help=sources)
    add("--out", required=True, help="folder to write, which must not exist")
    add("--vocab-size", type=int, help="default that of --tokenizer, or 30522")
    add("--seq-len", type=int, default=512)
    add(
        "--tokenizer",
        default="",
        metavar="MODEL",
        help="SentencePiece model, tokenizer.json or vocab.txt; none: train one",
    )
    add("--tokenizer-type", choices=("unigram", "bpe"), default="unigram")
    add("--text-field", default="text", help="of JSONL, Parquet and TFDS sources")
    add("--documents", choices=("file", "paragraph", "line"), default="file", help="a document in .txt files")
    add("--heldout-share", type=float, default=0.01)
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def command() -> int:
        vocab_size = args.vocab_size
        if vocab_size is None:
            vocab_size = len(tokenizer.load(args.tokenizer).pieces) if args.tokenizer else 30522
        settings = Settings(
            tuple(args.input), args.text_field, args.documents, args.seq_len, vocab_size, args.tokenizer,
            args.tokenizer_type, args.heldout_share, args.seed,
        )  # fmt: skip
        prepare(settings, storage.as_path(args.out), functools.partial(print, flush=True))
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
