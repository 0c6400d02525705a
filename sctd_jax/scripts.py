"""Console scripts (pyproject.toml lists them): each starts a module, as `-m` does, under a shorter name."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run sctd-jax: pretraining, evaluation, fine-tuning, sweeps, compiling."""
    _become("sctd_jax.main")


def prepare() -> NoReturn:
    """Run sctd-jax-prepare: text to rows."""
    _become("sctd_jax.data.prepare")


def plot() -> NoReturn:
    """Run sctd-jax-plot: curves of runs."""
    _become("sctd_jax.plot")


def probe() -> NoReturn:
    """Run sctd-jax-probe: probes of models without fine-tuning."""
    _become("sctd_jax.probe")


def report() -> NoReturn:
    """Run sctd-jax-report: runs on one page."""
    _become("sctd_jax.report")


def huggingface() -> NoReturn:
    """Run sctd-jax-huggingface: export to transformers and import from there."""
    _become("sctd_jax.interop.huggingface")


def _become(module: str) -> NoReturn:
    """Replace this process, so that a run's command.txt, its signals and what a recipe may import are those of `-m`."""
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]  # Python's own, such as -X
    os.execv(sys.executable, [sys.executable, *options, "-m", module, *sys.argv[1:]])
