"""Prepared rows that are damaged, hostile or none: read by `data.inspect` and by a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fire.case import Case, special

INSPECT = "sctd_jax.data.inspect $here/rows"
TRAIN = "sctd_jax.main --config=tests/small.py --workdir=$here/run --config.data.rows=$here/rows"
EVAL = "sctd_jax.main --mode=eval --config=tests/small.py --workdir=$here/run --config.data.rows=$here/rows"
AGAIN = "prepare them again"
DEEP = "[" * 20_000 + "]" * 20_000
JSON_FILES = ("prepared.json", "features.json", "dataset_info.json")
SHARDS = ("packed_rows-train.array_record-00000-of-00001", "packed_rows-validation.array_record-00000-of-00001")


def _rows(damage: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """A copy of the rows that all cases share, damaged."""

    def make(here: Path, base: Path) -> None:
        shutil.copytree(base / "rows", here / "rows")
        damage(here / "rows")

    return make


def _run(damage: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """A copy of the rows and of the run on them, in which the rows are damaged afterwards."""

    def make(here: Path, base: Path) -> None:
        shutil.copytree(base / "run", here / "run")
        _rows(damage)(here, base)

    return make


def _gone(name: str) -> Callable[[Path], Any]:
    return lambda rows: (rows / name).unlink()


def _written(name: str, content: str | bytes) -> Callable[[Path], Any]:
    content = content.encode() if isinstance(content, str) else content
    return lambda rows: (rows / name).write_bytes(content)


def _folder(name: str) -> Callable[[Path], Any]:
    return lambda rows: ((rows / name).unlink(), (rows / name).mkdir())


def _changed(name: str, change: Callable[[dict], Any]) -> Callable[[Path], Any]:
    """A file of JSON with one thing in it changed."""

    def damage(rows: Path) -> None:
        content = json.loads((rows / name).read_text())
        change(content)
        (rows / name).write_text(json.dumps(content))

    return damage


def _field(name: str, value: Any) -> Callable[[Path], Any]:
    return _changed("prepared.json", lambda content: content.update({name: value}))


def _split(change: Callable[[dict], Any]) -> Callable[[Path], Any]:
    return _changed("dataset_info.json", lambda content: change(content["splits"][0]))


def _tensor(change: Callable[[dict], Any]) -> Callable[[Path], Any]:
    return _changed("features.json", lambda content: change(content["featuresDict"]["features"]["input_ids"]))


CONTENTS = {
    "empty": "", "white space": " \n", "a number": "7", "null": "null", "a list": "[]", "an empty object": "{}",
    "a string": '"rows"', "half an object": '{"rows": 1,', "nested deep": DEEP,
    "an object nested deep": '{"a":' * 20_000,
    "no UTF-8": b"\xff\xfe\x00rows", "zeros": bytes(1000), "NaN": "NaN", "4,500 digits": "9" * 4500,
}  # fmt: skip
_NPY_OF_A_TRILLION = b"\x93NUMPY\x01\x00\x76\x00" + b"%-117s\n" % (
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
)
DAMAGED: dict[str, Callable[[Path], Any]] = {
    **{f"{name} is missing": _gone(name) for name in JSON_FILES},
    **{f"{name} is a folder": _folder(name) for name in JSON_FILES},
    **{f"{name} is a pipe": special(name) for name in (*JSON_FILES, SHARDS[0], "frequencies.npy", "tokenizer.model")},
    **{f"{name} is {what}": _written(name, content) for name in JSON_FILES for what, content in CONTENTS.items()},
    **{f"prepared.json: {name} is {value!r:.30}": _field(name, value) for name, value in (
        ("seq_len", "32"), ("seq_len", None), ("seq_len", 32.0), ("seq_len", [32]), ("seq_len", True),
        ("rows", "many"), ("rows", -1), ("rows", 10**30), ("rows", 3), ("heldout_rows", 3), ("vocab_size", "512"),
        ("vocab_size", 0), ("vocab_size", 5), ("seq_len", 0), ("tokens", {}), ("sources", "text"),
        ("sources", [1, 2]), ("sources", [None]), ("settings", []), ("settings", {"input": 5}),
        ("letters", "1"), ("unknown_letters", -5),
        ("commonest_unknown", {"a": "b"}), ("by_source", {}), ("by_source", [7]), ("by_source", [[]]),
        ("by_source", [{"documents": "a"}]), ("heldout_up_to", "0.1"), ("heldout_up_to", float("nan")),
        ("heldout_up_to", -1),
        ("unigram_loss", None), ("unigram_loss", float("inf")), ("rows_digest", 5), ("tokenizer_sha256", 5),
    )},
    "prepared.json: a field is missing": _changed("prepared.json", lambda content: content.pop("seq_len")),
    "dataset_info.json: no splits": _changed("dataset_info.json", lambda content: content.update(splits=[])),
    "dataset_info.json: splits is a string": _changed("dataset_info.json", lambda content: content.update(splits="a")),
    "dataset_info.json: a split is a number": _changed("dataset_info.json", lambda content: content.update(splits=[7])),
    "dataset_info.json: no version": _changed("dataset_info.json", lambda content: content.pop("version")),
    "dataset_info.json: version x": _changed("dataset_info.json", lambda content: content.update(version="x")),
    "dataset_info.json: no name": _changed("dataset_info.json", lambda content: content.pop("name")),
    "dataset_info.json: a name outside": _changed("dataset_info.json", lambda content: content.update(name="../x")),
    "dataset_info.json: an unknown format": _changed(
        "dataset_info.json", lambda content: content.update(fileFormat="pickle")),
    "dataset_info.json: tfrecord": _changed("dataset_info.json", lambda content: content.update(fileFormat="tfrecord")),
    "dataset_info.json: a template outside": _split(lambda split: split.update(filepathTemplate="../{SPLIT}")),
    "dataset_info.json: a template of nothing": _split(lambda split: split.update(filepathTemplate="{NOTHING}")),
    "dataset_info.json: no shards": _split(lambda split: split.update(shardLengths=[])),
    "dataset_info.json: shards that are words": _split(lambda split: split.update(shardLengths=["many"])),
    "dataset_info.json: a negative shard": _split(lambda split: split.update(shardLengths=["-5"])),
    "dataset_info.json: a shard of 2**62 rows": _split(lambda split: split.update(shardLengths=[str(2**62)])),
    "dataset_info.json: two shards": _split(lambda split: split.update(shardLengths=["10", "10"])),
    "dataset_info.json: a shard too short": _split(lambda split: split.update(shardLengths=["5"])),
    "features.json: no shape": _tensor(lambda feature: feature["tensor"].pop("shape")),
    "features.json: no dtype": _tensor(lambda feature: feature["tensor"].pop("dtype")),
    "features.json: dtype x": _tensor(lambda feature: feature["tensor"].update(dtype="x")),
    "features.json: dtype string": _tensor(lambda feature: feature["tensor"].update(dtype="string")),
    "features.json: encoding x": _tensor(lambda feature: feature["tensor"].update(encoding="x")),
    "features.json: rows of no token": _tensor(lambda feature: feature["tensor"]["shape"].update(dimensions=["0"])),
    "features.json: rows of -1 tokens": _tensor(lambda feature: feature["tensor"]["shape"].update(dimensions=["-1"])),
    "features.json: rows of 64 tokens": _tensor(lambda feature: feature["tensor"]["shape"].update(dimensions=["64"])),
    "features.json: rows of 2**40 tokens": _tensor(
        lambda feature: feature["tensor"]["shape"].update(dimensions=[str(2**40)])),
    "features.json: two dimensions": _tensor(lambda feature: feature["tensor"]["shape"].update(dimensions=["4", "8"])),
    "features.json: another class": _tensor(lambda feature: feature.update(pythonClassName="os.system")),
    "features.json: another name": _changed(
        "features.json", lambda content: content["featuresDict"].update(
            features={"x": content["featuresDict"]["features"]["input_ids"]})),
    **{f"{name[:17]} {what}": damage for name in SHARDS for what, damage in {
        "is missing": _gone(name), "is empty": _written(name, ""), "is text": _written(name, "text " * 1000),
        "is a folder": _folder(name), "is zeros": _written(name, bytes(1 << 16)),
    }.items()},
    "frequencies.npy is empty": _written("frequencies.npy", ""),
    "frequencies.npy is text": _written("frequencies.npy", "text"),
    "frequencies.npy is of 10**12 pieces": _written("frequencies.npy", _NPY_OF_A_TRILLION),
    "the tokenizer is missing": _gone("tokenizer.model"),
    "the tokenizer is empty": _written("tokenizer.model", ""),
    "the tokenizer is text": _written("tokenizer.model", "text"),
    "the tokenizer is a folder": _folder("tokenizer.model"),
}  # fmt: skip

CASES = [
    *(
        Case(f"inspect, {name}", INSPECT, _rows(damage))
        for name, damage in DAMAGED.items()
        if not name.startswith("frequencies")  # which it does not read
    ),
    *(Case(f"train, {name}", TRAIN, _rows(damage)) for name, damage in DAMAGED.items()),
]
