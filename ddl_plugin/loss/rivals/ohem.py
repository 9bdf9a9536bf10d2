"""Online hard example mining: Shrivastava et al., CVPR 2016, on the identity loss.

The rows of the batch are sorted by their loss and only the hardest are trained on; the others have no gradient:

    L = 1/B sum of the B largest losses
"""

from __future__ import annotations

from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings

_NAMES = ("ohem", "easiest_kept")


def build(
    F: Any, embedding: Any, settings: DDLSettings, options: dict[str, Any], *, losses: Any
) -> tuple[Any, Any, tuple[str, ...]]:
    """`LOSSES['ohem']`: B is `keep` of the rows that the identity loss sees, rounded, at least one."""
    keep = options["keep"]
    if not isinstance(keep, (int, float)) or isinstance(keep, bool) or not 0 < keep <= 1:
        raise UserError(f"ohem.keep: expected a part of the rows, > 0 and <= 1, got {keep!r}")
    rows = settings.rows if settings.identity_rows == "all" else settings.rows // 3
    kept = F.topk(losses, axis=0, k=max(1, round(keep * rows)), ret_typ="value")
    loss = F.mean(kept)
    terms = F.concat(loss, F.reshape(F.min(kept), shape=(1,)), dim=0)
    return loss, F.BlockGrad(F.expand_dims(terms, axis=0)), _NAMES
