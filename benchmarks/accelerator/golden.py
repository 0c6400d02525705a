"""The recorded numbers of the two public implementations, by `tests/test_parity.py` on this machine's device."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parents[2]
_DEVIATION = re.compile(r"^ +(\w+) +(\S+) of (\S+) allowed  (\S+)$", re.M)
_FAILED = re.compile(r"^FAILED \S+::(\S+)(?: - (.*))?$", re.M)


class Tests(NamedTuple):
    """The tests, running."""

    process: subprocess.Popen
    output: IO[str]  # a file, which a process never has to wait for


def start(smoke: bool) -> Tests | None:
    """The tests in a process, without the conftest that keeps tests on the CPU; None where pytest is not installed.

    `smoke`: only those of one of the two implementations.
    """
    if not importlib.util.find_spec("pytest"):
        return None
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-s", "-rf", "-p", "no:cacheprovider"]
    # GPUs multiply f32 in TF32 by default, of which the recordings know nothing.
    environment = {**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the tests have ended
    command += ["-W", "default", "tests/test_parity.py", *(["-k", "modelgarden"] if smoke else [])]
    return Tests(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output), output)


def read(tests: Tests, seconds: float) -> dict[str, Any]:
    """Results that the tests have printed: counts, the tests that failed, and the largest deviation of each recording.

    Raises:
      subprocess.TimeoutExpired: they have not ended after so many seconds.
    """
    status = tests.process.wait(seconds)
    tests.output.seek(0)
    output = tests.output.read()
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", output)}
    return {
        "status": status,
        **{"passed": 0, "failed": 0, **counts},
        "failures": {test: why for test, why in _FAILED.findall(output)},
        "deviations": [
            {"recording": recording, "found": float(found), "allowed": float(allowed), "test": test}
            for recording, found, allowed, test in _DEVIATION.findall(output)
        ],
        "output": [] if status == 0 else output.splitlines()[-80:],
    }


def line(found: dict[str, Any]) -> str:
    """The line of the table."""
    parts = [f"{d['found']:.1e} of {d['allowed']:.0e}" for d in found["deviations"]]
    outcome = f"{found['passed']} passed, {found['failed']} failed"
    names = f" ({', '.join(list(found['failures'])[:4])})" if found["failures"] else ""
    return f"golden parity on the device: {outcome}{names}; largest deviations {', '.join(parts) or 'not printed'}"
