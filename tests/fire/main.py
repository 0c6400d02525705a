"""Recipes, flags and variables of `python -m sctd_jax.main`."""

from tests.fire.case import Case

SMALL = "sctd_jax.main --config=tests/small.py --workdir=$here/run --config.data.rows=$base/rows"


def _field(name: str, value: str, *words: str) -> Case:
    return Case(f"{name}={value}", f"{SMALL} --config.{name}={value}", words=(name, *words))


CASES = [
    _field("optimizer.learning_rate", "nan"),
    _field("train.steps", "99999999999"),
]
