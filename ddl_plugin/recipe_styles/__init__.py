"""The config files of two hosts, read as recipes: arcface_mxnet's config.py and arcface_torch's configs.

A style is a module with NAME, `recognised`, `translate`, `complete` and `closing`; docs/RECIPES.md has the
tables of what becomes what. Nothing that a file sets is dropped in silence: a note names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.recipe_styles import arcface_mxnet, arcface_torch
from ddl_plugin.recipe_styles.translation import Translation
from ddl_plugin.settings import RunSettings

_STYLES: tuple[ModuleType, ...] = (arcface_mxnet, arcface_torch)


class HostConfig:
    """A host's config file on its way to settings: translated, then overridden, then completed.

    path: the file; names: what it defines; overrides: KEY=VALUE of the command line, of which those that
    choose an entry of the host's tables are used up here and the others are left in `overrides`.
    """

    def __init__(self, style: ModuleType, path: Path, names: dict[str, Any], overrides: Sequence[str]):
        self._style = style
        self._path = path
        self._translation = Translation()
        try:
            self._translation, self.overrides = style.translate(path, names, overrides)
        except UserError as error:
            raise self.blamed(error) from error

    @property
    def config(self) -> dict[str, Any]:
        """Our keys with the file's values; the overrides are to be set in it."""
        return self._translation.config

    def complete(self) -> None:
        """Fill in what depends on several keys, after the overrides; raises `UserError`."""
        for override in self.overrides:
            self._translation.override(override.partition("=")[0])
        self._style.complete(self._translation)

    def blamed(self, error: UserError) -> UserError:
        """The error with the file, its style, and the name that the wrong key has in the file."""
        key = str(error).partition(":")[0]
        source = self._translation.sources.get(key)
        origin = f" ({key} comes from {source})" if source else ""
        return UserError(f"{self._path} (read as {self._style.NAME}): {error}{origin}")

    def notes(self, settings: RunSettings) -> list[str]:
        """What the user has to know of the translation, one line each, the file first."""
        beside = "" if settings.loss == settings.identity else f" beside {settings.identity!r}"
        read_as = f"read as {self._style.NAME}{self._translation.read_as}: loss {settings.loss!r}{beside}"
        lines = [read_as, *self._translation.notes, *self._style.closing(self._translation, settings)]
        return [f"{self._path}: {line}" for line in lines]


def host_config(path: Path, names: dict[str, Any], overrides: Sequence[str]) -> HostConfig | None:
    """The file as a host's config, or None where what it defines (`names`) is none of theirs."""
    for style in _STYLES:
        if style.recognised(names):
            return HostConfig(style, path, names, overrides)
    return None
