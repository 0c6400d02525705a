"""Documents -> packed rows on disk, once per text, tokenizer and length.

python -m sctd_jax.data.prepare --input 'books/**/*.txt' --input tfds:NAME --out DIR \
    --vocab-size 30522 --seq-len 512 [--tokenizer existing.model|tokenizer.json|vocab.txt]
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath
from tqdm import tqdm

from sctd_jax import lease, storage
from sctd_jax.arguments import CommandParser
from sctd_jax.config import Config
from sctd_jax.data import corpus, encoding, files, sentencepiece_trainer, survey, tokenizer, unknown
from sctd_jax.data.packing import Packer
from sctd_jax.data.rows import HELD_OUT, METADATA_FILE, TRAIN, Metadata, Rows, RowWriter, on_disk, read_metadata
from sctd_jax.errors import TryAgainError, UserError, run_command, say

_LOOK_LINES = 100  # lines of the sample from which on its share of unknown letters is believed
_LOST_LINES, _LOST_CHARS = 200, 2000  # part of the sample that is searched for letters that no token stands for
_WAIT = 5.0  # seconds between looks whether another process has prepared the rows


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that determine the rows, besides the text."""

    input: tuple[str, ...]
    text_field: str
    documents: str
    seq_len: int
    vocab_size: int
    tokenizer: str
    tokenizer_type: str
    heldout_share: float
    seed: int
    keep_zwnj: bool = True
    allow_unknown: bool = False


def settings_of(config: Config) -> Settings:
    """The settings of a run's rows."""
    data = config.data
    inputs = files.split(data.input)
    return Settings(
        inputs, data.text_field, data.documents, data.seq_len, config.model.vocab_size, data.tokenizer,
        data.tokenizer_type, data.heldout_share, data.seed, data.keep_zwnj, data.allow_unknown,
    )  # fmt: skip


def ensure_rows(config: Config, log: Callable[[str], None], began: Metadata | None = None) -> Path:
    """The folder on this host's disk with a config's rows, prepared now if they are missing.

    Where another process prepares them at this moment, it waits for them, and takes over if that process dies.

    Args:
      config: config of the run.
      log: receives a line for what is prepared.
      began: metadata of the rows that the run has been trained on, if any: it goes on with those if they are still in
        `data.prepared_dir`, though the text or the way in which it is read has changed.
    """
    if config.data.rows:
        folder = storage.as_path(config.data.rows)
        if ignored := [name for name in ("input", "tokenizer") if getattr(config.data, name)]:
            log(f"note: the rows are those of data.rows={folder}; data.{' and data.'.join(ignored)} is not read")
    else:
        settings, root = settings_of(config), storage.as_path(config.data.prepared_dir)
        same, said, folder = [], set(), None
        for path in root.glob(f"*/{METADATA_FILE}") if began else ():
            with contextlib.suppress(UserError):  # a damaged one is not the run's
                same += [path.parent] if read_metadata(path.parent) == began else []
        try:
            sources = corpus.find_sources(settings.input)
            folder = root / f"n{settings.seq_len}-v{settings.vocab_size}-{identity(settings, sources)}"
            changed = "the text, or how it is read, has changed since"
        except UserError as error:
            if not same:
                raise
            changed = str(error)
        if same and (folder is None or folder not in same):
            folder = same[0]
            log(f"note: the run goes on with the rows that it began with, {folder}: {changed}")

        def log_once(line: str) -> None:
            if line not in said:
                said.add(line)
                log(line)

        while not _is_there(folder):
            try:
                prepare(settings, folder, log_once)
            except lease.HeldError as error:
                log_once(f"waiting for the same rows: {error}")
                time.sleep(_WAIT)
            except UserError:
                if not _is_there(folder):  # else the other one has just finished
                    raise
    return on_disk(folder, log)


def _is_there(folder: epath.Path) -> bool:
    with storage.reaching(folder):
        return (folder / METADATA_FILE).is_file()


def identity(settings: Settings, sources: list[corpus.Source]) -> str:
    """Hash of everything that the rows depend on: another text, tokenizer or length has another one."""
    values = dataclasses.asdict(settings) | {"sources": [corpus.fingerprint(source) for source in sources]}
    del values["allow_unknown"]
    # Rows that were prepared before this setting keep their name.
    if settings.tokenizer or not settings.keep_zwnj:
        del values["keep_zwnj"]
    if settings.tokenizer:
        values["tokenizer"] = tokenizer.encoding_digest(settings.tokenizer)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def prepare(settings: Settings, out: epath.Path, log: Callable[[str], None]) -> Metadata:
    """Tokenise and pack the text into `out`, which appears only when it is complete.

    Args:
      settings: settings of the rows to prepare.
      out: a folder that does not exist yet, on a disk or in a bucket.
      log: receives progress lines.
    """
    _check_new(out)
    _check(settings)
    sources = corpus.find_sources(settings.input, log)  # found before a lease lies beside `out`, maybe among them
    corpus.check(sources, text_field=settings.text_field)
    with lease.hold(out, "preparing rows", log, beside=True) as held:
        _check_new(out)  # another process may have finished it since the first look
        return _prepare_held(settings, out, sources, held, log)


