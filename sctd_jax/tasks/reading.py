"""A task's files, found and read: official folders, prepared TFDS datasets, and files of the user's."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sctd_jax.data import corpus
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable
from sctd_jax.tasks import records
from sctd_jax.tasks.building import Context, FileSettings, flatten, own_label
from sctd_jax.tasks.checks import Notes, build, check_spelling, odd_rows, undefined_metrics
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.records import Note, Record
from sctd_jax.tasks.tasks import TASKS

_OWN = ("classification", "regression")
_OWN_SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclasses.dataclass(frozen=True)
class TaskData:
    """All examples of a task, in the order of its files."""

    labels: tuple[str, ...]
    train: tuple[Example, ...]
    dev: dict[str, tuple[Example, ...]]  # 'dev'; of mnli 'dev_matched' and 'dev_mismatched'
    test: dict[str, tuple[Example, ...]]  # 'test' or 'test_matched' and 'test_mismatched', as far as there are files
    notes: tuple[str, ...]  # what was left out, taken otherwise or is odd: file, count and the first place


@dataclasses.dataclass(frozen=True)
class _Names:
    """The file, or the split of a TFDS dataset, of each split of ours; train and dev must be there."""

    train: str
    dev: dict[str, str]
    test: dict[str, str] = dataclasses.field(default_factory=dict)

    def required(self) -> dict[str, str]:
        return {"train": self.train, **self.dev}


@dataclasses.dataclass(frozen=True)
class _Split:
    where: str  # for messages
    records: Iterable[Record]


_MATCHED = {which: f"{which}.tsv" for which in ("dev_matched", "dev_mismatched", "test_matched", "test_mismatched")}
_GLUE = _Names("train.tsv", {"dev": "dev.tsv"}, {"test": "test.tsv"})
_SUPERGLUE = _Names("train.jsonl", {"dev": "val.jsonl"}, {"test": "test.jsonl"})
_FILES = {
    "mnli": _Names(
        "train.tsv",
        {name: file for name, file in _MATCHED.items() if name.startswith("dev")},
        {name: file for name, file in _MATCHED.items() if name.startswith("test")},
    ),
    "squad1": _Names("train-v1.1.json", {"dev": "dev-v1.1.json"}),
    "squad2": _Names("train-v2.0.json", {"dev": "dev-v2.0.json"}),
    "swag": _Names("train.csv", {"dev": "val.csv"}, {"test": "test.csv"}),
    "hellaswag": _Names("hellaswag_train.jsonl", {"dev": "hellaswag_val.jsonl"}, {"test": "hellaswag_test.jsonl"}),
    **{name: _GLUE for name, task in TASKS.items() if task.benchmark == "glue" and name != "mnli"},
    **{name: _SUPERGLUE for name, task in TASKS.items() if task.benchmark == "superglue"},
}
_HOMES = {
    "glue": "https://gluebenchmark.com/tasks",
    "superglue": "https://super.gluebenchmark.com/tasks",
    "squad1": "https://rajpurkar.github.io/SQuAD-explorer",
    "squad2": "https://rajpurkar.github.io/SQuAD-explorer",
    "swag": "https://github.com/rowanz/swagaf/tree/master/data",
    "hellaswag": "https://github.com/rowanz/hellaswag/tree/master/data",
}
_COLA_COLUMNS = ("source", "label", "star", "sentence")  # its train.tsv and dev.tsv have no header

_TFDS = _Names("train", {"dev": "validation"}, {"test": "test"})
_TFDS_MNLI = _Names(
    "train",
    {"dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"},
    {"test_matched": "test_matched", "test_mismatched": "test_mismatched"},
)
# TFDS's name of a field -> its name in the official file, where they differ.
_TFDS_FIELDS = {
    "mrpc": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    "stsb": {"label": "score"},
    "qqp": {"label": "is_duplicate"},
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
    "hellaswag": {"context": "ctx_a"},  # it has the two parts of the context as one
}


def open_task(name: str, data_dir: str, settings: FileSettings) -> TaskData:
    """Read all splits of a task; nothing is downloaded.

    Args:
      name: of the task, a key of `tasks.TASKS`.
      data_dir: the folder of its files, or the folder that holds its official folder, or `tfds:NAME/CONFIG` for a
        dataset that is prepared under TFDS_DATA_DIR; of the user's tasks also a single file (.csv, .tsv, .jsonl).
      settings: for the user's tasks.

    Raises:
      UserError: files that are missing, and whatever is malformed in them, by file and line.
    """
    data_dir = os.path.expanduser(data_dir)
    if "://" in data_dir:
        raise UserError(f"config.data_dir {data_dir}: a task's files are read from disks; copy them first")
    notes, remarks = Notes(), []
    if name in _OWN:
        splits, labels = _own_splits(name, data_dir, settings, notes, remarks)
    else:
        labels = TASKS[name].labels
        tfds = data_dir.startswith("tfds:")
        splits = _tfds_splits(name, data_dir, remarks) if tfds else _files(name, data_dir, notes)
    examples = {}
    for split, found in splits.items():
        examples[split] = tuple(
            build(name, found.records, Context(found.where, split, labels, settings, notes.of(found.where)))
        )
        if not examples[split]:
            raise UserError(f"{found.where}: no rows")
        if split.startswith("dev"):
            remarks += undefined_metrics(name, found.where, examples[split])
    if name in _OWN:
        remarks += odd_rows(splits["dev"].where, labels, examples["train"], examples["dev"])
    return TaskData(
        labels=labels,
        train=examples["train"],
        dev={split: found for split, found in examples.items() if split.startswith("dev")},
        test={split: found for split, found in examples.items() if split.startswith("test")},
        notes=(*notes.lines(), *remarks),
    )


def _files(name: str, data_dir: str, notes: Notes) -> dict[str, _Split]:
    names, task = _FILES[name], TASKS[name]
    folders = [data_dir, os.path.join(data_dir, task.folder)]
    folder = next((f for f in folders if os.path.isfile(os.path.join(f, names.train))), None)
    if folder is None:
        folder = next((f for f in reversed(folders) if os.path.isdir(f)), None)
    if folder is None:
        raise UserError(f"{name}: no folder {data_dir}; {_expected(name)}")
    missing = [file for file in names.required().values() if not os.path.isfile(os.path.join(folder, file))]
    if missing:
        raise UserError(f"{name}: no {', '.join(missing)} in {folder}; {_expected(name)}")
    splits = {}
    for split, file in {**names.required(), **names.test}.items():
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            splits[split] = _Split(path, _read_official(name, path, split, notes.of(path)))
    return splits


def _expected(name: str) -> str:
    names, task = _FILES[name], TASKS[name]
    home = _HOMES[task.benchmark or name]
    optional = f", and {', '.join(names.test.values())} for a submission" if names.test else ""
    required = ", ".join(names.required().values())
    return f"expected {required}{optional} in config.data_dir or its folder {task.folder}, as {home} has them"


def _read_official(name: str, path: str, split: str, note: Note) -> Iterator[Record]:
    hidden = split.startswith("test")
    if path.endswith(".tsv"):
        columns = _COLA_COLUMNS if name == "cola" and not hidden else ()
        # Some questions of qqp hold a newline, which breaks their rows.
        yield from records.read_tsv(path, columns=columns, broken=name == "qqp" and not hidden, note=note)
    elif path.endswith(".csv"):
        yield from records.read_csv(path, note)
    elif path.endswith(".jsonl"):
        for record in records.read_jsonl(path):
            yield from flatten(name, record, note)
    else:
        yield from records.read_squad(path, note)


def _tfds_builder(data_dir: str) -> Any:
    name, _, split = data_dir.partition("@")
    if split:
        raise UserError(f"config.data_dir = {data_dir}: the task chooses the splits, give {name}")
    builder = open_folder(corpus.find_sources([data_dir])[0].path)
    config = builder.info.config_name
    if config and config not in name.split("/"):
        raise UserError(f"config.data_dir = {data_dir} names no config; found {name.rstrip('/')}/{config}")
    return builder


def _tfds_splits(name: str, data_dir: str, remarks: list[str]) -> dict[str, _Split]:
    builder, labels = _tfds_builder(data_dir), TASKS[name].labels
    found = [label.casefold() for label in _class_names(builder, "label")]
    if labels and found:  # the dataset's own order; the numbers follow it
        for known in (labels, TASKS[name].names):
            if sorted(label.casefold() for label in known) == sorted(found):
                labels = tuple(labels[[label.casefold() for label in known].index(label)] for label in found)
                break
        else:
            raise UserError(
                f"{builder.data_dir}: the labels are {printable(', '.join(_class_names(builder, 'label')))}; "
                f"{name} has {', '.join(labels)}"
            )
    elif labels and not labels[0].isdecimal():
        remarks.append(
            f"{builder.data_dir}: its labels have no names: "
            + ", ".join(f"{number} is taken as {label}" for number, label in enumerate(labels))
        )
    names = _TFDS_MNLI if name == "mnli" else _TFDS
    return _tfds_records(builder, names, "label", labels, _TFDS_FIELDS.get(name, {}))


def _own_tfds(data_dir: str, settings: FileSettings) -> dict[str, _Split]:
    builder, label = _tfds_builder(data_dir), settings.label_field
    names = _TFDS if "validation" in builder.info.splits else _Names("train", {}, _TFDS.test)
    return _tfds_records(builder, names, label, _class_names(builder, label), {})


def _class_names(builder: Any, field: str) -> tuple[str, ...]:
    """The labels of a feature that holds classes by number; () of any other."""
    features = builder.info.features
    return tuple(getattr(features[field], "names", None) or ()) if field in features else ()


def _tfds_records(
    builder: Any, names: _Names, label: str, labels: tuple[str, ...], fields: dict[str, str]
) -> dict[str, _Split]:
    """The splits of a dataset with its fields renamed and its classes by name; number i is `labels[i]`."""
    missing = [split for split in names.required().values() if split not in builder.info.splits]
    if missing:
        raise UserError(f"{builder.data_dir}: no split {', '.join(missing)}; found {', '.join(builder.info.splits)}")

    def read(split: str) -> Iterator[Record]:
        for record in records.read_tfds(builder, split):
            values = dict(record.fields)
            if isinstance(values.get(label), int) and 0 <= values[label] < len(labels):
                values[label] = labels[values[label]]
            values = {fields.get(field, field): value for field, value in values.items()}
            yield Record(record.place, record.number, values)

    found = {ours: split for ours, split in {**names.required(), **names.test}.items() if split in builder.info.splits}
    return {ours: _Split(f"{builder.data_dir}, split {split}", read(split)) for ours, split in found.items()}


def _own_splits(
    name: str, data_dir: str, settings: FileSettings, notes: Notes, remarks: list[str]
) -> tuple[dict[str, _Split], tuple[str, ...]]:
    """The splits of the user's files, and their labels."""
    if data_dir.startswith("tfds:"):
        splits = _own_tfds(data_dir, settings)
    else:
        paths = {"train": data_dir} if os.path.isfile(data_dir) else _own_files(name, data_dir, remarks)
        splits = {split: _Split(path, _read_own(path, notes.of(path))) for split, path in paths.items()}
    train = splits["train"] = dataclasses.replace(splits["train"], records=list(splits["train"].records))
    labels = ()
    if name == "classification":
        context = Context(train.where, "train", (), settings, notes.of(train.where))
        firsts: dict[str, str] = {}
        types: dict[str, type] = {}
        for record in train.records:
            label, kind = own_label(record, context), type(record.value(settings.label_field))
            firsts.setdefault(label, record.place)
            if types.setdefault(label, kind) is not kind:
                context.note("labels of another JSON type than the same label before, taken as one", record.place)
        check_spelling(firsts)
        labels = tuple(sorted(firsts))
        if len(labels) < 2:
            raise UserError(
                f"{train.where}: {len(labels)} different labels in the field {settings.label_field!r} "
                f"({printable(', '.join(labels))}), expected at least 2"
            )
    read = {settings.text_field, settings.pair_field, settings.label_field}
    unread = [field for field in (train.records[0].fields if train.records else ()) if field not in read]
    if unread:
        remarks.append(f"{train.where}: {len(unread)} fields are not read: {printable(', '.join(unread))}")
    if "dev" not in splits:
        splits.update(_held_out(train, settings))
    return splits, labels


