"""BERT-base by ScTD on one H100 of 80 GB: the paper's 256 rows of 512 in 4 microbatches of 64; cuDNN's attention.

    python -m sctd_jax.main --config=configs/gpu/base_h100.py --config.data.rows=rows --workdir=runs/base_h100

Attention dropout is 0, unlike the paper's: `auto` takes cuDNN only then. No GPU has run this. Its memory is reckoned:
each layer keeps about 20 bfloat16 arrays of N x D a row for the backward pass, 12 layers 180 MiB; times 2 for
the two passes of a consistency step and 64 rows, 22 GiB, beside 2 GiB of parameters, moments and gradients.
"""

from configs import base


def get_config():
    """The recipe: `configs/base.py` without attention dropout, in microbatches."""
    config = base.get_config()
    config.model.attention_dropout = 0.0
    config.train.accumulation = 4
    return config
