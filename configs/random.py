"""BERT-base by random token dropping, the baseline of both papers; otherwise configs/base.py.

python -m sctd_jax.main --config=configs/random.py
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.dropping.method = "random"
    return config
