"""XNLI (Conneau et al., EMNLP 2018): inference in 15 languages; the test set has its labels.

Source: the folders of XNLI-1.0.zip and XNLI-MT-1.0.zip. Hyperparameters are those of MNLI.
"""

import os
from collections.abc import Iterator

from sctd_jax import storage
from sctd_jax.errors import UserError
from sctd_jax.tasks.examples import FileSettings, classify
from sctd_jax.tasks.files import Note, Record, read_tsv
from sctd_jax.tasks.splits import Notes, Split
from sctd_jax.tasks.task import Task

LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
_PLACES = {  # places of the files in the archives, and where people put them
    "train": ("multinli/multinli.train.{}.tsv", "XNLI-MT-1.0/multinli/multinli.train.{}.tsv", "multinli.train.{}.tsv"),
    "dev": ("xnli.dev.tsv", "XNLI-1.0/xnli.dev.tsv"),
    "test": ("xnli.test.tsv", "XNLI-1.0/xnli.test.tsv"),
}
# The training file's names of fields and labels -> those of dev and test.
_FIELDS = {"premise": "sentence1", "hypo": "sentence2", "label": "gold_label"}
_LABELS = {"contradictory": "contradiction"}


def _find(task: Task, data_dir: str, settings: FileSettings, notes: Notes) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Training in one language and dev and test in the same or another: `settings.language`."""
    if data_dir.startswith("tfds:"):
        raise UserError(f"config.data_dir = {data_dir}: xnli is read from its files alone; see {task.home}")
    train, _, scored = settings.language.partition(":")
    languages = {"train": train, "dev": scored or train, "test": scored or train}
    if unknown := set(languages.values()) - set(LANGUAGES):
        raise UserError(
            f"config.language = {settings.language!r}: no language {', '.join(sorted(unknown))} in xnli, expected one "
            f"of {', '.join(LANGUAGES)}, or two as in en:de"
        )
    splits = {}
    for split, language in languages.items():
        names = [place.format(language) for place in _PLACES[split]]
        paths = [os.path.join(folder, n) for folder in (data_dir, os.path.join(data_dir, task.folder)) for n in names]
        with storage.reaching(data_dir):
            path = next((path for path in paths if storage.as_path(path).is_file()), None)
        if path:
            splits[split] = Split(path, _read(path, "" if split == "train" else language, notes.of(path)))
        elif split != "test":
            raise UserError(f"xnli: no {names[0]} in {data_dir}; expected the files of {task.home}")
    return splits, task.labels


def _read(path: str, language: str, note: Note) -> Iterator[Record]:
    """The rows of a language; '' for the training files, which have one each."""
    for record in read_tsv(path, note=note):
        fields = {_FIELDS.get(name, name): value for name, value in record.fields.items()}
        if not language or record.label("language") == language:
            label = fields.get("gold_label")
            yield Record(record.place, record.number, {**fields, "gold_label": _LABELS.get(label, label)})


XNLI = (
    Task(
        name="xnli", head="classification", labels=("entailment", "neutral", "contradiction"), folder="XNLI",
        home="https://github.com/facebookresearch/XNLI", hub=("facebook/xnli", ""), find=_find,
        build=classify("sentence1", "sentence2", label="gold_label", some_empty=True), scored=True,
        metrics=("accuracy",), rows=lambda path, settings, note: read_tsv(path, note=note),
    ),
)  # fmt: skip
