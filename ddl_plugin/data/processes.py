"""Batches prepared by worker processes, which write pixels into memory that they share with this one.

A worker is a fresh Python without any framework, so that it starts in a fraction of a second whatever runs here, and
its decoding never waits for Python's lock. The memory is a file without a name, cut into slots of one batch each: it
goes when the last process that has it does, whichever way that ends, and the size of /dev/shm does not matter. Over
the pipes go slot numbers alone. A worker whose pipe closes ends; a pipe that ends here is that of a lost worker.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from typing import BinaryIO

import cv2
import numpy as np

from ddl_plugin.data.batches import Batch, BatchSource, Rows, RowWriter
from ddl_plugin.data.faces import SHAPE
from ddl_plugin.data.records import Places
from ddl_plugin.data.sampler import SampledBatch
from ddl_plugin.errors import CheckError

_NUMBER = struct.Struct("<q")  # of a slot, in a pipe
_BYTES = int(np.prod(SHAPE))  # of an image
# A worker finds our modules where this process does.
_START = "import sys; sys.path[:] = sys.argv[2:]; from ddl_plugin.data.processes import serve; serve(int(sys.argv[1]))"


class ProcessBatches:
    """Batches of `source` in the order of steps `start`, `start` + 1, ... without end, prepared ahead by processes.

    The interface of `ThreadedBatches`, and the same batches. Each of `workers` processes prepares whole batches;
    `workers` + `prefetch` are under way or ready, 37 KiB a row each. Batches are sampled here, and rows of damaged
    records get their other images here.

    What a worker cannot write, this process tries once more: so an error is raised by `next()` as if there were
    no workers. `CheckError` where a worker was lost. Workers have a session of their own: Ctrl-C does not reach them.
    """

    def __init__(self, source: BatchSource, start: int = 0, *, workers: int = 1, prefetch: int = 2):
        if workers < 1 or prefetch < 1:
            raise ValueError(f"workers, prefetch: expected >= 1, got {workers}, {prefetch}")
        self._source = source
        self._start = self._next_step = start
        self._ahead = workers + prefetch
        self._count = source.count_damaged()
        self._memory = _nameless_file()
        self._slots = 0  # made
        self._free: list[_Slot] = []
        self._pending: deque[_Pending] = deque()
        self._workers: list[subprocess.Popen] = []
        self._end = weakref.finalize(self, _kill, self._workers)
        for _ in range(workers):
            self._workers.append(_worker(self._memory, source.writer, source.rows))

    @property
    def damaged(self) -> dict[int, str]:
        """Record number -> what is wrong with it, of those met so far."""
        return self._count.reasons

    def next(self) -> Batch:
        """The batch of the next step."""
        if not self._end.alive:
            raise ValueError("the iterator is closed")
        while len(self._pending) < self._ahead:
            self._submit(self._next_step)
            self._next_step += 1
        pending = self._pending[0]
        pending.wait()
        source, rows, slot = self._source, pending.rows, pending.slot
        if not slot.written.all():
            damaged = source.writer.write(rows, np.flatnonzero(~slot.written).tolist(), slot.pixels)
            rows = source.mend(rows, damaged, slot.pixels, self._count)
        self._pending.popleft()
        pixels = slot.pixels.view()
        weakref.finalize(pixels, self._free.append, slot).atexit = False
        return source.finish(rows, pixels)

    def reset(self) -> None:
        """Go back to the step `start`."""
        for pending in self._pending:
            pending.wait()
            self._free.append(pending.slot)
        self._pending.clear()
        self._next_step = self._start

    def close(self) -> None:
        """End the processes; there are no more batches. May be called twice."""
        self._end()
        self._pending.clear()
        self._free.clear()
        self._memory.close()

    def _submit(self, step: int) -> None:
        rows = self._source.sample(step)
        if not self._free:
            self._free.append(_Slot(self._memory.fileno(), self._slots, self._source.rows, grow=True))
            self._slots += 1
        slot = self._free.pop()
        slot.ask(rows)
        busy = [pending.worker for pending in self._pending if not pending.answered]
        worker = min(self._workers, key=busy.count)
        self._pending.append(_Pending(rows, slot, worker))
        with contextlib.suppress(BrokenPipeError):  # `wait` finds it lost
            worker.stdin.write(_NUMBER.pack(slot.number))
            worker.stdin.flush()


class _Pending:
    """A batch being prepared by `worker`."""

    def __init__(self, rows: Rows, slot: _Slot, worker: subprocess.Popen):
        self.rows = rows
        self.slot = slot
        self.worker = worker
        self.answered = False

    def wait(self) -> None:
        """Until the worker is done with it; a worker answers in the order in which it is asked."""
        if self.answered:
            return
        if len(self.worker.stdout.read(_NUMBER.size)) < _NUMBER.size:
            raise CheckError(
                f"a process that decodes images (process {self.worker.pid}) was lost: {_ending(self.worker)}; "
                "where memory is short, use fewer of them"
            )
        self.answered = True


class _Slot:
    """The part of the shared memory that holds one batch: what is to be in its rows, which are written, and pixels."""

    def __init__(self, memory: int, number: int, rows: int, *, grow: bool = False):
        kind = np.dtype(
            [("step", np.int64), *((name, np.int64, rows) for name in ("keys", "offsets", "rooms", "labels")),
             ("distribution", np.int16, rows), ("mirrored", np.bool_, rows), ("written", np.bool_, rows)]
        )  # fmt: skip
        pixels = -(-kind.itemsize // 64) * 64  # where they start
        page = mmap.ALLOCATIONGRANULARITY
        size = -(-(pixels + rows * _BYTES) // page) * page
        if grow:
            os.ftruncate(memory, (number + 1) * size)
        mapped = mmap.mmap(memory, size, offset=number * size)
        self.number = number
        self._table = np.frombuffer(mapped, kind, 1)[0]
        self.pixels = np.frombuffer(mapped, np.uint8, rows * _BYTES, pixels).reshape(rows, *SHAPE)
        self.written = self._table["written"]  # bool (rows,)

    def ask(self, rows: Rows) -> None:
        """Note what is to be written; nothing is yet."""
        table, places = self._table, rows.places
        table["step"] = rows.step
        for name in ("keys", "offsets", "rooms", "labels"):
            table[name] = getattr(places, name)
        table["distribution"], table["mirrored"] = rows.sampled.distribution, rows.mirrored
        self.written[:] = False

    def write(self, writer: RowWriter) -> None:
        """Do what `ask` noted."""
        table = self._table
        places = Places(table["keys"], table["offsets"], table["rooms"], table["labels"])
        sampled = SampledBatch(np.empty(0, np.int64), table["distribution"])  # no positions: not for workers
        rows = Rows(int(table["step"]), sampled, places, table["mirrored"])
        damaged = writer.write(rows, range(len(self.pixels)), self.pixels)
        self.written[:] = True
        self.written[list(damaged)] = False


def _nameless_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batches"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _worker(memory: BinaryIO, writer: RowWriter, rows: int) -> subprocess.Popen:
    command = [sys.executable, "-c", _START, str(memory.fileno()), *map(str, sys.path)]
    worker = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[memory.fileno()],
        start_new_session=True,
    )
    with contextlib.suppress(BrokenPipeError):  # `_Pending.wait` finds it lost
        pickle.dump((writer, rows), worker.stdin)
        worker.stdin.flush()
    return worker


def _kill(workers: list[subprocess.Popen]) -> None:
    """End workers, which have nothing that could be lost."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.wait()
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
        worker.stdout.close()


def _ending(worker: subprocess.Popen) -> str:
    code = worker.wait()
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def serve(memory: int) -> None:
    """The life of a worker; memory: the descriptor of what is shared."""
    cv2.setNumThreads(0)
    # A scheduler may send it to all processes of a job: the one that trains saves, and ends this one by its pipe.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints is to be taken for an answer
    writer, rows = pickle.load(requests)
    slots: dict[int, _Slot] = {}
    with contextlib.suppress(BrokenPipeError):
        while len(request := requests.read(_NUMBER.size)) == _NUMBER.size:
            (number,) = _NUMBER.unpack(request)
            if number not in slots:
                slots[number] = _Slot(memory, number, rows)
            with contextlib.suppress(Exception):  # whoever asked tries what is not written, and sees why
                slots[number].write(writer)
            os.write(answers, request)
