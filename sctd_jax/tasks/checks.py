"""What only a whole file shows: repeated ids, labels in two spellings, metrics without a meaning; and counts of it."""

import functools
import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence

from sctd_jax.errors import UserError, printable
from sctd_jax.tasks.building import BUILDERS, Context, has_id
from sctd_jax.tasks.examples import Example
from sctd_jax.tasks.records import Note, Record
from sctd_jax.tasks.tasks import TASKS


class Notes:
    """What the user should know of the files: how often each kind of it, and where first."""

    def __init__(self):
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def of(self, where: str) -> Note:
        """What a reader of this file calls."""
        return functools.partial(self._add, where)

    def _add(self, where: str, what: str, place: str) -> None:
        count, first = self._found.get((where, what), (0, place))
        self._found[where, what] = (count + 1, first)

    def lines(self) -> Iterator[str]:
        """One for each kind and file."""
        for (where, what), (count, first) in self._found.items():
            yield f"{where}: {count:,} {what} (first: {_inside(first, where)})"


def _inside(place: str, where: str) -> str:
    return place.removeprefix(where).lstrip(", ")


def build(name: str, found: Iterable[Record], context: Context) -> Iterator[Example]:
    """The examples of a split. Repeated ids are noted where they only name rows.

    Raises:
      UserError: ids are repeated by which the task's metric groups rows, so that it would merge some.
    """
    seen: set[Hashable] = set()
    texts: dict[Hashable, int] = {}  # MultiRC: what its numbers stand for, as a hash
    repeated, numbered = [], None
    for record in found:
        built = tuple(BUILDERS[name](record, context))
        yield from built
        if not built:
            continue
        numbered = has_id(record) if numbered is None else numbered
        if numbered and not has_id(record) and TASKS[name].folder:  # of the user's own tasks no id is read
            context.note("rows without an id, unlike the first one: they get their number in the file", record.place)
        one, again = built[0], built[0].id in seen
        seen.add(one.id)
        if name == "multirc":
            passage, question, _ = one.id
            texts_of = {passage: one.first, (passage, question): record.value("question")}
            again |= any(texts.setdefault(number, hash(text)) != hash(text) for number, text in texts_of.items())
        if again:
            repeated.append((one.id, record.place))
    if not repeated:
        return
    what = "rows repeat the id of another"
    if context.split == "train" or not (TASKS[name].head == "span" or name in ("multirc", "record")):
        for _, place in repeated:
            context.note(what, place)
        return
    number, place = repeated[0]
    raise UserError(
        f"{context.where}: {len(repeated)} {what} (first: {number!r} at {_inside(place, context.where)}), "
        "and their predictions would become one: give each an id of its own"
    )


def undefined_metrics(name: str, where: str, examples: Sequence[Example]) -> Iterator[str]:
    """What a dev set's own labels leave without a meaning."""
    metrics = [metric for metric in TASKS[name].metrics if metric in ("pearson", "spearman", "mcc")]
    if metrics and len({example.label for example in examples}) == 1:
        yield f"{where}: all {len(examples)} dev rows have the same label: {', '.join(metrics)} will always be 0"


def odd_rows(where: str, labels: Sequence[str], train: Sequence[Example], dev: Sequence[Example]) -> Iterator[str]:
    """What is odd about the user's rows as a whole."""
    unseen = sorted(set(labels) - {labels[e.label] for e in train}) if labels else []
    if unseen:
        yield f"{where}: {len(unseen)} labels without a training row: {printable(', '.join(unseen))}"
    known = {(e.first, e.second) for e in train}
    copies = sum((e.first, e.second) in known for e in dev)
    if copies:
        yield f"{where}: {copies:,} of {len(dev):,} dev rows stand in the training rows too: the score is too good"


def check_spelling(firsts: dict[str, str]) -> None:
    """Check that no label is there in two spellings, which would be two classes.

    Args:
      firsts: the place of each label's first row.

    Raises:
      UserError: two differ in case, white space or Unicode's form only, or as 1 and 1.0 do.
    """
    spelled: dict[str, str] = {}
    for label, place in firsts.items():
        plain = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
        other = spelled.setdefault(re.sub(r"^(-?\d+)\.0+$", r"\1", plain), label)
        if other != label:
            raise UserError(
                f"{place}: the label {label!r} is also written {other!r} ({firsts[other]}); these would be two "
                "classes: write it in one way"
            )
