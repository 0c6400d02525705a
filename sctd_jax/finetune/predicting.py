"""Predictions: of the examples of a split, and of a file without labels, which is read as a stream."""

import contextlib
import csv
import dataclasses
import io
import itertools
import os
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import scipy.special
from etils import epath
from jax.sharding import Mesh

from sctd_jax import storage
from sctd_jax.errors import UserError, of_disk
from sctd_jax.fields import unread
from sctd_jax.finetune import batches
from sctd_jax.finetune.config import FinetuneConfig, PredictConfig
from sctd_jax.finetune.encode import Feature, by_example, encode, loss_lines
from sctd_jax.finetune.step import initial_state, jit_logits, shape_of
from sctd_jax.finetune.workdir import check_outputs, read_task
from sctd_jax.model.attention import choose, platform_of
from sctd_jax.models import open_run
from sctd_jax.parallel import hosts
from sctd_jax.parallel import mesh as meshes
from sctd_jax.tasks import scoring, tokens
from sctd_jax.tasks.examples import Context, Example, FileSettings
from sctd_jax.tasks.splits import Notes
from sctd_jax.tasks.submission import jsonl
from sctd_jax.tasks.table import TASKS
from sctd_jax.tasks.task import EACH_TOKEN, Task
from sctd_jax.train.step import state_shape
from sctd_jax.train.workdir import CONFIG_FILE, TASK_FILE

_FIELDS = ("text_field", "pair_field", "tokens_field")
_AT_A_TIME = 4096  # examples that are read, sorted by length and predicted together
_PROGRESS_SECONDS = 30.0
# More lengths than in training: a program is compiled once for a file of any size.
_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def outputs(
    logits: Callable,
    params: Any,
    mesh: Mesh,
    features: Sequence[Feature],
    groups: Sequence[batches.Group],
    pad_id: int,
    head: str,
) -> list[np.ndarray]:
    """Row of `step.logits` of each feature, without padding where a head has each token's."""
    found: list[Any] = [None] * len(features)
    for group in groups:
        rows = np.asarray(logits(params, batches.put(mesh, features, group, pad_id)))
        for i, row in zip(group.members[: group.count], rows, strict=False):
            found[i] = row[: features[i].length] if head in EACH_TOKEN else row
    return found


