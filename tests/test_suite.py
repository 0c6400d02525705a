"""The suite's own means: programs that one process has compiled are read by the others, and by the next run."""

import os
import secrets
import subprocess
import sys

import jax

from tests import helpers

PROGRAM = "import jax, sys; jax.jit(lambda x: x * int(sys.argv[1]) + 1)(1).block_until_ready()"


def test_what_one_process_has_compiled_another_one_reads():
    number, events = secrets.randbelow(1 << 30), []  # of a program that nobody has compiled before

    def listen(event, **_):
        events.append(event)

    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(number)], check=True,
        env=helpers.environment() | {"XLA_FLAGS": os.environ["XLA_FLAGS"]},  # for as many devices as here
    )  # fmt: skip
    jax.monitoring.register_event_listener(listen)
    try:
        found = jax.jit(lambda x: x * number + 1)(1)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert int(found) == number + 1
    assert events.count("/jax/compilation_cache/cache_hits") == 1
    assert "/jax/compilation_cache/cache_misses" not in events
