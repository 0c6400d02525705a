"""A small BERT by ScTD on the embedded corpus, for a laptop CPU: what configs/tiny.py was until it was a ModernBERT.

python -m sctd_jax.main --config=configs/tiny_bert.py

Sized for two CPU cores and six minutes, the tokenizer included. Its positions are learned, so that it has to find out
pair by pair who is whose neighbour: in that time it stays near word frequencies, which configs/tiny.py leaves behind.
"""

from configs import base


def get_config():
    """The recipe."""
    config = base.get_config()
    config.model.update(
        vocab_size=4096, num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, max_positions=128,
        # No dropout: the run is less than one epoch. BERT's 0.02 is for a width of 768; at 128 a wider start leaves the
        # plateau of word frequencies (6.4 nats) sooner.
        hidden_dropout=0.0, attention_dropout=0.0, initializer_range=0.05, dtype="float32",
    )  # fmt: skip
    config.data.update(seq_len=128, tokenizer_type="unigram")
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=100)
    config.train.update(steps=1200, batch_size=16, eval_every=200, eval_rows=128, checkpoint_every=200, log_every=25)
    return config
