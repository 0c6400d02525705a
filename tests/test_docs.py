"""Documents list what the code has."""

import ast
import io
import re
import subprocess
import tokenize

from sctd_jax.tasks.table import TASKS
from tests import helpers
from tests.test_imports import FLOORS


def task_rows():
    return [
        f"| `{name}` | {task.folder} | {task.head.replace('_', ' ')} | {', '.join(task.metrics)} | "
        f"{task.learning_rate:g}, {task.batch_size}, {task.epochs}, {task.max_length} |"
        for name, task in TASKS.items()
    ]


def test_the_table_of_tasks():
    text = (helpers.ROOT / "docs" / "finetuning.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| `")] == task_rows()


def test_it_is_documented_how_pairs_are_cut():
    """What is said there is compared with the fast tokenizers in test_encode.py."""
    text = " ".join((helpers.ROOT / "docs" / "finetuning.md").read_text().split())
    assert "as in BERT's own code. `longest_first` of the fast tokenizers differs by one token" in text


def test_the_house_has_the_floors_that_imports_are_held_to():
    text = (helpers.ROOT / "docs" / "design.md").read_text()
    floors = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]
    assert [set(names) for names in reversed(floors)] == [set(names) for names in FLOORS]


def names_of_tests():
    for path in (helpers.ROOT / "tests").glob("test_*.py"):
        yield path.stem
        yield from (node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))


def test_every_test_that_a_document_names_is_there():
    documents = [*helpers.ROOT.glob("*.md"), *(helpers.ROOT / "docs").glob("*.md")]
    named = {name for path in documents for name in re.findall(r"\btest_\w+", path.read_text())}
    assert len(named) > 20
    assert sorted(named - set(names_of_tests())) == []


def test_every_section_of_the_method_that_the_code_cites_is_there():
    """Each difference from the public versions has its test beside it, too."""
    text = (helpers.ROOT / "docs" / "method.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[4] for line in text.splitlines() if line.startswith("| 9.")}
    assert all("`test_" in test for test in rows.values())
    sections = set(re.findall(r"^## (\d+)\.", text, re.M)) | rows.keys()
    number, cited = r"\d(?:[\d.]*\d)?", set()
    for folder in ("sctd_jax", "configs", "tests"):
        for path in (helpers.ROOT / folder).rglob("*.py"):
            source = path.read_text()
            assert not re.search(r"\bSPEC \d", source), f"{path} cites a page that is not in the repository"
            for numbers in re.findall(rf"docs/method\.md ({number}(?:(?:, | and | to ){number})*)", source):
                cited |= set(re.findall(number, numbers))
    assert len(cited) > 10
    assert sorted(cited - sections) == []


def test_what_the_documented_commands_write_is_ignored_at_the_root_and_nothing_of_the_code_is():
    documents = [helpers.ROOT / "README.md", *(helpers.ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text() for path in documents)
    paths = re.findall(r"--(?:out|workdir|local-dir|target)[ =](?!\w+://)([\w./-]+)", text)
    folders = {path.partition("/")[0] for path in paths if not path.isupper() and path[0] != "/"}
    folders = folders - {"docs"} | {"labels", "data"}
    assert {"rows", "exported", "probes", "runs", "bert", "boolq"} <= folders
    ours = (helpers.ROOT / ".gitignore").read_text().splitlines()
    assert [name for name in sorted(folders) if f"/{name}" + "/" * ("." not in name) not in ours] == []
    # Anchored: a folder of the same name inside the code is not meant.
    assert [line for line in ours if line.strip("/") in folders and not line.startswith("/")] == []
    docker = (helpers.ROOT / ".dockerignore").read_text().splitlines()  # its patterns begin at the root as they are
    assert [name for name in sorted(folders) if name not in docker] == []
    ignored = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(ignored, cwd=helpers.ROOT, capture_output=True, text=True).stdout == ""


NO_BEGINNING = re.compile(r"(of|that|which|whose|what|where|when|how|as|by|at|in|on|to|from|with|for|if|so)\b", re.I)


def beginnings(source):
    """(line, text) of every comment, docstring, entry of its Args, Returns and Raises, and help of an option."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token, before in zip(tokens[1:], tokens, strict=False):
        goes_on = before.type == tokenize.NL and "#" in before.line and before.line.lstrip().startswith("#")
        if token.type == tokenize.COMMENT and not goes_on:
            yield token.start[0], token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text
            yield from ((node.body[0].lineno, entry) for entry in re.findall(r"^  \w+: (.*)$", text, re.M))
        if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


def test_comments_and_docstrings_begin_with_a_noun_or_a_verb():
    found = []
    for path in sorted(path for folder in ("sctd_jax", "benchmarks") for path in (helpers.ROOT / folder).rglob("*.py")):
        source = path.read_text()
        found += [f"{path}:{line}: {text}" for line, text in beginnings(source) if NO_BEGINNING.match(text)]
        # The head of errors.py says once that every function may raise UserError.
        found += [f"{path}: UserError" for _ in re.findall(r"^ *Raises:\n *UserError: ", source, re.M)]
    assert found == []
