"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
_LOOKED_AT = (os.environ.get("DDL_PLUGIN_TEST_DATA"), _HERE.parents[1] / "shared" / "data")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with lfw112_dev/ (LFW in RecordIO), y1_ms1m/ (InsightFace's MobileFaceNet), pose_fsanet/."""
    for folder in filter(None, _LOOKED_AT):
        if (Path(folder) / "lfw112_dev" / "train.rec").is_file():
            return Path(folder)
    pytest.skip("real data not there: set DDL_PLUGIN_TEST_DATA to a folder with lfw112_dev/ and y1_ms1m/")
