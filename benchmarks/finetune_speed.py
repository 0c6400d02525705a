"""Seconds of an epoch of fine-tuning, and rows a second of prediction, beside `transformers`' Trainer and pipeline.

python benchmarks/finetune_speed.py [--init labels/minilm] [--data-dir labels/rotten_tomatoes.csv] [--examples 1600]
    [--repeats 3] [--out DIR] [--smoke]

Fine-tunes `--init` on the texts of `--data-dir` in batches of 32 of up to 128 tokens, by `finetune` as the command
does it, and by Trainer four times: with its random order of examples, with its order by length, with our very batches,
and with those and the huge pages that our command asks glibc for (sctd_jax/huge_pages.py). All take turns, and each
epoch is the second one, so that nothing is compiled in it. Then predicts `--rows` texts by our `predict_file`, and by
the pipeline with two sizes of its batches. Wants `make labels` and `make peer`. `--smoke` takes few texts, half of
the peers, and each thing once.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from etils import epath

from benchmarks.train_step import ROOT, peer_python
from configs import finetune as recipe
from configs import predict as predict_recipe
from sctd_jax import fields
from sctd_jax.arguments import CommandParser
from sctd_jax.errors import UserError, run_command
from sctd_jax.finetune.batches import assemble
from sctd_jax.finetune.config import FinetuneConfig, PredictConfig, from_dict
from sctd_jax.finetune.finetuning import finetune, prepare
from sctd_jax.finetune.predicting import predict_file
from sctd_jax.huge_pages import restart_with_huge_pages
from sctd_jax.interop.exporting import export

OURS, OWN, GROUPED, SAME = "sctd_jax", "Trainer", "Trainer, order by length", "Trainer, our batches"
HUGE = "Trainer, our batches, huge pages"
_DEV = 16


def settings_of(init: str, data_dir: Path, max_length: int, batch_size: int) -> FinetuneConfig:
    """Two epochs without an evaluation between their steps."""
    values = recipe.get_config().to_dict()
    values |= {
        "task": "classification",
        "init": init,
        "data_dir": str(data_dir),
        "epochs": 2,
        "learning_rate": 5e-5,
        "batch_size": batch_size,
    }
    values |= {"max_length": max_length}
    return from_dict(values)


def write_texts(source: Path, folder: Path, examples: int, rows: int) -> None:
    """The first `examples` texts for training, `_DEV` more as dev, and `rows` without labels, over again if needed."""
    with source.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    if len(found) < examples + _DEV:
        raise UserError(f"--examples {examples}: {source} has {len(found)} rows, and {_DEV} are for the dev set")
    order = np.random.default_rng(0).permutation(len(found))
    parts = {"train": order[:examples], "dev": order[examples : examples + _DEV], "test": np.resize(order, rows)}
    for name, members in parts.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for i in members:
                label = {} if name == "test" else {"label": int(found[i]["label"])}
                file.write(json.dumps({"text": found[i]["text"], **label}) + "\n")


def our_epoch(settings: FinetuneConfig, workdir: Path) -> float:
    """Seconds of the second epoch, by the clock at the dispatch of its steps."""
    times: list[float] = []
    finetune(settings, workdir, lambda line: None, lambda step: times.append(time.perf_counter()))
    steps = len(times) // 2
    return (times[-1] - times[steps]) / (steps - 1) * steps


def write_batches(settings: FinetuneConfig, folder: Path) -> tuple[Path, float]:
    """Our batches of an epoch as arrays, and the share of their tokens that is padding."""
    made = prepare(settings, epath.Path(folder / "looked"), lambda line: None)
    found, real, whole = {}, 0, 0
    for step in range(made.train.per_epoch):
        group = made.train.group(step)
        members = [made.train.features[i] for i in group.members]
        batch = assemble(members, np.ones(len(members)), group.length, made.pretrained.tokenizer.special.pad)
        ids, mask = batch.input_ids_BCN[:, 0], batch.mask_BCN[:, 0]
        labels = batch.labels_B.astype(np.int64)
        found |= {f"ids_{step}": ids.astype(np.int64), f"mask_{step}": mask.astype(np.int64), f"labels_{step}": labels}
        real, whole = real + int(mask.sum()), whole + mask.size
    np.savez(folder / "batches.npz", **found)
    return folder / "batches.npz", 1 - real / whole


def ask(python: Path, huge_pages: bool = False, **asked) -> dict:
    """The answer of benchmarks/peer_trainer.py, as a user starts it: without our setting of glibc, or with it."""
    command = [python, ROOT / "benchmarks" / "peer_trainer.py", json.dumps(asked)]
    environment = {name: value for name, value in os.environ.items() if huge_pages or name != "GLIBC_TUNABLES"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"the peer, benchmarks/peer_trainer.py, ended with status {done.returncode}: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The command; see the module's docstring."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--init", default="labels/minilm", help="folder of transformers to start from")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("labels/rotten_tomatoes.csv"), help=".csv of text and label"
    )
    parser.add_argument("--examples", type=int, default=1600, help="training examples")
    parser.add_argument("--rows", type=int, default=8000, help="rows to predict")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-python", type=Path, help="a Python with torch, transformers and accelerate")
    parser.add_argument("--out", type=Path, help="folder for finetune_speed.json")
    parser.add_argument("--smoke", action="store_true", help="a few examples, once")
    args = parser.parse_args()
    python = args.peer_python or peer_python()
    if not (python and python.is_file()):
        parser.error(f"{python or 'torch and transformers'}: not there; `make peer` makes an environment that has them")
    if args.smoke:
        args.examples, args.rows, args.repeats = 24, 70, 1

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(args.data_dir, folder, args.examples, args.rows)
        (folder / "test.jsonl").rename(folder / "texts.jsonl")
        settings = settings_of(args.init, folder, args.max_length, 8 if args.smoke else 32)
        batches, padding = write_batches(settings, folder)
        shared = {
            "do": "train", "model": args.init, "file": str(folder / "train.jsonl"), "batch_size": settings.batch_size,
            "max_length": settings.max_length, "learning_rate": settings.learning_rate,
        }  # fmt: skip
        kinds = {OWN: "own", GROUPED: "grouped", SAME: str(batches), HUGE: str(batches)}
        if args.smoke:  # a start of torch each
            kinds = {GROUPED: "grouped", HUGE: str(batches)}
        seconds: dict[str, list[float]] = {name: [] for name in (OURS, *kinds)}
        for repeat in range(args.repeats):
            seconds[OURS].append(our_epoch(settings, folder / f"run-{repeat}"))
            jax.clear_caches()
            for name, kind in kinds.items():
                answer = ask(python, huge_pages=name == HUGE, **shared, batches=kind)
                seconds[name].append(answer["epoch_seconds"])
        print(f"an epoch of {args.examples:,} examples from {args.init}, {padding:.0%} of our tokens padding; "
              f"{answer['versions']}; seconds, medians of {args.repeats}")  # fmt: skip
        middle = {name: statistics.median(found) for name, found in seconds.items()}
        for name, found in seconds.items():
            ratio = "" if name == OURS else f"  ours / it {middle[OURS] / middle[name]:.2f}"
            print(f"  {name:33} {middle[name]:7.2f} ({min(found):.2f}-{max(found):.2f}){ratio}")

        export(epath.Path(folder / "run-0"), folder / "exported", step=None, force=False, log=lambda line: None)
        rates: dict[str, list[float]] = {}
        values = predict_recipe.get_config().to_dict() | {
            "init": str(folder / "run-0"), "data_dir": str(folder / "texts.jsonl")
        }  # fmt: skip
        config = fields.fill("config", PredictConfig, values)
        for repeat in range(args.repeats):
            began = time.perf_counter()
            predict_file(config, folder / f"predicted-{repeat}.jsonl", lambda line: None)
            rates.setdefault("sctd_jax, all", []).append(args.rows / (time.perf_counter() - began))
            for size in (8,) if args.smoke else (8, 64):
                answer = ask(python, do="predict", model=str(folder / "exported"), file=str(folder / "texts.jsonl"),
                             max_length=settings.max_length, batch_size=size)  # fmt: skip
                rates.setdefault(f"pipeline, batches of {size}", []).append(answer["rows_per_second"])
    print(f"{args.rows:,} predictions, rows a second (ours with reading the model and compiling, the pipeline's warm)")
    for name, found in rates.items():
        print(f"  {name:33} {statistics.median(found):7.0f} ({min(found):.0f}-{max(found):.0f})")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        result = {
            "examples": args.examples, "rows": args.rows, "padding": round(padding, 3), "peer": answer["versions"],
            "epoch_seconds": seconds, "rows_per_second": rates,
        }  # fmt: skip
        (args.out / "finetune_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    restart_with_huge_pages()  # sctd_jax.main does the same
    sys.exit(run_command(main))