def _check_new(out: epath.Path) -> None:
    with storage.reaching(out):
        if (out / METADATA_FILE if storage.is_remote(out) else out).exists():
            raise UserError(f"{out} exists already; choose another folder or remove it")


def _prepare_held(settings: Settings, out: epath.Path, sources, held: lease.Lease, log: Callable) -> Metadata:
    in_bucket, work = storage.is_remote(out), None
    try:
        beside = None if in_bucket else out.parent
        work = Path(tempfile.mkdtemp(prefix=f"{out.name}.incomplete-", dir=beside))
        metadata = _prepare_into(work, settings, sources, log)
        work.chmod(0o755)
        held.check()
        if in_bucket:
            work = _upload(work, out)
        else:
            work.rename(out)
    except OSError as error:
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
    before = [corpus.fingerprint(source) for source in sources]
    look = survey.take(
        sources, text_field=settings.text_field, documents=settings.documents, seed=settings.seed,
        seq_len=settings.seq_len, sample_bytes=survey.LOOK_BYTES if settings.tokenizer else survey.TRAINING_BYTES,
    )  # fmt: skip
    counts = look.counts
    if not counts.documents:
        raise UserError(f"input {', '.join(settings.input)}: no text in {counts.empty} empty documents")
    log(f"{counts.documents:,} documents, {counts.characters / 1e6:,.1f} M characters, {counts.empty:,} empty")
    if warning := corpus.replaced_warning(sources, counts):
        if counts.replaced > unknown.REFUSE * counts.characters and not settings.allow_unknown:
            raise UserError(f"{warning.removeprefix('warning: ')}, or accept it: --allow-unknown, "
                            "--config.data.allow_unknown=True")  # fmt: skip
        log(warning)
    if look.nul:
        log(f"warning: {look.nul:,} NUL characters are read as spaces")
    names = [source.path for source in sources]
    look.check_split(look.least_threshold(settings.heldout_share, settings.seq_len), names, settings.documents)

    if settings.tokenizer:
        name, model = tokenizer.canonical(settings.tokenizer)
        for remark in tokenizer.remarks(settings.tokenizer):
            log(remark)
    else:
        log(f"training a {settings.tokenizer_type} tokenizer of {settings.vocab_size:,} pieces")
        lines = [line for line, _ in look.sample]
        model = sentencepiece_trainer.train(lines, settings.vocab_size, settings.tokenizer_type, settings.keep_zwnj)
        name = tokenizer.SENTENCEPIECE_FILE
    (work / name).write_bytes(model)
    pieces = tokenizer.load(work / name)
    _check_sample(settings, look, pieces, names, log)
    threshold = look.threshold(settings.heldout_share, settings.seq_len, pieces)
    look.check_split(threshold, names, settings.documents)
    counts = corpus.Counts()
    chunks = survey.read_again(
        look, sources, before, text_field=settings.text_field, documents=settings.documents, counts=counts
    )
    writer, heldout_documents, tokens, letters = _write_rows(work, settings, chunks, pieces, threshold, look)
    rows, heldout = writer.counts[TRAIN], writer.counts[HELD_OUT]
    if heldout < survey.MIN_HELDOUT_ROWS or rows < survey.MIN_HELDOUT_ROWS:
        raise UserError(
            f"the text gives {rows} training and {heldout} held-out rows of {settings.seq_len} tokens from "
            f"{counts.documents} documents, but {survey.MIN_HELDOUT_ROWS} of each are needed: give more text, take "
            f"a smaller --seq-len (config.data.seq_len){survey.more_documents(settings.documents)}"
        )
    for line in unknown.report(names, letters, settings.allow_unknown):
        log(line)
    everything = unknown.total(letters)
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
        sources=before,
        settings=dataclasses.asdict(settings),
        letters=everything.total,
        unknown_letters=everything.unknown,
        commonest_unknown=dict(everything.commonest.most_common(100)),
        by_source=[
            dataclasses.asdict(count) | {"letters": here.total, "unknown_letters": here.unknown}
            for count, here in zip(counts.sources, letters, strict=True)
        ],
    )
    for split, expected in writer.counts.items():
        if len(Rows(work, split)) != expected:
            raise UserError(f"{work}: split {split} reads back {len(Rows(work, split))} rows of {expected}")
    (work / METADATA_FILE).write_text(json.dumps(dataclasses.asdict(metadata), indent=2) + "\n")
    log(f"{rows:,} training and {heldout:,} held-out rows of {settings.seq_len} tokens "
        f"in {time.monotonic() - started:.0f} s")  # fmt: skip
    return metadata


