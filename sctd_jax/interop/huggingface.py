"""Import from and export to Hugging Face `transformers`; needs neither torch nor transformers.

python -m sctd_jax.interop.huggingface export --workdir RUN --out DIR [--step N] [--force] [--dtype bfloat16]
    [--license ID ...]
python -m sctd_jax.interop.huggingface export --workdir RUN --out DIR --push OWNER/NAME [--private]
python -m sctd_jax.interop.huggingface import --from DIR_OR_FILE --workdir RUN [--tokenizer FILE]
python -m sctd_jax.interop.huggingface import --from hf:OWNER/NAME[@REVISION] --workdir RUN
"""

import argparse
import math
import os
import re
import sys

from sctd_jax import recipes, storage
from sctd_jax.arguments import CommandParser, any_path, local_path, number
from sctd_jax.errors import UserError, run_command, say
from sctd_jax.hf.write import DTYPES, Precision
from sctd_jax.interop.exported import Said
from sctd_jax.interop.exporting import export
from sctd_jax.interop.importing import import_model
from sctd_jax.interop.pushing import find_target, push


def _size(text: str) -> int:
    """Bytes, written as `transformers` does."""
    if not (found := re.fullmatch("([1-9][0-9]{0,11})(KB|MB|GB)", text)):
        raise argparse.ArgumentTypeError(f"a size as 5GB, 500MB or 100KB is expected, found {text!r}")
    return int(found[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[found[2]]


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m sctd_jax.interop.huggingface", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("export", help="a run -> a folder for transformers").add_argument
    add("--workdir", required=True, type=any_path, help="folder of the run")
    add("--out", required=True, type=local_path, help="folder to write")
    add("--step", type=number(int, 0), help="checkpoint to load; default the newest")
    add("--force", action="store_true", help="replace --out")
    add("--dtype", choices=DTYPES, default="float32", help="type of the written numbers; default %(default)s")
    add(
        "--max-shard-size",
        type=_size,
        default=math.inf,
        metavar="SIZE",
        help="the most of one file of weights, as 5GB or 500MB; default: one file",
    )
    add(
        "--license", default="", help="license in the model card, an id of the hub such as apache-2.0; default: unknown"
    )
    for name, what in (
        ("language", "ISO 639 code"),
        ("base-model", "model of the hub"),
        ("dataset", "dataset of the hub"),
    ):
        add(f"--{name}", action="append", default=[], help=f"for the model card, {what}; may be repeated")
    add("--push", metavar="OWNER/NAME", help="model of the hub to make of --out, or to renew by a commit")
    add("--private", action="store_true", help="make the model of --push a private one, if it is new")
    add = commands.add_parser("import", help="a model from transformers -> a workdir to start from").add_argument
    add("--from", required=True, dest="source", help="folder, model.safetensors in it, or hf:OWNER/NAME[@REVISION]")
    add("--workdir", required=True, type=local_path, help="folder to write, which must not exist")
    add("--tokenizer", type=local_path, help="tokenizer's file, or a folder with it; default: beside --from")
    add("--config", default="configs/base.py", help="recipe of all but the model; default %(default)s")
    args = parser.parse_args(argv)

    def command() -> int:
        if args.command == "export":
            said = Said(args.license, *map(tuple, (args.language, args.base_model, args.dataset)))
            workdir = storage.as_path(os.path.expanduser(args.workdir))
            precision = Precision(args.dtype, args.max_shard_size)
            if args.private and args.push is None:
                raise UserError("--private is for --push: nothing is pushed without it")
            target = find_target(args.push, args.private) if args.push is not None else None
            names = export(workdir, args.out, step=args.step, force=args.force, log=say, said=said, precision=precision)
            if target:
                push(args.out, names, target, f"Export of {workdir.name} by sctd_jax", say)
        else:
            recipe, source = recipes.load(recipes.find(args.config, say)).to_dict(), args.source
            if "train" not in recipes.modes(recipe):
                raise UserError(f"--config {args.config} is no recipe of a pretraining: give one as configs/base.py")
            if re.match("(gs|s3)://", source):
                raise UserError(f"--from {source}: a folder of this machine is expected; copy it here first")
            source = os.path.expanduser(source)
            import_model(source, args.workdir, tokenizer_file=args.tokenizer, recipe=recipe, log=say)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
