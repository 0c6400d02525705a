"""Command lines of the documents and docstrings, as a reader would copy them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROGRAMS = (
    "bash", "docker", r"for \w+ in", "gcloud", "git", "hf", "kubectl", "make", "pip", "pytest", "python", "ray",
    "sbatch", r"sctd-jax[\w-]*", "sky", "source", "ssh-add",
)  # fmt: skip
_BEGINS = re.compile(rf"([A-Z_]+=\S+ )*((\.venv[\w-]*/bin/)?({'|'.join(PROGRAMS)})(?= )|launch/\w+\.sh )")
_COMMENT = re.compile(r"""^((?:[^'"#\n]|'[^']*'|"[^"]*")*?)[ \t]+#[ \t].*$""", re.M)


class Command(NamedTuple):
    """One command, and where it stands."""

    text: str  # on one line, without comments
    place: str


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    heading: str  # the nearest above
    text: str
    place: str


def is_command(line: str) -> bool:
    """Whether a line begins as a command does."""
    return bool(_BEGINS.match(line.strip()))


def blocks(path: Path) -> Iterator[Block]:
    """Fenced blocks of a document."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S):
        before = path.read_text()[: match.start()]
        heading = re.findall(r"^#+ (.*)$", before, re.M)[-1]
        yield Block(match[1], heading, match[2], f"{path.name}:{before.count(chr(10)) + 2}")


def commands(root: Path) -> list[Command]:
    """Commands of the documents and of the docstrings of recipes, package and benchmarks, in this order."""
    found = []
    for path in documents(root):
        for block in blocks(path):
            if not block.language and is_command(block.text):
                found += [Command(text, block.place) for text in _lines(block.text)]
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        found += [Command(text, path.name) for text in _inline(prose)]
    for folder in ("configs", "sctd_jax", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            found += [Command(line, str(path.relative_to(root))) for line in (*_synopses(text), *_inline(text))]
    return found


def documents(root: Path) -> list[Path]:
    """The pages for readers."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def _lines(block: str) -> Iterator[str]:
    """Commands of a block of shell: joined where a line goes on, parted at `&&`, a loop as one."""
    text = _COMMENT.sub(r"\1", block)
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"^for .*?^done$", lambda loop: " ".join(loop[0].split()), text, flags=re.M | re.S)
    for line in text.splitlines():
        yield from (" ".join(part.split()) for part in line.split(" && ") if part.strip())


def _inline(text: str) -> Iterator[str]:
    """Commands among the words between backquotes."""
    for words in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        if is_command(line := " ".join(words.split())):
            yield line


def _synopses(text: str) -> Iterator[str]:
    """Commands on lines of their own in a docstring; one goes on in lines that stand deeper."""
    found: list[str] = []
    depth = 0
    for line in [*text.splitlines(), ""]:
        here = len(line) - len(line.lstrip())
        if found and line.strip() and here > depth:
            found.append(line.strip())
            continue
        if found:
            yield from _lines(" ".join(part.removesuffix("\\") for part in found))
        found, depth = [line.strip()] if is_command(line) else [], here
