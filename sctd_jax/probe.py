"""Probes of what pretrained models know without fine-tuning, as JSON and as a picture.

python -m sctd_jax.probe layers RUN_OR_HF_DIR [MORE ...] --task sst2 --data-dir GLUE [--out probes]
python -m sctd_jax.probe drift RUN [MORE ...] [--out probes]
python -m sctd_jax.probe perplexity RUN_OR_HF_DIR [MORE ...] [--text FILE] [--every-checkpoint] [--out probes]

All of it is computed in float32, on the first device.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import logging

from sctd_jax.arguments import CommandParser, any_path, local_path, number
from sctd_jax.errors import run_command, say, writing
from sctd_jax.fields import LARGEST_SEED
from sctd_jax.storage import check_own, write


def main(argv: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    args = _parser().parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # TFDS and Orbax report every file they touch

    def command() -> int:
        check_own(args.out / f"{args.command}.json", "result of sctd_jax.probe", b'{\n "settings": {')
        check_own(args.out / f"{args.command}.png", "picture", b"\x89PNG")
        with writing(args.out):
            made = [folder for folder in (args.out, *args.out.parents) if not folder.exists()]
            args.out.mkdir(parents=True, exist_ok=True)
        try:
            _measure(args)
        except BaseException:
            for folder in made:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise
        return 0

    return run_command(command)


def _measure(args: argparse.Namespace) -> None:
    # Imports of these take seconds: --help and a bad option answer at once.
    from sctd_jax.probing import drawing, drift, layers, perplexity
    from sctd_jax.tasks.examples import FileSettings

    if args.command == "layers":
        sizes = {"examples": args.examples, "max_length": args.max_length, "batch_size": args.batch_size}
        files = FileSettings.of(args)
        probes = layers.Settings(task=args.task, data_dir=args.data_dir, seed=args.seed, files=files, **sizes)
        result = layers.measure(args.models, probes, say)
        picture = drawing.layers(result)
    elif args.command == "drift":
        result = drift.measure(args.models, drift.Settings(rows=args.rows), say)
        picture = drawing.drift(result)
    else:
        texts = perplexity.Settings(
            text=args.text, rows=args.rows, every_checkpoint=args.every_checkpoint, batch_size=args.batch_size
        )
        result = perplexity.measure(args.models, texts, say)
        picture = drawing.perplexity(result)
    plain = json.loads(json.dumps(result), parse_constant=lambda name: None)  # JSON knows no NaN and no infinity
    content = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    for suffix, part in ((".json", content.encode()), (".png", picture)):
        path = args.out / (args.command + suffix)
        with writing(path):
            write(path, part)
        say(path)


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m sctd_jax.probe", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    add = _command(commands, "layers", "linear probes on the frozen states of every layer", "RUN_OR_HF_DIR")
    add("--task", required=True, help="task with a classification or regression head and no marked words")
    add("--data-dir", required=True, help="the task's files, named as in config.data_dir of fine-tuning")
    add("--examples", type=number(int, 1), default=5000, help="training examples at most; default %(default)s")
    add("--max-length", type=number(int, 16), default=0, help="tokens of a row at most; default the task's")
    add("--batch-size", type=number(int, 1), default=32, help="rows computed at once; default %(default)s")
    add("--seed", type=number(int, 0, LARGEST_SEED + 1), default=0, help="seed of the training sample")
    for field, default in (("text", "text"), ("pair", ""), ("label", "label")):
        add(f"--{field}-field", default=default, help="field of your own files; default %(default)r")
    share = "dev share of your own single file; default %(default)s"
    add("--heldout-share", type=number(float, 0, 1), default=0.1, help=share)

    add = _command(commands, "drift", "what dropping tokens changes, over a run's training and by layer", "RUN")
    rows = "held-out rows for the layers; 0: only the curve; default %(default)s"
    add("--rows", type=number(int, 0), default=64, help=rows)

    add = _command(commands, "perplexity", "pseudo-perplexity: every token masked, one at a time", "RUN_OR_HF_DIR")
    add("--text", default="", help="file with a text on each line; default: held-out rows of each run")
    add("--rows", type=number(int, 1), default=16, help="texts at most; default %(default)s")
    add("--every-checkpoint", action="store_true", help="score all that a run has kept; default the newest")
    add("--batch-size", type=number(int, 1), default=32, help="rows computed at once; default %(default)s")
    return parser


def _command(commands, name: str, purpose: str, models: str):
    command = commands.add_parser(name, help=purpose)
    command.add_argument("models", nargs="+", type=any_path, metavar=models)
    command.add_argument("--out", type=local_path, default=Path("probes"), help="folder to write; default %(default)s")
    return command.add_argument


if __name__ == "__main__":
    sys.exit(main())
