"""SciPy's interp1d as verification.py uses it, and as it was in all else."""

import numpy as np
import pytest
from scipy import interpolate

from ddl_plugin.host.interpolation import accept_duplicates


@pytest.fixture
def own(monkeypatch):
    """SciPy's interp1d, which is put back at the end."""
    monkeypatch.setattr(interpolate, "interp1d", interpolate._interpolate.interp1d)
    return interpolate.interp1d


def test_equal_abscissae_are_taken_as_a_line(own):
    x, y = [0.0, 0.1, 0.1, 0.5], [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="duplicates"):
        own(x, y, kind="slinear")
    accept_duplicates()
    line = interpolate.interp1d(x, y, kind="slinear")
    assert [float(line(at)) for at in (0.05, 0.3)] == pytest.approx([0.5, 2.5])


def test_all_else_is_scipys(own):
    accept_duplicates()
    once = interpolate.interp1d
    accept_duplicates()
    assert interpolate.interp1d is once
    assert isinstance(once([0, 1], [0, 1]), own)
    y = np.array([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0]])
    for arguments in (([0, 1, 2], y), ([0, 1, 2], y, "quadratic", -1), ([0, 1, 2], y, "slinear")):
        assert np.array_equal(once(*arguments)(1.3), own(*arguments)(1.3))
    with pytest.raises(ValueError, match="duplicates"):
        once([0, 1, 1, 2], [0, 1, 1, 2], kind="quadratic")
