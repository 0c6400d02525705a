"""Files of the user's: the tasks `classification`, whose labels are those of its training file, and `regression`."""

import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sctd_jax import storage
from sctd_jax.errors import UserError, printable
from sctd_jax.tasks.examples import Builder, Context, Example, FileSettings
from sctd_jax.tasks.files import Note, Record, read_file, read_tsv
from sctd_jax.tasks.splits import Notes, Split, class_names, open_tfds, tfds_splits
from sctd_jax.tasks.task import Task

_SUFFIXES = (".csv", ".tsv", ".jsonl")
_MISSING = ("nan", "<na>", "nat")  # pandas'
_LONGEST_LABEL = 1000  # characters


def field_of(record: Record, setting: str, settings: FileSettings) -> str:
    """The user's field of a setting, which the record has."""
    field = getattr(settings, setting)
    if field not in record.fields:
        raise UserError(
            f"{record.place}: no field {field!r} (config.{setting}); found {printable(', '.join(record.fields))}"
        )
    return field


def _builder(read: Callable[[Context, Record, str], int | float | None]) -> Builder:
    """A builder whose labels `read` finds in the user's field."""

    def build(record: Record, context: Context) -> Iterator[Example]:
        label = None if context.hidden else read(context, record, field_of(record, "label_field", context.settings))
        settings = ["text_field", "pair_field"] if context.settings.pair_field else ["text_field"]
        texts = [context.text(record, field_of(record, setting, context.settings)) for setting in settings]
        yield Example(record.number, *texts, label=label)

    return build


def _find(task: Task, data_dir: str, settings: FileSettings, notes: Notes) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits of the user's files or dataset, and their labels."""
    names = [name for name in (settings.text_field, settings.pair_field, settings.label_field) if name]
    if len(set(names)) < len(names):
        raise UserError(
            f"config.text_field, config.pair_field and config.label_field must be different fields, found "
            f"{printable(', '.join(names))}"
        )
    if data_dir.startswith("tfds:"):
        splits = dataset(task, data_dir, settings.label_field, {})
    else:
        paths = (
            {"train": data_dir} if storage.as_path(data_dir).is_file() else files(task.name, data_dir, _SUFFIXES, notes)
        )
        splits = {split: Split(path, read_rows(path, split, notes.of(path))) for split, path in paths.items()}
    where, rows = splits["train"].where, list(splits["train"].records)
    splits["train"] = Split(where, rows)
    context = Context(where, "train", (), settings, notes.of(where))
    labels = _labels(rows, context) if task.head == "classification" else ()
    told: set[str] = set()
    for name, split in splits.items():
        splits[name] = split = Split(split.where, list(split.records))
        fields = dict.fromkeys(field for record in split.records for field in record.fields)
        read = {field for field in names if name != "test" or field != settings.label_field}
        if unread := [field or "''" for field in fields if field not in read | told]:
            notes.remarks.append(f"{split.where}: {len(unread)} fields are not read: {printable(', '.join(unread))}")
        told |= fields.keys() - read
    return with_dev(splits, settings, notes), labels


def dataset(task: Task, data_dir: str, label: str, fields: dict[str, str]) -> dict[str, Split]:
    """The splits of a dataset of TFDS, which may have no dev split; arguments as in `tfds_splits`."""
    builder, names = open_tfds(data_dir), task.tfds_splits
    if "validation" not in builder.info.splits:
        names = dataclasses.replace(names, dev={})
    return tfds_splits(builder, names, label, class_names(builder, label), fields)


def files(name: str, folder: str, suffixes: Sequence[str], notes: Notes) -> dict[str, str]:
    """Paths of train, dev and maybe test in a folder; `notes` hears of what else lies there."""
    if not storage.as_path(folder).is_dir():
        raise UserError(f"{name}: no file or folder {folder} (config.data_dir)")
    kinds = ", ".join(suffixes)
    found = {}
    for split in ("train", "dev", "test"):
        paths = [path for suffix in suffixes if storage.as_path(path := os.path.join(folder, split + suffix)).is_file()]
        if len(paths) > 1:
            raise UserError(f"{name}: {' and '.join(paths)} are both there, expected one of them")
        if not paths and split != "test":
            raise UserError(f"{name}: no {split} file in {folder}; expected train and dev, and maybe test ({kinds})")
        if paths:
            found[split] = paths[0]
    there = sorted(path.name for path in storage.as_path(folder).iterdir())
    if others := [name for name in there if os.path.join(folder, name) not in found.values() and name[0] != "."]:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        notes.remarks.append(f"{folder}: {len(others)} other files or folders are not read: {printable(shown)}")
    return found


def read_rows(path: str, split: str, note: Note) -> Iterator[Record]:
    """Rows of a .csv, .tsv or .jsonl file, whatever the split."""
    if not path.endswith(_SUFFIXES):
        raise UserError(f"{path}: unknown kind of file, expected {', '.join(_SUFFIXES)}")
    tsv = path.endswith(".tsv")
    for record in read_tsv(path, exact=True, note=note) if tsv else read_file(path, split, note):
        if tsv and any(len(value) > 1 and value[0] == value[-1] == '"' for value in record.fields.values()):
            what = "rows with a field in double quotes, which are kept as text; in a .csv they would be quotes"
            note(what, record.place)
        yield record


