"""A task's files, found and read: official folders and prepared TFDS datasets; `own` has files of the user's."""

import collections
import dataclasses
import os
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from sctd_jax import storage
from sctd_jax.data import corpus
from sctd_jax.data.tfds_folder import open_folder
from sctd_jax.errors import UserError, printable
from sctd_jax.tasks.examples import Context, Example, FileSettings
from sctd_jax.tasks.files import Note, Record
from sctd_jax.tasks.task import SplitNames, Task

_CONSTANT_IS_UNDEFINED = ("pearson", "spearman", "mcc")  # metrics that labels which are all the same leave without one


@dataclasses.dataclass(frozen=True)
class TaskData:
    """All examples of a task, in the order of its files."""

    labels: tuple[str, ...]
    train: tuple[Example, ...]
    dev: dict[str, tuple[Example, ...]]  # 'dev'; for mnli 'dev_matched' and 'dev_mismatched'
    test: dict[str, tuple[Example, ...]]  # 'test' or 'test_matched' and 'test_mismatched', as far as there are files
    notes: tuple[str, ...]  # remarks on what was left out, taken otherwise or is odd: file, count and the first place


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split as they are read."""

    where: str  # name in messages
    records: Iterable[Record]


class Notes:
    """Remarks on the files for the user: how often each kind and where first, and remarks on the whole."""

    def __init__(self):
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()  # counts by file and kind
        self._first: dict[tuple[str, str], str] = {}  # first places by the same
        self.remarks: list[str] = []

    def of(self, where: str) -> Note:
        """Function for a reader of this file to call."""

        def note(what: str, place: str) -> None:
            self._counts[where, what] += 1
            self._first.setdefault((where, what), place)

        return note

    def lines(self) -> Iterator[str]:
        """One for each kind and file, then the remarks."""
        for (where, what), count in self._counts.items():
            yield f"{where}: {count:,} {what} (first: {_inside(self._first[where, what], where)})"
        yield from self.remarks


def _inside(place: str, where: str) -> str:
    return place.removeprefix(where).lstrip(", ")


def open_task(task: Task, data_dir: str, settings: FileSettings) -> TaskData:
    """Read all splits of a task; nothing is downloaded. Whatever is malformed is a UserError with file and line.

    Args:
      task: task to read.
      data_dir: the folder of its files, or the folder that holds its official folder, on a disk or in a gs:// bucket;
        or `tfds:NAME/CONFIG` for a dataset that is prepared under TFDS_DATA_DIR; for the user's tasks also a single
        file.
      settings: settings of the user's files.
    """
    if not data_dir.startswith("tfds:"):
        data_dir = os.fspath(storage.as_path(data_dir))
    notes, labels = Notes(), task.labels
    if task.find:
        splits, labels = task.find(task, data_dir, settings, notes)
    else:
        splits = (_find_tfds if data_dir.startswith("tfds:") else _find_files)(task, data_dir, notes)
    examples = {}
    for name, split in splits.items():
        scored = task.scored and name not in task.diagnostics
        context = Context(split.where, name, labels, settings, notes.of(split.where), scored)
        examples[name] = tuple(_build(task, split.records, context))
        if not examples[name]:
            raise UserError(f"{split.where}: no rows")
        metrics = [metric for metric in task.metrics if metric in _CONSTANT_IS_UNDEFINED]
        if name.startswith("dev") and metrics and len({example.label for example in examples[name]}) == 1:
            notes.remarks.append(
                f"{split.where}: all {len(examples[name])} dev rows have the same label: {', '.join(metrics)} will "
                "always be 0"
            )
    if task.review:
        notes.remarks += task.review(splits["dev"].where, labels, examples["train"], examples["dev"])
    return TaskData(
        labels=labels,
        train=examples["train"],
        dev={name: found for name, found in examples.items() if name.startswith("dev")},
        test={name: found for name, found in examples.items() if name.startswith("test")},
        notes=tuple(notes.lines()),
    )


def _build(task: Task, records: Iterable[Record], context: Context) -> Iterator[Example]:
    """The examples of a split. Repeated ids are an error where the metric would merge their rows, else noted."""
    seen: set[Hashable] = set()
    texts: dict[Hashable, int] = {}  # hash of what each number stands for
    repeated, numbered = [], None
    for record in records:
        built = tuple(task.build(record, context))
        yield from built
        if not built:
            continue
        has_id = record.id_field is not None
        numbered = has_id if numbered is None else numbered
        if numbered and not has_id and task.folder:  # no id is read in the user's own files
            context.note("rows without an id, unlike the first one: they get their number in the file", record.place)
        example, again = built[0], built[0].id in seen
        seen.add(example.id)
        found = task.numbered(record, example).items()
        if again or any(texts.setdefault(number, hash(text)) != hash(text) for number, text in found):
            repeated.append((example.id, record.place))
    what = "rows repeat the id of another"
    if repeated and task.grouped and context.split != "train":
        number, place = repeated[0]
        raise UserError(
            f"{context.where}: {len(repeated)} {what} (first: {number!r} at {_inside(place, context.where)}), "
            "and their predictions would become one: give each an id of its own"
        )
    for _, place in repeated:
        context.note(what, place)


def _find_files(task: Task, data_dir: str, notes: Notes) -> dict[str, Split]:
    names, folders = task.files, [data_dir, os.path.join(data_dir, task.folder)]
    optional = f", and {', '.join(names.test.values())} for a submission" if names.test else ""
    expected = (
        f"expected {', '.join(names.required.values())}{optional} in config.data_dir or its folder {task.folder}, "
        f"as {task.home} has them"
    )
    folder = next((f for f in folders if _is_file(os.path.join(f, names.train))), None)
    folder = folder or next((f for f in reversed(folders) if storage.as_path(f).is_dir()), None)
    if folder is None:
        raise UserError(f"{task.name}: no folder {data_dir}; {expected}")
    paths = {split: os.path.join(folder, file) for split, file in {**names.required, **names.test}.items()}
    missing = [file for split, file in names.required.items() if not _is_file(paths[split])]
    if missing:
        raise UserError(f"{task.name}: no {', '.join(missing)} in {folder}; {expected}")
    paths = {split: path for split, path in paths.items() if _is_file(path)}
    above = os.path.dirname(folder.rstrip("/") if storage.is_remote(folder) else os.path.abspath(folder))
    for split, places in task.diagnostics.items():
        if path := next((p for place in places if _is_file(p := os.path.join(above, place))), None):
            paths[split] = path
        elif paths.keys() & names.test.keys():
            notes.remarks.append(
                f"{above}: no {' or '.join(places)}, whose predictions a submission has beside the test's"
            )
    return {split: Split(path, task.read(path, split, notes.of(path))) for split, path in paths.items()}


def _is_file(path: str) -> bool:
    with storage.reaching(path):
        return storage.as_path(path).is_file()


def _find_tfds(task: Task, data_dir: str, notes: Notes) -> dict[str, Split]:
    builder, labels = open_tfds(data_dir), task.labels
    classes = class_names(builder, "label")
    found = [label.casefold() for label in classes]
    if labels and found:  # the dataset's own order; the numbers follow it
        for known in ([label.casefold() for label in named] for named in (labels, task.names)):
            if sorted(known) == sorted(found):
                labels = tuple(labels[known.index(label)] for label in found)
                break
        else:
            raise UserError(
                f"{builder.data_dir}: the labels are {printable(', '.join(classes))}; {task.name} has "
                f"{', '.join(labels)}"
            )
    elif labels and not labels[0].isdecimal():
        taken = ", ".join(f"{number} is taken as {label}" for number, label in enumerate(labels))
        notes.remarks.append(f"{builder.data_dir}: its labels have no names: {taken}")
    return tfds_splits(builder, task.tfds_splits, "label", labels, task.tfds_fields)


def open_tfds(data_dir: str) -> Any:
    """TFDS's builder of the prepared dataset that `tfds:NAME/CONFIG` names."""
    name, _, split = data_dir.partition("@")
    if split:
        raise UserError(f"config.data_dir = {data_dir}: the task chooses the splits, give {name}")
    builder = open_folder(corpus.find_sources([data_dir])[0].path)
    config = builder.info.config_name
    if config and config not in name.split("/"):
        raise UserError(f"config.data_dir = {data_dir} names no config; found {name.rstrip('/')}/{config}")
    return builder


