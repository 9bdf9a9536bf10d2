"""What a training needs of its other workers, whichever host it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ddl_plugin.errors import CheckError


class WorkerLostError(CheckError):
    """Another worker is gone, or has ended while this one waits for it."""


class Workers(Protocol):
    """This worker, number `rank` of `workers`, and what it exchanges with the others.

    What exchanges something is to be called by all workers in the same order. It raises `WorkerLostError` where
    another worker is gone; nothing can be exchanged after that.
    """

    rank: int
    workers: int
    kind: str  # what a worker is: 'machines' or 'processes'
    stops_together: bool  # Ctrl-C reaches all of them, which agree on the step to stop after
    remedy: str  # what to do once one is lost, before all are started again

    def publish(self, value: Any) -> Any:
        """Worker 0's `value`, made of what JSON has."""

    def publish_bytes(self, content: bytes) -> bytes:
        """Worker 0's `content`."""

    def require_same(self, own: Mapping[str, Any]) -> None:
        """`UserError` in a worker for whom something is not as for worker 0."""

    def worker_0_first(self) -> AbstractContextManager[None]:
        """A block that worker 0 leaves before the others enter it."""
