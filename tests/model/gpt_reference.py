"""The architecture once more, in float64 NumPy, token by token: an oracle for the real one.

Written from nanochat's description, not from jaxchat's code: one sequence, one query at a time.
"""

import itertools

import numpy as np

EPSILON = float(np.finfo(np.float32).eps)


def norm(x):
    return x / np.sqrt(np.mean(x * x) + EPSILON)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotate(x, position, base):
    """One head's vector; channel i is paired with channel i + K/2."""
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        out[i] = x[i] * np.cos(angle) + x[i + half] * np.sin(angle)
        out[i + half] = -x[i] * np.sin(angle) + x[i + half] * np.cos(angle)
    return out


def window_of(config, layer):
    """Keys to the left: as given, a quarter of the context rounded up to 128s, or everything."""
    letter = config.window_pattern[layer % len(config.window_pattern)]
    if letter == "L" or layer == config.n_layer - 1:
        return config.sequence_len
    return config.short_window or -(-config.sequence_len // 512) * 128


def logits_of(params, tokens, config):
    """tokens [T] -> logits [T,V]."""
    p = to_float64(params)
    rows = [norm(p["wte"]["embedding"][token]) for token in tokens]
    if config.smear:
        rows = smear(p, rows)
    first, middle = list(rows), None
    for layer in range(config.n_layer):
        if config.residual_scalars:
            a, b = p["resid_lambdas"][layer], p["x0_lambdas"][layer]
            rows = [a * x + b * x0 for x, x0 in zip(rows, first, strict=True)]
        rows = block(p, rows, tokens, layer, config)
        if layer == config.n_layer // 2:
            middle = list(rows)
    if config.backout:
        rows = [x - p["backout_lambda"] * m for x, m in zip(rows, middle, strict=True)]
    head = p["lm_head"]["kernel"]
    return np.stack([config.softcap * np.tanh(norm(x) @ head / config.softcap) for x in rows])


def to_float64(tree):
    if isinstance(tree, dict):
        return {name: to_float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def smear(p, rows):
    out = [rows[0]]
    for before, x in itertools.pairwise(rows):
        gate = sigmoid(x[:24] @ p["smear_gate"]["kernel"][:, 0])
        out.append(x + p["smear_lambda"] * gate * before)
    return out


def block(p, rows, tokens, layer, config):
    attn, mlp = p[f"h_{layer}"]["attn"], p[f"h_{layer}"]["mlp"]
    q, k, v = [], [], []
    for position, (x, token) in enumerate(zip(rows, tokens, strict=True)):
        x = norm(x)
        query = (x @ attn["c_q"]["kernel"]).reshape(config.n_head, -1)
        key = (x @ attn["c_k"]["kernel"]).reshape(config.n_kv_head, -1)
        value = (x @ attn["c_v"]["kernel"]).reshape(config.n_kv_head, -1)
        if "ve_gate" in attn:
            gate = 3 * sigmoid(x[:12] @ attn["ve_gate"]["kernel"])
            extra = p[f"value_embeds_{layer}"]["embedding"][token]
            value = value + gate[:, None] * extra.reshape(value.shape)
        base, scale = config.rope_base, config.qk_scale
        q.append([scale * norm(rotate(head, position, base)) for head in query])
        k.append([scale * norm(rotate(head, position, base)) for head in key])
        v.append(value)
    rows = [
        x + attend(q, k, v, t, layer, config) @ attn["c_proj"]["kernel"] for t, x in enumerate(rows)
    ]
    hidden = [np.maximum(norm(x) @ mlp["c_fc"]["kernel"], 0) ** 2 for x in rows]
    return [x + h @ mlp["c_proj"]["kernel"] for x, h in zip(rows, hidden, strict=True)]


def attend(q, k, v, position, layer, config):
    """All heads of one query, side by side."""
    seen = range(max(0, position - window_of(config, layer)), position + 1)
    heads = []
    for head in range(config.n_head):
        group = head * config.n_kv_head // config.n_head
        scores = np.array([q[position][head] @ k[s][group] for s in seen])
        weights = np.exp(scores / np.sqrt(config.head_dim))
        weights /= weights.sum()
        heads.append(sum(w * v[s][group] for w, s in zip(weights, seen, strict=True)))
    return np.concatenate(heads)
