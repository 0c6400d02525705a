"""Sharding of every leaf of the training state: one table of rules over the mesh axes.

Parameters and their moments are split along 'fsdp' by width (ZeRO-3) and along 'tensor' by heads, FFN width and
vocabulary (Megatron). Small leaves are on every device. So is the word embedding along 'fsdp': split by width it
brings an all-to-all into every lookup, split by vocabulary every device computes logits of all rows.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_MOMENTS = r"opt_state/\d+/(?:inner_states/\w+/inner_state/)?"  # Muon's state has two parts
_PARAMETER = rf"(?:params|{_MOMENTS}(?:mu|nu))/"
_LAYER = _PARAMETER + r"encoder/layer_\d+/"
# Pattern of a whole path -> the mesh axes of its dimensions. Every leaf must match exactly one.
RULES = {
    rf"step|skipped|key|importance_V|{_MOMENTS}(?:count|ns_coeffs)": (),
    _PARAMETER + r"encoder/embeddings/word": ("tensor", None),
    _PARAMETER + r"encoder/embeddings/(?:position|segment)": (),
    _PARAMETER + r"(?:encoder/embeddings/norm|encoder/final_norm/norm|mlm_head/norm)/(?:scale|bias)": (),
    _PARAMETER + r"mlm_head/dense/kernel": ("fsdp", None),
    _PARAMETER + r"mlm_head/dense/bias": (),
    _PARAMETER + r"mlm_head/bias": ("tensor",),
    _PARAMETER + r"(?:pooler(?:/dense)?|classifier|span_score_\d)/(?:kernel|bias)": (),
    _PARAMETER + r"pooler/norm/scale": (),
    _LAYER + r"attention/(?:query|key|value)/kernel": ("fsdp", "tensor", None),
    _LAYER + r"attention/(?:query|key|value)/bias": ("tensor", None),
    _LAYER + r"attention/output/kernel": ("tensor", None, "fsdp"),
    _LAYER + r"mlp/(?:intermediate|gate)/kernel": ("fsdp", "tensor"),
    _LAYER + r"mlp/intermediate/bias": ("tensor",),
    _LAYER + r"mlp/output/kernel": ("tensor", "fsdp"),
    _LAYER + r"(?:attention|mlp)/output/bias": (),
    _LAYER + r"(?:attention_norm|output_norm|mlp_norm)/(?:scale|bias)": (),
}


def shard(mesh: Mesh, shapes: Any) -> Any:
    """A state's tree of shapes -> the same with a `NamedSharding` on each leaf.

    A vocabulary that 'tensor' does not divide is on every device; the other sizes are checked by `check_sizes`.

    Raises:
      KeyError: a leaf matches no rule, or more than one.
    """

    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = [axes for pattern, axes in RULES.items() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise KeyError(f"{len(found)} sharding rules for {name}, expected one")
        axes = (a if a and n % mesh.shape[a] == 0 else None for n, a in zip(leaf.shape, found[0], strict=False))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree_util.tree_map_with_path(one, shapes)
