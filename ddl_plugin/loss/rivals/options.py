"""Options of the losses, checked."""

from __future__ import annotations

import math
from typing import Any

from ddl_plugin.settings import require


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def above_zero(key: str, value: Any) -> float:
    require(_number(value) and value > 0, key, value, "a number > 0")
    return float(value)


def at_least_zero(key: str, value: Any) -> float:
    require(_number(value) and value >= 0, key, value, "a number >= 0")
    return float(value)


def whole(key: str, value: Any, low: int) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low
    require(good, key, value, f"a whole number >= {low}")
    return value
