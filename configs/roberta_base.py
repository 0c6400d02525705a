"""RoBERTa-base by ScTD: BERT-base's network with one kind of segment, and the paper's AdamW.

    python -m sctd_jax.main --config=configs/roberta_base.py --config.data.input='corpus/**/*.txt'

Network, beta2 and warm-up are those of Liu et al. (2019, arXiv:1907.11692, table 9); the batch, 8,192 rows there, and
the number of steps are base.py's. A vocabulary of 50,265 needs much text: config.model.vocab_size is for less.
Hardware: a TPU slice or a GPU node. Its full-length result has not been measured by us.
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(family="roberta", vocab_size=50_265, type_vocab_size=1, layer_norm_eps=1e-5)
    config.data.tokenizer_type = "byte_bpe"
    config.optimizer.update(beta2=0.98, warmup_steps=24_000)
    return config
