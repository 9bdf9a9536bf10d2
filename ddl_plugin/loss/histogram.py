"""Soft histograms of similarities (Eq. 3-4) and the distances between them (Eq. 5), in logarithms.

Far from the data a histogram is of the order exp(-4 gamma): 1e-87 at gamma 50, which float32 does not
hold, and the divergence needs its logarithm. So nothing here ever leaves the log domain: values and
gradients are exact and finite without an epsilon that would bias them.

`F` is `mx.nd`, `mx.sym` or PyTorch's `Functions` throughout.
"""

from __future__ import annotations

import math
from typing import Any

#: Added to the exponent of a masked similarity. exp() of it is 0; unlike -inf it has a finite gradient.
_MASKED = -1e30


def nodes(F: Any, bins: int) -> Any:
    """The nodes t_1 = -1 .. t_R = 1, `bins` (R) of them, 2/(R-1) apart: (R,) float32.

    Both ends are exact, which -1 + r * 2/(R-1) is not in float32.
    """
    return F.arange(1 - bins, bins, 2) / (bins - 1)


def logsumexp(F: Any, x: Any, axis: int) -> Any:
    """log(sum(exp(x))) along `axis`, which is kept with length 1; its gradient is the softmax of `x`."""
    # The sum does not depend on what is subtracted, so the maximum needs no gradient.
    top = F.BlockGrad(F.max(x, axis=axis, keepdims=True))
    return top + F.log(F.sum(F.exp(F.broadcast_sub(x, top)), axis=axis, keepdims=True))


def log_normalize(F: Any, x: Any) -> Any:
    """x minus its logsumexp along axis 1: logarithms of a distribution. (G, R) -> (G, R).

    Unlike `F.log_softmax`, whose logarithm is off by 3e-6 in oneDNN, as accurate as float32 is.
    """
    # In two steps: next to -1e30, where all is masked, the logarithm of the sum would be lost.
    shifted = F.broadcast_sub(x, F.BlockGrad(F.max(x, axis=1, keepdims=True)))
    return F.broadcast_sub(shifted, logsumexp(F, shifted, axis=1))


def log_distribution(F: Any, similarities: Any, keep: Any, *, bins: int, gamma: float) -> Any:
    """Logarithm of the similarity distribution of Eq. 3-4, normalised to sum 1 over its nodes.

    p_r = h_r / sum_r h_r with h_r = 1/n sum_i exp(-gamma (s_i - t_r)^2); the 1/n cancels.

    Inputs:
        similarities: (G, n) float32 cosines of G distributions.
        keep: (G, n) float32, 1 for a similarity that counts, 0 for a masked one.
    Output: (G, R) float32. A row whose similarities are all masked is uniform and has no meaning, but
        is finite. A NaN similarity makes its row NaN.
    Cost: G n R exponentials, forward and backward.
    """
    t = F.reshape(nodes(F, bins), shape=(1, 1, bins))
    exponent = -gamma * F.square(F.broadcast_sub(F.expand_dims(similarities, axis=2), t))
    masked = (1 - F.expand_dims(keep, axis=2)) * _MASKED
    log_h = F.squeeze(logsumexp(F, F.broadcast_add(exponent, masked), axis=1), axis=1)
    return log_normalize(F, log_h)


def kl(F: Any, log_p: Any, log_q: Any) -> Any:
    """KL(P || Q) = sum_r p_r log(p_r / q_r) in nats (Eq. 5): (1, R) and (K, R) -> (K,)."""
    return F.sum(F.broadcast_mul(F.exp(log_p), F.broadcast_sub(log_p, log_q)), axis=-1)


def js(F: Any, log_p: Any, log_q: Any) -> Any:
    """Jensen-Shannon divergence in nats, 0 .. log 2: (1, R) and (K, R) -> (K,).

    (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2. log(p / m) = log 2 - log(1 + q / p).
    """
    ratio = F.broadcast_sub(log_q, log_p)
    p_to_m = F.broadcast_mul(F.exp(log_p), math.log(2) - F.Activation(ratio, act_type="softrelu"))
    q_to_m = F.exp(log_q) * (math.log(2) - F.Activation(-ratio, act_type="softrelu"))
    return F.sum(p_to_m + q_to_m, axis=-1) / 2


def emd(F: Any, log_p: Any, log_q: Any) -> Any:
    """Earth mover's distance in units of cosine, 0 .. 2: (1, R) and (K, R) -> (K,).

    sum_r |CDF_P(t_r) - CDF_Q(t_r)| Delta with Delta = 2/(R-1), the step between the nodes.
    """
    gap = F.cumsum(F.broadcast_sub(F.exp(log_p), F.exp(log_q)), axis=1)
    # Both cumulative sums end at 1, so R - 1 steps carry the distance.
    gap = F.slice_axis(gap, axis=-1, begin=0, end=-1)
    return F.mean(F.abs(gap), axis=-1) * 2


#: By the names of `settings.DISTANCES`.
DISTANCES = {"kl": kl, "js": js, "emd": emd}


def intersection(F: Any, log_p: Any, log_q: Any) -> Any:
    """Histogram intersection sum_r min(p_r, q_r), 0 (apart) .. 1 (equal): (G, R) twice -> (G,)."""
    return F.sum(F.exp(F.broadcast_minimum(log_p, log_q)), axis=-1)
