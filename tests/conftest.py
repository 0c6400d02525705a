"""Environment of the tests: CPU, eight virtual devices, strict rank promotion, one small set of rows."""

import os
import re
import signal

from tests import helpers

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{helpers.FAST_COMPILER} --xla_force_host_platform_device_count=8"

import jax
import pytest

from sctd_jax.data import corpus, prepare

# A background job ignores Ctrl-C, one of nohup the end of its terminal, and so would all processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
jax.config.update("jax_numpy_rank_promotion", "raise")
for name, value in helpers.COMPILATION_CACHE.items():
    jax.config.update(name.lower(), value)


# Whole runs, meshes and processes: begun last, they would leave the other workers idle, and `-m "not slow"` leaves them
# out for a verdict in two minutes.
_SLOW_FILES = (
    "test_hosts.py", "test_mesh.py", "test_main.py", "test_documented_commands.py", "test_interop.py",
    "test_tpu_compile.py", "test_finetune.py", "test_step.py", "test_storage.py", "test_importing.py",
    "test_finetune_export.py", "test_probing.py", "test_sweep.py", "test_finetune_step.py", "test_stored.py",
    "test_interop_families.py", "test_cluster.py", "test_hub.py", "test_report.py", "test_faults.py",
    "test_keep_by_layer.py", "test_start.py", "test_late_mask.py", "test_stages.py", "test_ranges.py",
    "test_parity.py", "test_predicting.py", "test_optimizer.py", "test_fire.py", "test_launch_tpu.py",
    "test_hub_datasets.py", "test_layer_tokens.py", "test_attention.py", "test_modernbert.py",
    "test_tokenizer_families.py", "test_accelerator_speed.py", "test_importing_families.py", "test_trackers.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """The slow files first, and marked."""
    rank = {name: i for i, name in enumerate(_SLOW_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        if item.path.name in rank:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def speeches():
    """Paths of the embedded corpus's first 60 speeches: real text, 1.5 MB."""
    return [source.path for source in corpus.find_sources([])][:60]


def pytest_terminal_summary(terminalreporter):
    """A line for each table of tests/fire, where all of them ran."""
    if os.environ.get("FIRE") != "all":
        return
    found = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call" and (table := re.search(r"test_fire\.py.*\[(\w+): ", report.nodeid)):
                found.setdefault(table[1], []).append(outcome)
    for table, outcomes in sorted(found.items()):
        terminalreporter.write_line(f"| {table} | {len(outcomes)} | {outcomes.count('failed')} |")


@pytest.fixture(scope="session")
def rows(speeches, tmp_path_factory):
    """A folder of prepared rows that fit `helpers.config()`."""
    out = tmp_path_factory.mktemp("prepared") / "rows"
    data = helpers.data(input=",".join(speeches[:12]), documents="paragraph", heldout_share=0.02)
    prepare.prepare(data, 512, out, lambda line: None)
    return out


@pytest.fixture(scope="module")
def run_peer():
    """Run a script of tests/ with torch and transformers; its imports take longer than what it does."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    imports = ("torch", "transformers.pipelines", "sentence_transformers")
    with helpers.forking(helpers.PEER, imports, environment | {"HF_HUB_OFFLINE": "1"}) as forked:

        def run(script, *args):
            done = forked([str(helpers.ROOT / "tests" / script), *map(str, args)])
            assert done.returncode == 0, done.stdout + done.stderr
            print(done.stdout)

        yield run


@pytest.fixture(scope="session")
def pretrained(rows, tmp_path_factory):
    """Run that the tests of fine-tuning start from."""
    from tests import finetuning  # imported here, for scipy and scikit-learn take seconds

    return finetuning.write_pretrained(tmp_path_factory.mktemp("pretrained") / "run", rows)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders by task, each with small files in its official layout."""
    from tests import finetuning

    return finetuning.write_tasks(tmp_path_factory.mktemp("tasks"))
