"""Helpers of the tests of `sctd_jax.tasks.splits`."""

import json

import pytest

from sctd_jax.errors import UserError
from sctd_jax.tasks import splits
from sctd_jax.tasks.examples import FileSettings
from sctd_jax.tasks.table import TASKS


def open_task(name, data_dir, **settings):
    return splits.open_task(TASKS[name], str(data_dir), FileSettings(**settings))


def message(name, data_dir, **settings):
    with pytest.raises(UserError) as error:
        open_task(name, data_dir, **settings)
    return str(error.value)


def edit(path, line, **fields):
    """Change fields of one line of a JSONL file; None removes one."""
    lines = path.read_text().splitlines()
    row = {**json.loads(lines[line - 1]), **fields}
    lines[line - 1] = json.dumps({name: value for name, value in row.items() if value is not None})
    path.write_text("".join(text + "\n" for text in lines))
