"""BERT-base by token dropping with a full step in every ten; otherwise configs/base.py.

    python -m sctd_jax.main --config=configs/full_every.py

ScTD's rhythm without its consistency loss: what the KL adds is the difference between the two.
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.dropping.method = "full_every"
    return config
