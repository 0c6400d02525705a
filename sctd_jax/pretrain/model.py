"""The network that is pretrained, and its state before the first step."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.data.special import SpecialIds
from sctd_jax.model.attention import attention_options, choose, platform_of
from sctd_jax.model.encoder import MaskedLm
from sctd_jax.model.families import check_family
from sctd_jax.model.token_dropping import check_selector, initial_importance
from sctd_jax.parallel.mesh import check_sizes, make_mesh
from sctd_jax.train.state import TrainState, first_state
from sctd_jax.train.step import state_shape


def make_model(config: Config, mesh: Mesh | None = None) -> MaskedLm:
    """The network of a settled config on the devices of a mesh; without a mesh by plain attention."""
    layerwise = config.dropping.method == "random_ltd"
    options = attention_options(config.model, mesh, config.train.seed)
    return MaskedLm(config.model, *config.drop_layers, layerwise=layerwise, **options)


def settle(config: Config, platform: str) -> tuple[Config, str]:
    """The config with the attention that a platform computes in the place of 'auto', and a text about it."""
    model, text = choose(config.model, config.context_lengths, platform)
    return dataclasses.replace(config, model=model), text


def on_devices(config: Config, devices: Sequence[jax.Device] | None = None) -> tuple[Config, str, Mesh]:
    """The config that `settle` makes for these devices, by default all there are, its text, and their mesh; checked."""
    check_selector(config.dropping.selector)
    check_family(config.model)
    mesh = make_mesh(config.mesh, devices)
    check_sizes(mesh, config.model, config.train)
    for *_, stage in config.stages(config.train.steps):
        check_sizes(mesh, config.model, stage.train, "train.batch_schedule")
    return *settle(config, platform_of(mesh.devices.flat[0])), mesh


def initial_state(config: Config, special: SpecialIds) -> TrainState:
    """State before the first step; a pure function of `config.train.seed`."""
    init_key, run_key = jax.random.split(jax.random.key(config.train.seed))
    tokens_BN = jnp.zeros((1, config.data.seq_len), jnp.int32)
    params = make_model(config).init(init_key, tokens_BN, jnp.ones(tokens_BN.shape, bool))["params"]
    importance_V = initial_importance(
        config.model.vocab_size, config.dropping.importance_init, special.never_drop, special.pad
    )
    return first_state(params, config.optimizer, run_key, importance_V)


def state_layout(config: Config, special: SpecialIds, mesh: Mesh) -> TrainState:
    """Shapes of `initial_state`, with its shardings on a mesh."""
    return state_shape(lambda: initial_state(config, special), mesh)
