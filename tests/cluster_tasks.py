"""Functions of a number that `test_cluster.py` runs on Ray; a module of few imports, for every worker loads it."""

import os
import signal
import time
from pathlib import Path


def square(number, folder, errors, seconds):
    """A number's square or its entry in `errors`, raised; leaves a file for each attempt."""
    Path(folder, f"{number}-{os.getpid()}").touch()
    time.sleep(seconds)
    if number in errors:
        raise errors[number]
    assert os.environ["RAYON_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    return number * number


def code(number):
    """Where the package's code is that a task runs."""
    import sctd_jax

    return sctd_jax.__file__


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


class Missing:
    """What can be unpickled only where a package is installed."""

    def __reduce__(self):
        return __import__, ("no_such_package",)


def take(number, something):
    raise AssertionError("what cannot be unpickled cannot be taken")
