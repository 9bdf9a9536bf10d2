"""Several machines: gradients summed, and worker 0's arrays given to all, through MXNet's own kvstore.

The kvstore only adds up: the update is every worker's own, with the same sums on the same parameters. So what a
trainer does to its optimizer counts, its state is saved as on one machine, and parameters stay as they were until
all sums are there.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddl_plugin.errors import UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training.ending import Guard, exit_code, in_words
from ddl_plugin.training.link import Door, Link, UnreachableError, connect, own_address
from ddl_plugin.training.roles import ROOT_URI, meeting_place, require_environment
from ddl_plugin.training.workers import WorkerLostError, Workers

_PATIENCE = 60.0  # seconds of waiting after which it is said what for
#: What a lost worker leaves running: MXNet's servers and scheduler wait for it too.
END_THE_REST = "end the scheduler and the servers by hand"
_GRACE = 10.0  # seconds that sums may still be on their way once another worker has ended


class Machines(Workers):
    """`training.workers.Workers` over MXNet's kvstore. Leaving the context without an error is a regular end."""

    kind = "machines"
    stops_together = False  # Ctrl-C ends one, and with it the others
    remedy = END_THE_REST

    def __init__(self, store: Any, link: Link | None = None, guard: Guard | None = None):
        """`store`: a KVStore. `link`: to the other workers. `guard`: of the interpreter's end."""
        self.rank: int = store.rank
        self.workers: int = store.num_workers
        self._store = store
        self._link = link
        self._guard = guard or Guard()
        self._keys: set[str] = set()
        self._published = 0

    @classmethod
    def join(cls, kvstore: str) -> Machines:
        """Meet the other workers as the DMLC_* environment says; returns when all are there.

        `UserError` where that is incomplete, or where workers do not reach worker 0.
        """
        require_environment(kvstore)
        guard = Guard()
        guard.arm()
        try:
            return cls._joined(kvstore, guard)
        except BaseException as error:
            guard.code = exit_code(error)
            raise

    @classmethod
    def _joined(cls, kvstore: str, guard: Guard) -> Machines:
        try:
            guard.store = store = _waited(lambda: mx.kv.create(kvstore), None, meeting_place())
        except mx.base.MXNetError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"--kvstore: {kvstore} cannot be started ({reason})") from error
        machines = cls(store, None, guard)
        try:
            machines._link = machines._linked()
        except UnreachableError as error:
            raise UserError(
                f"--kvstore: {error}; let the workers' machines reach each other, or set DMLC_NODE_HOST on each "
                f"to the address at which the others reach it"
            ) from error
        return machines

    def _linked(self) -> Link:
        if self.rank > 0:
            return connect(self.publish(None), self.rank)
        door = Door(os.environ.get("DMLC_NODE_HOST") or own_address(os.environ[ROOT_URI]))
        self.publish(door.address)
        return door.admit(self.workers)

    # -- what is exchanged -----------------------------------------------------------------------

    def sum_gradients(self, names: Sequence[str], gradients: Sequence[Sequence[Any]]) -> None:
        """Put into every gradient the sum over all devices of all workers.

        gradients: of each parameter one NDArray a device, or None where it is not trained.
        """
        own = {n: arrays for n, arrays in zip(names, gradients, strict=True) if arrays[0] is not None}
        for name, sums in self._sums(own).items():
            for gradient, total in zip(own[name], sums, strict=True):
                total.copyto(gradient)

    def broadcast(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Worker 0's arrays, by name, as new NDArrays; of the others' only shape and type count.

        By the same keys as gradients, so that a server holds nothing more: the others add zeros.
        """
        own = {n: [a if self.rank == 0 else mx.nd.zeros_like(a)] for n, a in arrays.items()}
        return {name: sums[0] for name, sums in self._sums(own).items()}

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means over all workers, by name."""
        own = mx.nd.array(list(values.values()), dtype="float64")
        ((total,),) = self._sums({"means": [own]}).values()
        return dict(zip(values, (total.asnumpy() / self.workers).tolist(), strict=True))

    def publish_bytes(self, content: bytes) -> bytes:
        size = int(self._given(np.array([len(content)], np.float64))[0])
        if self.rank > 0:
            content = bytes(size)
        words = np.frombuffer(content + bytes(-size % 4), np.float32)
        return self._given(words).tobytes()[:size] if size else b""

    def _sums(self, own: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """New arrays, one where each of `own` is, with the sum over all of that name."""
        self._init(own)
        sums = {}
        for place, (name, arrays) in enumerate(own.items()):
            # MXNet sends in the background, so it gets arrays that nobody writes to.
            sent = [array.copy() for array in arrays]
            sums[name] = [mx.nd.empty(a.shape, a.context, a.dtype) for a in arrays]
            self._store.push(_key(name, arrays), sent, priority=-place)
            self._store.pull(_key(name, arrays), out=sums[name], priority=-place)
        self._wait(lambda: [total.wait_to_read() for totals in sums.values() for total in totals])
        return sums

    def _init(self, own: Mapping[str, Sequence[Any]]) -> None:
        """Make the server know keys and sizes; all workers' must be the same, or it dies."""
        new = {key: a[0] for name, a in own.items() if (key := _key(name, a)) not in self._keys}
        if not new:
            return
        self.require_same({"the network's arrays": hashlib.sha256("\n".join(new).encode()).hexdigest()[:16]})
        zeros = [mx.nd.zeros(array.shape, dtype=array.dtype) for array in new.values()]
        self._wait(lambda: self._store.init(list(new), zeros))
        self._keys |= new.keys()

    def _given(self, array: np.ndarray) -> np.ndarray:
        """Worker 0's array. As a key's first value it is copied and never added to: any bits will do."""
        key = f"published {self._published}"
        self._published += 1
        own = mx.nd.array(array, dtype=array.dtype)
        given = mx.nd.empty(own.shape, dtype=own.dtype)

        def exchange() -> None:
            self._store.init(key, own)
            self._store.pull(key, out=given)
            given.wait_to_read()

        self._wait(exchange)
        return given.asnumpy()

    def _wait(self, work: Callable[[], Any]) -> None:
        _waited(work, self._link, "the other workers")

    # -- the end ---------------------------------------------------------------------------------

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Part with the other workers; `error` is what this one ends of. Done once, the first counts.

        Without an error it returns when all have ended: workers wait for worker 0, which has more to do. Where
        one is lost meanwhile, that is an error for all but worker 0, whose work is done.
        """
        if self._store is None:
            return
        self._store = None  # the guard still has it: letting go of it waits for all workers
        code = exit_code(error)
        if code:
            if self._link is not None and self._link.lost is None:  # else it follows from what they know
                self._link.stopped(in_words(error))
            self._guard.code = code
            return
        lost = None if self._link is None else self._link.leave()
        if lost is None:
            self._guard.release()
        elif self.rank > 0:
            raise WorkerLostError(lost)
        else:
            self._guard.code = 0
            print(f"note: {lost} after its last step; this run is complete; {END_THE_REST}", file=sys.stderr)


def _waited(work: Callable[[], Any], link: Link | None, whom: str) -> Any:
    """What `work` returns, which blocks within MXNet; meanwhile the link is watched, and Ctrl-C works."""
    changed = threading.Condition() if link is None else link.changed
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            result = work(), None
        except BaseException as error:
            result = None, error
        with changed:
            outcome.append(result)
            changed.notify_all()

    threading.Thread(target=run, daemon=True).start()  # a daemon: at the end nobody waits for it
    began, told = time.monotonic(), False
    with changed:
        while not outcome:
            waited = time.monotonic() - began
            if link is not None and link.lost is not None:
                raise WorkerLostError(link.lost)
            if link is not None and link.left and waited > _GRACE:
                raise WorkerLostError(f"worker {min(link.left)} has ended, this one has more to do")
            if waited > _PATIENCE and not told:
                print(f"waiting for {whom}", file=sys.stderr, flush=True)
                told = True
            changed.wait(1.0)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _key(name: str, arrays: Sequence[Any]) -> str:
    """Of arrays on several devices; a name may come back with another shape in another run."""
    shape = "x".join(map(str, arrays[0].shape))
    return f"{name} {shape} {np.dtype(arrays[0].dtype).name}"
