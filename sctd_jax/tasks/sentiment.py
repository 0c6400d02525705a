"""IMDB (Maas et al., ACL 2011) and SST-5 (Socher et al., EMNLP 2013), whose test sets have their labels.

Sources: the README of aclImdb_v1.tar.gz; trainDevTestTrees_PTB.zip of nlp.stanford.edu/sentiment.
"""

import os
import re
from collections.abc import Iterator

from sctd_jax import storage
from sctd_jax.errors import UserError
from sctd_jax.tasks import own
from sctd_jax.tasks.examples import Context, Example, FileSettings, classify
from sctd_jax.tasks.files import Note, Record, read_csv, text_lines
from sctd_jax.tasks.splits import Notes, Split, class_names, open_tfds, tfds_splits
from sctd_jax.tasks.task import SplitNames, Task

_BREAK = re.compile(r" *<br\s*/?> *")
_FOLDER = "aclImdb"


def _reviews(folder: str) -> Iterator[Record]:
    """The reviews of a split's folders pos and neg, sorted by their names."""
    for label in ("pos", "neg"):
        files = sorted(storage.as_path(os.path.join(folder, label)).glob("*.txt"), key=lambda path: path.name)
        for number, path in enumerate(files):
            text = "".join(text for _, text in text_lines(os.fspath(path)))
            yield Record(os.fspath(path), number, {"text": text, "label": label, "id": f"{label}/{path.stem}"})


def _find_imdb(
    task: Task, data_dir: str, settings: FileSettings, notes: Notes
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The official folder, whose training set gives the dev set too, one .csv of review and sentiment, or TFDS."""
    if data_dir.startswith("tfds:"):
        builder = open_tfds(data_dir)
        names = SplitNames("train", {}, {"test": "test"})
        splits = tfds_splits(builder, names, "label", class_names(builder, "label"), {})
    elif data_dir.endswith(".csv"):
        splits = {"train": Split(data_dir, read_csv(data_dir, notes.of(data_dir)))}
    else:
        places = [os.path.join(data_dir, *parts) for parts in ((), (_FOLDER,), (task.folder,), (task.folder, _FOLDER))]
        with storage.reaching(data_dir):
            folder = next((f for f in places if storage.as_path(os.path.join(f, "train", "pos")).is_dir()), None)
        if folder is None:
            raise UserError(
                f"imdb: no train/pos in {data_dir} or its folder {_FOLDER}; expected the folder {_FOLDER} as "
                f"{task.home} has it, or one .csv file with the columns review and sentiment"
            )
        there = {split: os.path.join(folder, split) for split in ("train", "test")}
        splits = {split: Split(f, _reviews(f)) for split, f in there.items() if storage.as_path(f).is_dir()}
    where, rows = splits["train"].where, list(splits["train"].records)
    return {**splits, **own.held_out(where, rows, settings)}, task.labels


def _build_imdb(record: Record, context: Context) -> Iterator[Example]:
    review = "review" in record.fields
    text = record.text("review" if review else "text")
    if _BREAK.search(text):
        context.note("reviews with <br />, taken as ends of lines", record.place)
    label = None if context.hidden else record.label("sentiment" if review else "label").lower()
    if label is not None and label not in _NAMES:
        raise UserError(f"{record.place}: unknown label {label!r}, expected one of {', '.join(_NAMES)}")
    identity = record.fields.get("id", record.number)
    yield Example(identity, _BREAK.sub("\n", text), label=label and _NAMES[label])


_NAMES = {"neg": 0, "pos": 1, "negative": 0, "positive": 1, "0": 0, "1": 1}


def _read_trees(path: str, split: str, note: Note) -> Iterator[Record]:
    """The sentences of trees such as (3 (2 It) (4 shines)): the words, and the label of the root."""
    number = 0
    for line, text in text_lines(path):
        if not text.strip():
            continue
        place = f"{path}, line {line}"
        root = re.match(r"\(([0-4]) ", text)
        words = re.findall(r"\([0-4] ([^()\s]+)\)", text)
        if not root or not words or text.count("(") != text.count(")"):
            raise UserError(f"{place}: no tree such as (3 (2 It) (4 shines)), found {text.strip()!r:.80}")
        words = [{"-LRB-": "(", "-RRB-": ")"}.get(word, word).replace("\\/", "/") for word in words]
        yield Record(place, number, {"sentence": " ".join(words), "label": root[1]})
        number += 1


def _read_sentences(path: str, settings: FileSettings, note: Note) -> Iterator[Record]:
    """The sentences of trees, or of a .csv, .tsv or .jsonl file with the field `sentence`."""
    return _read_trees(path, "test", note) if path.endswith(".txt") else own.read_rows(path, "test", note)


SENTIMENT = (
    Task(
        name="imdb", head="classification", labels=("neg", "pos"), names=("negative", "positive"), single=True,
        folder="IMDB", home="https://ai.stanford.edu/~amaas/data/sentiment", hub=("stanfordnlp/imdb", ""),
        max_length=512, build=_build_imdb, find=_find_imdb, scored=True, metrics=("accuracy",),
        rows=lambda path, settings, note: own.read_rows(path, "test", note),
    ),
    Task(
        name="sst5", head="classification", labels=("0", "1", "2", "3", "4"), single=True,
        names=("very negative", "negative", "neutral", "positive", "very positive"), folder="SST-5",
        home="https://nlp.stanford.edu/sentiment", hub=("SetFit/sst5", ""), read=_read_trees,
        files=SplitNames("train.txt", {"dev": "dev.txt"}, {"test": "test.txt"}), build=classify("sentence"),
        scored=True, metrics=("accuracy",), rows=_read_sentences,
    ),
)  # fmt: skip