def _check_sample(settings: Settings, look: survey.Survey, pieces: tokenizer.Tokenizer, names: list[str], log) -> None:
    """Refuse a tokenizer that does not know the text, or warn of it, as far as a sample can tell."""

    def by_source(some: list[tuple[str, int]], odd: list[Counter]) -> list[unknown.Letters]:
        letters = [unknown.Letters() for _ in names]
        for (line, source), here in zip(some, odd, strict=True):
            letters[source].total += len("".join(line.split()))
            letters[source].add(here)
        return letters

    lines, size = [], 0
    for item in look.sample:
        if size >= survey.LOOK_BYTES and len(lines) >= _LOOK_LINES:
            break
        lines.append(item)
        size += len(item[0])
    whole = look.whole and len(lines) == len(look.sample)
    if len(lines) < _LOOK_LINES and not whole:
        return
    # Learning where each token stands takes longer than its id: a part of the sample does.
    part = [(line[:_LOST_CHARS], source) for line, source in lines[:_LOST_LINES]]
    lost = by_source(part, unknown.lost_letters(pieces, [line for line, _ in part]))
    if unknown.total(lost).share > unknown.WARN:
        for line in unknown.report(names, lost, settings.allow_unknown, " of a sample", "are left out, in no token"):
            log(line)
    texts = [line for line, _ in lines]
    letters = by_source(lines, unknown.unknown_letters(pieces, texts, pieces.encode(texts)))
    for line in unknown.report(names, letters, settings.allow_unknown, "" if whole else " of a sample"):
        if line.startswith("warning") and not whole:  # the count of all follows soon
            log(line)


def _write_rows(
    work: Path, settings: Settings, chunks: Iterator[corpus.Chunk], pieces: tokenizer.Tokenizer, threshold: float,
    look: survey.Survey,
):  # fmt: skip
    ids = pieces.special
    packers = {split: Packer(settings.seq_len, ids.cls, ids.sep, ids.pad) for split in (TRAIN, HELD_OUT)}
    writer = RowWriter(work, settings.seq_len)
    heldout_documents = tokens = 0
    letters = [unknown.Letters(look.letters.get(i, 0)) for i in range(len(look.counts.sources))]
    unit = {"unit": "char", "unit_scale": True, "desc": "tokenising", "disable": None}
    with tqdm(total=look.counts.characters, **unit) as progress:
        for batch, encoded, known in encoding.batches(pieces, chunks):
            for (chunk, ends), piece_ids, here in zip(batch, encoded, known, strict=True):
                split = HELD_OUT if look.draw(chunk) <= threshold else TRAIN
                heldout_documents += ends and split == HELD_OUT
                tokens += len(piece_ids)
                letters[chunk.source].add(here)
                writer.add(split, packers[split].add(piece_ids, ends))
                progress.update(len(chunk.text))
    for split, packer in packers.items():
        writer.add(split, packer.finish())
    writer.close()
    return writer, heldout_documents, tokens, letters


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.data.prepare", description=__doc__.split("\n")[0])
    add = parser.add_argument
    sources = (
        "file, folder, glob or tfds:NAME[/CONFIG][@SPLIT], or several with commas; repeatable; none: the trial corpus"
    )
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
    add("--no-keep-zwnj", action="store_true", help="zero-width non-joiners become spaces in a tokenizer trained here")
    add("--allow-unknown", action="store_true", help="also where the tokenizer does not know a fifth of the text")
    args = parser.parse_args(argv)

    def command() -> int:
        vocab_size = args.vocab_size
        if vocab_size is None:
            vocab_size = len(tokenizer.load(args.tokenizer).pieces) if args.tokenizer else 30522
        inputs = files.split(",".join(args.input))
        settings = Settings(
            inputs, args.text_field, args.documents, args.seq_len, vocab_size, args.tokenizer,
            args.tokenizer_type, args.heldout_share, args.seed, not args.no_keep_zwnj, args.allow_unknown,
        )  # fmt: skip
        prepare(settings, storage.as_path(args.out), say)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
