"""Work shared out to several machines: which part is whose, and how the parts' files are called.

Part i of n (i from 0) of OUTPUT.npz is OUTPUT.i-of-n.npz beside it; the parts together are the whole.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ddl_plugin.errors import UserError

_MOST = 1_000_000  # parts; more is a slip of the keyboard


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of 'i/n', 0 <= i < n. `UserError` for anything else."""
    match = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text.strip(), re.ASCII)
    i, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not i < n <= _MOST:
        raise UserError(
            f"--shard: expected i/n with i from 0 to n - 1, such as 0/4 to 3/4 for 4 machines, got {text!r}"
        )
    return i, n


def shard_range(count: int, i: int, n: int) -> tuple[int, int]:
    """[begin, end) of part `i` of `n` of range(count); sizes differ by one at most, and may be 0."""
    return count * i // n, count * (i + 1) // n


def shard_path(output: str | os.PathLike, i: int, n: int) -> Path:
    """The file of part `i` of `n`: 'pose.npz' -> 'pose.0-of-4.npz'."""
    output = Path(output)
    return output.with_name(f"{output.stem}.{i}-of-{n}{output.suffix}")


def shard_paths(output: str | os.PathLike) -> list[Path]:
    """The files of all parts of `output`, in order.

    `UserError` where there are none, where some of n are missing (it names them), and where there are parts of
    several n, of which only the user knows which are meant.
    """
    output = Path(output)
    pattern = re.compile(
        re.escape(output.stem) + r"\.(\d{1,7})-of-(\d{1,7})" + re.escape(output.suffix), re.ASCII
    )
    siblings = output.parent.iterdir() if output.parent.is_dir() else ()
    found = {(int(match[2]), int(match[1])) for path in siblings if (match := pattern.fullmatch(path.name))}
    counts = sorted({n for n, _ in found})
    if len(counts) != 1:
        got = "none" if not counts else f"parts of {' and of '.join(map(str, counts))}"
        remedy = "delete those that are not meant" if counts else "make them with --shard 0/n, 1/n, ..."
        raise UserError(
            f"--merge: expected the parts {shard_path(output, 0, 4).name}, ... in {output.parent}, "
            f"got {got}; {remedy}"
        )
    n = counts[0]
    missing = [i for i in range(n) if (n, i) not in found]
    if missing:
        shown = ", ".join(f"{i}/{n}" for i in missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise UserError(
            f"--merge: expected {n} parts of {output}, got {n - len(missing)}; make those missing with "
            f"--shard {shown}, or copy them here"
        )
    return [shard_path(output, i, n) for i in range(n)]
