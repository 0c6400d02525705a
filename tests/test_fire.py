"""Damaged, hostile and absurd inputs to every command: one line, and nothing lost (tests/fire/).

One of twenty cases by default, all of them by `make fire`.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests import helpers
from tests.fire.case import CLOCK_SECONDS, Case, arguments, contents, faults

TABLES = sorted(path.stem for path in (helpers.ROOT / "tests" / "fire").glob("*.py"))
CASES: dict[str, Case] = {}
for table in TABLES:
    for case in () if table in ("__init__", "case") else importlib.import_module(f"tests.fire.{table}").CASES:
        name = f"{table}: {case.name}"
        CASES[f"{name} once more" if name in CASES else name] = case
CHOSEN = list(CASES) if os.environ.get("FIRE") == "all" else list(CASES)[::20]


@pytest.fixture(scope="module")
def base(rows, speeches, tmp_path_factory) -> Path:
    """What all cases share: `rows`, a `run` of six steps, its `exported`, its `tuned` on `own.csv`, and `text.txt`."""
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(rows, base / "rows")
    (base / "text.txt").write_text(Path(speeches[0]).read_text()[:50_000])
    texts = [f"soup {i} is good,{('no', 'yes')[i % 2]}\n" for i in range(8)]
    (base / "own.csv").write_text("text,label\n" + "".join(texts))
    one_layer = " ".join(helpers.ONE_LAYER)
    for line in (
        f"sctd_jax.main --config=tests/small.py --workdir=$base/run --config.data.rows=$base/rows {one_layer}",
        "sctd_jax.interop.huggingface export --workdir $base/run --out $base/exported",
        "sctd_jax.main --mode=finetune --config=configs/finetune.py --config.task=classification --workdir=$base/tuned "
        "--config.init=$base/run --config.data_dir=$base/own.csv --config.heldout_share=0.25 --config.max_length=32 "
        "--config.batch_size=4 --config.epochs=1",
    ):
        done = helpers.run_module(*arguments(Case("", line), base, base))
        assert done.returncode == 0, done.stderr
    return base


def test_the_docs_tell_the_number_of_cases():
    text = (helpers.ROOT / "docs" / "reliability.md").read_text()
    told = {table: int(count) for table, count in re.findall(r"^\| (\w+) \| (\d+) \| 0 \|", text, re.M)}
    assert told == Counter(name.partition(":")[0] for name in CASES)


@pytest.mark.parametrize("name", CHOSEN)
def test_it_gets_one_line_and_nothing_is_lost(name, base, tmp_path):
    case = CASES[name]
    case.make(tmp_path, base)
    before, shared = contents(tmp_path), contents(base)
    own = {name: value.replace("$here", str(tmp_path)) for name, value in case.env.items()}
    environment = helpers.environment() | own | {"SECONDS_OF_A_FORK": str(2 * CLOCK_SECONDS)}
    done = helpers.run_module(*arguments(case, tmp_path, base), env=environment)
    found = faults(case, done, before, contents(tmp_path))
    found += [f"the shared {path} is changed" for path, digest in contents(base).items() if shared.get(path) != digest]
    # pytest, which removes it at the end of a later session, recurses into each folder.
    subprocess.run(["rm", "-rf", tmp_path], check=True)
    assert not found, f"{shlex.join(done.args)}\n{found}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
