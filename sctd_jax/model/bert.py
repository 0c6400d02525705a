"""BERT (Devlin et al., 2019) as Linen modules: embeddings, the layer, the MLM head and the pooler.

Shapes: B batch, N sequence length, R query rows, P predicted positions, D width, H heads, V vocabulary.
Parameters are float32, compute is `config.dtype`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError
from sctd_jax.model import attention, token_dropping
from sctd_jax.model.elementwise import ACTIVATIONS, Dropout
from sctd_jax.model.family import Family
from sctd_jax.model.layers import dense, kernel_init, layer_norm
from sctd_jax.model.products import einsum_to_f32


class Embeddings(nn.Module):
    """Token + learned position + segment embeddings, LayerNorm, dropout."""

    config: ModelConfig

    def setup(self):
        """Parameters `word` [V, D] (tied with the MLM head), `position` and `segment`."""
        config, init = self.config, kernel_init(self.config)
        self.word = self.param("word", init, (config.vocab_size, config.hidden_size))
        self.position = self.param("position", init, (config.max_positions, config.hidden_size))
        self.segment = self.param("segment", init, (config.type_vocab_size, config.hidden_size))
        self.norm = layer_norm(config)
        self.dropout = Dropout(config.hidden_dropout)

    def __call__(self, input_ids_BN: jax.Array, segment_ids_BN: jax.Array, deterministic: bool) -> jax.Array:
        """Embeddings [B, N, D]."""
        # Lookup in f32, cast after: a bf16 table would make its gradient a bf16 scatter-add (docs/design.md).
        x_BND = jnp.take(self.word, input_ids_BN, axis=0, mode="clip")
        x_BND += self.position[None, : input_ids_BN.shape[1]]
        x_BND += jnp.take(self.segment, segment_ids_BN, axis=0, mode="clip")
        x_BND = self.norm(x_BND).astype(self.config.dtype)
        return self.dropout(x_BND, deterministic)


class Attention(nn.Module):
    """Multi-head attention of `query` over `context`."""

    config: ModelConfig
    attend: attention.Attend

    @nn.compact
    def __call__(
        self, query_BRD: jax.Array, context_BND: jax.Array, mask_BN: jax.Array, deterministic: bool
    ) -> jax.Array:
        """Attention output [B, R, D]; `mask_BN` is True at the context rows that may be attended."""
        config = self.config
        heads, head_dim = config.num_heads, config.hidden_size // config.num_heads

        def project(name: str, x: jax.Array, features: int | tuple[int, int], axis: int | tuple[int, int]) -> jax.Array:
            # Heads after tokens, as products give them: asked for the other order, XLA on CPU multiplies transposed.
            init = kernel_init(config)
            return nn.DenseGeneral(features, axis=axis, dtype=config.dtype, kernel_init=init, name=name)(x)

        query_BRHd = project("query", query_BRD, (heads, head_dim), -1) * head_dim**-0.5
        key_BNHd = project("key", context_BND, (heads, head_dim), -1)
        value_BNHd = project("value", context_BND, (heads, head_dim), -1)
        rate = 0.0 if deterministic else config.attention_dropout
        dropout_key = self.make_rng("dropout") if rate else None
        out_BRHd = self.attend(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key)
        return project("output", out_BRHd, config.hidden_size, (-2, -1))


class Mlp(nn.Module):
    """Position-wise feed-forward network."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BRD: jax.Array) -> jax.Array:
        """[B, R, D] -> [B, R, D]."""
        h_BRF = dense(self.config, self.config.intermediate_size, "intermediate")(x_BRD)
        h_BRF = ACTIVATIONS[self.config.activation](h_BRF)
        return dense(self.config, self.config.hidden_size, "output")(h_BRF)


class Block(nn.Module):
    """One post-LN layer. With `rows_BR`, only those rows are computed, over keys and values from all N."""

    config: ModelConfig
    attend: attention.Attend
    number: int = 0  # all layers are alike

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, mask_BN: jax.Array, positions_BN, rows_BR: jax.Array | None, deterministic: bool
    ) -> jax.Array:
        """Layer output [B, R, D], all N rows if `rows_BR` is None; positions are in the embeddings already."""
        config = self.config
        dropout = Dropout(config.hidden_dropout)
        query_BRD = x_BND if rows_BR is None else token_dropping.gather(x_BND, rows_BR)
        a_BRD = Attention(config, self.attend, name="attention")(query_BRD, x_BND, mask_BN, deterministic)
        h_BRD = layer_norm(config, "attention_norm")(query_BRD + dropout(a_BRD, deterministic)).astype(config.dtype)
        m_BRD = Mlp(config, name="mlp")(h_BRD)
        return layer_norm(config, "output_norm")(h_BRD + dropout(m_BRD, deterministic)).astype(config.dtype)


class MlmHead(nn.Module):
    """Dense + GELU + LayerNorm, then the tied word embedding and an output bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BPD: jax.Array, word_VD: jax.Array) -> jax.Array:
        """Logits f32[B, P, V]."""
        config = self.config
        h_BPD = ACTIVATIONS[config.activation](dense(config, config.hidden_size, "dense")(x_BPD))
        h_BPD = layer_norm(config, "norm")(h_BPD).astype(config.dtype)
        bias_V = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))
        logits_BPV = einsum_to_f32("bpd,vd->bpv", h_BPD, word_VD.astype(config.dtype))
        return logits_BPV + bias_V[None, None]


class Pooler(nn.Module):
    """Dense + tanh, which a task's classifier reads at [CLS] (Devlin et al., 2019, section 4)."""

    config: ModelConfig

    def setup(self):
        """Parameters `kernel` and `bias`."""
        self.dense = nn.Dense(self.config.hidden_size, kernel_init=kernel_init(self.config))
        nn.share_scope(self, self.dense)

    def __call__(self, x_BRD: jax.Array) -> jax.Array:
        """[B, R, D] -> [B, R, D], in float32."""
        return jnp.tanh(self.dense(x_BRD))


def layer_flops(model: ModelConfig, layer: int, queries: int, context: int, all_tokens: bool) -> float:
    """`Family.layer_flops`: all layers attend to all of the context."""
    width, ffn = model.hidden_size, model.intermediate_size
    projections = 2 * width * width * (2 * queries + 2 * context)  # query and output; key and value
    attention = 2 * 2 * width * queries * context
    return projections + attention + 2 * 2 * width * ffn * queries


def check(model: ModelConfig) -> None:
    """Raise UserError for local layers and rotary positions, which this network has not."""
    for name in ("global_every", "local_attention", "rope_theta", "local_rope_theta"):
        default, found = getattr(ModelConfig, name), getattr(model, name)
        if found != default:
            raise UserError(
                f"config.model.{name} must be {default} where model.family is {model.family}, found {found}: it is "
                "modernbert's"
            )


FAMILY = Family(
    position_table=True, embeddings=Embeddings, block=Block, final_norm=None, mlm_head=MlmHead, summary=Pooler,
    summary_params=lambda params: params.get("pooler"), summary_of_tokens=False, layer_flops=layer_flops, check=check,
)  # fmt: skip
