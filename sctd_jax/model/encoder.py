"""The encoder of any family, with token dropping between two of its layers, and its MLM head.

Shapes: B batch, N sequence length, K kept tokens, M tokens before masked ones enter, R query rows, P predicted
positions, D width, V vocabulary, S dropping layers. `Encoder` returns `(output, states)`; parameters are float32,
compute is `config.dtype`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sctd_jax.config import ModelConfig
from sctd_jax.model import attention, token_dropping
from sctd_jax.model.families import FAMILIES

# (layer, x_BKD, kept_BK) -> the rows of x_BKD that go on, ascending, from that layer on, and their positions; or None.
Narrow = Callable[[int, jax.Array, jax.Array], tuple[jax.Array, jax.Array] | None]


class Encoder(nn.Module):
    """Encoder whose layers first_drop..last_drop may run on the kept tokens only.

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
        """Embeddings, `layer_0` .. `layer_{L-1}`, and the family's final norm."""
        family = FAMILIES[self.config.family]
        self.embeddings = family.embeddings(self.config)
        block = nn.remat(family.block, static_argnums=5) if self.remat_layers else family.block
        self.layer = [block(self.config, self.attend, i) for i in range(self.config.num_layers)]
        self.final_norm = family.final_norm(self.config) if family.final_norm else None

    def __call__(
        self,
        input_ids_BN: jax.Array,
        mask_BN: jax.Array,
        segment_ids_BN: jax.Array | None = None,
        *,
        kept_BK: jax.Array | None = None,
        rows_BR: jax.Array | None = None,
        visible_BM: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Last layer's output (all N rows, or `rows_BR`) and the output of every layer.

        Args:
          input_ids_BN: token ids.
          mask_BN: True at real tokens.
          segment_ids_BN: 0 everywhere if None.
          kept_BK: positions that dropping keeps, ascending, [S, B, K] if layerwise; None runs the plain encoder.
          rows_BR: the rows of the last layer to compute; None for all.
          visible_BM: positions that the layers before first_drop see, ascending (late masking); None for all.
          deterministic: no dropout; otherwise a `dropout` rng is needed.

        Returns:
          output [B, N or R, D], and one state per layer: N rows, K rows in layers first_drop..last_drop
          unless layerwise, M rows before first_drop with late masking, R rows in the last layer. The last one and the
          output went through `normed`.
        """
        x_BND, prefix = self.prefix(
            input_ids_BN, mask_BN, segment_ids_BN, visible_BM=visible_BM, deterministic=deterministic
        )
        output, suffix = self.suffix(x_BND, mask_BN, kept_BK=kept_BK, rows_BR=rows_BR, deterministic=deterministic)
        return output, prefix + suffix

    def prefix(
        self,
        input_ids_BN: jax.Array,
        mask_BN: jax.Array,
        segment_ids_BN: jax.Array | None = None,
        *,
        visible_BM: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Embeddings and the layers before `first_drop`: the same work in the full and the drop pass.

        With `visible_BM` these layers see those tokens alone, at their places in the text, and the state of the others
        is their embedding (late masking, Liao et al., 2022; docs/method.md 13).
        """
        if segment_ids_BN is None:
            segment_ids_BN = jnp.zeros_like(input_ids_BN)
        x_BND = self.embeddings(input_ids_BN, segment_ids_BN, deterministic)
        layers = range(self.first_drop)
        if visible_BM is None:
            return self._run(layers, x_BND, mask_BN, deterministic)
        x_BMD, visible_mask_BM = (token_dropping.gather(x, visible_BM) for x in (x_BND, mask_BN))
        x_BMD, states = self._run(layers, x_BMD, visible_mask_BM, deterministic, positions=visible_BM)
        return token_dropping.merge(x_BND, x_BMD, visible_BM), states

    def suffix(
        self,
        x_BND: jax.Array,
        mask_BN: jax.Array,
        *,
        kept_BK: jax.Array | None = None,
        rows_BR: jax.Array | None = None,
        narrow: Narrow | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """The layers from `first_drop` on, as `__call__`; `narrow` chooses who goes on within the dropping layers.

        Tokens that leave at a layer are still among its keys and values, and are merged as the layer before left them.
        """
        first, after, last = self.first_drop, self.first_drop, self.config.num_layers - 1
        states = ()
        if kept_BK is not None:
            after = self.last_drop + 1
            drop = self._drop_layerwise if self.layerwise else partial(self._drop, narrow=narrow)
            x_BND, states = drop(range(first, after), x_BND, mask_BN, kept_BK, deterministic)
        x_BND, states = self._run(range(after, last), x_BND, mask_BN, deterministic, states)
        output = self.normed(self.layer[last](x_BND, mask_BN, None, rows_BR, deterministic))
        return output, (*states, output)

    def normed(self, x: jax.Array) -> jax.Array:
        """A state through the family's final norm, where it has one."""
        return self.final_norm(x) if self.final_norm else x

    def _drop(self, layers: range, x_BND: jax.Array, mask_BN: jax.Array, kept_BK: jax.Array, deterministic: bool,
              narrow: Narrow | None):  # fmt: skip
        x_BKD = self.layer[layers[0]](x_BND, mask_BN, None, kept_BK, deterministic)
        kept_mask_BK, states = token_dropping.gather(mask_BN, kept_BK), (x_BKD,)
        for i in layers[1:]:
            chosen = narrow(i, x_BKD, kept_BK) if narrow else None
            if chosen is None:
                x_BKD = self.layer[i](x_BKD, kept_mask_BK, kept_BK, None, deterministic)
            else:
                rows_BJ, on_BJ = chosen
                x_BND = token_dropping.merge(x_BND, x_BKD, kept_BK)
                x_BKD = self.layer[i](x_BKD, kept_mask_BK, kept_BK, rows_BJ, deterministic)
                kept_mask_BK, kept_BK = token_dropping.gather(kept_mask_BK, rows_BJ), on_BJ
            states = (*states, x_BKD)
        return token_dropping.merge(x_BND, x_BKD, kept_BK), states

    def _drop_layerwise(self, layers: range, x_BND: jax.Array, mask_BN: jax.Array, kept_SBK, deterministic: bool):
        states = ()
        for i, kept_BK in zip(layers, kept_SBK, strict=True):
            x_BKD, kept_mask_BK = (token_dropping.gather(x, kept_BK) for x in (x_BND, mask_BN))
            x_BKD = self.layer[i](x_BKD, kept_mask_BK, kept_BK, None, deterministic)
            x_BND = token_dropping.merge(x_BND, x_BKD, kept_BK)
            states = (*states, x_BND)
        return x_BND, states

    def _run(
        self, layers: Sequence[int], x: jax.Array, mask: jax.Array, deterministic: bool, states: tuple = (), *,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:  # fmt: skip
        for i in layers:
            x = self.layer[i](x, mask, positions, None, deterministic)
            states = (*states, x)
        return x, states


class MaskedLm(nn.Module):
    """Encoder and MLM head. Dropping adds no weight: without `kept_BK` this is the family's model as published."""

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
        self.mlm_head = FAMILIES[self.config.family].mlm_head(self.config)

    def __call__(self, input_ids_BN: jax.Array, mask_BN: jax.Array, **kwargs) -> jax.Array:
        """MLM logits f32[B, N or R, V]; keyword arguments as in `Encoder.__call__`."""
        output, _ = self.encoder(input_ids_BN, mask_BN, **kwargs)
        return self.mlm_logits(output)

    def mlm_logits(self, x_BPD: jax.Array) -> jax.Array:
        """MLM logits f32[B, P, V] of encoder outputs x_BPD."""
        return self.mlm_head(x_BPD, self.encoder.embeddings.word)
