"""Triplets with semi-hard negatives: Schroff et al., FaceNet, CVPR 2015, with the margin of InsightFace's trainer.

For each positive pair of the batch, anchor a and positive p, the negative n is the nearest of another identity
that lies within the margin behind the positive, |a-p|^2 < |a-n|^2 < |a-p|^2 + alpha (its Eq. 4):

    L = mean over the pairs that have such a negative of  |a-p|^2 - |a-n|^2 + alpha

with distances of unit embeddings. InsightFace's iterator draws one of the semi-hard negatives at random over a bag of
many batches; here it is the nearest of the batch, so that the graph needs no random numbers.
"""

from __future__ import annotations

from typing import Any

from ddl_plugin.loss.terms import by_distribution, unit_rows
from ddl_plugin.settings import DDLSettings, require_number

_NAMES = ("semihard_triplet", "triplets")

#: Larger than any squared distance of unit vectors.
_FAR = 8.0


def triplet_loss(
    F: Any, anchors: Any, positives: Any, own: Any, others: Any, label: Any, alpha: float
) -> tuple[Any, Any]:
    """(loss (1,), terms (1, 2): loss and number of triplets).

    Inputs: unit rows; anchors and positives (m, D) of the m positive pairs with identities `own` (m,), and the
    rows to find negatives among, others (n, D) with identities `label` (n,). No pair with a semi-hard negative:
    0, with a live graph.
    """
    to_positive = F.expand_dims(2 - 2 * F.sum(anchors * positives, axis=1), axis=1)  # (m, 1)
    to_others = 2 - 2 * F.dot(anchors, others, transpose_b=True)  # (m, n)
    other = F.broadcast_not_equal(F.expand_dims(own, axis=1), F.expand_dims(label, axis=0))
    behind = F.broadcast_greater(to_others, to_positive) * other
    semi_hard = F.BlockGrad(behind * F.broadcast_lesser(to_others, to_positive + alpha))
    nearest = F.argmin(F.BlockGrad(to_others) + _FAR * (1 - semi_hard), axis=1)
    found = F.max(semi_hard, axis=1)
    violation = F.squeeze(to_positive, axis=1) - F.pick(to_others, nearest, axis=1) + alpha
    count = F.reshape(F.sum(found), shape=(1,))
    loss = F.reshape(F.sum(violation * found), shape=(1,)) / F.maximum(count, 1)
    return loss, F.BlockGrad(F.expand_dims(F.concat(loss, count, dim=0), axis=0))


def build(
    F: Any, embedding: Any, settings: DDLSettings, options: dict[str, Any], *, label: Any
) -> tuple[Any, Any, tuple[str, ...]]:
    """`LOSSES['semihard_triplet']`: `weight` times the loss of the batch's b(K+1) positive pairs."""
    weight, alpha = options["weight"], options["alpha"]
    require_number("semihard_triplet.weight", weight, 0.0, above=True)
    require_number("semihard_triplet.alpha", alpha, 0.0, above=True)
    unit, b = unit_rows(F, F.Cast(embedding, dtype="float32")), settings.b

    def part(rows: Any, which: int) -> Any:
        grouped = by_distribution(F, rows, settings)
        return F.reshape(F.slice_axis(grouped, axis=1, begin=which * b, end=(which + 1) * b), shape=(-3, -2))

    loss, terms = triplet_loss(F, part(unit, 0), part(unit, 1), part(label, 0), unit, label, alpha)
    return weight * loss, terms, _NAMES
