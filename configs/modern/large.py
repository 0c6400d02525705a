r"""ModernBERT-large by ScTD: 28 x 1024 with GeGLU 2624, otherwise as configs/modern/base.py.

    python -m sctd_jax.main --config=configs/modern/large.py --config.data.input='corpus/**/*.txt' \
        --workdir=runs/modern_large

Learning rate of Warner et al. (2024, arXiv:2412.13663, table 3). Hardware: a TPU slice or a GPU node. Its
full-length result has not been measured by us.
"""

from configs.modern import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(num_layers=28, hidden_size=1024, num_heads=16, intermediate_size=2624)
    config.optimizer.update(learning_rate=5e-4, weight_decay=0.02)  # 1e-5 / 5e-4
    config.train.update(accumulation=16, consistency_accumulation=32)
    return config
