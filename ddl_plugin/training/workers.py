"""What a training needs of its other workers, whichever host it runs on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ddl_plugin.errors import CheckError, UserError


class WorkerLostError(CheckError):
    """Another worker is gone, or has ended while this one waits for it."""


class Workers:
    """This worker, number `rank` of `workers`, and what it exchanges with the others. A context manager.

    What exchanges something is to be called by all workers in the same order. It raises `WorkerLostError` where
    another worker is gone; nothing can be exchanged after that.
    """

    rank: int
    workers: int
    kind: str  # what a worker is: 'machines' or 'processes'
    stops_together: bool  # Ctrl-C reaches all of them, which agree on the step to stop after
    remedy: str  # what to do once one is lost, before all are started again

    def publish_bytes(self, content: bytes) -> bytes:
        """Worker 0's `content`; what the others give is not looked at."""
        raise NotImplementedError

    def publish(self, value: Any) -> Any:
        """Worker 0's `value`, made of what JSON has; what the others give is not looked at."""
        return json.loads(self.publish_bytes(json.dumps(value).encode()))

    def require_same(self, own: Mapping[str, Any]) -> None:
        """`UserError` in a worker for whom something is not as for worker 0; values are what JSON has."""
        theirs = self.publish(own)
        for key, value in json.loads(json.dumps(own)).items():
            if theirs.get(key) != value:
                raise UserError(
                    f"{key}: expected {theirs.get(key)!r} as worker 0 has, got {value!r} in worker {self.rank}; "
                    f"start all workers with the same recipe and data"
                )

    @contextlib.contextmanager
    def worker_0_first(self) -> Iterator[None]:
        """A block that worker 0 leaves before the others enter it."""
        if self.rank > 0:
            self.publish(None)
        yield
        if self.rank == 0:
            self.publish(None)
