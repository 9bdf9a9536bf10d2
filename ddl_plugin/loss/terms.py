"""The Distribution Distillation Loss (Eq. 1-7) as a pure function over `F` = `mx.nd`, `mx.sym` or PyTorch's `Functions`.

No random numbers, no state, no sizes taken from tensors: the same embeddings give the same loss,
eagerly in a test and compiled in a training graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ddl_plugin.loss import histogram
from ddl_plugin.settings import DDLSettings

#: Embeddings with no component above this are taken for zero: they have no direction.
_NO_DIRECTION = 1e-12

#: Subtracted from cosines that stand for no pair, so that they are below all others.
NO_PAIR = 4.0

_STATISTICS = ("mean_pos", "mean_neg", "margin", "intersection", "outliers")


class Terms(NamedTuple):
    """The loss to minimise, and what a log shows of it."""

    loss: Any  # (1,) float32, with a live graph
    terms: Any  # (1, T) float32 in the order of `term_names`, without gradient


def term_names(settings: DDLSettings) -> tuple[str, ...]:
    """Names of the columns of `Terms.terms`.

    `ddl` is the loss: lambda_pos * kl_pos + lambda_neg * kl_neg + lambda_order * order (js_, emd_ with
    the other distances), of several groups their sum, with kl_pos_<group> and so on of each. Then, per
    distribution: the means of its positive and negative similarities, their difference, the intersection of its
    two histograms and the number of masked positive pairs.
    """
    parts = (f"{settings.distance}_pos", f"{settings.distance}_neg", "order")
    of_groups = [
        f"{part}_{team.name}" if settings.groups else part for team in settings.teams for part in parts
    ]
    statistics = (f"{statistic}_{name}" for name in settings.names for statistic in _STATISTICS)
    return ("ddl", *of_groups, *statistics)


def unit_rows(F: Any, x: Any) -> Any:
    """Rows of `x` divided by their Euclidean length, for lengths from 1e-12 to 1e38.

    A zero row stays zero and gets no gradient. A row with a NaN or an infinity becomes NaN.

    Input: (n, D) float32. Output: (n, D) float32.
    """
    # Dividing by the largest component first keeps the squares in range. The result does not depend
    # on that divisor, so it needs no gradient.
    largest = F.BlockGrad(F.max(F.abs(x), axis=-1, keepdims=True))
    empty = largest <= _NO_DIRECTION  # False for NaN, which so goes on
    scaled = F.broadcast_mul(F.broadcast_div(x, largest + empty), 1 - empty)
    return F.broadcast_div(scaled, F.sqrt(F.sum(F.square(scaled), axis=-1, keepdims=True) + empty))


def by_distribution(F: Any, rows: Any, settings: DDLSettings) -> Any:
    """Rows of one device's batch, grouped: (3b(K+1), ...) -> (K+1, 3b, ...).

    Any other number of rows is refused by MXNet when the shapes are known.
    """
    return F.reshape(rows, shape=(-4, settings.distributions, 3 * settings.b, -2))


def singles(F: Any, rows: Any, settings: DDLSettings) -> Any:
    """The rows of the images with distinct identities: (3b(K+1), ...) -> (b(K+1), ...)."""
    return F.reshape(_third(F, by_distribution(F, rows, settings), 2, settings.b), shape=(-3, -2))


def _third(F: Any, grouped: Any, which: int, b: int) -> Any:
    """First images (0), second images (1) or singles (2) of (K+1, 3b, ...) rows."""
    return F.slice_axis(grouped, axis=1, begin=which * b, end=(which + 1) * b)


def _hardest(F: Any, unit: Any, b: int) -> Any:
    """Eq. 2: for each single, its largest cosine with another single."""
    index = F.arange(b)
    same = F.broadcast_equal(F.reshape(index, shape=(1, b, 1)), F.reshape(index, shape=(1, 1, b)))
    cosines = F.broadcast_sub(F.batch_dot(unit, unit, transpose_b=True), NO_PAIR * same)
    # max() would give its whole gradient to each of several equal maxima; pick() gives it to one.
    return F.pick(cosines, F.argmax(cosines, axis=2), axis=2)


def _top(F: Any, unit: Any, b: int) -> Any:
    """The b largest cosines of the b(b-1)/2 distinct pairs of singles."""
    index = F.arange(b)
    row, column = F.reshape(index, shape=(1, b, 1)), F.reshape(index, shape=(1, 1, b))
    repeated = F.broadcast_greater_equal(row, column)
    cosines = F.broadcast_sub(F.batch_dot(unit, unit, transpose_b=True), NO_PAIR * repeated)
    flat = F.reshape(cosines, shape=(0, -3))
    # topk() may rank NaN last and so hide it; this brings it back, and adds 0 otherwise.
    nan = 0 * F.sum(flat, axis=1, keepdims=True)
    return F.broadcast_add(F.topk(flat, axis=1, k=b, ret_typ="value"), nan)


def _random(F: Any, unit: Any, b: int) -> Any:
    """Each single with the next; the sampler draws them in random order, so these are random pairs."""
    following = F.concat(
        F.slice_axis(unit, axis=1, begin=1, end=b), F.slice_axis(unit, axis=1, begin=0, end=1), dim=1
    )
    return F.sum(unit * following, axis=2)


_NEGATIVES = {"hardest": _hardest, "top": _top, "random": _random}


def similarities(F: Any, embedding: Any, settings: DDLSettings) -> tuple[Any, Any]:
    """Cosines of the positive (Eq. 1) and the negative (Eq. 2) pairs of each distribution.

    Input: (3b(K+1), D), any float dtype. Outputs: (K+1, b) and (K+1, b) float32.
    """
    unit = by_distribution(F, unit_rows(F, F.Cast(embedding, dtype="float32")), settings)
    first, second, single = (_third(F, unit, which, settings.b) for which in range(3))
    return F.sum(first * second, axis=2), _NEGATIVES[settings.neg_mining](F, single, settings.b)


def _distance(F: Any, log_all: Any, settings: DDLSettings) -> Any:
    """Distances of the K students of a group from its teacher: (K+1, R) -> (K,)."""
    teacher = F.slice_axis(log_all, axis=0, begin=0, end=1)
    students = F.slice_axis(log_all, axis=0, begin=1, end=None)
    if settings.detach_teacher:
        teacher = F.BlockGrad(teacher)
    return histogram.DISTANCES[settings.distance](F, teacher, students)


def ddl_terms(F: Any, embedding: Any, settings: DDLSettings) -> Terms:
    """The Distribution Distillation Loss of one device's batch (Eq. 7) and its terms.

    L = lambda_1 sum_k D(P+, Q_k+) + lambda_2 sum_k D(P-, Q_k-) - lambda_3 sum_ij (E[S_i+] - E[S_j-]),
    k over the K hard distributions, i and j over all K+1. Of several groups (`settings.groups`): the sum of what
    each is by itself, with its own weights.

    Args:
        F: `mx.nd`, `mx.sym`, or `pytorch.functions.Functions`. With `mx.nd` on a GPU, call inside `with mx.gpu(i):`.
        embedding: (3b(K+1), D), any float dtype, of any length: per distribution b first images of the
            positive pairs, b second images in the same order, b singles of distinct identities.
        settings: b, K, weights, R, gamma, distance, mining.

    Corner cases:
        A positive pair with a cosine below 0 is an outlier: it is masked, and counted.
        All positive pairs of a distribution masked: its positive histogram does not exist, so its
        D(P+, Q_k+) (all of them, for the teacher's) and its E[S+] are 0 without gradient; the
        negatives keep theirs.
        `detach_teacher` stops the gradient into P+ and P- in the distances; in the order term the
        teacher's similarities keep theirs.
        Zero embeddings have cosine 0 with everything and no gradient. NaN makes the loss NaN.

    Cost: (K+1) b^2 D multiplications and 2 (K+1) b R exponentials: nothing beside a backbone.
    """
    return terms_of_similarities(F, *similarities(F, embedding, settings), settings)


def terms_of_similarities(F: Any, positive: Any, negative: Any, settings: DDLSettings) -> Terms:
    """The loss and its terms from the similarities of all distributions: (K+1, n) and (K+1, m) float32."""
    # Not `positive >= 0`: that would take NaN for an outlier and hide it.
    outlier = F.BlockGrad(positive < 0)
    kept = 1 - outlier
    count = F.sum(kept, axis=1)  # (K+1,)
    present = count > 0

    shape = {"bins": settings.bins, "gamma": settings.gamma}
    log_pos = histogram.log_distribution(F, positive, kept, **shape)  # (K+1, R)
    log_neg = histogram.log_distribution(F, negative, F.ones_like(negative), **shape)
    mean_pos = F.sum(positive * kept, axis=1) / (count + (1 - present))
    mean_neg = F.mean(negative, axis=1)

    losses, parts, begin = [], [], 0
    for team in settings.teams:
        end = begin + 1 + len(team.hard)
        own = [
            F.slice_axis(x, axis=0, begin=begin, end=end)
            for x in (log_pos, log_neg, present, mean_pos, mean_neg)
        ]
        distance_pos, distance_neg, order = _parts(F, *own, settings, len(team.hard))
        losses.append(
            team.lambda_pos * distance_pos + team.lambda_neg * distance_neg + team.lambda_order * order
        )
        parts += [distance_pos, distance_neg, order]
        begin = end
    loss = losses[0] if len(losses) == 1 else F.add_n(*losses)
    statistics = F.stack(
        mean_pos,
        mean_neg,
        (mean_pos - mean_neg) * present,
        histogram.intersection(F, log_pos, log_neg) * present,
        F.sum(outlier, axis=1),
        axis=1,
    )
    terms = F.concat(loss, *parts, F.reshape(statistics, shape=(-1,)), dim=0)
    return Terms(loss, F.BlockGrad(F.expand_dims(terms, axis=0)))


def _parts(
    F: Any,
    log_pos: Any,
    log_neg: Any,
    present: Any,
    mean_pos: Any,
    mean_neg: Any,
    settings: DDLSettings,
    students: int,
) -> tuple[Any, Any, Any]:
    """Of one group, without weights: the distances of the positive and of the negative distributions, and the order."""
    comparable = F.broadcast_mul(
        F.slice_axis(present, axis=0, begin=0, end=1), F.slice_axis(present, axis=0, begin=1, end=None)
    )
    distance_pos = F.sum(_distance(F, log_pos, settings) * comparable)
    distance_neg = F.sum(_distance(F, log_neg, settings))
    # Each of the K+1 expectations stands in K+1 of the (K+1)^2 differences.
    order = -(students + 1) * F.sum(mean_pos - mean_neg)
    return distance_pos, distance_neg, order


def build(F: Any, embedding: Any, settings: DDLSettings, options: dict) -> tuple[Any, Any, tuple[str, ...]]:
    """`LOSSES['ddl']`: `ddl_terms` in the form the registry asks for; it has no options of its own."""
    loss, terms = ddl_terms(F, embedding, settings)
    return loss, terms, term_names(settings)
