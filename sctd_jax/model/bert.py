"""BERT (Devlin et al., 2019) as Linen modules, with token dropping between two of its layers.

Shapes: B batch, N sequence length, K kept tokens, R query rows, P predicted positions, D width, H heads,
V vocabulary. Modules return `(output, states)`; parameters are float32, compute is `config.dtype`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sctd_jax.config import ModelConfig
from sctd_jax.model import attention, token_dropping
from sctd_jax.model.elementwise import ACTIVATIONS, Dropout


def _kernel_init(config: ModelConfig):
    return nn.initializers.truncated_normal(config.initializer_range)


def _dense(config: ModelConfig, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=config.dtype, kernel_init=_kernel_init(config), name=name)


def _layer_norm(config: ModelConfig, name: str | None = None) -> nn.LayerNorm:
    # float32 and the two-pass variance: E[x^2] - E[x]^2 loses digits where BERT's epsilon is 1e-12.
    return nn.LayerNorm(config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name)


class Embeddings(nn.Module):
    """Token + learned position + segment embeddings, LayerNorm, dropout."""

    config: ModelConfig

    def setup(self):
        """Parameters `word` [V, D] (tied with the MLM head), `position` and `segment`."""
        config, init = self.config, _kernel_init(self.config)
        self.word = self.param("word", init, (config.vocab_size, config.hidden_size))
        self.position = self.param("position", init, (config.max_positions, config.hidden_size))
        self.segment = self.param("segment", init, (config.type_vocab_size, config.hidden_size))
        self.norm = _layer_norm(config)
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
            init = _kernel_init(config)
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
        h_BRF = _dense(self.config, self.config.intermediate_size, "intermediate")(x_BRD)
        h_BRF = ACTIVATIONS[self.config.activation](h_BRF)
        return _dense(self.config, self.config.hidden_size, "output")(h_BRF)


class Block(nn.Module):
    """One post-LN layer. With `rows_BR`, only those rows are computed, over keys and values from all N."""

    config: ModelConfig
    attend: attention.Attend

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, mask_BN: jax.Array, rows_BR: jax.Array | None, deterministic: bool
    ) -> jax.Array:
        """Layer output [B, R, D], all N rows if `rows_BR` is None."""
        config = self.config
        dropout = Dropout(config.hidden_dropout)
        query_BRD = x_BND if rows_BR is None else token_dropping.gather(x_BND, rows_BR)
        a_BRD = Attention(config, self.attend, name="attention")(query_BRD, x_BND, mask_BN, deterministic)
        h_BRD = _layer_norm(config, "attention_norm")(query_BRD + dropout(a_BRD, deterministic)).astype(config.dtype)
        m_BRD = Mlp(config, name="mlp")(h_BRD)
        return _layer_norm(config, "output_norm")(h_BRD + dropout(m_BRD, deterministic)).astype(config.dtype)


class Encoder(nn.Module):
    """BERT encoder whose layers first_drop..last_drop may run on the kept tokens only.

    Layer `first_drop` takes its queries from the kept tokens and its keys and values from all N; the
    layers after it up to `last_drop` see the kept tokens alone; after `last_drop` kept and dropped
    tokens are merged in text order (Hou et al., section 3.2; docs/method.md 4). A `layerwise` encoder has kept tokens
    for each of the S dropping layers: a layer sees its own alone, and the others go around it (random-LTD,
    Yao et al., 2022, section 3).
    """

    config: ModelConfig
    first_drop: int
    last_drop: int
    attend: attention.Attend = attention.plain
    remat_layers: bool = False
    layerwise: bool = False

    def setup(self):
        """Embeddings and `layer_0` .. `layer_{L-1}`."""
        self.embeddings = Embeddings(self.config)
        block = nn.remat(Block, static_argnums=4) if self.remat_layers else Block
        self.layer = [block(self.config, self.attend) for _ in range(self.config.num_layers)]

    def __call__(
        self,
        input_ids_BN: jax.Array,
        mask_BN: jax.Array,
        segment_ids_BN: jax.Array | None = None,
        *,
        kept_BK: jax.Array | None = None,
        rows_BR: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Last layer's output (all N rows, or `rows_BR`) and the output of every layer.

        Args:
          input_ids_BN: token ids.
          mask_BN: True at real tokens.
          segment_ids_BN: 0 everywhere if None.
          kept_BK: positions that dropping keeps, ascending, [S, B, K] if layerwise; None runs the plain encoder.
          rows_BR: the rows of the last layer to compute; None for all.
          deterministic: no dropout; otherwise a `dropout` rng is needed.

        Returns:
          output [B, N or R, D], and one state per layer: N rows, K rows in layers first_drop..last_drop
          unless layerwise, R rows in the last layer.
        """
        x_BND, prefix = self.prefix(input_ids_BN, mask_BN, segment_ids_BN, deterministic=deterministic)
        output, suffix = self.suffix(x_BND, mask_BN, kept_BK=kept_BK, rows_BR=rows_BR, deterministic=deterministic)
        return output, prefix + suffix

    def prefix(
        self,
        input_ids_BN: jax.Array,
        mask_BN: jax.Array,
        segment_ids_BN: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Embeddings and the layers before `first_drop`: the same work in the full and the drop pass."""
        if segment_ids_BN is None:
            segment_ids_BN = jnp.zeros_like(input_ids_BN)
        x_BND = self.embeddings(input_ids_BN, segment_ids_BN, deterministic)
        return self._run(range(self.first_drop), x_BND, mask_BN, deterministic)

    def suffix(
        self,
        x_BND: jax.Array,
        mask_BN: jax.Array,
        *,
        kept_BK: jax.Array | None = None,
        rows_BR: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """The layers from `first_drop` on, as `__call__`."""
        first, after, last = self.first_drop, self.first_drop, self.config.num_layers - 1
        states = ()
        if kept_BK is not None:
            after = self.last_drop + 1
            drop = self._drop_layerwise if self.layerwise else self._drop
            x_BND, states = drop(range(first, after), x_BND, mask_BN, kept_BK, deterministic)
        x_BND, states = self._run(range(after, last), x_BND, mask_BN, deterministic, states)
        output = self.layer[last](x_BND, mask_BN, rows_BR, deterministic)
        return output, (*states, output)

    def _drop(self, layers: range, x_BND: jax.Array, mask_BN: jax.Array, kept_BK: jax.Array, deterministic: bool):
        x_BKD = self.layer[layers[0]](x_BND, mask_BN, kept_BK, deterministic)
        kept_mask_BK = token_dropping.gather(mask_BN, kept_BK)
        x_BKD, states = self._run(layers[1:], x_BKD, kept_mask_BK, deterministic, (x_BKD,))
        return token_dropping.merge(x_BND, x_BKD, kept_BK), states

    def _drop_layerwise(self, layers: range, x_BND: jax.Array, mask_BN: jax.Array, kept_SBK, deterministic: bool):
        states = ()
        for i, kept_BK in zip(layers, kept_SBK, strict=True):
            x_BKD, kept_mask_BK = (token_dropping.gather(x, kept_BK) for x in (x_BND, mask_BN))
            x_BKD = self.layer[i](x_BKD, kept_mask_BK, None, deterministic)
            x_BND = token_dropping.merge(x_BND, x_BKD, kept_BK)
            states = (*states, x_BND)
        return x_BND, states

    def _run(
        self, layers: Sequence[int], x: jax.Array, mask: jax.Array, deterministic: bool, states: tuple = ()
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        for i in layers:
            x = self.layer[i](x, mask, None, deterministic)
            states = (*states, x)
        return x, states


class MlmHead(nn.Module):
    """Dense + GELU + LayerNorm, then the tied word embedding and an output bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BPD: jax.Array, word_VD: jax.Array) -> jax.Array:
        """Logits f32[B, P, V]."""
        config = self.config
        h_BPD = ACTIVATIONS[config.activation](_dense(config, config.hidden_size, "dense")(x_BPD))
        h_BPD = _layer_norm(config, "norm")(h_BPD).astype(config.dtype)
        bias_V = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))
        logits_BPV = jnp.einsum("bpd,vd->bpv", h_BPD, word_VD.astype(config.dtype), preferred_element_type=jnp.float32)
        return logits_BPV + bias_V[None, None]


class Bert(nn.Module):
    """Encoder and MLM head. Dropping adds no weight: without `kept_BK` this is BertForMaskedLM."""

    config: ModelConfig
    first_drop: int
    last_drop: int
    attend: attention.Attend = attention.plain
    remat_layers: bool = False  # keep only each layer's input for the backward pass
    layerwise: bool = False  # each dropping layer has kept tokens of its own

    def setup(self):
        """`encoder` and `mlm_head`."""
        self.encoder = Encoder(
            self.config, self.first_drop, self.last_drop, self.attend, self.remat_layers, self.layerwise
        )
        self.mlm_head = MlmHead(self.config)

    def __call__(self, input_ids_BN: jax.Array, mask_BN: jax.Array, **kwargs) -> jax.Array:
        """MLM logits f32[B, N or R, V]; keyword arguments as in `Encoder.__call__`."""
        output, _ = self.encoder(input_ids_BN, mask_BN, **kwargs)
        return self.mlm_logits(output)

    def mlm_logits(self, x_BPD: jax.Array) -> jax.Array:
        """MLM logits f32[B, P, V] of encoder outputs x_BPD."""
        return self.mlm_head(x_BPD, self.encoder.embeddings.word)
