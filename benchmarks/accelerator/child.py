"""One part in a process of its own, as `benchmarks.accelerator` starts it: NAME OUT DEADLINE full|smoke.

Standard output is the part's lines of the table and nothing else; whatever is printed meanwhile goes to standard error.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.accelerator.part import Bench


def main(name: str, out: str, deadline: str, size: str) -> int:
    """Exit status: 0, or 1 where the part raised or found something `wrong`."""
    table = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    began = time.monotonic()

    def log(line: object) -> None:
        print(f"[{name} {time.monotonic() - began:5.0f} s] {line}", file=sys.stderr, flush=True)

    bench = Bench(size == "smoke", Path(out), float(deadline), log)
    try:
        for line in importlib.import_module(f"benchmarks.accelerator.{name}").run(bench):
            print(line, file=table)
    except Exception as error:
        traceback.print_exc()
        add_error(bench, name, traceback.format_exc())
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"FAILED: {summary[:200]} (traceback in {name}.json)", file=table)
        return 1
    return int(bool(measured(bench, name).get("wrong")))


def measured(bench: Bench, name: str) -> dict[str, Any]:
    """Content of the JSON of a part so far."""
    path = bench.out / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def add_error(bench: Bench, name: str, error: str) -> None:
    """Add what ended a part to what it has measured."""
    bench.save(name, {**measured(bench, name), "error": error})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
