"""The names of a study's measures, known before anything has run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.evaluation import identification, verification
from ddl_plugin.settings import RunSettings

SPEED = "images/s"
_OF_SCORES = ("EER", "margin", "intersection")


def measured_by(settings: RunSettings) -> list[str]:
    """The columns that a run gives; with a protocol without those of its conditions, which are in its file."""
    verified = ("accuracy", *_tar(verification.FARS), *_OF_SCORES)
    names = [f"{Path(target).stem}: {measure}" for target in settings.val_targets for measure in verified]
    if settings.identification is not None:
        identified = ("rank-1", *_tar(identification.FARS), *_OF_SCORES)
        both = settings.identification.both_sizes
        words = identification.size_in_words
        sizes = [*map(words, settings.identification.sizes), *map(words, both, both)]
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
