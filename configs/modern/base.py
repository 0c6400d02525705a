r"""ModernBERT-base by ScTD: 22 x 768 with GeGLU 1152, rows of 1,024 tokens, three in ten of them predicted.

    python -m sctd_jax.main --config=configs/modern/base.py --config.data.input='corpus/**/*.txt' \
        --workdir=runs/modern_base

Network, masking rate, schedule, StableAdamW and its numbers are those of Warner et al. (2024, arXiv:2412.13663). Their
weight decay of 1e-5 is a share of the weight at the peak rate, ours is multiplied by the rate: 1e-5 / 8e-4. The batch,
4,608 rows there, and the number of steps are our choice. Layers 10 to 20 drop half of the tokens.
Hardware: a TPU slice or a GPU node. Its full-length result has not been measured by us.
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(
        family="modernbert", vocab_size=50_368, num_layers=22, intermediate_size=1152, max_positions=8192,
        type_vocab_size=1, hidden_dropout=0.0, attention_dropout=0.0, layer_norm_eps=1e-5, global_every=3,
    )  # fmt: skip
    config.masking.rate = 0.3
    config.data.update(seq_len=1024, tokenizer_type="byte_bpe")
    config.optimizer.update(
        name="stable_adamw", clip_norm=0.0, beta2=0.98, weight_decay=0.0125, learning_rate=8e-4, warmup_steps=3_000,
        schedule="wsd", decay_steps=10_000,
    )  # fmt: skip
    config.train.update(steps=100_000, batch_size=512, accumulation=8, consistency_accumulation=16)
    return config
