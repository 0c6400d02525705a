"""BERT with a task's head in the place of the MLM head, as `transformers` builds it.

Shapes: B rows, N sequence length, D width, M marked spans, C classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sctd_jax.config import ModelConfig
from sctd_jax.model import attention
from sctd_jax.model.bert import Encoder
from sctd_jax.model.elementwise import Dropout


class TaskBert(nn.Module):
    """Encoder, and a head that reads a row's [CLS] or each of its tokens (Devlin et al., 2019, section 4).

    A row's vector is [CLS] through the pooler (dense, tanh); with marked spans, each of them follows, pooled by
    learned attention over its tokens (SuperGLUE's baseline: Wang et al., 2019, section 4.1, after Lee et al., 2017).
    """

    config: ModelConfig
    outputs: int  # classes; 1 for a score
    each_token: bool = False  # outputs for every token, no pooler
    marked: int = 0
    attend: attention.Attend = attention.plain
    remat_layers: bool = False

    def setup(self):
        """`encoder`, `classifier`, and where they are used `pooler` and `span_score`."""
        self.encoder = Encoder(self.config, 0, 0, self.attend, self.remat_layers)
        self.classifier = self._dense(self.outputs)
        if not self.each_token:
            self.pooler = self._dense(self.config.hidden_size)
            self.dropout = Dropout(self.config.hidden_dropout)
        if self.marked:
            self.span_score = self._dense(1)

    def _dense(self, features: int) -> nn.Dense:
        return nn.Dense(features, kernel_init=nn.initializers.truncated_normal(self.config.initializer_range))

    def __call__(
        self,
        input_ids_BN: jax.Array,
        mask_BN: jax.Array,
        segment_ids_BN: jax.Array,
        marked_BM2: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits f32[B, C], or f32[B, N, C] of each token.

        Args:
          input_ids_BN: token ids.
          mask_BN: True at real tokens.
          segment_ids_BN: 0 in the first text, 1 in the second.
          marked_BM2: first and last token of each marked span, M = 0 where there is none.
          deterministic: no dropout; otherwise a `dropout` rng is needed.
        """
        only_cls = not self.each_token and not self.marked
        rows_BR = jnp.zeros_like(input_ids_BN[:, :1]) if only_cls else None
        x_BRD, _ = self.encoder(input_ids_BN, mask_BN, segment_ids_BN, rows_BR=rows_BR, deterministic=deterministic)
        x_BRD = x_BRD.astype(jnp.float32)
        if self.each_token:
            return self.classifier(x_BRD)
        parts = [jnp.tanh(self.pooler(x_BRD[:, 0]))]
        if self.marked:
            parts += [self._span(x_BRD, marked_BM2[:, i]) for i in range(self.marked)]
        return self.classifier(self.dropout(jnp.concatenate(parts, axis=-1), deterministic))

    def _span(self, x_BND: jax.Array, span_B2: jax.Array) -> jax.Array:
        at_1N = jnp.arange(x_BND.shape[1])[None]
        inside_BN = (at_1N >= span_B2[:, :1]) & (at_1N <= span_B2[:, 1:])
        weights_BN = nn.softmax(jnp.where(inside_BN, self.span_score(x_BND)[..., 0], -1e9))
        return jnp.einsum("bn,bnd->bd", weights_BN, x_BND)
