"""Recipes for GPUs choose what they say that they choose."""

import types

import pytest

from sctd_jax import recipes
from sctd_jax.config import from_dict
from sctd_jax.model import attention
from sctd_jax.pretrain.model import settle


@pytest.mark.parametrize(("name", "rows"), [("base", 64), ("large", 32)])
def test_auto_takes_cudnn_on_a_gpu_and_microbatches_have_the_rows_that_are_reckoned_with(monkeypatch, name, rows):
    monkeypatch.setattr(attention.binding, "cuda_versions", types.SimpleNamespace(cudnn_get_version=lambda: 91_200))
    config, text = settle(from_dict(recipes.load(f"configs/gpu/{name}_h100.py").to_dict()), "gpu")
    assert (config.model.attention, config.model.remat) == ("cudnn", "none"), text
    assert config.train.batch_size // config.train.microbatches("consistency") == rows
