"""Both backends from one checkpoint on the same batches: what 20 steps leave between them is float32 rounding."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddl_plugin.backbone.checkpoint import load_backbone as load_of_mxnet
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.pytorch.checkpoint import fingerprint, load_backbone
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.training.mxnet_backend import fingerprint as fingerprint_of_mxnet
from ddl_plugin.training.trainer import Trainer

STEPS = 20


@pytest.fixture
def trained(settings_of, dataset_of, base_checkpoint, fc7, tmp_path):
    """trained(name, backend) -> (arrays after 20 steps, the log)."""

    def run(name, backend):
        settings = settings_of(
            backend=backend, max_steps=STEPS, lr_steps=(10,), lr=2e-6, mom=0.9, wd=5e-4, ddl={"b": 2}
        )
        backbone = (load_backbone if backend == "torch" else load_of_mxnet)(base_checkpoint)
        device = torch.device("cpu") if backend == "torch" else mx.cpu()
        after = Trainer(
            settings, backbone, fc7, dataset_of(settings), [device], tmp_path / name, None, False
        ).run()
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return {**after.arg, **after.aux, "fc7_weight": after.fc7}, log

    return run


def apart(one, other, start):
    """The distance of two runs' arrays relative to the way that the arrays have gone."""
    way = sum(float(np.square(other[n] - start[n], dtype=np.float64).sum()) for n in start)
    between = sum(float(np.square(one[n] - other[n], dtype=np.float64).sum()) for n in start)
    return np.sqrt(between / way)


def test_a_checkpoint_is_the_same_to_both(base_checkpoint):
    assert fingerprint(load_backbone(base_checkpoint)) == fingerprint_of_mxnet(load_of_mxnet(base_checkpoint))


def test_twenty_steps_differ_by_rounding(trained, base_checkpoint, fc7):
    """At a low learning rate, with which rounding does not grow from step to step; what is left are single values
    that rounding moved over the kink of a PReLU (one step without such a value: 1e-5)."""
    ours, our_log = trained("torch", "torch")
    theirs, their_log = trained("mxnet", "mxnet")
    given = load_backbone(base_checkpoint)
    assert apart(ours, theirs, {**given.arg, "fc7_weight": fc7}) < 0.01
    assert apart(ours, theirs, given.aux) < 0.01
    assert [row["lr"] for row in our_log] == [row["lr"] for row in their_log]
    assert all(set(one) == set(same) for one, same in zip(our_log, their_log, strict=True))
    # Of two pairs the histograms are narrow, and their divergences steep: those are compared at the first step alone.
    steady = [n for n in their_log[0] if n.startswith(("ce_loss", "order", "mean_", "margin_"))]
    assert len(steady) == 8
    for one, same in zip(our_log, their_log, strict=True):
        assert {n: one[n] for n in steady} == pytest.approx({n: same[n] for n in steady}, rel=5e-3, abs=5e-3)
    first = [*steady, "ddl", "kl_pos", "kl_neg"]
    assert {n: our_log[0][n] for n in first} == pytest.approx({n: their_log[0][n] for n in first}, rel=1e-3)
