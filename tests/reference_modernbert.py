"""ModernBERT with token dropping in float64 numpy, written from the paper and nothing of the package."""

import numpy as np

from tests.reference import gelu


def layer_norm(x, p, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"]


def turned(x, places, base):
    """Pairs (i, i + d/2) as complex numbers, turned by place / base^(2i / d)."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * np.outer(places, base ** (-2 * np.arange(half) / x.shape[-1])))
    pairs = (x[:, :half] + 1j * x[:, half:]) * turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def layer(config, p, number, x, places, mask, rows=None):
    """Residual stream after one pre-LN layer for one row of the batch, at `rows` of it alone where they are given."""
    a, head_dim, eps = p["attention"], config.hidden_size // config.num_heads, config.layer_norm_eps
    h = layer_norm(x, p["attention_norm"], eps) if number else x
    rows = np.arange(len(x)) if rows is None else rows
    everywhere = number % config.global_every == 0
    near = np.abs(places[rows][:, None] - places[None]) <= config.local_attention // 2
    seen = mask[None] & (near | everywhere)
    base = config.rope_theta if everywhere else config.local_rope_theta
    out = x[rows].copy()
    for head in range(config.num_heads):
        q, k, v = (h @ a[name]["kernel"][:, head] for name in ("query", "key", "value"))
        q, k = turned(q[rows], places[rows], base), turned(k, places, base)
        scores = np.where(seen, q @ k.T / np.sqrt(head_dim), -1e9)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out += weights / weights.sum(-1, keepdims=True) @ v @ a["output"]["kernel"][head]
    h, m = layer_norm(out, p["mlp_norm"], eps), p["mlp"]
    return out + gelu(h @ m["intermediate"]["kernel"], "gelu") * (h @ m["gate"]["kernel"]) @ m["output"]["kernel"]


def encode(config, params, ids, mask, kept=None, first=None, last=None, rows=None):
    """States of every layer for one row: [N, D], [K, D] in the dropping layers; the last after the final norm."""
    p, eps = params["encoder"], config.layer_norm_eps
    x, every = layer_norm(p["embeddings"]["word"][ids], p["embeddings"]["norm"], eps), np.arange(len(ids))
    states = []
    for i in range(config.num_layers):
        final = i == config.num_layers - 1
        if kept is None or not first <= i <= last:
            state = x = layer(config, p[f"layer_{i}"], i, x, every, mask, rows if final else None)
        elif i == first:
            state = layer(config, p[f"layer_{i}"], i, x, every, mask, kept)
        else:
            state = layer(config, p[f"layer_{i}"], i, state, kept, mask[kept])
        states.append(state)
        if kept is not None and i == last:
            x = x.copy()
            x[kept] = state
    return [*states[:-1], layer_norm(states[-1], p["final_norm"]["norm"], eps)]


def encode_layerwise(config, params, ids, mask, kept, first):
    """States [N, D] of every layer for one row whose layers from `first` on see the tokens of `kept`, each its own."""
    p, eps = params["encoder"], config.layer_norm_eps
    x, states = layer_norm(p["embeddings"]["word"][ids], p["embeddings"]["norm"], eps), []
    for i in range(config.num_layers):
        at = kept[i - first] if first <= i < first + len(kept) else np.arange(len(ids))
        x = x.copy()
        x[at] = layer(config, p[f"layer_{i}"], i, x[at], at, mask[at])
        states.append(x)
    return [*states[:-1], layer_norm(states[-1], p["final_norm"]["norm"], eps)]


def normed(config, params, x):
    return layer_norm(x, params["encoder"]["final_norm"]["norm"], config.layer_norm_eps)


def mlm_logits(config, params, x):
    p = params["mlm_head"]
    h = layer_norm(gelu(x @ p["dense"]["kernel"], "gelu"), p["norm"], config.layer_norm_eps)
    return h @ params["encoder"]["embeddings"]["word"].T + p["bias"]
