"""Documents -> packed rows on disk, once per text, tokenizer and length.

python -m sctd_jax.data.prepare --input 'books/**/*.txt' --input tfds:NAME --out DIR \
    --vocab-size 30522 --seq-len 512 [--tokenizer existing.model|tokenizer.json|vocab.txt|vocab.json|FOLDER]
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from sctd_jax import lease, storage
from sctd_jax.arguments import CommandParser
from sctd_jax.config import Config, DataConfig
from sctd_jax.data import (
    byte_bpe_trainer,
    corpus,
    files,
    frequencies,
    sentencepiece_trainer,
    survey,
    tokenizer,
    unknown,
)
from sctd_jax.data.decoding import check_encoding
from sctd_jax.data.packing import Packer
from sctd_jax.data.rows import HELD_OUT, METADATA_FILE, TRAIN, Metadata, Rows, RowWriter, on_disk, read_metadata
from sctd_jax.data.tokenise import encoded_batches
from sctd_jax.errors import TryAgainError, UserError, run_command, say

_LOOK_LINES = 100  # lines of the sample from which on its share of unknown letters is believed
_LOST_LINES, _LOST_CHARS = 200, 2000  # part of the sample that is searched for letters that no token stands for
_AS_BEFORE = {"encoding": "", "normal_form": "", "longest_line": 0, "shortest_document": 0, "drop_copies": False}
_WAIT = 5.0  # seconds between looks whether another process has prepared the rows


def settings_of(data: DataConfig, vocab_size: int) -> dict[str, Any]:
    """Settings that determine the rows, besides the text, as `prepared.json` holds them."""
    values = dataclasses.asdict(data) | {"input": files.split(data.input), "vocab_size": vocab_size}
    others = ("rows", "prepared_dir", "seq_len_schedule", "shuffle", "cache_gb")
    return {name: value for name, value in values.items() if name not in others}


def ensure_rows(config: Config, log: Callable[[str], None], began: Metadata | None = None) -> Path:
    """The folder on this host's disk with a config's rows, prepared now if they are missing.

    Where another process prepares them at this moment, it waits for them, and takes over if that process dies.
    A run that was trained on rows of the metadata `began` goes on with those if they are still in `data.prepared_dir`,
    though the text or the way in which it is read has changed.
    """
    data, vocab_size = config.data, config.model.vocab_size
    if data.rows:
        folder = storage.as_path(data.rows)
        if ignored := [name for name in ("input", "tokenizer") if getattr(data, name)]:
            log(f"note: the rows are those of data.rows={folder}; data.{' and data.'.join(ignored)} is not read")
        return on_disk(folder, log, whole=data.shuffle == "rows")
    root, same, log_once, folder = storage.as_path(data.prepared_dir), [], functools.cache(log), None
    for path in root.glob(f"*/{METADATA_FILE}") if began else ():
        with contextlib.suppress(UserError):  # a damaged one is not the run's
            same += [path.parent] if read_metadata(path.parent) == began else []
    try:
        sources = corpus.find_sources(files.split(data.input))
        folder = root / f"n{data.seq_len}-v{vocab_size}-{identity(data, vocab_size, sources)}"
        changed = "the text, or how it is read, has changed since"
    except UserError as error:
        if not same:
            raise
        changed = str(error)
    if folder is None or (same and folder not in same):
        folder = same[0]
        log(f"note: the run goes on with the rows that it began with, {folder}: {changed}")

    while not storage.exists(folder / METADATA_FILE):
        try:
            prepare(data, vocab_size, folder, log_once)
        except lease.HeldError as error:
            log_once(f"waiting for the same rows: {error}")
            time.sleep(_WAIT)
        except UserError:
            if not storage.exists(folder / METADATA_FILE):  # else the other one has just finished
                raise
    return on_disk(folder, log, whole=data.shuffle == "rows")


def identity(data: DataConfig, vocab_size: int, sources: list[corpus.Source]) -> str:
    """Hash of everything that the rows depend on: another text, tokenizer or length has another one."""
    values = settings_of(data, vocab_size) | {"sources": [corpus.fingerprint(source) for source in sources]}
    del values["allow_unknown"]
    # Rows that were prepared before these settings keep their name.
    if data.tokenizer or not data.keep_zwnj:
        del values["keep_zwnj"]
    for name, before in _AS_BEFORE.items():
        if values[name] == before:
            del values[name]
    if data.tokenizer:
        values["tokenizer"] = tokenizer.encoding_digest(data.tokenizer)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def prepare(data: DataConfig, vocab_size: int, out: epath.Path, log: Callable[[str], None]) -> Metadata:
    """Tokenise and pack the text into `out`, a folder on a disk or in a bucket that appears only when it is complete.

    Of `data`, `rows` and `prepared_dir` are not read. V is that of the tokenizer that is given or trained.
    """
    in_bucket = storage.is_remote(out)

    def check_new() -> None:
        if storage.exists(out / METADATA_FILE if in_bucket else out):
            raise UserError(f"{out} exists already; choose another folder or remove it")

    check_new()
    for name, value, least in (("seq_len", data.seq_len, 8), ("vocab_size", vocab_size, 6), ("seed", data.seed, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, found {value}")
    if not 0 <= data.heldout_share < 1:
        raise UserError(f"heldout_share must be at least 0 and below 1, found {data.heldout_share}")
    if data.tokenizer and (pieces := len(tokenizer.load(data.tokenizer).pieces)) != vocab_size:
        raise UserError(
            f"model.vocab_size is {vocab_size}, but the tokenizer {data.tokenizer} has {pieces} pieces; set it to that"
        )
    check_encoding(data.encoding)
    # Found before a lease lies beside `out`, maybe among them.
    sources = corpus.find_sources(files.split(data.input), log)
    corpus.check(sources, text_field=data.text_field, encoding=data.encoding)
    with lease.hold(out, "preparing rows", log, beside=True) as check_held:
        check_new()  # it may have been finished since the first look
        try:
            with tempfile.TemporaryDirectory(
                prefix=f"{out.name}.incomplete-", dir=None if in_bucket else out.parent, ignore_cleanup_errors=True
            ) as name:
                work = Path(name)
                metadata = _prepare_into(work, data, vocab_size, sources, log)
                work.chmod(0o755)
                check_held()
                if in_bucket:
                    _upload(work, out)
                else:
                    work.rename(out)
        except OSError as error:
            raise UserError(f"cannot write prepared rows to {out}: {error}") from error
    log(f"prepared rows: {out}")
    return metadata


def _upload(work: Path, out: epath.Path) -> None:
    """Copy finished rows into a bucket; they stay on the disk if that fails."""
    try:
        storage.upload(work, out, last=METADATA_FILE)
    except UserError as error:
        kept = work.rename(work.with_name(work.name.replace(".incomplete-", ".prepared-")))
        raise TryAgainError(f"{error}; the prepared rows are in {kept}: copy them there, prepared.json last") from error


def _prepare_into(
    work: Path, data: DataConfig, vocab_size: int, sources: list[corpus.Source], log: Callable[[str], None]
) -> Metadata:
    started = time.monotonic()
    look = _first_pass(data, sources, log)
    tok = _keep_tokenizer(work, data, vocab_size, look, log)
    _check_sample(look, tok, log)
    threshold = look.threshold(tok)
    look.check_split(threshold)
    counts = corpus.Counts()
    tokens, words = ([0] * len(sources) for _ in range(2))
    copies = Counter(look.copies.values())
    letters = [unknown.Letters(source.path, look.letters[i]) for i, source in enumerate(sources)]
    writer = RowWriter(work, data.seq_len)
    packers = {split: Packer(data.seq_len, tok.special) for split in writer.counts}
    with tqdm(total=look.counts.total.characters, unit="char", unit_scale=True, desc="tokenising", disable=None) as bar:
        for batch, encoded, unknown_letters in encoded_batches(tok, survey.read_again(look, counts)):
            rows: dict[str, list[np.ndarray]] = {split: [] for split in packers}
            for chunk, ids, odd in zip(batch, encoded, unknown_letters, strict=True):
                split = HELD_OUT if look.draw(chunk) <= threshold else TRAIN
                tokens[chunk.source] += len(ids)
                words[chunk.source] += len(chunk.text.split())
                letters[chunk.source].add(odd)
                rows[split] += packers[split].add(ids, chunk.document)
                bar.update(len(chunk.text))
            for split, full in rows.items():
                writer.add(split, full)
    for split, packer in packers.items():
        writer.add(split, packer.finish())
    writer.close()

    train, heldout, total = writer.counts[TRAIN], writer.counts[HELD_OUT], counts.total
    if min(train, heldout) < survey.MIN_HELDOUT_ROWS:
        raise UserError(
            f"the text gives {train} training and {heldout} held-out rows of {data.seq_len} tokens from "
            f"{total.documents} documents, but {survey.MIN_HELDOUT_ROWS} of each are needed: give more text, take "
            f"a smaller --seq-len (config.data.seq_len){survey.more_documents(data.documents)}"
        )
    for line in unknown.report(letters, data.allow_unknown):
        log(line)
    for split, expected in writer.counts.items():
        if len(Rows(work, split)) != expected:
            raise UserError(f"{work}: split {split} reads back {len(Rows(work, split))} rows of {expected}")
    logs_V = frequencies.log_frequencies(Rows(work, TRAIN), vocab_size, tok.special)
    unigram_loss = frequencies.cross_entropy(Rows(work, HELD_OUT), logs_V, tok.special)
    everything = unknown.total(letters)
    metadata = Metadata(
        seq_len=data.seq_len,
        vocab_size=vocab_size,
        tokenizer_sha256=tokenizer.digest(tokenizer.find(work)),
        rows=train,
        heldout_rows=heldout,
        tokens=sum(tokens),
        documents=total.documents - len(look.copies),
        heldout_documents=packers[HELD_OUT].documents,
        empty_documents=total.empty,
        replaced_bytes=total.replaced,
        sources=look.fingerprints,
        settings=settings_of(data, vocab_size),
        letters=everything.total,
        unknown_letters=everything.unknown,
        commonest_unknown=dict(everything.commonest.most_common(100)),
        by_source=[
            dataclasses.asdict(counts.sources[i])
            | {
                "letters": here.total,
                "unknown_letters": here.unknown,
                "tokens": tokens[i],
                "words": words[i],
                "copies": copies[i],
            }
            for i, here in enumerate(letters)
        ],
        heldout_up_to=threshold,
        unigram_loss=unigram_loss,
    )
    (work / METADATA_FILE).write_text(json.dumps(dataclasses.asdict(metadata), indent=2) + "\n")
    took = time.monotonic() - started
    log(f"{train:,} training and {heldout:,} held-out rows of {data.seq_len} tokens in {took:.0f} s")
    log(f"held-out loss of word frequencies alone: {unigram_loss:.3f} nats")
    return metadata


def _first_pass(data: DataConfig, sources: list[corpus.Source], log: Callable[[str], None]) -> survey.Survey:
    """Survey of the text, which is refused if its encoding is another one or it cannot be split."""
    log(f"reading {len(sources)} source{'s' * (len(sources) != 1)}")
    look = survey.take(sources, data, survey.LOOK_BYTES if data.tokenizer else survey.TRAINING_BYTES)
    total = look.counts.total
    if not total.documents:
        raise UserError(f"input {', '.join(files.split(data.input))}: no text in {total.empty} empty documents")
    log(f"{total.documents:,} documents, {total.characters / 1e6:,.1f} M characters, {total.empty:,} empty")
    left_out = {
        f"lines of more than {data.longest_line:,} characters": total.long_lines,
        f"documents of fewer than {data.shortest_document:,}": total.short_documents,
        "copies of documents": len(look.copies),
    }
    if any(left_out.values()):
        log(f"left out: {', '.join(f'{count:,} {what}' for what, count in left_out.items() if count)}")
    if warning := corpus.replaced_warning(sources, look.counts):
        if total.replaced > unknown.REFUSE * total.characters and not data.allow_unknown:
            cure = "or accept it: --allow-unknown, --config.data.allow_unknown=True"
            raise UserError(f"{warning.removeprefix('warning: ')}, {cure}")
        log(warning)
    if look.nul:
        log(f"warning: {look.nul:,} NUL characters are read as spaces")
    look.check_split(look.least_threshold())
    return look


def _keep_tokenizer(
    work: Path, data: DataConfig, vocab_size: int, look: survey.Survey, log: Callable[[str], None]
) -> tokenizer.Tokenizer:
    """The given tokenizer, or one that is trained on the sample, as it is kept beside the rows."""
    if data.tokenizer:
        name, model = tokenizer.canonical(data.tokenizer)
        for remark in tokenizer.remarks(data.tokenizer):
            log(remark)
    else:
        log(f"training a {data.tokenizer_type} tokenizer of {vocab_size:,} pieces")
        lines = [line for line, _ in look.sample]
        if data.tokenizer_type == "byte_bpe":
            name, model = tokenizer.JSON_FILE, byte_bpe_trainer.train(lines, vocab_size, data.keep_zwnj)
        else:
            model = sentencepiece_trainer.train(lines, vocab_size, data.tokenizer_type, data.keep_zwnj)
            name = tokenizer.SENTENCEPIECE_FILE
    (work / name).write_bytes(model)
    return tokenizer.load(work / name)


def _check_sample(look: survey.Survey, tok: tokenizer.Tokenizer, log: Callable[[str], None]) -> None:
    """Refuse a tokenizer that does not know the text, or warn of it, as far as a sample can tell."""

    def by_source(some: list[tuple[str, int]], odd: list[Counter[str]]) -> list[unknown.Letters]:
        letters = [unknown.Letters(source.path) for source in look.sources]
        for (line, source), here in zip(some, odd, strict=True):
            letters[source].total += len("".join(line.split()))
            letters[source].add(here)
        return letters

    lines: list[tuple[str, int]] = []
    size = 0
    for item in look.sample:
        if size >= survey.LOOK_BYTES and len(lines) >= _LOOK_LINES:
            break
        lines.append(item)
        size += len(item[0])
    whole, allow = look.whole and len(lines) == len(look.sample), look.data.allow_unknown
    if len(lines) < _LOOK_LINES and not whole:
        return
    # Learning where each token stands takes longer than its id: a part of the sample does.
    part = [(line[:_LOST_CHARS], source) for line, source in lines[:_LOST_LINES]]
    lost, divided = (by_source(part, odd) for odd in unknown.lost_and_divided(tok, [line for line, _ in part]))
    if unknown.total(lost).share > unknown.WARN:
        for line in unknown.report(lost, allow, " of a sample", "are left out, in no token"):
            log(line)
    if tok.is_byte_level and unknown.total(divided).share > unknown.WARN:
        what = "have no piece of their own and take several tokens each, bytes of them"
        for line in unknown.report(divided, True, " of a sample", what):
            log(line)
    texts = [line for line, _ in lines]
    letters = by_source(lines, unknown.unknown_letters(tok, texts, tok.encode(texts)))
    for line in unknown.report(letters, allow, "" if whole else " of a sample"):
        if line.startswith("warning") and not whole:  # the count of all follows soon
            log(line)


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.data.prepare", description=__doc__.split("\n")[0])
    add = parser.add_argument
    sources = (
        "file, folder or glob, in gs:// too, or tfds: or hf:NAME[/CONFIG][@SPLIT], or several with commas; repeatable; "
        "none: the trial corpus"
    )
    add("--input", action="append", default=[], metavar="SOURCE", help=sources)
    add("--out", required=True, help="folder to write, which must not exist")
    add("--vocab-size", type=int, help="default that of --tokenizer, or 30522")
    add("--seq-len", type=int, default=512)
    kinds = "SentencePiece model, tokenizer.json, vocab.txt, vocab.json or a folder with one; none: train one"
    add("--tokenizer", default="", metavar="MODEL", help=kinds)
    add("--tokenizer-type", choices=("unigram", "bpe", "byte_bpe"), default="unigram")
    add("--text-field", default="text", help="field or column with the text; article.body for one within another")
    add("--encoding", default="", help="encoding of text files without a byte order mark, as latin-1; default UTF-8")
    add("--documents", choices=("file", "paragraph", "line"), default="file", help="a document in .txt files")
    add("--heldout-share", type=float, default=0.01)
    add("--seed", type=int, default=0)
    zwnj = "zero-width non-joiners become spaces in a tokenizer trained here"
    add("--no-keep-zwnj", dest="keep_zwnj", action="store_false", help=zwnj)
    add("--normal-form", choices=("NFC", "NFD", "NFKC", "NFKD"), default="", help="Unicode's form of the text")
    add("--longest-line", type=int, default=0, help="leave out lines of more characters")
    add("--shortest-document", type=int, default=0, help="leave out documents of fewer characters")
    add("--drop-copies", action="store_true", help="read one of documents that differ in white space alone")
    add("--allow-unknown", action="store_true", help="also where the tokenizer does not know a fifth of the text")
    fields = vars(parser.parse_args(argv))
    out, vocab_size = fields.pop("out"), fields.pop("vocab_size")
    data = DataConfig(**fields | {"input": ",".join(fields["input"]), "rows": "", "prepared_dir": ""})

    def command() -> int:
        default = len(tokenizer.load(data.tokenizer).pieces) if data.tokenizer and vocab_size is None else 30522
        prepare(data, default if vocab_size is None else vocab_size, storage.as_path(out), say)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
