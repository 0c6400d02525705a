"""BERT-base by full-token training; otherwise configs/base.py.

python -m sctd_jax.main --config=configs/full.py
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.dropping.method = "full"
    return config
