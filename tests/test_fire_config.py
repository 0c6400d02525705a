"""Random configurations, and random damage to the small files of a run: accepted within bounds, or refused by name."""

import dataclasses
import json
import math

import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import finetune as finetune_recipe
from configs import predict as predict_recipe
from configs import sweep as sweep_recipe
from sctd_jax import recipes, storage, stored
from sctd_jax.comparison.run import checked
from sctd_jax.comparison.table import read_table
from sctd_jax.config import Config, from_dict
from sctd_jax.data.rows import METADATA_FILE, read_metadata
from sctd_jax.errors import UserError
from sctd_jax.fields import fill
from sctd_jax.finetune import config as finetuning
from sctd_jax.finetune.workdir import read_task
from sctd_jax.train.metrics import METRICS_FILE, read_metrics
from sctd_jax.train.workdir import CONFIG_FILE, TASK_FILE, read_config
from tests import helpers, small
from tests.fire.arena import CELL

FEW = settings(
    derandomize=True, deadline=None, database=None, max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
MANY = settings(FEW, max_examples=300)
NUMBERS = st.one_of(
    st.integers(-3, 300), st.integers(), st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, 10**18, 10**400]), st.floats()
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text("0123456789:,.-+e ", max_size=12),
    st.sampled_from(["0:16,3:24", "nan", "1e999", "٣:٤"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=4,
)
FINETUNING = finetune_recipe.get_config().to_dict() | {"task": "rte", "init": "run", "data_dir": "data"}
SWEEP = sweep_recipe.get_config().to_dict() | {"tasks": "rte,cola", "inits": "a,b", "data_dir": "data"}
READERS = {
    "pretraining": (small.get_config().to_dict(), from_dict),
    "fine-tuning": (FINETUNING, finetuning.from_dict),
    "sweep": (SWEEP, finetuning.sweep_from_dict),
    "predict": (
        predict_recipe.get_config().to_dict() | {"init": "run", "data_dir": "data"},
        lambda values: fill("config", finetuning.PredictConfig, values),
    ),
}
INFINITE = {"clip_norm"}  # may be: no clipping


def paths(values):
    """Paths of all sections and fields."""
    found = []
    for name, value in values.items():
        found += [(name,), *((name, *inner) for inner in (paths(value) if isinstance(value, dict) else ()))]
    return found


def changed(values, path, value):
    """A copy with one field set, or without it where the value is `...`."""
    (name, *rest), copy = path, dict(values)
    if rest and isinstance(copy.get(name), dict):
        copy[name] = changed(copy[name], rest, value)
    elif value is ...:
        copy.pop(name, None)
    else:
        copy[name] = value
    return copy


def numbers(found):
    """Name and value of each number in dataclasses and what holds them."""
    if dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            value = getattr(found, field.name)
            yield from [(field.name, value)] if type(value) in (int, float) else numbers(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from numbers(value)


def outcome(read, given):
    """(what was read, '') or (None, the message of the refusal)."""
    try:
        return read(given), ""
    except UserError as error:
        return None, str(error)


def change(values):
    """Strategy of (path, value): any field, or one that is not there."""
    there = st.sampled_from(paths(values))
    unknown = st.tuples(there, st.text(max_size=8)).map(lambda pair: (*pair[0][:1], pair[1]))
    return st.tuples(st.one_of(there, there, there, unknown), st.one_of(VALUES, VALUES, NUMBERS, TEXTS, st.just(...)))


@pytest.mark.parametrize("kind", READERS)
@MANY
@given(data=st.data())
def test_a_random_configuration_is_within_bounds_or_refused_by_name(kind, data):
    values, read = READERS[kind]
    for path, value in data.draw(st.lists(change(values), min_size=1, max_size=2)):
        values = changed(values, path, value)
    found, refusal = outcome(read, values)
    assert not refusal or "config" in refusal
    for name, value in numbers(found):
        assert value == math.inf if name in INFINITE and value > 3.4e38 else abs(value) <= 3.4e38, (name, value)
        assert type(value) is float or abs(value) < 2**32, (name, value)


@FEW
@given(data=st.data())
def test_a_random_recipe_of_an_arena_is_a_table_or_refused(data):
    values = recipes.load("tests/small_arena.py:rows").to_dict()
    for path, value in data.draw(st.lists(change(values), min_size=1, max_size=2)):
        values = changed(values, path, value)
    found, _ = outcome(read_table, values)
    for cell in found.cells if found else ():
        assert 0 < cell.config.train.steps < 2**31
        assert not {"/", "\0"} & set(cell.name)


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """The small files of a run."""
    folder = tmp_path_factory.mktemp("run")
    content = stored.header(stored.CONFIG) | dataclasses.asdict(helpers.config())
    task = dataclasses.asdict(finetuning.from_dict(FINETUNING))
    task |= {"labels": ["yes", "no"], "data_sha256": "1", "init_identity": "2"}
    metrics = [{"step": step, "seconds": step / 7, "train/loss": 6.0 - step, "eval/loss": None} for step in range(9)]
    (folder / METADATA_FILE).write_bytes((rows / METADATA_FILE).read_bytes())
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2))
    (folder / TASK_FILE).write_text(json.dumps(stored.header(stored.TASK) | task))
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "result.json").write_text(json.dumps(CELL))
    return folder


@st.composite
def damage(draw, whole):
    """Bytes of a file with some cut, flipped, repeated or overwritten, or another value in its JSON."""
    kind = draw(st.sampled_from(["cut", "flip", "repeat", "overwrite", "value"]))
    if kind == "value" and whole.startswith(b"{") and whole.count(b"\n{") == 0:
        values = json.loads(whole)
        path, value = draw(change(values))
        return json.dumps(changed(values, path, value)).encode()
    at, size = draw(st.integers(0, len(whole) - 1)), draw(st.integers(1, 40))
    if kind == "cut":
        return whole[:at] + draw(st.sampled_from([b"", whole[at + size :]]))
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ 1 << draw(st.integers(0, 7))]) + whole[at + 1 :]
    if kind == "repeat":
        return whole[:at] + whole[at : at + size] * draw(st.sampled_from([2, 3, 500])) + whole[at:]
    return whole[:at] + draw(st.binary(min_size=1, max_size=size)) + whole[at + size :]


def accepted_metrics(folder):
    for line in read_metrics(folder, lambda text: None):
        assert type(line["step"]) is int
        assert all(value is None or math.isfinite(value) for value in line.values()), line
    return None


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (METADATA_FILE, read_metadata),
        (CONFIG_FILE, read_config),
        (TASK_FILE, read_task),
        (METRICS_FILE, accepted_metrics),
        ("result.json", lambda folder: checked(storage.read_json(folder / "result.json"), "result.json")),
    ],
)
@FEW
@given(data=st.data())
def test_a_damaged_file_is_read_within_bounds_or_refused_by_name(run, tmp_path, name, read, data):
    (tmp_path / name).write_bytes(data.draw(damage((run / name).read_bytes())))
    found, refusal = outcome(read, epath.Path(tmp_path))
    assert not refusal or (name in refusal and name != METRICS_FILE)  # damaged lines of metrics are left out
    if isinstance(found, Config):
        assert not any(math.isnan(value) for _, value in numbers(found))
