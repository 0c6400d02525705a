"""BERT-large by ScTD: the size of the ScTD code's recipe (24 x 1024, its learning rate and warm-up).

    python -m sctd_jax.main --config=configs/large.py --config.data.input='corpus/**/*.txt'

Hardware: a TPU slice or a GPU node. Its full-length result has not been measured by us.
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096)
    config.optimizer.update(learning_rate=2e-4, warmup_steps=25_000)
    return config
