"""A small ModernBERT by ScTD on the embedded corpus, for a laptop CPU: 6 x 256, rows of 512.

    python -m sctd_jax.main --config=configs/modern/tiny.py --workdir=runs/modern_tiny

Layers 0 and 3 attend to all tokens. The size is that at which docs/performance.md times this family against PyTorch.
"""

from configs.modern import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(
        vocab_size=4096, num_layers=6, hidden_size=256, num_heads=4, intermediate_size=384, max_positions=512,
        initializer_range=0.04, dtype="float32",
    )  # fmt: skip
    config.data.update(seq_len=512, tokenizer_type="unigram")
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=50, decay_steps=100)
    config.train.update(
        steps=400, batch_size=8, accumulation=1, consistency_accumulation=0, eval_every=100, eval_rows=64,
        checkpoint_every=100, log_every=25,
    )  # fmt: skip
    return config
