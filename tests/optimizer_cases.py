"""The optimizers' formulas in NumPy, and ways to run an op on lists beside them."""

from __future__ import annotations

import numpy as np

import drupe
from drupe import ops
from reference import dtype


def penalized(p, g, o):
    return o.get("grad_scale", 1) * g + o.get("l1", 0) * np.sign(p) + o.get("weight_decay", 0) * p


def sgd_step(p, g, s, step, o):
    g = penalized(p, g, o)
    if o.get("momentum"):
        s[0] = o["momentum"] * s[0] + g
        g = g + o["momentum"] * s[0] if o.get("nesterov") else s[0]
    return p - o["lr"] * g


def adam_step(p, g, s, step, o, decoupled=False):
    b1, b2 = o.get("betas", (0.9, 0.999))
    decay = o.get("weight_decay", 1e-2 if decoupled else 0)
    g = penalized(p, g, {**o, "weight_decay": 0 if decoupled else decay})
    if decoupled:
        p = p * (1 - o["lr"] * decay)
    s[0] = b1 * s[0] + (1 - b1) * g
    s[1] = b2 * s[1] + (1 - b2) * g * g
    return p - o["lr"] * (s[0] / (1 - b1**step)) / (np.sqrt(s[1] / (1 - b2**step)) + o.get("eps", 1e-8))


def adamw_step(p, g, s, step, o):
    return adam_step(p, g, s, step, o, decoupled=True)


def rmsprop_step(p, g, s, step, o):
    a = o.get("alpha", 0.99)
    g = penalized(p, g, o)
    s[0] = a * s[0] + (1 - a) * g * g
    square = s[0]
    if o.get("centered"):
        s[1] = a * s[1] + (1 - a) * g
        square = square - s[1] ** 2
    update = g / (np.sqrt(square) + o.get("eps", 1e-8))
    if o.get("momentum"):
        s[-1] = o["momentum"] * s[-1] + update
        update = s[-1]
    return p - o["lr"] * update


CASES = {
    "sgd": (ops.sgd, sgd_step, 0, {"lr": 0.1}),
    "sgd-all": (ops.sgd, sgd_step, 0, {"lr": 0.1, "weight_decay": 0.3, "l1": 0.2, "grad_scale": 0.5}),
    "sgd-momentum": (ops.sgd, sgd_step, 1, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd-nesterov": (ops.sgd, sgd_step, 1, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (ops.adam, adam_step, 2, {"lr": 0.1}),
    "adam-all": (
        ops.adam,
        adam_step,
        2,
        {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.3, "l1": 0.1, "grad_scale": 2.0},
    ),
    "adamw": (ops.adamw, adamw_step, 2, {"lr": 0.1}),
    "adamw-all": (
        ops.adamw,
        adamw_step,
        2,
        {"lr": 0.1, "betas": (0.0, 0.9), "eps": 1e-3, "weight_decay": 0.5, "l1": 0.1, "grad_scale": 0.25},
    ),
    "rmsprop": (ops.rmsprop, rmsprop_step, 1, {"lr": 0.1}),
    "rmsprop-centered": (ops.rmsprop, rmsprop_step, 2, {"lr": 0.1, "centered": True, "eps": 0.1, "alpha": 0.9}),
    "rmsprop-momentum": (ops.rmsprop, rmsprop_step, 2, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "eps": 0.01}),
    "rmsprop-all": (
        ops.rmsprop,
        rmsprop_step,
        3,
        {"lr": 0.1, "momentum": 0.5, "centered": True, "eps": 0.1, "l1": 0.1, "grad_scale": 3.0},
    ),
}


def lie(x):
    """Return an array where the default device's ops change it in place: on a device, as a tensor."""
    return drupe.tensor(x) if isinstance(x, np.ndarray) and drupe.empty((0,)).device != "cpu" else x


def call(case, params, grads, states, step, **changes):
    """Run an op on lists; `states` holds one list for each state. NumPy arrays go to the default device and back."""
    op, _, _, options = CASES[case]
    options = {**options, **changes}
    if op in (ops.adam, ops.adamw):
        options["step"] = step
    written = [params, *states]
    lying = [[lie(x) for x in arrays] for arrays in written]
    if op is ops.rmsprop and not options.get("centered") and options.get("momentum"):
        op(lying[0], [lie(g) for g in grads], lying[1], [], lying[2], **options)
    else:
        op(lying[0], [lie(g) for g in grads], *lying[1:], **options)
    for arrays, moved in zip(written, lying, strict=True):
        for x, there in zip(arrays, moved, strict=True):
            if there is not x:
                x[...] = there.numpy()


def draw(rng, shape, name):
    return np.asarray(rng.standard_normal(shape)).astype(dtype(name))


def new_states(case, params):
    kind = [np.float64 if p.dtype == np.float64 else np.float32 for p in params]
    return [[np.zeros(p.shape, k) for p, k in zip(params, kind, strict=True)] for _ in range(CASES[case][2])]
