"""A small ModernBERT by ScTD on the embedded corpus, for a laptop CPU: what `make demo` runs.

python -m sctd_jax.main --config=configs/tiny.py

Sized for two CPU cores and six minutes, the tokenizer included; README has its measured result. With rotary positions a
masked token can use its neighbours from the first steps on; with learned ones (configs/tiny_bert.py) so short a run
stays near word frequencies. Limits of 2,048 pieces: common words are whole, all others are several pieces, and a loss
compares with those of runs with the same pieces only.
"""

from configs.modern import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(
        vocab_size=2048, num_layers=4, hidden_size=128, num_heads=4, intermediate_size=256, max_positions=128,
        global_every=1, initializer_range=0.04, dtype="float32",
    )  # fmt: skip
    config.data.update(seq_len=128, tokenizer_type="unigram")
    # Hardly any decay: the run is one epoch.
    config.optimizer.update(
        learning_rate=3e-3, warmup_steps=100, schedule="linear", decay_steps=0, weight_decay=1e-5
    )  # fmt: skip
    config.train.update(
        steps=1500, batch_size=16, accumulation=1, consistency_accumulation=0, eval_every=250, eval_rows=128,
        checkpoint_every=250, log_every=25,
    )  # fmt: skip
    return config
