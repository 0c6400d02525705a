"""DESIGN: who may import whom, and nothing touches a JAX backend at import."""

import ast
import subprocess
import sys

import pytest

from tests import helpers

PACKAGE = helpers.ROOT / "sctd_jax"
MODULES = {
    ".".join(path.relative_to(helpers.ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
# Module or folder -> what of ours it may import; the longest key wins. `errors` may be imported by all.
ALLOWED = {
    "config": [],
    "errors": [],
    "storage": [],
    "model.token_dropping": [],
    "model.elementwise": [],
    "model.attention": ["config", "model.elementwise"],
    "model.heads": ["config", "model.attention", "model.bert", "model.elementwise"],
    "model.bert": ["config", "model.attention", "model.elementwise", "model.token_dropping"],
    "objective.masking": [],
    "objective.losses": [],
    "train.metrics": ["storage"],
    "data.tokenizer": ["storage"],
    "data.sentencepiece_trainer": [],
    "data.corpus": [],
    "data.packing": [],
    "data.rows": ["storage"],
    "data.loader": ["data"],
    "data.prepare": ["config", "data", "storage"],
    "parallel.mesh": ["config"],
    "parallel.hosts": [],
    "parallel.sharding": [],
    "parallel.chips": [],
    "parallel.aot": ["config", "model", "objective", "parallel", "train"],
    "parallel.buffers": ["config", "parallel", "train"],
    "parallel.fitting": ["config", "parallel", "train"],
    "train": [
        "config",
        "model",
        "objective",
        "parallel.chips",
        "parallel.hosts",
        "parallel.mesh",
        "parallel.sharding",
        "data",
        "storage",
        "train",
    ],
    "interop": ["config", "data", "interop", "objective", "storage", "train"],
    "interop.convert": [],
    "interop.exporting_task": ["finetune", "interop", "train.metrics"],
    "finetune": [
        "config",
        "data",
        "finetune",
        "interop.convert",
        "interop.importing",
        "model",
        "parallel.hosts",
        "parallel.mesh",
        "parallel.sharding",
        "storage",
        "train",
    ],
    "finetune.examples": [],
    "finetune.tasks": [],
    "finetune.squad": [],
    "finetune.metrics": ["finetune.squad"],
    "probe": ["finetune.reading", "probing", "train.checkpoint"],
    "probing": [
        "config",
        "data",
        "finetune",
        "interop.convert",
        "interop.importing",
        "model",
        "objective",
        "parallel.mesh",
        "plot",
        "probing",
        "storage",
        "train",
    ],
    "plot": ["storage", "train.metrics"],
    "huge_pages": [],
    "main": ["config", "finetune", "huge_pages", "parallel.aot", "parallel.fitting", "parallel.hosts", "train"],
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sctd_jax"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sctd_jax"))


def under(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_design(module):
    name = module.removeprefix("sctd_jax.")
    rules = [key for key in ALLOWED if under(name, key)]
    assert rules, f"{module} has no rule: say in ALLOWED what it may import"
    allowed = [*ALLOWED[max(rules, key=len)], "errors"]
    for imported in imports(MODULES[module]):
        target = imported.removeprefix("sctd_jax.")
        assert any(under(target, prefix) for prefix in allowed), f"{module} may not import {imported}"


def test_nothing_touches_a_backend_at_import():
    code = f"""
import importlib
for module in {list(MODULES)!r}:
    importlib.import_module(module)
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=helpers.environment(), capture_output=True, text=True, cwd=helpers.ROOT
    )
    assert done.returncode == 0, done.stderr


def test_no_file_is_long():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
