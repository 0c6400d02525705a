"""Configurations and names of metrics that earlier code wrote, as this code reads them.

A stored configuration says by its `version` how many of the changes below it knows (1: none). The others are made up
for when it is read: a field that it lacks gets the value by which this code does what the code of then did.
`begun` is the version that began the run: what came later stays as it was then, whatever the recipe says now.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from sctd_jax import storage
from sctd_jax.errors import UserError, printable


class Added(NamedTuple):
    """A new field."""

    field: str
    before: Any  # the value by which the code does what it did without the field


class Renamed(NamedTuple):
    """A field by another name."""

    field: str
    now: str


class Removed(NamedTuple):
    """A field of which one value is left, which is no choice."""

    field: str
    left: Any


class Mended(NamedTuple):
    """Error of earlier code that no field brings back."""

    what: str
    field: str = ""  # concerned are the runs in which it has this value; '': all
    value: Any = None  # None: any but '' and 0


Change = Added | Renamed | Removed | Mended
# `section.field` of `config.json` and `field` of `task.json`, in the order in which they came. One line for each field;
# lines are only ever appended, for their number is the version.
CONFIG: list[Change] = [
    Added("data.keep_zwnj", False),
    Added("data.allow_unknown", True),
    Added("optimizer.eps_place", "after_correction"),
    Mended("held-out rows are taken from all over the split, so that the curve may have a step here"),
    Mended("the drop pass of an evaluation has the K of its step", "dropping.keep_schedule"),
    Mended("words that do not fit a row's predictions are passed over", "masking.whole_word", True),
    Mended("biases and norms take no part in LAMB's adaptation", "optimizer.name", "lamb"),
    Added("model.family", "bert"),
    Added("model.global_every", 1),
    Added("model.local_attention", 128),
    Added("model.rope_theta", 160_000.0),
    Added("model.local_rope_theta", 10_000.0),
    Added("optimizer.decay_steps", 0),
    Added("optimizer.decay_shape", "1-sqrt"),
    Added("optimizer.muon_beta", 0.95),
    Added("train.init_step", -1),
    Added("train.init_takes", "params"),
    Added("masking.rate_schedule", ""),
    Added("train.batch_schedule", ""),
    Added("data.seq_len_schedule", ""),
    Mended("each stage of kept tokens has the [MASK] tokens among them", "dropping.selector", "importance+random"),
    Added("dropping.sc_full_mlm", True),
    Added("data.encoding", ""),
    Added("dropping.keep_by_layer", ""),
    Added("optimizer.schedule_by", "steps"),
    Added("data.normal_form", ""),
    Added("data.longest_line", 0),
    Added("data.shortest_document", 0),
    Added("data.drop_copies", False),
    Added("data.shuffle", "rows"),
    Added("data.cache_gb", 50.0),
    Added("train.track", ""),
]
TASK: list[Change] = [
    Added("tokens_field", "tokens"),
    Added("tags_field", "tags"),
    Added("patience", 0),
    Added("class_weights", ""),
    Added("language", "en"),
    Added("track", ""),
    Added("tokenizer_sha256", ""),
]
# Recipe whose content is another one's now -> a field by which runs of before are known, its value there, that recipe.
RECIPES = {"configs/tiny.py": ("model.family", "bert", "configs/tiny_bert.py")}
# Old name of a metric in `metrics.jsonl` -> its name.
METRICS = {"eval/drift_local": "eval/cosine_local", "eval/drift_global": "eval/cosine_global"}


class Stored(NamedTuple):
    """A configuration that was read back, by today's names."""

    values: dict[str, Any]
    begun: int  # the version that began the run
    notes: tuple[str, ...]  # remarks on what was made up for


def before(section: str) -> dict[str, Any]:
    """Values by which the code does what it did before fields of a section of `CONFIG` came, by name."""
    added = [(*change.field.split("."), change.before) for change in CONFIG if isinstance(change, Added)]
    return {name: value for place, name, value in added if place == section}


def version_of(changes: Sequence[Change]) -> int:
    """The version of what is written now."""
    return 1 + len(changes)


def read(path: epath.Path, changes: Sequence[Change]) -> Stored:
    """Read `config.json` (with `CONFIG`) or `task.json` (with `TASK`); its fields are checked by who uses them."""
    found = storage.read_json(path)
    version, begun = found.pop("version", 1), found.pop("begun", None)
    begun = version if begun is None else begun
    if not all(type(number) is int and number >= 1 for number in (version, begun)):
        raise UserError(f"{path} is damaged: its version is {version!r}, begun {begun!r}, not a number from 1 on")
    if begun > version:
        raise UserError(f"{path} is damaged: its version is {version}, begun {begun}, which cannot be later")
    newest = version_of(changes)
    if version > newest:
        raise UserError(f"{path} was written by a newer version of sctd_jax (its configuration has version {version}, "
                        f"this one reads up to {newest}): use that one")  # fmt: skip
    followed, mended, notes, values = [], [], [], dict(flat(found))
    for change in changes[version - 1 :]:
        match change:
            case Added(field, before) if field not in values:
                values[field] = before
                followed.append(f"{field}={before!r}")
            case Renamed(field, now) if field in values:
                values[now] = values.pop(field)
                followed.append(f"{now} (then {field})")
            case Removed(field, left):
                if (there := values.pop(field, left)) != left:
                    raise UserError(f"{path} has {field}={printable(repr(there))}, but this version of sctd_jax can no "
                                    f"longer do anything but {left!r}: use the version that wrote it")  # fmt: skip
            case Mended(what, field, value):
                there = values.get(field)
                if not field or (bool(there) if value is None else there == value):
                    mended.append(what)
    if followed:
        notes += [f"{path} was written by an earlier version of sctd_jax, which is followed: {', '.join(followed)}"]
    if mended:
        notes += [f"{path} was written by an earlier version of sctd_jax; otherwise than there: {', '.join(mended)}"]
    return Stored(_nested(values), begun, tuple(notes))


def header(changes: Sequence[Change], begun: int | None = None) -> dict[str, int]:
    """Head of a stored configuration, before its fields."""
    return {"version": version_of(changes), "begun": begun or version_of(changes)}


def follow(
    mine: Mapping[str, Any], there: Stored, changes: Sequence[Change], may_change: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """A recipe's fields (`mine`) for a run that is gone on with, and a note for each that differs from the recipe's.

    Those that came after the run's beginning stay as they were there, but for `may_change`.
    """
    came_later: list[str] = []
    for change in changes[there.begun - 1 :]:
        match change:
            case Added(field, _):
                came_later.append(field)
            case Renamed(field, now):
                came_later = [now if name == field else name for name in came_later]
            case Removed(field, _):
                came_later = [name for name in came_later if name != field]
    values, theirs, notes = dict(flat(mine)), dict(flat(there.values)), []
    for field in came_later:
        if field in may_change or field not in values or field not in theirs or values[field] == theirs[field]:
            continue
        notes.append(f"{field} stays {theirs[field]!r}, as the run began without it (the recipe's {values[field]!r} is "
                     "for new runs)")  # fmt: skip
        values[field] = theirs[field]
    return _nested(values), notes


def flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`section.field` and value of each field, whether it has a section or not."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{field}", inner) for field, inner in value.items())
        else:
            yield name, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, field = name.rpartition(".")
        if not section:
            values[name] = value
        elif isinstance(values.setdefault(section, {}), dict):  # else it is damaged, which its reader says
            values[section][field] = value
    return values