def predict_file(config: PredictConfig, out: str | os.PathLike, log: Callable[[str], None] = print) -> int:
    """Predict the rows of a file by a fine-tuned model, in their order; returns how many.

    The file is laid out as the test file of the model's task, and is read as it is predicted. `out` must not be there,
    and is when all is predicted: JSON lines (.jsonl), a table (.csv), or for labels of words columns (.conll).
    """
    began, log = time.monotonic(), hosts.on_first(log)
    path = storage.as_path(out)
    if storage.exists(path):
        raise UserError(f"--out={path} is there already: give another name, or delete it")
    if not storage.exists(storage.as_path(config.init) / TASK_FILE):
        raise UserError(
            f"config.init {config.init} is not the workdir of a fine-tuning (no {TASK_FILE}); a pretrained model is "
            "fine-tuned first, by --mode=finetune"
        )
    run = open_run(storage.as_path(config.init), log)
    tuned = read_task(run.path)
    task, labels, length = TASKS[tuned["task"]], tuple(tuned["labels"]), tuned["max_length"]
    if length > run.config.model.max_positions:
        raise UserError(
            f"{run.path / TASK_FILE} is damaged: max_length is {length:,}, and the network of {CONFIG_FILE} reads "
            f"{run.config.model.max_positions:,} tokens at most"
        )
    text = _text_of(path, task, task.names or labels)
    run.chosen_step()  # or it has none
    mesh = meshes.make_mesh(config.mesh)
    model = dataclasses.replace(run.config.model, dtype=config.dtype)
    model, _ = choose(model, [("max_length of its task", length)], platform_of(mesh.devices.flat[0]))
    train = dataclasses.replace(run.config.train, batch_size=config.batch_size, accumulation=1)
    settled = dataclasses.replace(run.config, model=model, train=train)
    meshes.check_sizes(mesh, model, train, "batch_size")
    meshes.check_memory(mesh, model, train, min(_LENGTHS[0], length), trained=False)

    given = {name: value for name in _FIELDS if (value := getattr(config, name))}
    for line in unread("config", dataclasses.replace(FinetuneConfig(task.name), **given)):
        log(line)
    fields, notes, lost = FileSettings.of(types.SimpleNamespace(**{**tuned, **given})), Notes(), Counter[str]()
    where = os.fspath(storage.as_path(config.data_dir))
    context = Context(where, "test", labels, fields, notes.of(where))
    rows = task.rows(where, fields, context.note) if task.rows else task.read(where, "test", context.note)
    examples = itertools.chain.from_iterable(task.build(record, context) for record in rows)
    # The first ones tell a wrong file before the parameters are read, and how many choices there are.
    some = list(itertools.islice(examples, _AT_A_TIME))
    if not some:
        raise UserError(f"{where}: no rows")
    hosts.check_same({"the config": config, "the file's beginning": repr(some[:100])})

    def encoded(some: Sequence[Example]) -> list[Feature]:
        return encode(run.tokenizer, some, task.head, length, segments=model.type_vocab_size, lost=lost)

    features = encoded(some)
    shape, count, said = shape_of(task, labels, len(features[0].rows)), 0, time.monotonic()
    with _writing(path) as file:
        step, state = run.read(None, mesh)
        params = state["params"]
        check_outputs(run.path, task, labels, params)
        logits = jit_logits(settled, shape, mesh, state_shape(lambda: initial_state(settled, shape), mesh))
        log(f"{task.name} of step {step} of {config.init}, on {where}")
        while some:
            groups = batches.by_length(features, config.batch_size, length, _LENGTHS)
            found = outputs(logits, params, mesh, features, groups, run.tokenizer.special.pad, task.head)
            file.write(text(some, by_example(task.head, features, found), not count))
            count += len(some)
            if time.monotonic() - said > _PROGRESS_SECONDS:
                said = time.monotonic()
                log(f"{count:,} rows so far, {count / (said - began):,.0f} a second")
            some = list(itertools.islice(examples, _AT_A_TIME))
            features = encoded(some) if some else []
    for line in (*notes.lines(), *(f"{where}: {line}" for line in loss_lines(lost))):
        log(line)
    seconds = time.monotonic() - began
    log(f"done: {count:,} rows in {seconds:,.1f} s ({count / seconds:,.0f} a second, compilation included): {path}")
    return count


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[IO[str]]:
    """A text that the first host writes, and which is at `path` when it is whole; an error leaves nothing of it.

    Raises:
      TryAgainError: the disk is full.
    """
    if not hosts.is_first():
        yield io.StringIO()
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={path}: no folder {path.parent} can be made: {error}") from error
    work = path.with_name(f".claim-{path.name}-{os.getpid()}")
    try:
        with work.open("w") as file:
            yield file
        if storage.exists(path):
            aside = path.with_name(f"{path.stem}-{os.getpid()}{path.suffix}")
            work.replace(aside)
            raise UserError(f"--out={path} has been written by another process meanwhile; these are in {aside}")
        work.replace(path)
    except OSError as error:
        raise of_disk(error)(f"--out={path}: {error}") from error
    finally:
        if work.exists():
            work.unlink()


def _text_of(path: epath.Path, task: Task, names: Sequence[str]) -> Callable[[Sequence[Example], list, bool], str]:
    """Function of (examples, their outputs, whether they are the first) -> text of the file at `path`."""
    suffixes = [".jsonl", ".conll" if task.head == "token_classification" else ".csv"]
    if path.suffix not in suffixes:
        raise UserError(f"--out={path}: unknown kind of file, expected {' or '.join(suffixes)} for {task.name}")

    def text(examples: Sequence[Example], found: list, first: bool) -> str:
        predictions = scoring.predict(task, examples, found)
        if path.suffix == ".conll":
            return tokens.submit(examples, predictions, names, separator="\t")  # words to come may hold spaces
        rows = [_row(task, names, *one) for one in zip(examples, found, predictions, strict=True)]
        if path.suffix == ".jsonl":
            return jsonl(rows)
        table = io.StringIO()
        columns = [name for name in rows[0] if name != "probabilities"]
        writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
        if first:
            writer.writeheader()
        writer.writerows(rows)
        return table.getvalue()

    return text


def _row(task: Task, names: Sequence[str], example: Example, output: Any, prediction: Any) -> dict[str, Any]:
    """A prediction as an object, `id` first: the id by which an official file names the row, else its number from 0 on.

    In files of the user's it is always the number.
    """
    row: dict[str, Any] = {"id": example.id}
    if task.head == "token_classification":
        return row | {"tokens": list(example.words), "tags": tokens.names(names, prediction)}
    if task.head == "span":
        return row | {"answer": prediction}
    if task.head == "regression":
        return row | {"score": prediction}
    if example.candidate:
        return row | {"candidate": example.candidate, "probability": prediction}
    chances = [round(chance, 6) for chance in scipy.special.softmax(np.asarray(output, np.float64)).tolist()]
    if task.head == "multiple_choice":
        return row | {"choice": prediction, "probability": chances[prediction], "probabilities": chances}
    by_name = dict(zip(names, chances, strict=True))
    return row | {"label": names[prediction], "probability": chances[prediction], "probabilities": by_name}
