"""Online DDL (the supplement's section 6): in every batch the images of an identity are sorted by their identity
loss; the half with the larger losses is hard, the others are easy.

The distributions are "as usual" as far as the supplement says. Here: a positive similarity is that of any two images
of one identity and one half, a negative one is each image's largest with the same half of other identities (Eq. 2).
"""

from __future__ import annotations

from typing import Any

from ddl_plugin.loss.terms import NO_PAIR, term_names, terms_of_similarities, unit_rows
from ddl_plugin.settings import DDLSettings


def by_loss(F: Any, unit: Any, losses: Any, settings: DDLSettings) -> Any:
    """The rows of each identity, those with the smaller losses first: (P*n, D), (P*n,) -> (P, n, D)."""
    online = settings.online
    grouped = F.reshape(unit, shape=(-4, online.identities, online.images, 0))
    order = F.argsort(F.reshape(F.BlockGrad(losses), shape=(online.identities, online.images)), axis=1)
    # A product with rows of zeros and one 1 moves rows, and gradients back, exactly.
    return F.batch_dot(F.one_hot(order, depth=online.images), grouped)


def _positive(F: Any, half: Any, images: int) -> Any:
    """Cosines of any two of the `images` images of each identity: (P, m, D) -> (P m(m-1)/2,)."""
    one = [F.slice_axis(half, axis=1, begin=i, end=i + 1) for i in range(images)]
    pairs = [F.sum(one[i] * one[j], axis=2) for i in range(images) for j in range(i + 1, images)]
    return F.reshape(F.concat(*pairs, dim=1), shape=(-1,))


def _negative(F: Any, half: Any, images: int, identities: int) -> Any:
    """Eq. 2: each image's largest cosine with an image of another identity: (P, m, D) -> (P m,)."""
    rows = F.reshape(half, shape=(-3, 0))
    # The m images of one identity stand together.
    identity = F.floor(F.arange(identities * images) / images)
    same = F.broadcast_equal(F.expand_dims(identity, axis=1), F.expand_dims(identity, axis=0))
    cosines = F.dot(rows, rows, transpose_b=True) - NO_PAIR * same
    return F.pick(cosines, F.argmax(cosines, axis=1), axis=1)


def build(
    F: Any, embedding: Any, settings: DDLSettings, options: dict[str, Any], *, losses: Any
) -> tuple[Any, Any, tuple[str, ...]]:
    """`LOSSES['online_ddl']`: embedding (P*n, D) of P identities with n images each, one identity after the other,
    and their identity losses (P*n,), which the selection gives no gradient."""
    online, half = settings.online, settings.online.images // 2
    rows = by_loss(F, unit_rows(F, F.Cast(embedding, dtype="float32")), losses, settings)
    easy, hard = (F.slice_axis(rows, axis=1, begin=k * half, end=(k + 1) * half) for k in range(2))
    positive = F.stack(*(_positive(F, part, half) for part in (easy, hard)), axis=0)
    negative = F.stack(*(_negative(F, part, half, online.identities) for part in (easy, hard)), axis=0)
    loss, terms = terms_of_similarities(F, positive, negative, settings)
    return loss, terms, term_names(settings)
