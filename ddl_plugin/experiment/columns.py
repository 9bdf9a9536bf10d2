"""The names of a study's measures, known before anything has run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.evaluation import identification, verification
from ddl_plugin.settings import RunSettings

SPEED = "images/s"
_OF_SCORES = ("EER", "margin", "intersection")


def size_in_words(size: int | str, gallery_size: int | str = "full", condition: str = "all") -> str:
    """What identification compared, as columns call it: '24 px', '24 px, gallery too', 'full size, frontal'."""
    where = "full size" if size == "full" else f"{size} px"
    where += "" if gallery_size == "full" else ", gallery too"
    return where if condition == "all" else f"{where}, {condition}"


def measured_by(settings: RunSettings) -> list[str]:
    """The columns that a run gives; with a protocol without those of its conditions, which are in its file."""
    verified = ("accuracy", *_tar(verification.FARS), *_OF_SCORES)
    names = [f"{Path(target).stem}: {measure}" for target in settings.val_targets for measure in verified]
    if settings.identification is not None:
        identified = ("rank-1", *_tar(identification.FARS), *_OF_SCORES)
        both = settings.identification.both_sizes
        sizes = [*map(size_in_words, settings.identification.sizes), *map(size_in_words, both, both)]
        names += [f"{where}: {measure}" for where in sizes for measure in identified]
    return [*names, SPEED]


def require_measured(where: str, columns: Iterable[str], runs: Iterable[RunSettings]) -> None:
    """Raise `UserError` for a column that none of `runs` gives, before any of them has trained."""
    runs = list(runs)
    if any(run.identification is not None and run.identification.protocol is not None for run in runs):
        return
    known = list(dict.fromkeys(name for run in runs for name in measured_by(run)))
    for column in columns:
        if column not in known:
            raise UserError(
                f"{where}: expected what the runs measure, got {column!r}{did_you_mean(column, known)}; "
                f"measured: {', '.join(known)}"
            )


def _tar(fars: Iterable[float]) -> list[str]:
    return [f"TAR@FAR={far:g}" for far in fars]