def class_names(builder: Any, field: str) -> tuple[str, ...]:
    """The labels of a feature that holds a class by number, or a list of them; () of any other."""
    features = builder.info.features
    if field not in features:
        return ()
    return tuple(getattr(getattr(features[field], "feature", features[field]), "names", None) or ())


def tfds_splits(
    builder: Any, names: SplitNames, label: str, labels: tuple[str, ...], fields: dict[str, str]
) -> dict[str, Split]:
    """The splits of a dataset with its fields renamed and its classes by name; number i is `labels[i]`."""
    there = builder.info.splits
    missing = [split for split in names.required.values() if split not in there]
    if missing:
        raise UserError(f"{builder.data_dir}: no split {', '.join(missing)}; found {', '.join(there)}")

    def by_number(value: Any) -> Any:
        """The label; a number without one, such as TFDS's -1, is what the task refuses."""
        return labels[value] if isinstance(value, int) and 0 <= value < len(labels) else value

    def read(split: str) -> Iterator[Record]:
        for number, record in enumerate(builder.as_data_source(split=split)):
            place = f"{builder.data_dir}, split {split}, record {number}"
            values = _plain(record, place)
            if label in values:
                found = values[label]
                values[label] = [by_number(value) for value in found] if isinstance(found, list) else by_number(found)
            yield Record(place, number, {fields.get(field, field): value for field, value in values.items()})

    found = {ours: split for ours, split in {**names.required, **names.test}.items() if split in there}
    return {ours: Split(f"{builder.data_dir}, split {split}", read(split)) for ours, split in found.items()}


def _plain(value: Any, place: str) -> Any:
    """A value of TFDS with bytes as text and numbers as Python's."""
    if isinstance(value, dict):
        return {name: _plain(item, place) for name, item in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 (byte {error.start + 1})") from error
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's scalars and arrays have it
    return [_plain(item, place) for item in value] if isinstance(value, list | tuple) else value
