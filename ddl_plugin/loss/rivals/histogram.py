"""The histogram loss: Ustinova and Lempitsky, Learning Deep Embeddings with Histogram Loss, NIPS 2016.

The probability that a random negative pair is more similar than a random positive one, by two histograms of
the similarities of all pairs of a batch:

    h_r = 1/|S| sum_s max(0, 1 - |s - t_r| / Delta)     (Eq. 2: linear assignment to the two nearest nodes)
    L   = sum_r h-_r sum_{q <= r} h+_q                  (Eq. 4)

with nodes t_1 = -1 .. t_R = 1, Delta = 2/(R-1) apart. Unlike DDL it knows no easy and hard samples.
"""

from __future__ import annotations

from typing import Any

from ddl_plugin.loss.histogram import nodes
from ddl_plugin.loss.terms import unit_rows
from ddl_plugin.settings import DDLSettings, require_number, require_whole

_NAMES = ("histogram", "mean_pos", "mean_neg")


def linear_histogram(F: Any, similarities: Any, keep: Any, bins: int) -> Any:
    """Eq. 2 over the similarities that count: (n,) cosines, (n,) of 1 or 0 -> (R,), which sums to 1.

    Of no similarities at all the histogram is 0.
    """
    step = 2 / (bins - 1)
    distance = F.abs(
        F.broadcast_sub(F.reshape(similarities, shape=(-1, 1)), F.reshape(nodes(F, bins), shape=(1, -1)))
    )
    share = F.broadcast_mul(F.relu(1 - distance / step), F.reshape(keep, shape=(-1, 1)))
    return F.broadcast_div(F.sum(share, axis=0), F.maximum(F.sum(keep), 1))


def histogram_loss(F: Any, embedding: Any, label: Any, bins: int) -> tuple[Any, Any]:
    """(loss (1,), terms (1, 3)) of embeddings (n, D) with identities (n,), over all n(n-1)/2 pairs."""
    unit = unit_rows(F, F.Cast(embedding, dtype="float32"))
    cosines = F.reshape(F.dot(unit, unit, transpose_b=True), shape=(-1,))
    same = F.broadcast_equal(F.expand_dims(label, axis=1), F.expand_dims(label, axis=0))
    # Every pair once, no image with itself: the strictly upper triangle.
    place = F.BlockGrad(F.contrib.arange_like(label))
    upper = F.broadcast_lesser(F.expand_dims(place, axis=1), F.expand_dims(place, axis=0))
    positive = F.BlockGrad(F.reshape(same * upper, shape=(-1,)))
    negative = F.BlockGrad(F.reshape((1 - same) * upper, shape=(-1,)))
    below = F.cumsum(linear_histogram(F, cosines, positive, bins), axis=0)
    loss = F.reshape(F.sum(linear_histogram(F, cosines, negative, bins) * below), shape=(1,))
    means = [
        F.reshape(F.broadcast_div(F.sum(cosines * kept), F.maximum(F.sum(kept), 1)), shape=(1,))
        for kept in (positive, negative)
    ]
    return loss, F.BlockGrad(F.expand_dims(F.concat(loss, *means, dim=0), axis=0))


def build(
    F: Any, embedding: Any, settings: DDLSettings, options: dict[str, Any], *, label: Any
) -> tuple[Any, Any, tuple[str, ...]]:
    """`LOSSES['histogram']`: `weight` times the loss; R is `bins`, 100 as DDL's.

    Its authors' code has 201 nodes, and by their paper the results hardly depend on them.
    """
    weight, bins = options["weight"], options["bins"]
    require_number("histogram.weight", weight, 0.0, above=True)
    require_whole("histogram.bins", bins, 2)
    loss, terms = histogram_loss(F, embedding, label, bins)
    return weight * loss, terms, _NAMES
