"""Fields of a configuration: one line for each, and mapping -> dataclass by their types, choices and bounds."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from sctd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bounds:
    """A condition on a field's value, and what a message says of it."""

    hold: Callable[[Any], bool]
    says: str
    found: str = ", found {}"
    stored: bool = True  # asked of a stored run too; False where earlier code took what does not hold


NOT_NEGATIVE = Bounds(lambda value: value >= 0, "must not be negative")
POSITIVE = Bounds(lambda value: value > 0, "must be positive")
SHARE = Bounds(lambda value: 0 <= value <= 1, "must be between 0 and 1")
BELOW_ONE = Bounds(lambda value: 0 <= value < 1, "must be at least 0 and below 1")  # a share: 1 would leave nothing


def in_plain_digits(text: str) -> bool:
    """Whether a number is written in 0 to 9: Python reads the digits of all scripts, and 1_0 as ten."""
    return re.fullmatch(r"[ -^`-~]*", text) is not None  # printable ASCII without _


def read_float(text: str) -> float:
    """The number that a text in the digits 0 to 9 stands for; a ValueError where it is none."""
    if not in_plain_digits(text):
        raise ValueError(f"{text!r:.40} is not in the digits 0 to 9")
    return float(text)


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of `json`, which would take the last of two fields with one name; a ValueError then."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {max(names, key=names.count)!r} stands twice in one object")
    return fields


def at_least(least: int) -> Bounds:
    """Bounds of a number that has a lowest value."""
    return Bounds(lambda value: value >= least, f"must be at least {least}")


ONE_OR_MORE = at_least(1)
_LARGEST = 2**31 - 1  # whole number of 32 bits, in which devices count
LARGEST_FLOAT = 3.4e38  # beyond it float32 is infinite
LARGEST_SEED = 2**32 - 1  # JAX takes seeds modulo 2^32


def field(
    default: Any,
    meaning: str,
    bounds: Bounds | None = None,
    *,
    rerun: bool = False,
    only: tuple[str, ...] = (),
    most: float | None = None,
) -> Any:
    """A field of a configuration, with the meaning that `--help` prints, and bounds of its value beside its type.

    `rerun` says whether the run in a workdir may go on with another value. `only` is another field of the section and
    its values with which this one is read; () where it always is. A number is `most` at most, by default the largest
    of 32 bits, and so finite, unless that is infinite.
    """
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "bounds": bounds, "rerun": rerun, "only": only, "most": most}
    )


def unread(where: str, values: Any) -> list[str]:
    """A line for each field of a dataclass as above that was set, and that the other fields leave unread."""
    lines = []
    for one in dataclasses.fields(values):
        value = getattr(values, one.name)
        if dataclasses.is_dataclass(value):
            lines += unread(f"{where}.{one.name}", value)
            continue
        name, *with_ = one.metadata["only"] or ("",)
        if value != one.default and name and getattr(values, name) not in with_:
            lines.append(
                f"{where}.{one.name} ({value}) is not used: {where}.{name} is {getattr(values, name)}, and only "
                f"{' or '.join(with_)} reads it"
            )
    return lines


def fill(where: str, type_: type, values: Mapping[str, Any], *, new: bool = True) -> Any:
    """A mapping -> a dataclass of fields as above and of such dataclasses; each field's type and bounds are checked.

    `where` is the mapping's name in messages. `new=False` is for what a run has stored: the largest values, and bounds
    with `stored=False`, are not checked then, for earlier code did not know them.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a section with fields, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(type_)}
    for name in values:
        if name not in fields:
            raise UserError(f"{where}.{name} is unknown; the fields of {where} are {', '.join(fields)}")
    for name in fields:
        if name not in values:
            raise UserError(f"{where}.{name} is missing (a recipe has a value for every field)")
    return type_(**{name: checked(f"{where}.{name}", field, values[name], new) for name, field in fields.items()})


def checked(where: str, field: dataclasses.Field, value: Any, new: bool = True) -> Any:
    """A value of a field as above, checked by type, choices and bounds; `where` and `new` as in `fill`."""
    if dataclasses.is_dataclass(field.type):
        return fill(where, field.type, value, new=new)
    choices, bounds = get_args(field.type), field.metadata["bounds"]
    expected = str if choices else field.type
    if expected is float and type(value) is int:
        value = float(value) if abs(value) <= LARGEST_FLOAT else math.inf
    if type(value) is not expected:
        raise UserError(f"{where} must be of type {expected.__name__}, found {value!r:.80}")
    if choices and value not in choices:
        raise UserError(f"{where} must be one of {', '.join(choices)}; found {value!r:.80}")
    most = field.metadata["most"]
    if most is None:
        most = LARGEST_FLOAT if expected is float else _LARGEST
    if new and expected is float and not (abs(value) <= LARGEST_FLOAT or value == most):
        raise UserError(f"{where} must be a finite number, found {value}")
    if new and expected in (int, float) and abs(value) > most:
        raise UserError(f"{where} must be at most {most}, found {value!r:.80}")
    if bounds and (new or bounds.stored) and not bounds.hold(value):
        raise UserError(f"{where} {bounds.says}{bounds.found.format(value)}")
    return value


def rerun_fields(type_: type) -> set[str]:
    """Names such as train.steps of the fields that a rerun may change, and of sections of such fields alone."""
    found = set()
    for field in dataclasses.fields(type_):
        inner = rerun_fields(field.type) if dataclasses.is_dataclass(field.type) else set()
        found |= {f"{field.name}.{name}" for name in inner}
        if field.metadata.get("rerun") or (inner and len(inner) == len(dataclasses.fields(field.type))):
            found.add(field.name)
    return found


def require(condition: bool, field: str, message: str) -> None:
    """Raise UserError about config.FIELD unless the condition holds."""
    if not condition:
        raise UserError(f"config.{field} {message}")
