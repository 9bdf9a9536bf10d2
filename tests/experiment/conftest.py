"""A small study on a drawn data set and a base model with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ddl_plugin.data.synthetic import generate


@pytest.fixture(scope="session")
def study_data(tmp_path_factory, save_new_model) -> tuple[Path, str]:
    """The folder of 8 identities with 8 images, and 'PREFIX,EPOCH' of a small network."""
    folder = tmp_path_factory.mktemp("study")
    generate(folder / "synthetic", identities=8, images=8, processes=1, progress=False)
    return folder / "synthetic", save_new_model(folder / "tiny")


@pytest.fixture
def write_study(tmp_path, study_data, backend) -> Callable[..., Path]:
    """write_study(text): mine.py with the recipe `small` of 2 steps beside it, and `study` changed by `text`."""
    data, base = study_data
    recipe = f"""config = dict(
    dataset_path={str(data)!r}, attributes="attributes.npz", pretrained={base!r}, max_steps=2, loss_s=16.0,
    backend={backend!r},
    ddl=dict(b=3, easy="abs(yaw) < 20", hard=["abs(yaw) > 30"]), val_targets=["hard"],
)
"""

    def write(text: str = "") -> Path:
        (tmp_path / "small.py").write_text(recipe)
        path = tmp_path / "mine.py"
        path.write_text(
            "study = dict(title='A study', recipe='small.py', rows=[\n"
            "    dict(name='ArcFace', set={'loss': 'arcface'}),\n"
            "    dict(name='DDL', set={'ddl.lambda_order': 0.25}, paper={'hard: accuracy': 86.3}),\n"
            f"])\n{text}\n"
        )
        return path

    return write