def _labels(rows: Sequence[Record], context: Context) -> tuple[str, ...]:
    """The labels of the training rows."""
    if not rows:
        raise UserError(f"{context.where} has no rows")
    firsts: dict[str, str] = {}  # first place of each label
    types: dict[str, type] = {}
    for row in rows:
        field = field_of(row, "label_field", context.settings)
        label, kind = row.label(field), type(row.value(field))
        firsts.setdefault(label, row.place)
        if types.setdefault(label, kind) is not kind:
            context.note("labels of another JSON type than the same label before, taken as one", row.place)
    check_labels(firsts)
    labels = tuple(sorted(firsts))
    if len(labels) < 2:
        raise UserError(
            f"{context.where}: {len(labels)} different labels in the field {context.settings.label_field!r} "
            f"({printable(', '.join(labels))}), expected at least 2"
        )
    return labels


def check_labels(firsts: Mapping[str, str]) -> None:
    """Check that labels, each with its first place, can be names of classes, and no two are spellings of one.

    A name has at most 1,000 characters, no line ends or other control characters, and is not a missing value's.
    Spellings differ in case, white space, invisible characters or Unicode's form only, or as 1 and 1.0 do.
    """
    spelled: dict[str, str] = {}
    for label, place in firsts.items():
        if len(label) > _LONGEST_LABEL:
            raise UserError(
                f"{place}: a label of {len(label):,} characters ({label[:40]!r}...), expected at most "
                f"{_LONGEST_LABEL:,}: is it the text?"
            )
        if any(unicodedata.category(letter) == "Cc" for letter in label):
            raise UserError(f"{place}: the label {label!r} holds control characters, expected a name in one line")
        plain = unicodedata.normalize("NFKC", label).casefold()
        plain = " ".join("".join(letter for letter in plain if unicodedata.category(letter) != "Cf").split())
        if not plain:
            raise UserError(f"{place}: the label {label!r} holds nothing to see, expected a name")
        if plain in _MISSING:
            raise UserError(
                f"{place}: the label {label!r} is how tables write that there is none; leave out the rows without a "
                "label, or call the class otherwise"
            )
        other = spelled.setdefault(re.sub(r"^(-?\d+)\.0+$", r"\1", plain), label)
        if other != label:
            raise UserError(
                f"{place}: the label {label!r} is also written {other!r} ({firsts[other]}); these would be two "
                "classes: write it in one way"
            )


def with_dev(splits: dict[str, Split], settings: FileSettings, notes: Notes) -> dict[str, Split]:
    """The splits with a dev set, which is held out where the files have none."""
    if "dev" not in splits:
        return splits | held_out(splits["train"].where, list(splits["train"].records), settings)
    if settings.heldout_share != FileSettings.heldout_share:
        notes.remarks.append(f"config.heldout_share ({settings.heldout_share}) is not used: there is a dev set")
    return splits


def held_out(where: str, rows: Sequence[Record], settings: FileSettings) -> dict[str, Split]:
    """A seeded share of the rows as dev, the others as train, both in the order of the file."""
    share = settings.heldout_share
    count = round(len(rows) * share)
    if not 0 < count < len(rows):
        raise UserError(
            f"{where}: config.heldout_share = {share} of {len(rows)} rows leaves {len(rows) - count} rows for "
            f"training and {count} for the dev set, expected at least 1 of each"
        )
    chosen = set(np.random.default_rng(settings.seed).permutation(len(rows))[:count].tolist())
    return {
        "train": Split(where, [row for number, row in enumerate(rows) if number not in chosen]),
        "dev": Split(where, [row for number, row in enumerate(rows) if number in chosen]),
    }


def _review(where: str, labels: Sequence[str], train: Sequence[Example], dev: Sequence[Example]) -> Iterator[str]:
    """Oddities of the rows as a whole."""
    unseen = sorted(set(labels) - {labels[e.label] for e in train}) if labels else []
    if unseen:
        yield f"{where}: {len(unseen)} labels without a training row: {printable(', '.join(unseen))}"
    known = {(e.first, e.second) for e in train}
    if copies := sum((e.first, e.second) in known for e in dev):
        yield f"{where}: {copies:,} of {len(dev):,} dev rows stand in the training rows too: the score is too good"


OWN = (
    Task(
        name="classification",
        head="classification",
        build=_builder(Context.label),
        find=_find,
        rows=lambda path, settings, note: read_rows(path, "test", note),
        review=_review,
        metrics=("accuracy", "macro_f1"),
        score=("accuracy",),
    ),
    Task(
        name="regression",
        head="regression",
        build=_builder(lambda context, record, field: record.real(field)),
        find=_find,
        rows=lambda path, settings, note: read_rows(path, "test", note),
        review=_review,
        metrics=("pearson", "spearman"),
    ),
)
