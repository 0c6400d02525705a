"""SWAG (Zellers et al., EMNLP 2018) and HellaSwag (ACL 2019): which of four endings goes on with a context.

Source: Devlin et al. (2019), 4.4, for the order of the texts and the hyperparameters.
"""

import functools
from collections.abc import Iterator, Sequence

from sctd_jax.errors import UserError
from sctd_jax.tasks.examples import Context, Example
from sctd_jax.tasks.files import Record
from sctd_jax.tasks.task import SplitNames, Task


def _build_swag(record: Record, context: Context) -> Iterator[Example]:
    endings = [record.text(f"ending{number}") for number in range(4)]
    yield _completion(record, record.number, "sent1", record.text("sent2", empty=True), endings, context)


def _build_hellaswag(record: Record, context: Context) -> Iterator[Example]:
    # TFDS has it at the end of ctx_a; a file, which has the whole `ctx` besides, must have it.
    start = record.text("ctx_b", empty=True) if {"ctx_b", "ctx"} & record.fields.keys() else ""
    endings = [Record(record.place, 0, {"endings": ending}).text("endings") for ending in record.items("endings")]
    if len(endings) != 4:
        raise UserError(f"{record.place}: {len(endings)} endings, expected 4")
    yield _completion(record, record.id, "ctx_a", start, endings, context)


def _completion(
    record: Record, number: int, first: str, start: str, endings: Sequence[str], context: Context
) -> Example:
    choices = tuple(f"{start} {ending}" if start else ending for ending in endings)
    return Example(number, record.text(first), label=context.choice(record, len(choices)), choices=choices)


_choice = functools.partial(Task, head="multiple_choice", metrics=("accuracy",), batch_size=16)
CHOICE = (
    _choice(
        name="swag",
        folder="SWAG",
        home="https://github.com/rowanz/swagaf/tree/master/data",
        hub=("allenai/swag", ""),
        files=SplitNames("train.csv", {"dev": "val.csv"}, {"test": "test.csv"}),
        build=_build_swag,
    ),
    _choice(
        name="hellaswag",
        folder="HellaSwag",
        home="https://github.com/rowanz/hellaswag/tree/master/data",
        hub=("Rowan/hellaswag", ""),
        files=SplitNames("hellaswag_train.jsonl", {"dev": "hellaswag_val.jsonl"}, {"test": "hellaswag_test.jsonl"}),
        tfds_fields={"context": "ctx_a"},  # TFDS has the two parts of the context as one
        build=_build_hellaswag,
    ),
)
