"""What a host's batch size has to be for our batches, and the b that it means."""

from __future__ import annotations

import dataclasses

from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings


def fitted(ddl: DDLSettings, size: int, *, b_written: bool, size_name: str, b_name: str) -> DDLSettings:
    """The settings of a batch of `size` images a device; b follows it where none was written.

    size_name, b_name: what the host's user calls the two, for messages.

    Raises `UserError` with the nearest valid sizes where it is not 3b(K+1).
    """
    group, students = 3 * ddl.distributions, ddl.distributions - len(ddl.teams)
    if b_written:
        if size != ddl.rows:
            raise UserError(
                f"{size_name}: expected {ddl.rows_in_words} = {ddl.rows} for b = {ddl.b}, K = {students}, "
                f"got {size}; give {size_name} {ddl.rows}, or set {b_name}: {_nearest(size, group)}"
            )
        return ddl
    if size % group or size < 2 * group:
        raise UserError(
            f"{size_name}: expected {ddl.rows_in_words}, a multiple of {group} for K = {students}, "
            f"got {size}; give {_nearest(size, group)}"
        )
    return dataclasses.replace(ddl, b=size // group)


def _nearest(size: int, group: int) -> str:
    """'96 (b = 16) or 102 (b = 17)'."""
    below = max(2, size // group)
    choices = (below,) if size <= 2 * group or size % group == 0 else (below, below + 1)
    return " or ".join(f"{b * group} (b = {b})" for b in choices)
