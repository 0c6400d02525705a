r"""Continued pretraining by ScTD, from an encoder that was imported or from another run.

    python -m sctd_jax.interop.huggingface import --from hf:google-bert/bert-base-uncased --workdir runs/bert
    python -m sctd_jax.main --config=configs/continued.py:runs/bert --workdir=runs/continued \
        --config.data.input='corpus/**/*.txt'

Where there is no network, `--from` is a folder that was downloaded elsewhere. The argument after the colon is the
workdir to start from: its network, its tokenizer, its newest parameters; a new optimizer and a new importance table.
Masking, row length and optimizer are those of the recipe for its family: base.py, roberta_base.py or modern/base.py.
25,000 steps at 5e-5: our choice, not a paper's, to be set by what your text needs. Hardware: as that recipe. Its
full-length result has not been measured by us.
"""

import os
from pathlib import Path

from ml_collections import ConfigDict

from configs import base, roberta_base
from configs.modern import base as modern_base
from sctd_jax import stored
from sctd_jax.errors import UserError

_RECIPES = {
    "bert": base, "roberta": roberta_base, "xlm-roberta": roberta_base, "camembert": roberta_base,
    "modernbert": modern_base,
}  # fmt: skip


def get_config(init: str = "") -> ConfigDict:
    """The recipe for a workdir to start from."""
    init = os.path.expanduser(init)
    found = Path(init, "config.json")
    try:
        model = stored.read(found, stored.CONFIG).values.get("model") if init and found.is_file() else None
    except UserError as error:
        raise ValueError(str(error)) from error  # absl hands a ValueError on
    tokenizers = [path for name in ("tokenizer.model", "tokenizer.json") if (path := Path(init, name)).is_file()]
    if not isinstance(model, dict) or not tokenizers:
        raise ValueError(
            f"--config=configs/continued.py:WORKDIR wants the workdir of a run or an import, found {init!r}; a model "
            "of transformers becomes one by python -m sctd_jax.interop.huggingface import --from FOLDER --workdir "
            "WORKDIR"
        )
    config = _RECIPES[model["family"]].get_config()
    config.model.update(model)
    config.train.init = init
    config.data.tokenizer = str(tokenizers[0])
    config.data.seq_len = min(config.data.seq_len, config.model.max_positions)
    config.optimizer.update(learning_rate=5e-5, warmup_steps=1_000)
    if config.optimizer.schedule == "wsd":
        config.optimizer.decay_steps = 2_500
    config.train.steps = 25_000
    return config
