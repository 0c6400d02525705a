r"""An arena for two CPU cores: ModernBERT, 6 layers x 128, rows of 128 tokens, 1,024 pieces.

    make labels
    python -m sctd_jax.data.prepare --input 'labels/text/*.jsonl' --out study/rows --vocab-size 1024 \
        --tokenizer-type unigram --seq-len 128 --heldout-share 0.03
    python -m sctd_jax.arena --config=configs/arena/small.py:study/rows --workdir=study/cells

Its full run takes about twenty minutes on two cores. docs/study.md says what each method of the table is, how the rate
was chosen, on full runs alone, and has the results.
"""

from ml_collections import ConfigDict

from configs.modern import base

_SPEC = ("full", "drop", "sctd", "random", "random_ltd")
# Methods beside those of the two papers, and ablations of ScTD.
_MORE = {
    "full_every": {"dropping": {"method": "full_every"}},
    "sctd_kl_alone": {"dropping": {"method": "sctd", "sc_full_mlm": False}},
    "late_mask": {"dropping": {"method": "late_mask"}, "masking": {"rate_schedule": "0:0.4"}},
    "norm": {"dropping": {"method": "drop", "selector": "norm", "keep_by_layer": "3:56,4:48"}},
    # K grows, if not to all tokens, and the rate goes by what the layers see: as its authors train.
    "random_ltd_tokens": {
        "dropping": {"method": "random_ltd", "keep_schedule": "0:64,2500:80,5000:96,7500:112"},
        "optimizer": {"schedule_by": "layer_tokens"},
    },
}
# Measured once on two idle cores: docs/study/step_time.json has the spread and the command's machine.
_STEP_TIME = {
    "drop": 0.6416,
    "full": 1.0,
    "full_every": 0.6711,
    "late_mask": 0.6304,
    "norm": 0.6002,
    "random": 0.6364,
    "random_ltd": 0.5264,
    "random_ltd_tokens": 0.6257,
    "sctd": 0.681,
    "sctd_kl_alone": 0.6833,
}


def run(rows: str) -> ConfigDict:
    """The baseline's run at budget 1: full-token training."""
    config = base.get_config()
    config.model.update(
        vocab_size=1024, num_layers=6, hidden_size=128, num_heads=4, intermediate_size=192, max_positions=128,
        global_every=1, initializer_range=0.05, dtype="float32",
    )  # fmt: skip
    config.dropping.method = "full"
    # Trained at three in ten, judged at BERT's rate like every other run on these rows.
    config.masking.update(rate=0.15, rate_schedule="0:0.3")
    config.data.update(rows=rows, seq_len=128, tokenizer_type="unigram")
    config.optimizer.update(
        name="adamw", clip_norm=1.0, weight_decay=0.01, learning_rate=4e-3, warmup_steps=300, schedule="linear",
        decay_steps=0,
    )  # fmt: skip
    config.train.update(
        steps=10_000, batch_size=16, accumulation=1, consistency_accumulation=0, eval_rows=512, log_every=50
    )
    return config


def get_config(rows: str) -> ConfigDict:
    """The table; `rows` is the folder that data.prepare wrote."""
    config = ConfigDict()
    config.run = run(rows)
    config.baseline = "full"
    config.methods = {name: {"dropping": {"method": name}} for name in _SPEC} | _MORE
    config.step_time = _STEP_TIME
    config.rounds = (
        {"methods": _SPEC, "budgets": (1.0,), "seeds": (0, 1, 2)},
        {"methods": ("full", "drop", "sctd"), "budgets": (0.75, 0.5, 0.43), "seeds": (0, 1, 2)},
        {"methods": tuple(_MORE), "budgets": (1.0,), "seeds": (0, 1, 2)},
    )
    config.evaluations = 16
    config.judge_rows = 4_096
    return config
