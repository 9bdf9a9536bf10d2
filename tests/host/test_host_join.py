"""`register` on a config module: whose names are asked for, and what happens for losses that are not ours."""

import sys
import types

import pytest
from easydict import EasyDict

from ddl_plugin.errors import UserError
from ddl_plugin.host.join import register


@pytest.fixture
def config(monkeypatch):
    """A config module whose generate_config takes and gives more than InsightFace's."""
    monkeypatch.setattr("ddl_plugin.host.join.accept_duplicates", lambda: None)  # SciPy is other tests' too
    module = types.ModuleType("config")
    module.__file__ = "config.py"
    module.config, module.default = EasyDict(), EasyDict(lr=0.1)
    module.network, module.dataset = {"y1": {}}, {"lfw": {}}
    module.loss = {"arcface": {"loss_s": 64.0}}
    module.calls = []

    def generate_config(net, data, margin_loss="arcface", **more):
        module.calls.append((net, data, margin_loss, more))
        return module.network[net], module.dataset[data], module.loss[margin_loss]

    module.generate_config = generate_config
    return module


def test_another_loss_is_the_trainers_own_whatever_the_call_looks_like(config):
    register(config)
    own = ({}, {}, {"loss_s": 64.0})
    assert config.generate_config("y1", "lfw", "arcface") == own
    assert config.generate_config(data="lfw", net="y1") == own
    assert config.generate_config("y1", "lfw", margin_loss="arcface", debug=True) == own
    assert config.calls == [
        ("y1", "lfw", "arcface", {}),
        ("y1", "lfw", "arcface", {}),
        ("y1", "lfw", "arcface", {"debug": True}),
    ]
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        config.generate_config()


def test_tables_that_the_trainer_does_without_are_no_mistake(config):
    config.generate_config = lambda network, dataset, loss: (network, dataset, loss)
    register(config)
    assert config.generate_config("mine", "mine", "mine") == ("mine", "mine", "mine")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("r50", "lfw", "arcface"), "error: --network: config.py has no network.r50; known: y1"),
        (("y1", "lwf", "arcface"), "error: --dataset: config.py has no dataset.lwf; did you mean 'lfw'?"),
        (("y1", "lfw", "arcfac"), "error: --loss: config.py has no loss.arcfac; did you mean 'arcface'?"),
    ],
)
def test_a_name_that_no_table_has_is_one_line(config, capsys, names, message):
    register(config)
    with pytest.raises(SystemExit) as end:
        config.generate_config(*names)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [message]


def test_other_errors_of_the_trainers_own_are_its_own(config):
    def fails(network, dataset, loss):
        raise KeyError("something else")

    config.generate_config = fails
    register(config)
    with pytest.raises(KeyError, match="something else"):
        config.generate_config("y1", "lfw", "arcface")


def test_registering_twice_is_once(config):
    register(config)
    once = config.generate_config
    register(config)
    assert config.generate_config is once


@pytest.mark.parametrize("missing", ["loss", "generate_config"])
def test_a_module_that_is_not_insightfaces_is_refused(config, missing):
    delattr(config, missing)
    with pytest.raises(UserError, match=f"config.py: looked for '{missing}', as .* at the end of config.py"):
        register(config)


def test_without_a_config_module_it_is_said(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "config", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="expected InsightFace's config"):
        register()
    (tmp_path / "config.py").write_text("import no_such_module_of_the_users")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_the_users"):
        register()
