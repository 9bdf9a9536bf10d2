"""Processes that share work out: order, what they raise, and how they end."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.ingest.workers import in_order


class Slow:
    """Squares; odd jobs take longer, so that later ones are done before them."""

    def __init__(self, offset):
        self._offset = offset

    def __call__(self, job):
        time.sleep(0.02 * (job % 2))
        return job * job + self._offset, os.getpid()


class Broken:
    def __call__(self, job):
        if job == "user":
            raise UserError("said by a worker")
        if job == "bug":
            raise ValueError(lambda: "cannot be pickled")
        if job == "die":
            os._exit(1)
        return job


class Large:
    def __call__(self, job):
        return bytes(job)


class Limited:
    """Decodes a PNG; more pixels than the limit are OpenCV's error."""

    def __call__(self, data):
        import cv2

        try:
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape
        except cv2.error as error:
            return "CV_IO_MAX_IMAGE_PIXELS" in str(error)


def test_results_come_in_the_order_of_the_jobs():
    results = list(in_order(Slow, (5,), iter(range(23)), 3))
    assert [value for value, _ in results] == [i * i + 5 for i in range(23)]
    processes = {process for _, process in results}
    assert len(processes) == 3 and os.getpid() not in processes


def test_no_jobs():
    assert list(in_order(Slow, (0,), [], 0)) == []


def test_results_larger_than_a_pipe_do_not_block():
    sizes = [1 << 20] * 12
    assert [len(result) for result in in_order(Large, (), sizes, 2)] == sizes


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ("user", UserError, r"^said by a worker$"),
        ("bug", RuntimeError, r"raise ValueError\(lambda"),
        ("die", UserError, r"a worker process died, .*; free some or use fewer --workers, and run the same"),
    ],
)
def test_what_a_worker_raises_is_raised_here(job, error, message):
    with pytest.raises(error, match=message):
        list(in_order(Broken, (), [1, 2, 3, job, *[4] * 50], 2))


def test_what_a_worker_said_before_it_was_gone_is_not_lost():
    def jobs():
        yield from (1, "user")
        time.sleep(2)  # the worker has ended when it is given more
        yield from [3] * 10

    with pytest.raises(UserError, match=r"^said by a worker$"):
        list(in_order(Broken, (), jobs(), 1))


def test_an_image_of_too_many_pixels_is_not_decoded():
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(side):
        rows = zlib.compress(bytes((side * 3 + 1) * 2))
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    assert "OPENCV_IO_MAX_IMAGE_PIXELS" not in os.environ
    assert list(in_order(Limited, (), [png(2), png(12000)], 1)) == [(2, 2, 3), True]
    assert "OPENCV_IO_MAX_IMAGE_PIXELS" not in os.environ


def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
        import os, time
        from ddl_plugin.ingest.workers import in_order

        class Pids:
            def __call__(self, job):
                return os.getpid()

        if __name__ == "__main__":
            results = in_order(Pids, (), range(1000000), 2)
            print(next(results), next(results), flush=True)
            time.sleep(60)
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive a killed parent"
        time.sleep(0.05)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
