"""ModernBERT (Warner et al., 2024, arXiv:2412.13663) as Linen modules: embeddings, the layer, norm and heads.

Shapes: B batch, N sequence length, R query rows, P predicted positions, D width, H heads, d width of a head,
F width of the feed-forward part, V vocabulary. Parameters are float32, compute is `config.dtype`.

Layer i attends to all tokens where i is a multiple of `global_every`, else to those at most `local_attention` / 2
places away in the text. A kept token keeps its place in the text, for rotation and for that distance.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError
from sctd_jax.model import attention, token_dropping
from sctd_jax.model.attention import Window
from sctd_jax.model.elementwise import ACTIVATIONS, Dropout
from sctd_jax.model.family import Family
from sctd_jax.model.layers import dense, kernel_init, layer_norm
from sctd_jax.model.products import einsum_to_f32


def is_local(model: ModelConfig, layer: int) -> bool:
    """Whether a layer's tokens see their neighbourhood alone."""
    return layer % model.global_every != 0


def output_scale(model: ModelConfig) -> float:
    """Scale of the first weights that lead into the residual stream, and of the head's: 1 / sqrt(2 L)."""
    return (2 * model.num_layers) ** -0.5


def rotate(x_BNHd: jax.Array, positions_BN: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864), in float32 and in the rotate-half form.

    Features i and i + d/2 of a head are a pair, turned by position / base^(2i / d).
    """
    half = x_BNHd.shape[-1] // 2
    # The frequencies as float32 numbers, as `transformers` has them.
    frequency_h = 1.0 / base ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle_BN1h = positions_BN.astype(jnp.float32)[:, :, None, None] * frequency_h[None, None, None]
    cos, sin = jnp.cos(angle_BN1h), jnp.sin(angle_BN1h)
    first, second = jnp.split(x_BNHd.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BNHd.dtype)


class Embeddings(nn.Module):
    """Token embeddings, LayerNorm without bias, dropout; neither positions nor segments."""

    config: ModelConfig

    def setup(self):
        """Parameter `word` [V, D], tied with the MLM head."""
        config = self.config
        self.word = self.param("word", kernel_init(config), (config.vocab_size, config.hidden_size))
        self.norm = layer_norm(config, use_bias=False)
        self.dropout = Dropout(config.hidden_dropout)

    def __call__(self, input_ids_BN: jax.Array, segment_ids_BN: jax.Array, deterministic: bool) -> jax.Array:
        """Embeddings [B, N, D]; segments are not read."""
        # Lookup in f32, as BERT's.
        x_BND = self.norm(jnp.take(self.word, input_ids_BN, axis=0, mode="clip"))
        return self.dropout(x_BND.astype(self.config.dtype), deterministic)


class Attention(nn.Module):
    """Multi-head attention with rotary positions, of the layer's queries over its context."""

    config: ModelConfig
    attend: attention.Attend
    local: bool

    @nn.compact
    def __call__(
        self, query_BRD: jax.Array, context_BND: jax.Array, mask_BN: jax.Array, positions_BN, rows_BR,
        deterministic: bool,
    ) -> jax.Array:  # fmt: skip
        """Attention output [B, R, D]; arguments as in `Block`."""
        config = self.config
        heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
        base = config.local_rope_theta if self.local else config.rope_theta
        in_order_1N = jnp.arange(context_BND.shape[1])[None]
        places_BN = in_order_1N if positions_BN is None else positions_BN
        places_BR = places_BN
        if rows_BR is not None:
            places_BR = rows_BR if positions_BN is None else token_dropping.gather(positions_BN, rows_BR)

        def project(name: str, x: jax.Array) -> jax.Array:
            init = kernel_init(config)
            return nn.DenseGeneral((heads, head_dim), use_bias=False, dtype=config.dtype, kernel_init=init, name=name)(
                x
            )

        query_BRHd = rotate(project("query", query_BRD), places_BR, base) * head_dim**-0.5
        key_BNHd = rotate(project("key", context_BND), places_BN, base)
        value_BNHd = project("value", context_BND)
        rate = 0.0 if deterministic else config.attention_dropout
        dropout_key = self.make_rng("dropout") if rate else None
        window = None
        if self.local:
            in_order = positions_BN is None and rows_BR is None
            window = Window(config.local_attention // 2, *((None, None) if in_order else (places_BR, places_BN)))
        out_BRHd = self.attend(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key, window)
        return nn.DenseGeneral(
            config.hidden_size, axis=(-2, -1), use_bias=False, dtype=config.dtype,
            kernel_init=kernel_init(config, output_scale(config)), name="output",
        )(out_BRHd)  # fmt: skip


class Mlp(nn.Module):
    """Feed-forward network with a GELU gate (GeGLU; Shazeer, 2020, arXiv:2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BRD: jax.Array, deterministic: bool) -> jax.Array:
        """[B, R, D] -> [B, R, D]."""
        config, ffn = self.config, self.config.intermediate_size
        h_BRF = ACTIVATIONS[config.activation](dense(config, ffn, "intermediate", use_bias=False)(x_BRD))
        h_BRF *= dense(config, ffn, "gate", use_bias=False)(x_BRD)
        h_BRF = Dropout(config.hidden_dropout)(h_BRF, deterministic)
        return dense(config, config.hidden_size, "output", use_bias=False, scale=output_scale(config))(h_BRF)


class Block(nn.Module):
    """One pre-LN layer. With `rows_BR`, only those rows are computed, over keys and values from all N."""

    config: ModelConfig
    attend: attention.Attend
    number: int  # the first layer has no attention norm: the embeddings end with one

    @nn.compact
    def __call__(
        self,
        x_BND: jax.Array,
        mask_BN: jax.Array,
        positions_BN: jax.Array | None,
        rows_BR: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        """Residual stream after the layer [B, R, D], all N rows if `rows_BR` is None.

        `positions_BN` are the rows' places in the text, None where row i is token i.
        """
        config = self.config
        h_BND = x_BND
        if self.number:
            h_BND = layer_norm(config, "attention_norm", use_bias=False)(x_BND).astype(config.dtype)
        x_BRD, query_BRD = x_BND, h_BND
        if rows_BR is not None:
            x_BRD, query_BRD = (token_dropping.gather(x, rows_BR) for x in (x_BND, h_BND))
        attend = Attention(config, self.attend, is_local(config, self.number), name="attention")
        a_BRD = attend(query_BRD, h_BND, mask_BN, positions_BN, rows_BR, deterministic)
        # This dropout has attention's rate, as in `transformers`.
        x_BRD += Dropout(config.attention_dropout)(a_BRD, deterministic)
        h_BRD = layer_norm(config, "mlp_norm", use_bias=False)(x_BRD).astype(config.dtype)
        return x_BRD + Mlp(config, name="mlp")(h_BRD, deterministic)


class FinalNorm(nn.Module):
    """LayerNorm of the residual stream after the last layer."""

    config: ModelConfig

    def setup(self):
        """Parameter `norm/scale`."""
        self.norm = layer_norm(self.config, use_bias=False)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        return self.norm(x_BND).astype(self.config.dtype)


class MlmHead(nn.Module):
    """Dense, GELU and LayerNorm without biases, then the tied word embedding and an output bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BPD: jax.Array, word_VD: jax.Array) -> jax.Array:
        """Logits f32[B, P, V]."""
        config = self.config
        h_BPD = dense(config, config.hidden_size, "dense", use_bias=False, scale=output_scale(config))(x_BPD)
        h_BPD = layer_norm(config, "norm", use_bias=False)(ACTIVATIONS[config.activation](h_BPD))
        bias_V = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))
        word_VD = word_VD.astype(config.dtype)
        return einsum_to_f32("bpd,vd->bpv", h_BPD.astype(config.dtype), word_VD) + bias_V[None, None]


