"""The identity losses beside DDL (Eq. 8): the host's softmax and margin softmax, over `F`.

Margin softmax covers norm-softmax, ArcFace, CosFace and their combination: the logit of the true
class, s cos(theta), becomes s (cos(m1 theta + m2) - m3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.loss.terms import unit_rows
from ddl_plugin.settings import IDENTITY_LOSSES, IDENTITY_ROWS, require

#: arccos has an infinite slope at +-1, where the host's own graph gives NaN.
_COS_LIMIT = 1 - 1e-6


@dataclass(frozen=True)
class IdentitySettings:
    """Which identity loss, with the host's names: `loss_m1`, `loss_m2`, `loss_m3`, `loss_s`."""

    name: str = "arcface"
    m1: float = 1.0  # factor on the angle
    m2: float = 0.5  # added to the angle, radians
    m3: float = 0.0  # subtracted from the cosine
    s: float = 64.0  # scale of the cosines
    rows: str = "all"  # all | singles: which rows of a DDL batch it sees
    fc7_lr_mult: float = 1.0  # learning rate of the classifier relative to the backbone's

    def __post_init__(self) -> None:
        _choice("identity", self.name, tuple(IDENTITY_LOSSES))
        _choice("identity_rows", self.rows, IDENTITY_ROWS)
        for key in ("m1", "m2", "m3", "s", "fc7_lr_mult"):
            value = getattr(self, key)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            good = number and math.isfinite(value) and (value > 0 if key == "s" else value >= 0)
            name = key if key == "fc7_lr_mult" else f"loss_{key}"
            require(good, name, value, f"a number {'>' if key == 's' else '>='} 0")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> IdentitySettings:
        """The host's table entry of this name, with `changes` (m1, m2, m3, s, rows, fc7_lr_mult)."""
        _choice("identity", name, tuple(IDENTITY_LOSSES))
        values = dict(
            zip(("m1", "m2", "m3", "s"), IDENTITY_LOSSES[name] or (1.0, 0.0, 0.0, 1.0), strict=True)
        )
        return cls(name=name, **{**values, **changes})

    @property
    def margin_softmax(self) -> bool:
        """Whether cosines are classified; plain softmax classifies the embedding as it is."""
        return IDENTITY_LOSSES[self.name] is not None


def _choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        expected = f"expected one of {', '.join(choices)}, got {value!r}"
        raise UserError(f"{key}: {expected}{did_you_mean(value, choices)}")


def logits(
    F: Any,
    embedding: Any,
    label: Any,
    weight: Any,
    bias: Any | None,
    *,
    num_classes: int,
    settings: IdentitySettings,
) -> Any:
    """The classifier's logits, with the margin on the true class.

    Inputs:
        embedding: (n, D), any float dtype, of any length.
        label: (n,) float32 class numbers.
        weight: (num_classes, D) float32, `fc7_weight`.
        bias: (num_classes,) float32, `fc7_bias`, for plain softmax; None for margin softmax.
    Output: (n, num_classes) float32.

    Corner case: within 1e-6 of a cosine of +-1 the true class's logit is that at the limit and passes
    no gradient, with an angular margin (m1 != 1 or m2 != 0).
    """
    embedding = F.Cast(embedding, dtype="float32")
    if not settings.margin_softmax:
        return F.FullyConnected(embedding, weight, bias, num_hidden=num_classes, flatten=True)
    directions = F.L2Normalization(weight, mode="instance")
    cosines = F.FullyConnected(
        unit_rows(F, embedding), directions, num_hidden=num_classes, no_bias=True, flatten=True
    )
    if settings.m1 == 1 and settings.m2 == 0:
        if settings.m3:
            cosines = cosines - F.one_hot(label, depth=num_classes, on_value=settings.m3)
        return cosines * settings.s
    cosine = F.pick(cosines, label, axis=1)
    change = F.expand_dims(_with_margin(F, cosine, settings) - cosine, axis=1)
    true_class = F.one_hot(label, depth=num_classes)
    return F.broadcast_add(cosines, F.broadcast_mul(true_class, change)) * settings.s


def _with_margin(F: Any, cosine: Any, settings: IdentitySettings) -> Any:
    """cos(m1 theta + m2) - m3 of cosines of any shape."""
    angle = F.arccos(F.clip(cosine, -_COS_LIMIT, _COS_LIMIT))
    return F.cos(settings.m1 * angle + settings.m2) - settings.m3


def row_losses(F: Any, logits: Any, label: Any) -> Any:
    """Cross entropy of each row in nats: (n, classes), (n,) -> (n,). Finite where log(softmax) is not."""
    return -F.pick(F.log_softmax(logits, axis=-1), label, axis=1)
