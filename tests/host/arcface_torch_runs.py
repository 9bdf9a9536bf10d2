"""Runs of the host's command on the small PyTorch trainer, each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SMALL = Path(__file__).parent / "small_torch_host"
ALONE = (sys.executable, "-m", "ddl_plugin.host")
TWO = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node=2",
    "-m",
    "ddl_plugin.host",
)


def checkout(folder: Path) -> Path:
    """A copy of the small trainer."""
    return shutil.copytree(SMALL, folder / "small", ignore=shutil.ignore_patterns("__pycache__"))


def write_config(folder: Path, name: str, **keys: object) -> None:
    """configs/NAME.py: small.py with other keys."""
    lines = [f"config.{key} = {value!r}\n" for key, value in keys.items()]
    text = (folder / "configs" / "small.py").read_text()
    (folder / "configs" / f"{name}.py").write_text(text + "".join(lines))


def run(
    folder: Path, name: str, *, command: tuple[str, ...] = ALONE, ours: tuple = ()
) -> subprocess.CompletedProcess:
    """The command with configs/NAME.py, in the folder's parent: outputs lie in work_dirs/NAME there."""
    given = [*command, str(folder), *map(str, ours), "--", f"configs/{name}.py"]
    return subprocess.run(
        given, cwd=folder.parent, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def shown(log: str, name: str) -> list[float]:
    """The values of one term in the trainer's log, in the order of steps."""
    return [float(value) for value in re.findall(rf"\b{name}=(-?[\d.]+|nan)", log)]


def losses(folder: Path, name: str) -> list[float]:
    """The losses that TensorBoard would have got, of every step, to the bit."""
    lines = (folder.parent / "work_dirs" / name / "scalars.txt").read_text().splitlines()
    return [float(line.split()[2]) for line in lines if line.startswith("loss ")]
