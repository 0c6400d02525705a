"""The truth about this package on this machine's accelerator: one command, most important first.

python -m benchmarks.accelerator --minutes 8 --out DIR [--study] [--smoke] [--parts numbers,speed]

Each part writes DIR/PART.json as it measures, and its lines to DIR/table.txt: a run that is cut off loses nothing.
Exit status 1: a part failed, found something wrong or had to be ended, which the table says.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from benchmarks.accelerator.child import add_error
from benchmarks.accelerator.part import OLD_EMITTERS, Bench
from sctd_jax.arguments import CommandParser, local_path, number
from sctd_jax.errors import UserError, run_command

ROOT = Path(__file__).parents[2]
MACHINE = "machine"
# Parts, most important first, and their shares of the time; what a part leaves goes to the later ones.
SHARES = {MACHINE: 2, "numbers": 24, "kernels": 10, "speed": 58, "whole_run": 26, "batches": 12, "study": 60}
_PATIENCE = 20  # seconds after its deadline at which a part is ended
_RESERVE = 5  # seconds at the end in which nothing runs
# XLA's compiler takes most of the time at toy size.
_SMOKE_FLAGS = "--xla_backend_optimization_level=0"
if OLD_EMITTERS:
    _SMOKE_FLAGS += " --xla_cpu_use_fusion_emitters=false"

_PROGRAMS = "programs"  # folder of compiled programs; it goes at the end

Start = Callable[[str, Bench], subprocess.Popen]


@dataclasses.dataclass
class Outcome:
    """Outcome of a part."""

    name: str
    lines: list[str]
    seconds: float = 0.0
    failed: bool = False


def start_part(name: str, bench: Bench) -> subprocess.Popen:
    """The process of a part, leader of a group of its own."""
    command = [sys.executable, "-m", "benchmarks.accelerator.child", name, bench.out, str(bench.deadline)]
    environment = dict(os.environ)
    if bench.smoke:
        environment["XLA_FLAGS"] = f"{_SMOKE_FLAGS} {environment.get('XLA_FLAGS', '')}".strip()
        # A program of two parts is compiled once here; without --smoke the time to compile is measured.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(bench.out / _PROGRAMS))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return subprocess.Popen(
        [*command, "smoke" if bench.smoke else "full"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip


def run_part(outcome: Outcome, bench: Bench, end: float, start: Start, changed: Callable[[], None]) -> None:
    """Run a part to its end, or to `end`, when it and what it has started are killed.

    Args:
      outcome: takes its lines as they come.
      bench: settings of the part.
      end: time.monotonic() at which it is ended.
      start: starts its process.
      changed: called at each line.
    """
    began, name, tail = time.monotonic(), outcome.name, []
    process = start(name, bench)

    def read_lines() -> None:
        for line in process.stdout:
            outcome.lines.append(line.rstrip("\n"))
            changed()

    def read_log() -> None:
        for line in process.stderr:
            bench.log(line.rstrip("\n"))
            tail.append(line)
            del tail[:-30]

    readers = [threading.Thread(target=read) for read in (read_lines, read_log)]
    for reader in readers:
        reader.start()
    problem = None
    try:
        status = process.wait(max(end - time.monotonic(), 0))
        # 1 is the status after an exception or something wrong, which the part has reported itself.
        if status not in (0, 1) or (status and not outcome.lines):
            problem = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
    except subprocess.TimeoutExpired:
        status, problem = 1, f"was ended after {time.monotonic() - began:.0f} s, past its time"
    finally:
        _kill_group(process)
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
    if problem:
        add_error(bench, name, "\n".join([problem, *(line.rstrip() for line in tail)]))
        outcome.lines.append(f"FAILED: {problem}; what it measured is in {name}.json")
    outcome.failed, outcome.seconds = status != 0, time.monotonic() - began
    changed()


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_parts(names: list[str], bench: Bench, start: Start = start_part) -> list[Outcome]:
    """Run parts one after the other up to the deadline; `table.txt` always holds the lines there are."""
    outcomes: list[Outcome] = []

    def write() -> None:
        (bench.out / "table.txt").write_text(table(outcomes))

    for i, name in enumerate(names):
        outcomes.append(outcome := Outcome(name, []))
        if bench.left() < 1:
            outcome.lines, outcome.failed = ["left out: no time was left"], False
            write()
            continue
        share = SHARES[name] / sum(SHARES[later] for later in names[i:])
        deadline = time.monotonic() + share * bench.left()
        end = min(deadline + _PATIENCE, bench.deadline)
        bench.log(f"{name}: {deadline - time.monotonic():.0f} s")
        run_part(outcome, dataclasses.replace(bench, deadline=deadline), end, start, write)
        if name == MACHINE and not outcome.failed:
            _check_accelerator(bench)
    return outcomes


def _check_accelerator(bench: Bench) -> None:
    facts = json.loads((bench.out / f"{MACHINE}.json").read_text())
    if facts["platform"] == "cpu" and not bench.smoke:
        raise UserError("JAX finds no accelerator on this machine, only its CPU; --smoke tries everything at toy size")


def table(outcomes: list[Outcome]) -> str:
    """The one table."""
    lines = []
    for outcome in outcomes:
        took = f" ({outcome.seconds:.0f} s)" if outcome.seconds else ""
        lines += [f"{outcome.name}{took}", *(f"  {line}" for line in outcome.lines)]
    return "\n".join(lines) + "\n"


def log_to(file: TextIO) -> Callable[[str], None]:
    """A log on standard error and in a file."""

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        print(line, file=file, flush=True)

    return log


def main() -> int:
    """The command; see the module's docstring."""
    parser = CommandParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--minutes", type=number(float, 0.1), default=8.0, help="after which everything has ended")
    parser.add_argument("--out", type=local_path, default=Path("runs/accelerator"), help="folder of JSON and table")
    parser.add_argument("--parts", default="", help=f"some of {', '.join(SHARES)}; default: all but study")
    parser.add_argument("--study", action="store_true", help="train the methods against each other at the end")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, on a CPU too")
    args = parser.parse_args()
    asked = [part.strip() for part in args.parts.split(",") if part.strip()]
    if unknown := [part for part in asked if part not in SHARES]:
        parser.error(f"--parts: {unknown[0]} is unknown; the parts are {', '.join(SHARES)}")
    chosen = {MACHINE, *(asked or set(SHARES) - {"study"}), *(["study"] if args.study else [])}
    names = [name for name in SHARES if name in chosen]
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        (out / f"{name}.json").unlink(missing_ok=True)
    with (out / "log.txt").open("w") as file:
        bench = Bench(args.smoke, out, time.monotonic() + 60 * args.minutes - _RESERVE, log_to(file))
        outcomes = run_parts(names, bench)
    shutil.rmtree(out / _PROGRAMS, ignore_errors=True)
    print(table(outcomes), end="")
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(run_command(main))
