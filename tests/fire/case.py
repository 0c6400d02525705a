"""A row of the tables, and what its command must and must not do."""

import dataclasses
import hashlib
import os
import random
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

# At most, for each command: seconds of a core, which other work beside the tests does not change, and by the clock.
SECONDS, CLOCK_SECONDS, PEAK_BYTES, LINES = 30, 90, 1_500_000_000, 3
EITHER = (0, 2)  # statuses of bytes that are damaged at random, which may mean nothing


def nothing(here: Path, base: Path) -> None:
    """No input of its own."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An input and the answer that it must get.

    `$here` in `command` is the case's own empty folder, which is also where `make` writes; `$base` has what all cases
    share (tests/test_fire.py: `base`), and no case may change it.
    """

    name: str  # what is wrong, in a few words
    command: str  # arguments of python, as in a shell
    make: Callable[[Path, Path], None] = nothing  # writes the input; (here, base)
    status: int | tuple[int, ...] = 2
    words: tuple[str, ...] = ()  # stand in what it says
    new: tuple[str, ...] = ()  # patterns of paths in `here` that may be there afterwards; nothing else may
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """A change of a folder: it gets a file, in a folder of it perhaps."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def special(name: str, device: str = "") -> Callable[[Path], object]:
    """A change of a folder: in the place of a file is a pipe into which nobody writes, or a link to a device."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(device) if device else os.mkfifo(folder / name)

    return change


def damage(path: Path, seed: int, within: int = sys.maxsize) -> None:
    """Cut a file, or flip, repeat or overwrite bytes of it, from a place among the first `within` bytes on."""
    rng, raw = random.Random(seed), bytearray(path.read_bytes())
    at = rng.randrange(min(len(raw), within))
    match seed % 4:
        case 0:
            del raw[at:]
        case 1:
            raw[at] ^= 1 << rng.randrange(8)
        case 2:
            raw[at:at] = raw[at : at + rng.randrange(1, 400)]
        case 3:
            size = rng.randrange(1, 40)
            raw[at : at + size] = rng.randbytes(size)
    path.write_bytes(raw)


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file in a folder by its path; links as what they lead to, folders and pipes by their kind."""
    found, pending = {}, [folder]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError as error:  # too long a path; a case may make one
            found[str(error.filename)] = "closed"
            continue
        for entry in entries:
            name = os.path.relpath(entry.path, folder)
            if entry.is_symlink() and not os.path.exists(entry.path):  # a loop of links, or one that leads nowhere
                found[name] = os.readlink(entry.path)
            elif entry.is_file():
                with open(entry.path, "rb") as file:
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                found[name] = "folder" if entry.is_dir() else "other"
                pending += [Path(entry.path)] if entry.is_dir(follow_symlinks=False) else []
    return found


def arguments(case: Case, here: Path, base: Path) -> list[str]:
    """Arguments of python for a case. A `$` that begins neither name stays."""
    places = {"here": str(here), "base": str(base)}
    return [string.Template(word).safe_substitute(places) for word in shlex.split(case.command)]


def faults(case: Case, done: subprocess.CompletedProcess, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with an answer, a line each."""
    found, said = [], done.stdout + done.stderr
    if done.returncode not in (case.status if isinstance(case.status, tuple) else (case.status,)):
        found.append(f"status {done.returncode}, expected {case.status}")
    found += [f"{word!r} in what it says" for word in ("Traceback", "panicked at") if word in said]
    if done.returncode and len(done.stderr.splitlines()) > LINES:
        found.append(f"{len(done.stderr.splitlines())} lines of errors")
    found += [f"{word!r} is not in what it says" for word in case.words if word not in said]
    if done.returncode == 2 and not re.search(r"^(error|FATAL)|error: ", done.stderr, re.M):
        found.append("no error is said")
    if (longest := max((len(line) for line in done.stderr.splitlines()), default=0)) > 2000:
        found.append(f"a line of {longest} characters")
    if done.used["cpu_seconds"] > SECONDS or done.used["seconds"] > CLOCK_SECONDS:
        found.append(f"{done.used['cpu_seconds']:.0f} seconds of a core, {done.used['seconds']:.0f} by the clock")
    if done.used["peak_bytes"] > PEAK_BYTES:
        found.append(f"{done.used['peak_bytes'] / 1e9:.1f} GB")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    new = () if isinstance(case.status, tuple) and done.returncode else case.new
    left = [name for name in sorted(changed) if not any(fnmatchcase(name, pattern) for pattern in new)]
    return found + [f"left or changed {name}" for name in left]
