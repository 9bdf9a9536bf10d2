"""The trainer's accuracy metric with the loss's terms beside it, so that its own log line shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def shown(names: tuple[str, ...]) -> list[str]:
    """The terms that fit a log line: the loss, its parts, and the margins."""
    return [name for name in names if name.split("_")[0] not in ("mean", "intersection", "outliers")]


def with_terms(metric_class: type, terms: Callable[[list[Any]], dict[str, float]]) -> type:
    """A subclass of the trainer's AccMetric whose `get()` also gives the means of the loss's terms.

    `terms(outputs of one device)` gives the terms of a batch.
    """

    class AccMetricWithTerms(metric_class):
        def __init__(self) -> None:
            self._forget()
            super().__init__()

        def _forget(self) -> None:
            self._sums: dict[str, float] = {}
            self._updates = 0

        def update(self, labels: list[Any], preds: list[Any]) -> None:
            super().update(labels, preds)
            for name, value in terms(preds).items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._updates += 1

        def reset(self) -> None:
            super().reset()
            self._forget()

        def reset_local(self) -> None:
            """What the trainer's Speedometer asks for after each of its lines."""
            super().reset_local()
            self._forget()

        def get(self) -> tuple[list[str], list[float]]:
            name, value = super().get()
            return [name, *self._sums], [value, *(total / self._updates for total in self._sums.values())]

    return AccMetricWithTerms
