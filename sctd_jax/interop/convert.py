"""Weights in other formats -> `model.safetensors`.

    python -m sctd_jax.interop.convert FILE_OR_FOLDER

runs in any environment with safetensors and the format's own library: torch, flax, h5py or tensorflow.
"""

import sys

from sctd_jax.arguments import CommandParser, local_path
from sctd_jax.errors import run_command
from sctd_jax.hf.convert import convert


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.interop.convert", description=__doc__)
    parser.add_argument("source", metavar="FILE_OR_FOLDER", type=local_path)
    args = parser.parse_args(argv)

    def command() -> int:
        convert(args.source)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
