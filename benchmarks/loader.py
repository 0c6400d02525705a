"""Rows a second of the loader in one process, read in shuffled batches from rows on disk.

python benchmarks/loader.py [--rows 50000] [--seq-len 512] [--batch-size 256] [--shuffle shards]

Writes random rows into a temporary folder (removed at the end), so it measures the record format, the
shuffle and the decoding, from the page cache. How long a large dataset takes to its first batch is measured with

python benchmarks/loader.py --shards 16000 --rows 62500

a description of so many shards of `--rows` rows; the shards that the first batch needs are one file by many names.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sctd_jax.arguments import CommandParser, number
from sctd_jax.data.loader import Loader, ShardLoader
from sctd_jax.data.rows import TRAIN, Rows
from sctd_jax.data.shards import ShardWriter, shard_name, write_description


def main() -> None:
    """Measure and print."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--rows", type=number(int, 1), default=50_000)
    parser.add_argument("--seq-len", type=number(int, 1), default=512)
    parser.add_argument("--batch-size", type=number(int, 1), default=256)
    parser.add_argument("--repeats", type=number(int, 1), default=5)
    parser.add_argument("--shuffle", choices=("rows", "shards"), default="rows")
    parser.add_argument("--shards", type=number(int, 1), help="measure the first batch of so many shards")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder, shard_name(TRAIN, 0, 1)), args.seq_len)
        for start in range(0, args.rows, 1000):
            rows = rng.integers(5, 30522, (min(1000, args.rows - start), args.seq_len), dtype=np.int32)
            writer.add(rows)
        writer.close()
        write_description(Path(folder), args.seq_len, {TRAIN: [args.rows]})
        print(first_batch(Path(folder), args) if args.shards else rate(folder, args))


def rate(folder: str, args) -> str:
    """Rows a second, as a line."""
    rows = Rows(folder, TRAIN)
    batches, rates, columns = min(args.rows, 20_000) // args.batch_size + 1, [], np.arange(args.batch_size)
    loader = (
        Loader(rows, batch_size=args.batch_size, seed=0)
        if args.shuffle == "rows"
        else ShardLoader(rows, seed=0, batches=[(0, args.batch_size)])
    )
    for repeat in range(args.repeats):
        started = time.perf_counter()
        for step in range(repeat * batches, (repeat + 1) * batches):
            loader.read(step * args.batch_size + columns)
        rates.append(batches * args.batch_size / (time.perf_counter() - started))
    return (
        f"{np.median(rates):,.0f} rows of {args.seq_len} a second in batches of {args.batch_size} "
        f"(median of {args.repeats}, {min(rates):,.0f} to {max(rates):,.0f})"
    )


def first_batch(folder: Path, args) -> str:
    """Seconds and memory up to the first batch of a dataset of `args.shards` shards, as lines."""
    write_description(folder, args.seq_len, {TRAIN: [args.rows] * args.shards})
    (folder / shard_name(TRAIN, 0, 1)).rename(folder / "shard")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loader = ShardLoader(Rows(folder, TRAIN), seed=0, batches=[(0, args.batch_size)])
    opened = time.perf_counter() - started
    positions = np.arange(args.batch_size)
    numbers = np.concatenate([part.rows for part in loader.order.parts(positions)])
    names = {shard_name(TRAIN, shard, args.shards) for shard in (numbers // args.rows).tolist()}
    for name in names:
        os.link(folder / "shard", folder / name)
    started = time.perf_counter()
    loader.read(positions)
    took = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = len(names) * (folder / "shard").stat().st_size
    return (
        f"{args.shards:,} shards of {args.rows:,} rows: {opened:.1f} s to open them, {took:.2f} s for a batch of "
        f"{args.batch_size} from {len(names)} shards ({size / 1e9:.2f} GB), {grown:.0f} MB more memory"
    )


if __name__ == "__main__":
    main()
