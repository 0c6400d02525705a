"""A small BERT by ScTD on the embedded corpus, for a laptop CPU: what `make demo` runs.

python -m sctd_jax.main --config=configs/tiny.py
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(
        vocab_size=4096, num_layers=6, hidden_size=128, num_heads=4, intermediate_size=512, max_positions=128,
        hidden_dropout=0.0, attention_dropout=0.0, dtype="float32",
    )  # fmt: skip
    config.data.update(seq_len=128, tokenizer_type="unigram")
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100)
    config.train.update(steps=1000, batch_size=32, eval_every=250, eval_rows=128, checkpoint_every=250, log_every=50)
    return config
