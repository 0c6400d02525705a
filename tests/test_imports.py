"""Who may import whom (docs/design.md), and nothing touches a JAX backend at import."""

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
# Lowest first. A module may import what stands lower, and modules of its own folder; `docs/design.md` shows the house.
FLOORS = (
    ("errors", "huge_pages"),
    ("fields",),
    ("schedules", "sections"),
    ("config", "storage"),
    ("arguments", "lease", "stored"),
    ("model", "parallel", "data"),
    ("hf", "objective", "tasks", "train"),
    ("models", "plot"),
    ("finetune", "pretrain"),
    ("comparison",),
    ("recipes",),
    ("interop", "probing", "tpu"),
    ("reporting",),
    ("arena", "main", "probe", "report", "scripts"),
)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sctd_jax"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sctd_jax"))


def floor(name):
    """Number of the floor of a module: that of its folder, or its own."""
    (found,) = (i for i, places in enumerate(FLOORS) if name.split(".")[0] in places)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_downwards(module):
    name = module.removeprefix("sctd_jax.")
    found = {imported.removeprefix("sctd_jax.") for imported in imports(MODULES[module])}
    own = name.split(".")[0] if "." in name else None
    upward = {target for target in found if target.split(".")[0] != own and floor(target) >= floor(name)}
    assert not upward


def test_no_import_leads_in_a_circle():
    left = {
        name.removeprefix("sctd_jax."): {target.removeprefix("sctd_jax.") for target in imports(path)}
        for name, path in MODULES.items()
    }
    while done := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in done:
            del left[name]
    assert not left, "these import each other, or what does"


def test_the_engine_names_no_objective_no_dropping_and_no_task():
    words = {"dropping", "masking", "objective", "predictions", "selector", "variant", "task", "tasks", "model"}
    for path in (PACKAGE / "train").glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        assert not names & words, path


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


def test_the_package_imports_no_recipe():
    """Recipes import the package; `from configs` would name what is not installed under that name."""
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            named = [node.module] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in named if (name or "").partition(".")[0] == "configs"], path
