"""Rows a second of the loader in one process, read in shuffled batches from rows on disk.

python benchmarks/loader.py [--rows 50000] [--seq-len 512] [--batch-size 256]

Writes random rows into a temporary folder (removed at the end), so it measures the record format, the
shuffle and the decoding, from the page cache.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sctd_jax.arguments import CommandParser, number
from sctd_jax.data.loader import Loader
from sctd_jax.data.rows import TRAIN, Rows, RowWriter


def main() -> None:
    """Measure and print."""
    parser = CommandParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=number(int, 1), default=50_000)
    parser.add_argument("--seq-len", type=number(int, 1), default=512)
    parser.add_argument("--batch-size", type=number(int, 1), default=256)
    parser.add_argument("--repeats", type=number(int, 1), default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        writer = RowWriter(Path(folder), args.seq_len)
        for _ in range(0, args.rows, 1000):
            writer.add(TRAIN, rng.integers(5, 30522, (1000, args.seq_len), dtype=np.int32))
        writer.close()
        loader = Loader(Rows(folder, TRAIN), batch_size=args.batch_size, seed=0)
        batches = min(args.rows, 20_000) // args.batch_size + 1
        rates = []
        for repeat in range(args.repeats):
            started = time.perf_counter()
            for step in range(repeat * batches, (repeat + 1) * batches):
                loader.batch(step)
            rates.append(batches * args.batch_size / (time.perf_counter() - started))
    print(
        f"{np.median(rates):,.0f} rows of {args.seq_len} a second in batches of {args.batch_size} "
        f"(median of {args.repeats}, {min(rates):,.0f} to {max(rates):,.0f})"
    )


if __name__ == "__main__":
    main()
