"""Weights in other formats -> `model.safetensors`.

    python -m sctd_jax.interop.convert FILE_OR_FOLDER

runs in any environment with safetensors and the format's own library: torch, flax, h5py or tensorflow.
"""

import sys
from pathlib import Path

from sctd_jax.errors import run_command
from sctd_jax.hf.convert import convert

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m sctd_jax.interop.convert FILE_OR_FOLDER")
    sys.exit(run_command(lambda: 0 if convert(Path(sys.argv[1])) else 1))
