"""The plan of a preparation: the tokenizer, how much is held out, and the copies that are left out, from a look at all.

It is written down before the first row is, so that an interrupted preparation goes on by it.
"""

import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from sctd_jax import storage
from sctd_jax.config import DataConfig
from sctd_jax.data import (
    byte_bpe_trainer,
    corpus,
    files,
    ranges,
    sentencepiece_trainer,
    survey,
    tokenizer,
    unknown,
    workers,
)
from sctd_jax.data.range_rows import UNFINISHED, Job, own_files
from sctd_jax.errors import UserError

FILE = "plan.json"
_OF_THE_JOB = ("tokenizer_sha256", "vocab_size", "count", "heldout_up_to")
_VERSION = 1  # version of what is written for a range
_LOOK_LINES = 100  # lines of the sample from which on its share of unknown letters is believed
_LONG_TRAINING = 4 << 20  # letters of a sample on which a tokenizer is trained for many seconds
_LOST_LINES, _LOST_CHARS = 200, 2000  # part of the sample that is searched for letters that no token stands for

# Shape of `workers.on_cores` with the number of workers, and of `cluster.on_ray` with an address.
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[Any, Any]]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Preparation of the ranges of a text, as it is written down."""

    job: Job
    copies: dict[str, list[int]]  # result of `survey.copies`
    told: bool  # the log has had what there is to say of the text


def read(work: epath.Path, data: DataConfig, identity: str, log: Callable[[str], None]) -> Plan | None:
    """The plan of an interrupted preparation; None without one. One of other text or settings is removed.

    Args:
      work: folder of the preparation.
      data: its settings.
      identity: `prepare.identity` of text and settings.
      log: receives a line about a removal.
    """
    if not storage.is_remote(work) and os.path.lexists(work):  # a link may lead nowhere, or to another folder
        foreign = os.path.islink(work) or not work.is_dir()
        if foreign or (not storage.exists(work / FILE) and set(work.iterdir()) - set(own_files(work))):
            raise UserError(f"{work} exists, and is no interrupted preparation; remove it")
    if not storage.exists(work / FILE):
        return None
    found = storage.read_json(work / FILE, advice="remove the folder")
    if found.get("identity") != _identity(identity):
        log(f"note: {work} is of an interrupted preparation of other text or settings; it is removed")
        if storage.is_remote(work):  # the folder may hold more than the preparation's
            storage.remove_files(own_files(work))
            storage.remove_files([work / FILE])  # last: without it the others would be nobody's
        else:
            storage.remove(work)
        return None
    try:
        tokenizer.of_rows(work, found["tokenizer_sha256"])
    except UserError as error:
        raise UserError(f"{error}; or remove {work}, to begin again") from error
    job = Job(data=data, folder=os.fspath(work), identity=identity, **{name: found[name] for name in _OF_THE_JOB})
    return Plan(job, found["copies"], told=False)


def _identity(identity: str) -> list:
    return [_VERSION, ranges.BYTES, identity]


def make(
    work: epath.Path,
    data: DataConfig,
    vocab_size: int,
    sources: list[corpus.Source],
    spans: list[ranges.Range],
    identity: str,
    log: Callable[[str], None],
    run: Run,
) -> Plan:
    """Look at the text, keep the given tokenizer or train one, and write the plan.

    Args:
      work: folder of the preparation, which is made.
      data: its settings.
      vocab_size: V of a tokenizer that is trained.
      sources: sources of the text.
      spans: its ranges.
      identity: `prepare.identity` of text and settings.
      log: receives lines for the person at the terminal.
      run: runs a function on each range.
    """
    log(f"reading {len(sources)} source{'s' * (len(sources) != 1)}")
    sample_bytes = survey.LOOK_BYTES if data.tokenizer else survey.TRAINING_BYTES
    take = functools.partial(survey.take, data=data, sample_bytes=sample_bytes, count=len(spans))
    by_number = {one.number: found for one, found in run(take, spans)}
    found = [by_number[one.number] for one in spans]
    look = survey.together(found, data, sample_bytes)
    copies = survey.copies(found)
    copied = sum(map(len, copies.values()))
    if not (total := look.total).characters:  # the look sees no end of a huge one
        left_out = _left_out(total, copied, data)
        more = f", and left out are {left_out} (--longest-line, --shortest-document)" if left_out else ""
        named = ", ".join(files.split(data.input))
        raise UserError(f"input {named:.300}: no text in {total.empty:,} empty documents{more}")
    if look.whole:
        tell_of_text(sources, look.counts, copied, look.nul, data, log)
    else:
        read_chars, size = look.total.characters / 1e6, sum(one.size for one in spans) / 1e6
        log(f"looked at {read_chars:,.0f} M characters of about {size:,.0f} MB in {len(spans):,} ranges")
        _check_encoding(sources, look.counts, data, lambda line: None)
    survey.check_split(look, data, sources, copied, survey.least_threshold(look, data))
    work.mkdir(parents=True, exist_ok=True)
    tok = _keep_tokenizer(work, data, vocab_size, look, log)
    _check_sample(look, sources, data, tok, log)
    threshold = survey.threshold(look, data, tok)
    survey.check_split(look, data, sources, copied, threshold)
    digest = tokenizer.digest(tokenizer.find(work))
    job = Job(data, os.fspath(work), digest, len(tok.pieces), len(spans), threshold, identity)
    plan = Plan(job, copies, told=look.whole)
    content = {name: getattr(job, name) for name in _OF_THE_JOB}
    content |= {"identity": _identity(identity), "copies": plan.copies}
    begun = work / (FILE if storage.is_remote(work) else f"{UNFINISHED}{FILE}")
    with storage.reaching(work):
        begun.write_text(json.dumps(content))
        if begun.name != FILE:
            begun.replace(work / FILE)
    return plan


def tell_of_text(
    sources: list[corpus.Source],
    counts: dict[int, corpus.SourceCounts],
    copied: int,
    nul: int,
    data: DataConfig,
    log: Callable[[str], None],
) -> None:
    """Log what a text holds, and refuse it if its encoding is another one."""
    total = corpus.Counts(list(counts.values())).total
    log(f"{total.documents:,} documents, {total.characters / 1e6:,.1f} M characters, {total.empty:,} empty")
    if left_out := _left_out(total, copied, data):
        log(f"left out: {left_out}")
    _check_encoding(sources, counts, data, log)
    if nul:
        log(f"warning: {nul:,} NUL characters are read as spaces")


def _left_out(total: corpus.SourceCounts, copied: int, data: DataConfig) -> str:
    left_out = {
        f"lines of more than {data.longest_line:,} characters": total.long_lines,
        f"documents of fewer than {data.shortest_document:,}": total.short_documents,
        "copies of documents": copied,
    }
    return ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)


def _check_encoding(
    sources, counts: dict[int, corpus.SourceCounts], data: DataConfig, log: Callable[[str], None]
) -> None:
    everything = corpus.Counts([counts.get(i, corpus.SourceCounts()) for i in range(len(sources))])
    if warning := corpus.replaced_warning(sources, everything):
        if everything.total.replaced > unknown.REFUSE * everything.total.characters and not data.allow_unknown:
            cure = "or accept it: --allow-unknown, --config.data.allow_unknown=True"
            raise UserError(f"{warning.removeprefix('warning: ')}, {cure}")
        log(warning)


def _keep_tokenizer(
    work: epath.Path, data: DataConfig, vocab_size: int, look: survey.Survey, log: Callable[[str], None]
) -> tokenizer.Tokenizer:
    """The given tokenizer, or one that is trained on the sample, as it is kept beside the rows."""
    if data.tokenizer:
        name, model = tokenizer.canonical(data.tokenizer)
        for remark in tokenizer.remarks(data.tokenizer):
            log(remark)
    else:
        log(f"training a {data.tokenizer_type} tokenizer of {vocab_size:,} pieces")
        lines = [line for line, _ in look.lines()]
        if data.tokenizer_type == "byte_bpe":
            name, trainer, kind = tokenizer.JSON_FILE, byte_bpe_trainer.train, {}
        else:
            name, trainer = tokenizer.SENTENCEPIECE_FILE, sentencepiece_trainer.train
            kind = {"model_type": data.tokenizer_type}
        train = functools.partial(trainer, vocab_size=vocab_size, keep_zwnj=data.keep_zwnj, **kind)
        long = sum(map(len, lines)) > _LONG_TRAINING
        ((_, model),) = workers.on_cores(train, [lines], workers=1, apart=long)
    with storage.reaching(work):
        (work / name).write_bytes(model)
    return tokenizer.load(work / name)


def _check_sample(
    look: survey.Survey,
    sources: list[corpus.Source],
    data: DataConfig,
    tok: tokenizer.Tokenizer,
    log: Callable[[str], None],
) -> None:
    """Refuse a tokenizer that does not know the text, or warn of it, as far as a sample can tell."""

    def by_source(some: list[tuple[str, int]], odd: list[Counter[str]]) -> list[unknown.Letters]:
        letters = [unknown.Letters(source.path) for source in sources]
        for (line, source), here in zip(some, odd, strict=True):
            letters[source].total += len("".join(line.split()))
            letters[source].add(here)
        return letters

    lines: list[tuple[str, int]] = []
    size = 0
    for item in look.lines():
        if size >= survey.LOOK_BYTES and len(lines) >= _LOOK_LINES:
            break
        lines.append(item)
        size += len(item[0])
    everything = look.whole and look.all_sampled
    whole, allow = everything and len(lines) == len(look.sample), data.allow_unknown
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
