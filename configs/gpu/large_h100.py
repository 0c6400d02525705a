"""BERT-large by ScTD on one H100 of 80 GB: the paper's 256 rows of 512 in 8 microbatches of 32; cuDNN's attention.

    python -m sctd_jax.main --config=configs/gpu/large_h100.py --config.data.rows=rows --workdir=runs/large_h100

Attention dropout is 0, unlike the paper's: `auto` takes cuDNN only then. No GPU has run this. Its memory is reckoned:
each layer keeps about 20 bfloat16 arrays of N x D a row for the backward pass, 24 layers 480 MiB; times 2 for
the two passes of a consistency step and 32 rows, 30 GiB, beside 5 GiB of parameters, moments and gradients.
"""

from configs import large


def get_config():
    """The recipe: `configs/large.py` without attention dropout, in microbatches."""
    config = large.get_config()
    config.model.attention_dropout = 0.0
    config.train.accumulation = 8
    return config
