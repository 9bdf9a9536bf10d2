"""SciPy's interpolation as InsightFace's verification.py expects it."""

from __future__ import annotations

import sys
from typing import Any


def accept_duplicates() -> None:
    """Let `interp1d(kind='slinear')` take thresholds of equal FAR, which newer versions of SciPy refuse.

    A spline of order 1 is a line, so `kind='linear'` gives the same; it is asked for only where 'slinear' fails.
    """
    interpolate = sys.modules.get("scipy.interpolate")
    if interpolate is not None and not hasattr(interpolate.interp1d, "accepts_duplicates"):
        interpolate.interp1d = _or_linear(interpolate.interp1d)


def _or_linear(interp1d: type) -> type:
    class OrLinear(interp1d):
        accepts_duplicates = True

        def __init__(self, x: Any, y: Any, kind: Any = "linear", *others: Any, **options: Any):
            try:
                super().__init__(x, y, kind, *others, **options)
            except ValueError:
                if kind != "slinear":
                    raise
                super().__init__(x, y, "linear", *others, **options)

    OrLinear.__name__, OrLinear.__qualname__ = interp1d.__name__, interp1d.__qualname__
    return OrLinear
