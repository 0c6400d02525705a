"""What a run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from sctd_jax.config import Config
from sctd_jax.model import attention
from sctd_jax.model.bert import Bert
from sctd_jax.model.token_dropping import initial_importance
from sctd_jax.objective.masking import SpecialIds
from sctd_jax.train.optimizer import make_optimizer


@struct.dataclass
class TrainState:
    """Saved and restored as a whole."""

    step: jax.Array  # i32: updates tried so far
    params: Any
    opt_state: Any
    importance_V: jax.Array | None  # f32, never trained by gradient; None in fine-tuning
    key: jax.Array  # of the run; every random number is a fold_in of it
    skipped: jax.Array  # i32: steps left out because the loss or a gradient was not finite


def make_model(config: Config, mesh: Mesh | None = None) -> Bert:
    """The network of a config, computed as its devices need it; without a mesh by plain attention."""
    layerwise = config.dropping.method == "random_ltd"
    return Bert(config.model, *config.drop_layers, layerwise=layerwise, **computed(config, mesh))


def computed(config: Config, mesh: Mesh | None) -> dict[str, Any]:
    """`attend` and `remat_layers` of a network on these devices."""
    if mesh is None:
        return {}
    choice = attention.choose(config, attention.platform_of(mesh.devices.flat[0]))
    attend = attention.recomputed if choice.remat == "attention" else attention.plain
    if choice.attention == "splash":
        attend = attention.splash(mesh, otherwise=attend)
    elif choice.attention == "cudnn":
        attend = attention.cudnn(otherwise=attend)
    return {"attend": attend, "remat_layers": choice.remat == "block"}


def initial_state(config: Config, special: SpecialIds) -> TrainState:
    """State before the first step; a pure function of `config.train.seed`."""
    init_key, run_key = jax.random.split(jax.random.key(config.train.seed))
    tokens_BN = jnp.zeros((1, config.data.seq_len), jnp.int32)
    params = make_model(config).init(init_key, tokens_BN, jnp.ones(tokens_BN.shape, bool))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config.optimizer).init(params),
        importance_V=initial_importance(
            config.model.vocab_size, config.dropping.importance_init, special.never_drop, special.pad
        ),
        key=run_key,
        skipped=jnp.zeros((), jnp.int32),
    )
