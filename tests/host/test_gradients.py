"""The gradient of the loss that reaches the network in both trainers is that of the NumPy reference.

What the loss adds is the difference of two runs on the same batch, with and without its weights.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin.loss.reference import ddl_gradient
from ddl_plugin.settings import DDLSettings

PROBE = Path(__file__).parent / "probe.py"
DEVICES, EPSILON = 2, 2e-5
SETTINGS = DDLSettings(b=3, hard=({"darken": (0.2, 0.5)},), lambda_pos=0.3, gamma=20.0)
ROWS = SETTINGS.rows


@pytest.fixture
def first_step(run_python, small_host, tmp_path):
    """first_step(trainer, scope, weight): the module before its first update, all of DDL's weights times `weight`."""

    def run(trainer: str, scope: str, weight: float) -> dict[str, np.ndarray]:
        weights = (weight * SETTINGS.lambda_pos, weight * SETTINGS.lambda_neg, weight * SETTINGS.lambda_order)
        with (small_host / "config.py").open("a") as file:
            file.write(f"loss.ddl.lambda_pos, loss.ddl.lambda_neg, loss.ddl.lambda_order = {weights}\n")
            file.write(f"loss.ddl.scope = {scope!r}\n")
        out = tmp_path / f"{trainer}-{weight}.npz"
        done = run_python(
            PROBE, out, small_host, "--trainer", trainer, "--devices", "cpu:0,1", "--", "--loss", "ddl"
        )
        assert done.returncode == 0, done.stderr
        return dict(np.load(out))

    return run


def expected_by_embedding(embeddings: np.ndarray, scope: str) -> np.ndarray:
    """dL/dE in float64, (devices * rows, D)."""
    if scope == "device":
        blocks = embeddings.reshape(DEVICES, ROWS, -1)
        return np.concatenate([ddl_gradient(block, SETTINGS) for block in blocks]) / DEVICES
    b = SETTINGS.b
    order = [
        device * ROWS + 3 * b * k + part * b + i
        for k in range(2) for part in range(3) for device in range(DEVICES) for i in range(b)
    ]  # fmt: skip
    gradient = np.empty(embeddings.shape)
    gradient[order] = ddl_gradient(embeddings[order], dataclasses.replace(SETTINGS, b=DEVICES * b))
    return gradient


def through_last_layer(by_embedding: np.ndarray, features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Gradient by `pre_fc1_weight`, through BatchNorm over the device's rows (gamma 1)."""
    z = features.astype(np.float64) @ weight.T.astype(np.float64)
    deviation = np.sqrt(z.var(axis=0) + EPSILON)
    unit = (z - z.mean(axis=0)) / deviation
    by_z = (by_embedding - by_embedding.mean(axis=0) - unit * (by_embedding * unit).mean(axis=0)) / deviation
    return by_z.T @ features


@pytest.mark.parametrize("scope", ["device", "global"])
@pytest.mark.parametrize("trainer", ["train.py", "train_parall.py"])
def test_what_reaches_the_network_is_the_references_gradient(first_step, trainer, scope):
    with_loss, without = first_step(trainer, scope, 1.0), first_step(trainer, scope, 0.0)
    embeddings = np.concatenate([with_loss[f"{d}.embedding"] for d in range(DEVICES)])
    assert embeddings.shape == (DEVICES * ROWS, 16)
    by_embedding = expected_by_embedding(embeddings.astype(np.float64), scope)
    rescale = float(with_loss["rescale_grad"])
    for device in range(DEVICES):
        for name in (f"{device}.data", f"{device}.pre_fc1_weight", f"{device}.embedding"):
            assert np.array_equal(with_loss[name], without[name])
        own = by_embedding[device * ROWS : (device + 1) * ROWS]

        def added(name, device=device):
            key = f"{device}.grad.{name}"
            return rescale * (with_loss[key].astype(np.float64) - without[key])

        scale = np.abs(own.sum(axis=0)).max()
        assert added("fc1_beta") == pytest.approx(own.sum(axis=0), rel=1e-3, abs=1e-3 * scale)
        expected = through_last_layer(
            own, with_loss[f"{device}.features"], with_loss[f"{device}.pre_fc1_weight"]
        )
        scale = np.abs(expected).max()
        assert scale > 1e-4
        assert added("pre_fc1_weight") == pytest.approx(expected, rel=2e-3, abs=2e-3 * scale)


@pytest.mark.parametrize("trainer", ["train.py", "train_parall.py"])
def test_optimisers_scale_as_the_contract_says(first_step, trainer):
    expected = {"train.py": 1 / DEVICES, "train_parall.py": 1 / (DEVICES * ROWS)}[trainer]
    assert first_step(trainer, "device", 1.0)["rescale_grad"] == pytest.approx(expected)
