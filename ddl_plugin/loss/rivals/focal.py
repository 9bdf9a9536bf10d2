"""The focal loss: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, on the identity loss.

    FL(p) = -(1 - p)^gamma log p                          (Eq. 4)

with p the probability of the true identity, margin and scale included.
"""

from __future__ import annotations

from typing import Any

from ddl_plugin.settings import DDLSettings, require_number

_NAMES = ("focal", "mean_weight")

#: Least 1 - p: the slope of its power is infinite at 0 for gamma below 1.
_LEAST = 1e-12


def build(
    F: Any, embedding: Any, settings: DDLSettings, options: dict[str, Any], *, losses: Any
) -> tuple[Any, Any, tuple[str, ...]]:
    """`LOSSES['focal']`: the mean over the rows that the identity loss sees; gamma 2 as in that paper."""
    gamma = options["gamma"]
    require_number("focal.gamma", gamma, 0.0)
    # 1 - p from the loss -log p without losing what is left of it near p = 1.
    weight = F.maximum(-F.expm1(-losses), _LEAST) ** gamma if gamma else F.ones_like(losses)
    loss = F.mean(weight * losses)
    terms = F.concat(loss, F.mean(weight), dim=0)
    return loss, F.BlockGrad(F.expand_dims(terms, axis=0)), _NAMES
