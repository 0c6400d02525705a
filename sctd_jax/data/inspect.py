"""Prepared rows, looked at: their sources, documents, copies and padding, five rows as text, and a picture.

python -m sctd_jax.data.inspect ROWS [--out probes/rows.png] [--rows 65536]

Sources are those of the preparation. Documents are measured on training rows that follow one another, `--rows` of them
in 16 places of the split; those that begin or end outside are left out.
"""

import dataclasses
import hashlib
import io
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sctd_jax import storage
from sctd_jax.arguments import CommandParser, any_path, number, picture
from sctd_jax.data import tokenizer
from sctd_jax.data.rows import TRAIN, Metadata, Rows, fingerprint, on_disk, read_metadata
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import printable, run_command, say, writing

_PLACES, _AT_ONCE, _SHOWN, _COLUMNS = 16, 1 << 12, 5, 100
_SOURCES = 20  # lines of the table; the other sources share one


@dataclasses.dataclass(frozen=True)
class Documents:
    """Measurements of rows."""

    rows: int  # looked at
    lengths: np.ndarray  # i64[documents], tokens of each whole document
    copies: int  # documents that are equal to one before
    padding: float  # share of the tokens
    words: int  # words that begin in these rows
    tokens: int  # neither special nor padding


def documents_in(rows: np.ndarray, special: SpecialIds) -> Iterator[np.ndarray]:
    """Ids i32[n] of the whole documents in rows i32[R, N] that follow one another.

    A row is `[CLS] body [SEP]`, and [SEP] within a body ends a document. Whether a row's last [SEP] ends one too, where
    the document has just filled it, the rows do not say: its document then counts as one with the next.
    """
    bodies = [row[1 : np.flatnonzero(row == special.sep)[-1]] for row in rows]
    stream = np.concatenate(bodies)
    ends = np.flatnonzero(stream == special.sep)
    for start, end in itertools.pairwise(ends):
        yield stream[start + 1 : end]


