"""To and from Hugging Face `transformers`; needs neither torch nor transformers.

python -m sctd_jax.interop.huggingface export --workdir RUN --out DIR [--step N] [--force]
python -m sctd_jax.interop.huggingface import --from DIR_OR_FILE --workdir RUN [--tokenizer FILE]
"""

import functools
import sys
from pathlib import Path

from sctd_jax import recipes, storage
from sctd_jax.arguments import CommandParser, local_path, number
from sctd_jax.errors import run_command
from sctd_jax.interop.exporting import export
from sctd_jax.interop.importing import import_model


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.interop.huggingface", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("export", help="a run -> a folder for transformers").add_argument
    add("--workdir", required=True, help="of the run")
    add("--out", required=True, type=local_path, help="folder to write")
    add("--step", type=number(int, 0), help="of the checkpoint; default the newest")
    add("--force", action="store_true", help="replace --out")
    add = commands.add_parser("import", help="a BERT from transformers -> a workdir to start from").add_argument
    add("--from", required=True, type=Path, dest="source", help="folder, or model.safetensors in it")
    add("--workdir", required=True, type=local_path, help="folder to write, which must not exist")
    add("--tokenizer", type=Path, help="tokenizer.json, vocab.txt or SentencePiece model; default: beside the weights")
    add("--config", default="configs/base.py", help="recipe of all but the model; default %(default)s")
    args = parser.parse_args(argv)
    log = functools.partial(print, flush=True)

    def command() -> int:
        if args.command == "export":
            export(storage.as_path(args.workdir), args.out, step=args.step, force=args.force, log=log)
        else:
            recipe = recipes.load(args.config).to_dict()
            import_model(args.source, args.workdir, tokenizer_file=args.tokenizer, recipe=recipe, log=log)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