class Summary(nn.Module):
    """Dense, GELU and LayerNorm in float32, which a task's classifier reads: the MLM head's, trained further."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BRD: jax.Array) -> jax.Array:
        """[B, R, D] -> [B, R, D]."""
        config = self.config
        init = kernel_init(config, output_scale(config))
        h_BRD = nn.Dense(config.hidden_size, use_bias=False, kernel_init=init, name="dense")(x_BRD)
        return layer_norm(config, "norm", use_bias=False)(ACTIVATIONS[config.activation](h_BRD))


def summary_params(params: Mapping[str, Any]) -> Any:
    """`Family.summary_params`: those of a fine-tuned model's own summary, else the MLM head's."""
    head = params.get("pooler") or params.get("mlm_head")
    return head and {name: head[name] for name in ("dense", "norm")}


def layer_flops(model: ModelConfig, layer: int, queries: int, context: int, all_tokens: bool) -> float:
    """`Family.layer_flops`: a local layer over all tokens counts what lies in its window, 2 reach + 1 keys a query.

    That is the model's arithmetic, which MFU is measured by, whatever a kernel computes around it: plain attention's
    blocks have 3 reach keys. Kept tokens, and the last layer's few rows, are compared with all of their context.
    """
    width, ffn = model.hidden_size, model.intermediate_size
    projections = 2 * width * width * (2 * queries + 2 * context)  # query and output; key and value
    seen = min(context, 2 * (model.local_attention // 2) + 1) if all_tokens and is_local(model, layer) else context
    attention = 2 * 2 * width * queries * seen
    return projections + attention + 3 * 2 * width * ffn * queries


def check(model: ModelConfig) -> None:
    """Raise UserError for segments, and for heads that cannot be turned."""
    if model.type_vocab_size != 1:
        raise UserError(
            "config.model.type_vocab_size must be 1 where model.family is modernbert, which has no segments, found "
            f"{model.type_vocab_size}"
        )
    if model.hidden_size // model.num_heads % 2:
        raise UserError(
            "config.model.num_heads must leave an even width of a head where model.family is modernbert, whose "
            f"positions turn pairs of features; found {model.hidden_size} / {model.num_heads}"
        )


FAMILY = Family(
    position_table=False, embeddings=Embeddings, block=Block, final_norm=FinalNorm, mlm_head=MlmHead, summary=Summary,
    summary_params=summary_params, summary_of_tokens=True, layer_flops=layer_flops, check=check,
)  # fmt: skip
