"""Steps of the rows that a gradient has, by each rule, in NumPy."""

from __future__ import annotations

import numpy as np

RULES = ("rowwise_adagrad", "sgd", "adam", "adamw")
OPTIONS = {
    "rowwise_adagrad": {"lr": 0.1, "eps": 1e-3},
    "sgd": {"lr": 0.1},
    "adam": {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3},
    "adamw": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3},
}


def new_states(rule, weight):
    kind = np.float64 if weight.dtype == np.float64 else np.float32
    shapes = {"rowwise_adagrad": [weight.shape[:1]], "sgd": []}.get(rule, [weight.shape] * 2)
    return [np.zeros(shape, kind) for shape in shapes]


def formula(rule, w, g, states, touched, step, o):
    g = o.get("grad_scale", 1) * g
    decay = o.get("weight_decay", 0)
    g = g + (0 if rule == "adamw" else decay) * w
    if rule == "rowwise_adagrad":
        sums = states[0] + (g**2).mean(1)
        states[0][touched] = sums[touched]
        new = w - o["lr"] / (np.sqrt(sums) + o["eps"])[:, None] * g
    elif rule == "sgd":
        new = w - o["lr"] * g
    else:
        b1, b2 = o["betas"]
        m, v = b1 * states[0] + (1 - b1) * g, b2 * states[1] + (1 - b2) * g * g
        states[0][touched], states[1][touched] = m[touched], v[touched]
        w_kept = w * (1 - o["lr"] * decay) if rule == "adamw" else w
        new = w_kept - o["lr"] * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + o["eps"])
    return np.where(touched[:, None], new, w)
