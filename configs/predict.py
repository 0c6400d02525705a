"""Predictions of a fine-tuned model for a file without labels, of any size: it is read as it is predicted.

    python -m sctd_jax.main --mode=predict --config=configs/predict.py \
        --config.init=runs/finetune-classification --config.data_dir=reviews.csv --out=runs/predicted.jsonl

Without `--config` this recipe is taken. Hardware: a laptop CPU for small models, TPUs or GPUs for the others, where
`--config.dtype=bfloat16` is faster.
"""

import dataclasses

from ml_collections import ConfigDict

from sctd_jax.finetune.config import PredictConfig


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(dataclasses.asdict(PredictConfig()))
