"""The second-order term of factorization machines."""

from __future__ import annotations

from drupe import _C
from drupe.ops._call import A, Call


def fm_interaction(v: A) -> A:
    """Products of all pairs of fields, ``y[b] = sum_{f<g} v[b, f] · v[b, g]``.

    Computed as ``((sum_f v)² - sum_f v²) / 2``, summed over the features, in float32 for float16 and bfloat16: linear
    in the number of fields.

    Args:
        v: (B, F, E), float: a vector of E features for each of F fields; copied unless C-contiguous.

    Returns:
        (B,), of ``v``'s dtype; zeros for fewer than two fields.

    Raises:
        ValueError: ``v`` has not 3 dimensions.
        TypeError: a dtype that is not float.

    Reference:
        S. Rendle, "Factorization Machines", ICDM 2010, lemma 3.1.
    """
    call = Call("fm_interaction", v)
    (raw,) = call.raw
    return call.output(_C.fm_interaction(raw), lambda dy: (_C.fm_interaction_backward(dy, raw),))
