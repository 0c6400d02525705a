"""BERT-base by token dropping (Hou et al., ACL 2022); otherwise configs/base.py.

python -m sctd_jax.main --config=configs/drop.py
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.dropping.method = "drop"
    return config
