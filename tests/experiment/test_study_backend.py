"""`--backend`: what trains a study's rows trains their base model too."""

import dataclasses

from ddl_plugin.experiment.runs import base_run, planned
from ddl_plugin.experiment.study import load_study


def test_rows_and_base_model_are_trained_by_the_same_backend(tmp_path):
    study = load_study("ablation_demo")
    study = dataclasses.replace(study, common={**study.common, "backend": "torch", "amp": "bf16"})
    base = base_run(study, tmp_path)
    runs = planned(study, study.rows, tmp_path, base)
    for run in (base, *runs):
        assert (run.settings.backend, run.settings.amp) == ("torch", "bf16")
    assert "backend=torch" in base.overrides
    assert "amp=bf16" in base.overrides
    assert "backend='torch'" in runs[0].overrides


def test_a_base_model_of_the_usual_backend_is_called_as_before(tmp_path):
    base = base_run(load_study("ablation_demo"), tmp_path)
    assert base.overrides[1:] == ("seed=0",)
