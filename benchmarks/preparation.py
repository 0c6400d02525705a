"""Cost of preparing rows: time of a core, memory of a worker and bytes of rows, and a table for large amounts.

python benchmarks/preparation.py [--mb 512] [--input 'labels/text/*.jsonl'] [--tokenizer-type unigram]

The text of `--input` (the trial corpus without it) is written again and again into one file of JSON lines, in a
temporary folder that is removed at the end. A tokenizer is trained on it first, and is not counted.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sctd_jax.arguments import CommandParser, number
from sctd_jax.config import DataConfig
from sctd_jax.data import corpus, files, prepare, ranges, tokenizer, workers
from sctd_jax.data.rows import HELD_OUT, TRAIN
from sctd_jax.data.shards import shard_name, write_description

_AMOUNTS = ((10**9, "1 GB"), (10**11, "100 GB"), (10**12, "1 TB"))
_CORES = (1, 64, 1024)
_SEQ_LEN = 512


def write_text(path: Path, inputs: str, megabytes: int) -> None:
    """Write the documents of some inputs as JSON lines, over and over until the file is so large."""
    sources, end = corpus.find_sources(files.split(inputs)), megabytes * 10**6
    with path.open("w") as file:
        while True:
            text, document = "", 0
            for chunk in corpus.read(sources, text_field="text", documents="paragraph", counts=corpus.Counts()):
                if chunk.document != document:
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    text, document = "", chunk.document
                    if file.tell() > end:
                        return
                text += chunk.text


def measure(data: DataConfig, vocab_size: int, out: Path, processes: int) -> tuple[float, float, float]:
    """(seconds, seconds of a core, MB of the largest process) of a preparation."""

    def used() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))

    began, before = time.monotonic(), used()
    prepare.prepare(data, vocab_size, prepare.storage.as_path(out), lambda line: None, processes=processes)
    seconds, core_seconds = time.monotonic() - began, used() - before
    largest = max(resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, core_seconds, largest / 1024


def main() -> None:
    """Measure and print."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--mb", type=number(int, 1), default=512, help="size of the text; default %(default)s")
    parser.add_argument("--input", default="", help="text as that of data.prepare; default: the trial corpus")
    parser.add_argument("--tokenizer-type", choices=("unigram", "bpe", "byte_bpe"), default="unigram")
    parser.add_argument("--vocab-size", type=number(int, 100), default=24_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="preparation-") as name:
        folder, cores = Path(name), workers.cores()
        first = DataConfig(
            input=args.input, documents="paragraph", tokenizer_type=args.tokenizer_type, seq_len=_SEQ_LEN, rows="",
            prepared_dir="",
        )  # fmt: skip
        prepare.prepare(first, args.vocab_size, prepare.storage.as_path(folder / "first"), lambda line: None)
        (folder / "text").mkdir()
        write_text(folder / "text" / "a.jsonl", args.input, args.mb)
        size = (folder / "text" / "a.jsonl").stat().st_size
        data = DataConfig(
            input=str(folder / "text"), tokenizer=os.fspath(tokenizer.find(folder / "first")), seq_len=_SEQ_LEN,
            rows="", prepared_dir="",
        )  # fmt: skip
        kind = f"{args.tokenizer_type} of {args.vocab_size:,} pieces"
        print(f"{size / 1e6:,.0f} MB of JSON lines, {kind}, rows of {_SEQ_LEN}")
        for processes in sorted({1, cores}):
            out = folder / f"rows-{processes}"
            seconds, core_seconds, memory = measure(data, args.vocab_size, out, processes)
            speed = size / 1e9 / (core_seconds / 3600)
            print(f"{processes} process{'es' * (processes > 1)}: {seconds:.0f} s, {core_seconds:.0f} s of a core "
                  f"({speed:.1f} GB an hour of one), the largest {memory:,.0f} MB")  # fmt: skip
        stored = sum(path.stat().st_size for path in out.glob("*array_record*")) / size
        print(f"{stored:.2f} bytes of rows for one of text\n")
        heads = ("text", *(f"{n:,} core{'s' * (n > 1)}" for n in _CORES), "shards", "rows", "description")
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
        for amount, said in _AMOUNTS:
            hours, shards = core_seconds / size * amount / 3600, -(-amount // ranges.BYTES)
            described = folder / f"described-{shards}"
            described.mkdir()
            write_description(described, _SEQ_LEN, {split: [30_000] * shards for split in (TRAIN, HELD_OUT)})
            description = sum(path.stat().st_size for path in described.iterdir())
            # Ranges run as many at a time as there are cores; the last may be alone.
            waits = (hours / shards * -(-shards // n) for n in _CORES)
            each = (f"{wait:.1f} h" if wait >= 0.1 else f"{wait * 3600:,.0f} s" for wait in waits)
            cells = (*each, f"2 x {shards:,}", f"{amount * stored / 1e9:,.1f} GB", f"{description / 1e3:,.0f} kB")
            print(f"| {said} | {' | '.join(cells)} |")
        print(f"\nNames of the shards: {shard_name(TRAIN, 0, shards)} to {shard_name(HELD_OUT, shards - 1, shards)}")


if __name__ == "__main__":
    main()
