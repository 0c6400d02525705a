"""BERT-base by ScTD, the paper's recipe: the defaults of the configuration.

    python -m sctd_jax.main --config=configs/base.py --config.data.input='corpus/**/*.txt'

Each field has a line in `sctd_jax/sections.py` with its default; `--help` prints all of them.
Source: Zhong et al., ACL 2023, and its code (docs/method.md 8); learning rate and schedule of Hou et al., ACL 2022.
Hardware: made for a TPU slice or a GPU node. Its full-length result has not been measured by us.
Without `data.input` it trains on the embedded trial corpus.
"""

import dataclasses

from ml_collections import ConfigDict

from sctd_jax.config import Config


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(dataclasses.asdict(Config()))
