"""A base model of PyTorch, and runs of the command that several tests look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from small_runs import (  # noqa: F401 - fixtures
    EMBEDDING,
    dataset_of,
    fc7,
    settings_of,
    small_synthetic,
    train_command,
    train_in_background,
    write_recipe,
)

if TYPE_CHECKING:
    from ddl_plugin.pytorch.checkpoint import Backbone


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    from ddl_plugin.pytorch.checkpoint import new_backbone

    return new_backbone("tiny", EMBEDDING, seed=1)


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory, backbone) -> str:
    """'PREFIX,EPOCH' of `backbone`."""
    from ddl_plugin.pytorch.checkpoint import save_backbone

    prefix = tmp_path_factory.mktemp("base") / "tiny"
    save_backbone(prefix, 0, backbone)
    return f"{prefix},0"
