"""Settings that a part of the benchmark receives.

A part is a module of this package with `run(bench: Bench) -> Iterable[str]`: its lines of the table. A generator is
best, for each line is kept as soon as it is given. Each part runs in a process of its own, so that it has the whole
device, and is killed where it goes on long after its deadline. It looks at `bench.left()` before each item, saves after
each, and says in its JSON and its lines what it left out for time.
"""

import dataclasses
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Later versions of XLA have no such choice, and end the process where they meet an unknown flag.
OLD_EMITTERS = importlib.metadata.version("jax").startswith("0.10.")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Settings of a part."""

    smoke: bool  # toy sizes, for a CPU
    out: Path  # folder of the results
    deadline: float  # time.monotonic() at which the part shall be over
    log: Callable[[str], None]  # receives lines of progress

    def left(self) -> float:
        """Seconds up to the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def save(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `out/NAME.json` whole or not at all; arrays and scalars of numpy and JAX become lists and numbers."""
        self.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(values), indent=1, default=_plain) + "\n"
        path = self.out / f"{name}.json"
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(text)
        os.replace(unfinished, path)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