def _own_files(name: str, folder: str, remarks: list[str]) -> dict[str, str]:
    if not os.path.isdir(folder):
        raise UserError(f"{name}: no file or folder {folder} (config.data_dir)")
    kinds = ", ".join(_OWN_SUFFIXES)
    found = {}
    for split in ("train", "dev", "test"):
        paths = [os.path.join(folder, split + suffix) for suffix in _OWN_SUFFIXES]
        paths = [path for path in paths if os.path.isfile(path)]
        if len(paths) > 1:
            raise UserError(f"{name}: {' and '.join(paths)} are both there, expected one of them")
        if not paths and split != "test":
            raise UserError(f"{name}: no {split} file in {folder}; expected train and dev, and maybe test ({kinds})")
        if paths:
            found[split] = paths[0]
    others = sorted(path for path in os.listdir(folder) if os.path.join(folder, path) not in found.values())
    if others := [path for path in others if not path.startswith(".")]:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        remarks.append(f"{folder}: {len(others)} other files or folders are not read: {printable(shown)}")
    return found


def _read_own(path: str, note: Note) -> Iterator[Record]:
    if not path.endswith(_OWN_SUFFIXES):
        raise UserError(f"{path}: unknown kind of file, expected {', '.join(_OWN_SUFFIXES)}")
    if path.endswith(".tsv"):
        return records.read_tsv(path, exact=True, note=note)
    return records.read_csv(path, note) if path.endswith(".csv") else records.read_jsonl(path)


def _held_out(train: _Split, settings: FileSettings) -> dict[str, _Split]:
    """A seeded share of the rows as dev, the others as train, both in the order of the file."""
    rows, share = list(train.records), settings.heldout_share
    count = round(len(rows) * share)
    if not 0 < count < len(rows):
        raise UserError(
            f"{train.where}: config.heldout_share = {share} of {len(rows)} rows leaves {len(rows) - count} rows for "
            f"training and {count} for the dev set, expected at least 1 of each"
        )
    chosen = set(np.random.default_rng(settings.seed).permutation(len(rows))[:count].tolist())
    parts = {"train": [], "dev": []}
    for number, record in enumerate(rows):
        parts["dev" if number in chosen else "train"].append(record)
    return {split: _Split(train.where, part) for split, part in parts.items()}
