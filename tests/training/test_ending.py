"""Exit codes of a worker, and the interpreter's end without MXNet's."""

import subprocess
import sys

import pytest

GUARDED = """
import atexit, sys
from ddl_plugin.training.ending import Guard
guard = Guard()
guard.arm()
atexit.register(print, "before")
print("not flushed", end="")
guard.code = 7
{}
"""


@pytest.mark.parametrize(
    ("line", "code"), [("", 7), ("guard.release()", 0), ("guard.code = 0", 0), ("raise ValueError", 7)]
)
def test_the_interpreter_ends_without_mxnets_ending(line, code):
    done = subprocess.run([sys.executable, "-c", GUARDED.format(line)], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout == "not flushedbefore\n"
