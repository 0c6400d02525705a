"""BERT with token dropping in float64 numpy, written from docs/method.md 1, 3 and 4 and nothing of the package."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def layer_norm(x, p, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def gelu(x, kind):
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def layer(config, p, query, context, mask):
    """One post-LN layer for one row of the batch: query [R, D], context [N, D], mask [N]."""
    a, head_dim = p["attention"], config.hidden_size // config.num_heads
    heads = []
    for h in range(config.num_heads):
        q = query @ a["query"]["kernel"][:, h] + a["query"]["bias"][h]
        k = context @ a["key"]["kernel"][:, h] + a["key"]["bias"][h]
        v = context @ a["value"]["kernel"][:, h] + a["value"]["bias"][h]
        scores = np.where(mask[None], q @ k.T / math.sqrt(head_dim), -1e9)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v @ a["output"]["kernel"][h])
    x = layer_norm(query + sum(heads) + a["output"]["bias"], p["attention_norm"], config.layer_norm_eps)
    m = p["mlp"]
    h = gelu(x @ m["intermediate"]["kernel"] + m["intermediate"]["bias"], config.activation)
    return layer_norm(x + h @ m["output"]["kernel"] + m["output"]["bias"], p["output_norm"], config.layer_norm_eps)


def encode(config, params, ids, mask, kept=None, first=None, last=None):
    """States of every layer for one row: [N, D], or [K, D] in layers first..last when `kept` is given."""
    p = params["encoder"]
    e = p["embeddings"]
    x = e["word"][ids] + e["position"][: len(ids)] + e["segment"][0]
    x = layer_norm(x, e["norm"], config.layer_norm_eps)
    states = []
    for i in range(config.num_layers):
        lp = p[f"layer_{i}"]
        if kept is None or i < first or i > last:
            x = states_in = layer(config, lp, x, x, mask)
        elif i == first:
            states_in = layer(config, lp, x[kept], x, mask)
        else:
            states_in = layer(config, lp, states_in, states_in, mask[kept])
        states.append(states_in)
        if kept is not None and i == last:
            x = x.copy()
            x[kept] = states_in
    return states


def mlm_logits(config, params, x):
    p = params["mlm_head"]
    h = gelu(x @ p["dense"]["kernel"] + p["dense"]["bias"], config.activation)
    h = layer_norm(h, p["norm"], config.layer_norm_eps)
    return h @ params["encoder"]["embeddings"]["word"].T + p["bias"]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
