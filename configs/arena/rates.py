r"""Choice of the learning rate for configs/arena/small.py, on full-token runs alone: rates x five seeds, briefly.

    python -m sctd_jax.arena --config=configs/arena/rates.py:study/rows --workdir=study/rates

A "method" of this table is a rate. The rate of the study is half of the highest at which all five seeds leave the
plateau of word frequencies: near that edge the moment of leaving it is chance, and moves the final loss by more than a
method does.
"""

from ml_collections import ConfigDict

from configs.arena import small

# Falling: the search may stop at the first rate whose five seeds all leave the plateau.
_RATES = (1.6e-2, 8e-3, 4e-3, 2e-3)


def get_config(rows: str) -> ConfigDict:
    """The table; `rows` is the folder that data.prepare wrote."""
    config = small.get_config(rows)
    names = {f"rate_{rate:g}".replace(".", "_"): rate for rate in _RATES}
    config.methods = {name: {"optimizer": {"learning_rate": rate}} for name, rate in names.items()}
    config.step_time = dict.fromkeys(config.methods, 1.0)
    config.baseline = min(config.methods)
    config.rounds = ({"methods": tuple(names), "budgets": (0.1,), "seeds": (0, 1, 2, 3, 4)},)
    config.evaluations = 5
    return config
