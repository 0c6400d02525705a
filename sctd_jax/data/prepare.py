"""Documents -> packed rows on disk, once per text, tokenizer and length.

python -m sctd_jax.data.prepare --input 'books/**/*.txt' --input tfds:NAME --out DIR \
    --vocab-size 30522 --seq-len 512 [--tokenizer existing.model|tokenizer.json|vocab.txt|vocab.json|FOLDER]
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from sctd_jax import lease, storage, stored
from sctd_jax.arguments import CommandParser, number
from sctd_jax.config import Config, DataConfig
from sctd_jax.data import (
    cluster,
    corpus,
    files,
    frequencies,
    range_rows,
    ranges,
    survey,
    tokenizer,
    unknown,
    workers,
)
from sctd_jax.data import (
    plan as plans,
)
from sctd_jax.data.decoding import check_encoding
from sctd_jax.data.rows import (
    FREQUENCIES_FILE,
    HELD_OUT,
    METADATA_FILE,
    TRAIN,
    Metadata,
    on_disk,
    read_metadata,
)
from sctd_jax.data.shards import write_description
from sctd_jax.errors import UserError, of_disk, run_command, say
from sctd_jax.fields import LARGEST_SEED, fill
from sctd_jax.sections import LARGEST_VOCABULARY, LONGEST_ROW, SHORTEST_ROW

_NOT_OF_THE_ROWS = ("rows", "prepared_dir", "seq_len_schedule", "shuffle", "cache_gb")
_LEAST_PIECES = 6  # five special ones and a letter
_WAIT = 5.0  # seconds between looks whether another process has prepared the rows


def settings_of(data: DataConfig, vocab_size: int) -> dict[str, Any]:
    """Settings that determine the rows, besides the text, as `prepared.json` holds them."""
    values = dataclasses.asdict(data) | {"input": files.split(data.input), "vocab_size": vocab_size}
    return {name: value for name, value in values.items() if name not in _NOT_OF_THE_ROWS}


def ensure_rows(config: Config, log: Callable[[str], None], began: Metadata | None = None) -> Path:
    """The folder on this host's disk with a config's rows, prepared now if they are missing.

    Where another process prepares them at this moment, it waits for them, and takes over if that process dies.
    A run that was trained on rows of the metadata `began` goes on with those if they are still in `data.prepared_dir`,
    though the text or the way in which it is read has changed.
    """
    data, vocab_size = config.data, config.model.vocab_size
    if data.rows:
        folder = storage.as_path(data.rows)
        # Values that are asked for, and that the rows were not made with, have no effect.
        made = read_metadata(folder).settings | {"input": "", "tokenizer": "", "seq_len": data.seq_len}
        asked = {name: value for name, value in vars(data).items() if name not in _NOT_OF_THE_ROWS}
        ignored = [name for name, value in asked.items() if value not in (getattr(DataConfig, name), made.get(name))]
        if ignored:
            log(f"note: the rows are those of data.rows={folder}; not read: data.{', data.'.join(ignored)}")
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
    if data.tokenizer:
        del values["keep_zwnj"]
        values["tokenizer"] = tokenizer.encoding_digest(data.tokenizer)
    # Rows that were prepared before a field came keep their name.
    for name, before in stored.before("data").items():
        if name in values and values[name] == before:
            del values[name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    data: DataConfig,
    vocab_size: int,
    out: epath.Path,
    log: Callable[[str], None],
    *,
    processes: int = 0,
    ray: str = "",
) -> Metadata:
    """Tokenise and pack the text into `out`, a folder on a disk or in a bucket.

    On a disk it appears only when it is complete; until then the finished ranges are in `OUT.incomplete`. In a bucket
    it is complete when it holds `prepared.json`. A preparation that was interrupted goes on, if nothing about the text
    or the settings has changed. The fields `rows` and `prepared_dir` of `data` are not read; V is that of the tokenizer
    that is given or trained.

    Args:
      data: settings of the text and the rows.
      vocab_size: V.
      out: folder to write.
      log: receives lines for the person at the terminal.
      processes: number of processes that work on ranges; 0 for one on each core.
      ray: address of a Ray cluster, or "auto", whose nodes do the work; they must reach the text and `out`.
    """
    in_bucket, started = storage.is_remote(out), time.monotonic()

    def check_new() -> None:
        if storage.exists(out / METADATA_FILE) if in_bucket else os.path.lexists(out):  # a link may lead nowhere
            raise UserError(f"{out} exists already; choose another folder or remove it")

    check_new()
    data = fill("config.data", DataConfig, dataclasses.asdict(data))
    if not _LEAST_PIECES <= vocab_size <= LARGEST_VOCABULARY:
        limits = f"at least {_LEAST_PIECES} and at most {LARGEST_VOCABULARY}"
        raise UserError(f"config.model.vocab_size must be {limits}, found {vocab_size}")
    if data.tokenizer and (pieces := len(tokenizer.load(data.tokenizer).pieces)) != vocab_size:
        raise UserError(
            f"model.vocab_size is {vocab_size}, but the tokenizer {data.tokenizer} has {pieces} pieces; set it to that"
        )
    check_encoding(data.encoding)
    run: plans.Run = functools.partial(workers.on_cores, workers=processes or workers.cores())
    if ray:
        run = functools.partial(cluster.on_ray, ray, name="range", log=log)
    # Found before a lease lies beside `out`, maybe among them.
    sources = corpus.find_sources(files.split(data.input), log)
    corpus.check(sources, text_field=data.text_field, encoding=data.encoding, log=log)
    for line in corpus.unread(sources, data):
        log(f"note: {line}")
    with lease.hold(out, "preparing rows", log, beside=True) as check_held:
        check_new()  # it may have been finished since the first look
        work = out if in_bucket else out.with_name(f"{out.name}.incomplete")
        fingerprints = [corpus.fingerprint(source) for source in sources]
        identity_, spans = identity(data, vocab_size, sources), ranges.plan(sources, data.documents, data.encoding)
        begun = plans.read(work, data, identity_, log)
        try:
            plan = begun or plans.make(work, data, vocab_size, sources, spans, identity_, log, run)
            tasks = [
                range_rows.Task(
                    one, tuple(fingerprints[part.file] for part in one.parts),
                    {i: plan.copies[name] for i, part in enumerate(one.parts)
                     if (name := survey.part_name(part)) in plan.copies},
                )
                for one in spans
            ]  # fmt: skip
            total = range_rows.empty_total(plan.job, sources)
            _run_tasks(work, plan.job, tasks, total, log, run, in_this_process=not ray)
            metadata = _finish(work, plan, vocab_size, sources, fingerprints, total, log)
            check_held()
            if not in_bucket:
                for rest in work.glob(f"{range_rows.UNFINISHED}*"):  # left by a worker that was killed
                    storage.remove(rest)
                work.rename(out)
            storage.remove_files([*out.glob(range_rows.COUNTS), out / plans.FILE])
        except OSError as error:
            raise of_disk(error)(f"cannot write prepared rows to {out}: {error}") from error
        finally:
            _leave(work, log)
    rows, took = f"{metadata.rows:,} training and {metadata.heldout_rows:,} held-out rows", time.monotonic() - started
    log(f"{rows} of {data.seq_len} tokens in {took:.0f} s")
    log(f"held-out loss of word frequencies alone: {metadata.unigram_loss:.3f} nats")
    log(f"prepared rows: {out}")
    return metadata


def _leave(work: epath.Path, log: Callable[[str], None]) -> None:
    """Leave a folder, if it is still there, to another time; or remove it, if no range in it is finished."""
    if storage.is_remote(work) or not work.exists():
        return
    if any(work.glob(range_rows.COUNTS)):
        log(f"what is finished stays in {work}; the same command goes on with it, unless the text has changed")
    else:
        storage.remove(work)


def _run_tasks(
    work: epath.Path,
    job: range_rows.Job,
    tasks: list[range_rows.Task],
    total: range_rows.Total,
    log: Callable[[str], None],
    run: plans.Run,
    in_this_process: bool,
) -> None:
    """Prepare the ranges that are not finished; what each holds is added to `total`."""
    done, damaged = set(), 0
    for finished, counted in range_rows.finished(job):
        if counted is None:
            damaged += 1
        else:
            total.add(finished, counted)
            done.add(finished)
    if done or damaged:
        again = f", {damaged:,} that were are damaged and made again" if damaged else ""
        log(f"going on with {work}: {len(done):,} of {len(tasks):,} ranges are finished{again}")
    missing = [task for task in tasks if task.range.number not in done]
    with tqdm(
        total=sum(task.range.size for task in tasks), unit="B", unit_scale=True, desc="tokenising", disable=None,
        initial=sum(task.range.size for task in tasks if task.range.number in done),
    ) as bar:  # fmt: skip
        alone = {"advance": bar.update} if len(missing) == 1 and in_this_process else {}
        for task, counted in run(functools.partial(range_rows.prepare, job, **alone), missing):
            total.add(task.range.number, counted)
            bar.update(0 if alone else task.range.size)


def _finish(
    work: epath.Path,
    plan: plans.Plan,
    vocab_size: int,
    sources: list[corpus.Source],
    fingerprints: list[str],
    total: range_rows.Total,
    log: Callable[[str], None],
) -> Metadata:
    """Check what the ranges hold together, and describe it."""
    data = plan.job.data
    train, heldout, documents = sum(total.rows[TRAIN]), sum(total.rows[HELD_OUT]), total.documents.total()
    if not plan.told:
        plans.tell_of_text(sources, total.text, total.copies.total(), total.nul, data, log)
    if min(train, heldout) < survey.MIN_HELDOUT_ROWS:
        if not storage.is_remote(work):
            storage.remove(work)  # it would come to the same again
        raise UserError(
            f"the text gives {train} training and {heldout} held-out rows of {data.seq_len} tokens from "
            f"{documents} documents, but {survey.MIN_HELDOUT_ROWS} of each are needed: give more text, take "
            f"a smaller --seq-len (config.data.seq_len){survey.more_documents(data.documents)}"
        )
    for line in unknown.report(total.letters, data.allow_unknown):
        log(line)
    for i, here in total.text.items():
        if here.documents and not total.tokens[i]:
            weight = f"by its weight {sources[i].epochs:g} none is taken"
            log(f"warning: {sources[i].path} has {here.documents:,} documents, and {weight}")
    range_rows.check_there(plan.job)
    special = tokenizer.load(tokenizer.find(work)).special
    logs_V = frequencies.log_of(total.frequencies[TRAIN], special)
    everything, text = unknown.total(total.letters), corpus.Counts(list(total.text.values())).total
    commonest = sorted(everything.commonest.items(), key=lambda pair: (-pair[1], pair[0]))
    digests = "".join(digest for split in range_rows.SPLITS for digest in total.digests[split])
    metadata = Metadata(
        seq_len=data.seq_len,
        vocab_size=vocab_size,
        tokenizer_sha256=plan.job.tokenizer_sha256,
        rows=train,
        heldout_rows=heldout,
        tokens=total.tokens.total(),
        documents=documents,
        heldout_documents=total.documents[HELD_OUT],
        empty_documents=text.empty,
        replaced_bytes=text.replaced,
        sources=fingerprints,
        settings=settings_of(data, vocab_size),
        letters=everything.total,
        unknown_letters=everything.unknown,
        commonest_unknown=dict(commonest[:100]),
        by_source=[
            dataclasses.asdict(total.text.get(i, corpus.SourceCounts()))
            | {
                "letters": here.total,
                "unknown_letters": here.unknown,
                "tokens": total.tokens[i],
                "words": total.words[i],
                "copies": total.copies[i],
                "epochs": sources[i].epochs,
            }
            for i, here in enumerate(total.letters)
        ],
        heldout_up_to=plan.job.heldout_up_to,
        unigram_loss=frequencies.loss_of(total.frequencies[HELD_OUT], logs_V, special),
        rows_digest=hashlib.sha256(digests.encode()).hexdigest(),
    )
    with tempfile.TemporaryDirectory() as name:
        write_description(Path(name), data.seq_len, total.rows)
        np.save(Path(name, FREQUENCIES_FILE), total.frequencies[TRAIN])
        Path(name, METADATA_FILE).write_text(json.dumps(dataclasses.asdict(metadata), indent=2) + "\n")
        if storage.is_remote(work):
            storage.upload(Path(name), work, last=METADATA_FILE)
        else:
            for path in Path(name).iterdir():
                shutil.copyfile(path, work / path.name)  # gets the permissions that the user gives files
    return metadata


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.data.prepare", description=__doc__)
    add = parser.add_argument
    sources = (
        "file, folder or glob, in gs:// too, or tfds: or hf:NAME[/CONFIG][@SPLIT], or several with commas (\\, within "
        "a name); repeatable; none: the trial corpus"
    )
    add("--input", action="append", default=[], metavar="SOURCE", help=sources)
    add("--out", required=True, help="folder to write, which must not exist")
    pieces = number(int, _LEAST_PIECES, LARGEST_VOCABULARY + 1)
    add("--vocab-size", type=pieces, help="default that of --tokenizer, or 30522")
    add("--seq-len", type=number(int, SHORTEST_ROW, LONGEST_ROW + 1), default=512, help="tokens of a row")
    kinds = "SentencePiece model, tokenizer.json, vocab.txt, vocab.json or a folder with one; none: train one"
    add("--tokenizer", default="", metavar="MODEL", help=kinds)
    add("--tokenizer-type", choices=("unigram", "bpe", "byte_bpe"), help="kind of one that is trained; default unigram")
    add("--text-field", default="text", help="field or column with the text; article.body for one within another")
    add("--encoding", default="", help="encoding of text files without a byte order mark, as latin-1; default UTF-8")
    add("--documents", choices=("file", "paragraph", "line"), default="file", help="a document in .txt files")
    add("--heldout-share", type=number(float, 0, 1), default=0.01)
    add("--seed", type=number(int, 0, LARGEST_SEED + 1), default=0)
    zwnj = "zero-width non-joiners become spaces in a tokenizer trained here"
    add("--no-keep-zwnj", dest="keep_zwnj", action="store_false", help=zwnj)
    add("--normal-form", choices=("NFC", "NFD", "NFKC", "NFKD"), default="", help="Unicode's form of the text")
    characters = number(int, 0, 1 << 31)
    add("--longest-line", type=characters, default=0, help="leave out lines of more characters")
    add("--shortest-document", type=characters, default=0, help="leave out documents of fewer characters")
    add("--drop-copies", action="store_true", help="read one of documents that differ in white space alone")
    add(
        "--workers",
        type=number(int, 1, 1 << 12),
        default=0,
        help="processes that prepare ranges of the text; default: each core",
    )
    cluster_help = (
        "address of a Ray cluster whose nodes prepare the ranges, or auto; they must reach the text and --out"
    )
    add("--ray", default="", metavar="ADDRESS", help=cluster_help)
    add("--allow-unknown", action="store_true", help="also where the tokenizer does not know a fifth of the text")
    fields = vars(parser.parse_args(argv))
    if "" in fields["input"]:
        parser.error("--input is empty: give a source, or leave --input out for the trial corpus")
    if not fields["out"]:
        parser.error("--out is empty: name a folder")
    if fields["tokenizer"]:
        trained = [("--tokenizer-type", fields["tokenizer_type"]), ("--no-keep-zwnj", not fields["keep_zwnj"])]
        for option in (option for option, given in trained if given):
            say(f"note: {option} is not used: it is of a tokenizer that is trained here, and --tokenizer gives one")
    fields["tokenizer_type"] = fields["tokenizer_type"] or "unigram"
    out, vocab_size, processes, ray = (fields.pop(name) for name in ("out", "vocab_size", "workers", "ray"))
    data = DataConfig(**fields | {"input": ",".join(fields["input"]), "rows": "", "prepared_dir": ""})

    def command() -> int:
        default = len(tokenizer.load(data.tokenizer).pieces) if data.tokenizer and vocab_size is None else 30522
        size = default if vocab_size is None else vocab_size
        prepare(data, size, storage.as_path(out), say, processes=processes, ray=ray)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
