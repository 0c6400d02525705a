"""BERT-base by random-LTD (Yao et al., 2022, arXiv 2211.11586), the baseline of DeepSpeed; otherwise configs/base.py.

    python -m sctd_jax.main --config=configs/random_ltd.py

Every layer but the first and the last sees random tokens of its own, first a quarter of them and at last all: the
growing schedule in its spirit, with a few values instead of its many, because each is compiled. Unlike DeepSpeed's, a
row always keeps [CLS]. Hardware: as base.py. Its full-length result has not been measured by us.
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.dropping.method = "random_ltd"
    config.dropping.keep_schedule = "0:128,60000:256,120000:384,180000:512"
    return config