def measure(rows: Rows, tok: tokenizer.Tokenizer, count: int) -> Documents:
    """Measure `count` rows of a split, or all."""
    count = min(count, len(rows))
    places = 1 if count == len(rows) else min(_PLACES, count)
    lengths: list[int] = []
    seen: set[bytes] = set()
    copies = padding = words = tokens = looked = 0
    for place in range(places):
        begin, end = (len(rows) * place // places + i * count // places for i in (0, 1))
        block = np.concatenate([rows.read(range(i, min(i + _AT_ONCE, end))) for i in range(begin, end, _AT_ONCE)])
        looked += len(block)
        padding += int((block == tok.special.pad).sum())
        ordinary = block[~np.isin(block, tok.special.unmaskable)]
        tokens, words = tokens + len(ordinary), words + int(tok.word_start_V[ordinary].sum())
        for ids in documents_in(block, tok.special):
            digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
            copies += digest in seen
            seen.add(digest)
            lengths.append(len(ids))
    return Documents(looked, np.array(lengths, np.int64), copies, padding / block.shape[1] / looked, words, tokens)


def lines(folder: str, metadata: Metadata, tok: tokenizer.Tokenizer, found: Documents, rows: Rows) -> list[str]:
    """The text of the command."""
    unknown = f", {metadata.unknown_letters / metadata.letters:.3%} of the letters unknown" if metadata.letters else ""
    text = [
        f"{folder}: {metadata.rows:,} training and {metadata.heldout_rows:,} held-out rows of {metadata.seq_len} "
        f"tokens, vocabulary {metadata.vocab_size:,}",
        f"{metadata.documents:,} documents ({metadata.heldout_documents:,} held out), {metadata.tokens:,} tokens, "
        f"{metadata.replaced_bytes:,} invalid sequences{unknown}",
        "",
        *_table(metadata),
        "",
        f"of {found.rows:,} training rows: {found.tokens / max(found.words, 1):.2f} tokens a word, padding "
        f"{found.padding:.2%}, {len(found.lengths):,} whole documents, {found.copies:,} of them copies of others",
    ]
    if len(found.lengths):
        at = (0, 10, 50, 90, 100)
        values = np.percentile(found.lengths, at).astype(int)
        text.append("tokens of a document: " + ", ".join(
            f"{value:,} {'lowest' if p == 0 else 'highest' if p == 100 else f'at {p}%'}"
            for p, value in zip(at, values, strict=True)
        ))  # fmt: skip
        text += _histogram(found.lengths)
    text.append("")
    for row in rows.read(np.arange(_SHOWN) * len(rows) // _SHOWN):
        shown = tok.decode(row[~np.isin(row, (tok.special.pad, tok.special.cls))]).strip()
        text.append(printable(f"{shown:.{_COLUMNS}}"))
    return text


def _table(metadata: Metadata) -> list[str]:
    """Counts by source, those with most tokens first."""
    pairs: list[tuple[str, Mapping[str, Any]]] = list(zip(metadata.sources, metadata.by_source, strict=False))
    if not pairs:
        return [f"{len(metadata.sources):,} sources, which an earlier version prepared without counting them apart"]
    pairs.sort(key=lambda pair: -pair[1].get("tokens", pair[1].get("characters", 0)))
    heads = ("source", "documents", "characters", "tokens", "tokens a word", "unknown")
    rows = [heads, *(_cells(name.partition("@")[0], counts) for name, counts in pairs[:_SOURCES])]
    if rest := pairs[_SOURCES:]:
        sums = {key: sum(counts.get(key, 0) for _, counts in rest) for key in rest[0][1]}
        rows.append(_cells(f"{len(rest):,} more", sums))
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _cells(name: str, counts: Mapping[str, Any]) -> Sequence[str]:
    tokens, words, letters = (counts.get(key, 0) for key in ("tokens", "words", "letters"))
    return (
        printable(name),
        f"{counts.get('documents', 0):,}",
        f"{counts.get('characters', 0):,}",
        f"{tokens:,}" if tokens else "",
        f"{tokens / words:.2f}" if words else "",
        f"{counts['unknown_letters'] / letters:.3%}" if letters else "",
    )


def _histogram(lengths: np.ndarray, width: int = 40) -> list[str]:
    """Bars of the lengths by powers of two."""
    powers = np.bincount(np.log2(np.maximum(lengths, 1)).astype(int))
    first = int(np.flatnonzero(powers)[0])
    most = powers.max()
    return [
        f"{f'{1 << power:,} to {(2 << power) - 1:,}':>24}  {count:>10,}  {'#' * math.ceil(width * count / most)}"
        for power, count in enumerate(powers[first:], first)
    ]


def draw(found: Documents, counts_V: np.ndarray, out: Path) -> None:
    """Picture of the documents' lengths and of how often the pieces come."""
    # Importing it takes seconds. A picture is the same whatever a matplotlibrc says.
    from matplotlib import rcdefaults
    from matplotlib.figure import Figure

    rcdefaults()

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    if len(found.lengths):
        top = max(int(found.lengths.max()), 2)
        left.hist(np.maximum(found.lengths, 1), bins=np.geomspace(1, top + 1, 40).tolist())
    left.set(xscale="log", xlabel="tokens of a document", ylabel="documents")
    ranked = np.sort(counts_V)[::-1]
    right.plot(np.arange(1, len(ranked) + 1), np.maximum(ranked, 0.5))
    right.set(xscale="log", yscale="log", xlabel="piece, by frequency", ylabel="number in the rows looked at")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format=out.suffix[1:])
    storage.write(out, content.getvalue())


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.data.inspect", description=__doc__)
    parser.add_argument("folder", type=any_path, metavar="ROWS", help="folder that sctd_jax.data.prepare wrote")
    parser.add_argument("--out", type=picture, help="picture to write, PNG, PDF or SVG by its suffix")
    parser.add_argument("--rows", type=number(int, 1), default=1 << 16, help="rows to look at; default %(default)s")
    args = parser.parse_args(argv)

    def command() -> int:
        metadata, folder = read_metadata(args.folder), on_disk(args.folder, say)
        fingerprint(folder)  # checks them
        tok = tokenizer.load(tokenizer.of_rows(folder, metadata.tokenizer_sha256), kept=True)
        rows = Rows(folder, TRAIN)
        found = measure(rows, tok, args.rows)
        for line in lines(args.folder, metadata, tok, found, rows):
            say(line)
        if args.out:
            sample = rows.read(np.unique(np.linspace(0, len(rows) - 1, min(len(rows), args.rows)).astype(int)))
            with writing(args.out):
                args.out.parent.mkdir(parents=True, exist_ok=True)
                draw(found, np.bincount(sample.ravel(), minlength=metadata.vocab_size), args.out)
            say(args.out)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
