"""Work shared out to processes: many jobs, their results in the order of the jobs, whatever the number of workers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import cv2

from ddl_plugin.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

#: Pixels of an image that a worker decodes: a hostile header must not take all memory. OpenCV's own limit is 2^30.
MAX_PIXELS = 1 << 27
_PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"  # read when cv2 is loaded
_AHEAD = 2  # jobs given to a worker before its first result is taken


def number_of_workers(asked: int | None) -> int:
    """What `--workers` says, else the CPUs that this process may use. Raises UserError."""
    if asked is not None and asked < 1:
        raise UserError(f"--workers: expected a whole number >= 1, got {asked}")
    return len(os.sched_getaffinity(0)) if asked is None else asked


def in_order(
    make: Callable[..., Callable[[Job], Result]], arguments: tuple, jobs: Iterable[Job], workers: int
) -> Iterator[Result]:
    """`make(*arguments)(job)` for each job, in their order, computed by `workers` processes.

    Each process calls `make` once. `make`, `arguments` and results must be picklable; a job must be small (it is
    sent while results may be waiting, and 64 KB is what a pipe holds). At most two jobs and their results per
    worker exist at a time. What a worker raises is raised here. A worker that dies is a UserError; when this
    process dies, so do they.
    """
    with _started(make, arguments, workers) as connections:
        waiting: deque = deque()
        for number, job in enumerate(jobs):
            if len(waiting) == _AHEAD * len(connections):
                yield _result(waiting.popleft())
            connection = connections[number % len(connections)]
            _send(connection, job)
            waiting.append(connection)
        while waiting:
            yield _result(waiting.popleft())


@contextmanager
def _started(make: Callable, arguments: tuple, workers: int) -> Iterator[list]:
    # Not forked: OpenCV and ONNX Runtime have threads, which a fork would leave behind in any state.
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    try:
        with _pixel_limit():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
                process.start()
                theirs.close()
                connections.append(ours)
                processes.append(process)
        yield connections
    finally:
        for connection in connections:
            connection.close()  # at which a worker ends
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():  # within a long job
                process.terminate()
                process.join()


@contextmanager
def _pixel_limit() -> Iterator[None]:
    before = os.environ.get(_PIXELS_VARIABLE)
    os.environ[_PIXELS_VARIABLE] = str(MAX_PIXELS)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PIXELS_VARIABLE]
        else:
            os.environ[_PIXELS_VARIABLE] = before


def _send(connection, job) -> None:
    try:
        connection.send(job)
    except OSError:  # the worker is gone; it may have said why, after its last results
        while True:
            _result(connection)


def _result(connection):
    try:
        good, result = connection.recv()
    except (EOFError, OSError) as error:
        raise _lost() from error
    if not good:
        raise result
    return result


def _lost() -> UserError:
    return UserError(
        "a worker process died, perhaps of a lack of memory; free some or use fewer --workers, and run the same "
        "command again"
    )


def _serve(connection, make: Callable, arguments: tuple) -> None:
    """A worker's life; it ends when the other end of its pipe is closed, be it by a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent decides
    cv2.setNumThreads(1)
    try:
        work = make(*arguments)
        while True:
            connection.send((True, work(connection.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        connection.send((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """`error` if it survives pickling, else its traceback as text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error
