"""The encoder with a task's head in the place of the MLM head, as `transformers` builds it.

Shapes: B rows, N sequence length, D width, M marked spans, C classes.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sctd_jax.config import ModelConfig
from sctd_jax.model import attention
from sctd_jax.model.elementwise import Dropout
from sctd_jax.model.encoder import Encoder
from sctd_jax.model.families import FAMILIES

SPANS = 2  # M, where a head reads marked spans


class TaskModel(nn.Module):
    """Encoder, and a head that reads a row's [CLS] or each of its tokens (Devlin et al., 2019, section 4).

    A row's vector is [CLS] through the family's summary, BERT's pooler. The classifiers of SuperGLUE's baseline read
    marked spans (Wang et al., 2019, section 4.1): with 'mean' [CLS] and the mean over each span's tokens, with
    'attention' the spans alone, each pooled by an attention of its own (Lee et al., 2017; without the baseline's
    projection before it).
    """

    config: ModelConfig
    outputs: int  # classes; 1 for a score
    each_token: bool = False  # outputs for every token; BERT's are read without the pooler
    drop_tokens: bool = False  # dropout before these outputs, as for labels of tokens
    marked: Literal["", "mean", "attention"] = ""
    attend: attention.Attend = attention.plain
    remat_layers: bool = False

    def setup(self):
        """`encoder`, `classifier`, and where they are used `pooler` and `span_score_0`, `span_score_1`."""
        self.family = FAMILIES[self.config.family]
        self.encoder = Encoder(self.config, 0, 0, self.attend, self.remat_layers)
        self.classifier = self._dense(self.outputs)
        self.dropout = Dropout(self.config.hidden_dropout)
        if self.marked == "attention":
            self.span_score = [self._dense(1) for _ in range(SPANS)]
        elif self.family.summary_of_tokens or not self.each_token:
            self.pooler = self.family.summary(self.config)

    def _dense(self, features: int) -> nn.Dense:
        return nn.Dense(features, kernel_init=nn.initializers.truncated_normal(self.config.initializer_range))

    def __call__(
        self,
        input_ids_BN: jax.Array,
        mask_BN: jax.Array,
        segment_ids_BN: jax.Array,
        marked_BM2: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits f32[B, C], or f32[B, N, C] of each token; arguments as in `Encoder.__call__`.

        Segments are 0 in the first text and 1 in the second; `marked_BM2` has the first and last token of each marked
        span, where the head reads them.
        """
        only_cls = not self.each_token and not self.marked
        rows_BR = jnp.zeros_like(input_ids_BN[:, :1]) if only_cls else None
        x_BRD, _ = self.encoder(input_ids_BN, mask_BN, segment_ids_BN, rows_BR=rows_BR, deterministic=deterministic)
        x_BRD = x_BRD.astype(jnp.float32)
        if self.each_token:
            x_BRD = self.pooler(x_BRD) if self.family.summary_of_tokens else x_BRD
            return self.classifier(self.dropout(x_BRD, deterministic or not self.drop_tokens))
        parts = [] if self.marked == "attention" else [self.pooler(x_BRD[:, 0])]
        if self.marked:
            assert marked_BM2 is not None, "a head that reads spans is given them"
            parts += [self._span(x_BRD, i, marked_BM2[:, i]) for i in range(SPANS)]
        return self.classifier(self.dropout(jnp.concatenate(parts, axis=-1), deterministic))

    def _span(self, x_BND: jax.Array, number: int, span_B2: jax.Array) -> jax.Array:
        at_1N = jnp.arange(x_BND.shape[1])[None]
        inside_BN = (at_1N >= span_B2[:, :1]) & (at_1N <= span_B2[:, 1:])
        scores_BN = self.span_score[number](x_BND)[..., 0] if self.marked == "attention" else jnp.zeros(inside_BN.shape)
        return jnp.einsum("bn,bnd->bd", nn.softmax(jnp.where(inside_BN, scores_BN, -1e9)), x_BND)
