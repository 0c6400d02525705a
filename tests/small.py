"""The recipe of the tests: 4 layers x 32, rows of 32 tokens, 512 pieces; see `helpers.config`."""

from configs import base


def get_config():
    config = base.get_config()
    config.model.update(
        vocab_size=512, num_layers=4, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=32,
        hidden_dropout=0.0, attention_dropout=0.0, dtype="float32",
    )  # fmt: skip
    config.dropping.sc_interval = 3
    config.data.update(seq_len=32, tokenizer_type="unigram")
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2)
    config.train.update(
        steps=6, batch_size=8, eval_every=3, eval_rows=20, checkpoint_every=3, keep_checkpoints=2, log_every=2,
        max_bad_steps=3,
    )  # fmt: skip
    return config
