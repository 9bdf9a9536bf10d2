"""The files of a data set, which no output of a command may replace."""

from __future__ import annotations

import os
from pathlib import Path


def record_files(path: str | os.PathLike) -> list[Path]:
    """What belongs to the .rec `path`, or to the train.rec of the folder `path`."""
    path = Path(path)
    rec = path / "train.rec" if path.is_dir() else path
    names = rec.with_name(f"{rec.stem}_names.txt")
    return [rec, rec.with_suffix(".idx"), rec.with_name("property"), names]
