"""Rows of the embedded trial corpus for the parts that train on text."""

import time
from pathlib import Path

from benchmarks.accelerator.part import Bench
from sctd_jax.config import DataConfig
from sctd_jax.data import corpus
from sctd_jax.data.prepare import prepare

_SMOKE_SOURCES = 12


def prepare_rows(bench: Bench, folder: Path, seq_len: int, vocab_size: int) -> tuple[int, float]:
    """Prepare the corpus, or with `bench.smoke` its first speeches, into `folder`: its training rows, and seconds."""
    began = time.monotonic()
    data = DataConfig(seq_len=seq_len)
    if bench.smoke:
        sources = [source.path for source in corpus.find_sources([])][:_SMOKE_SOURCES]
        data = DataConfig(seq_len=seq_len, input=",".join(sources), documents="paragraph", heldout_share=0.02)
    metadata = prepare(data, vocab_size, folder, bench.log)
    return metadata.rows, time.monotonic() - began
