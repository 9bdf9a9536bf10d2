"""The registries: every entry builds, names are guarded, and the document's own examples run."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddl_plugin import registry
from ddl_plugin.data.pairs import Pairs
from ddl_plugin.data.partition import Distribution, Partition
from ddl_plugin.errors import UserError
from ddl_plugin.loss.terms import term_names
from ddl_plugin.registry import LOSSES, SAMPLERS, get_loss, get_sampler, register_loss, register_sampler
from ddl_plugin.settings import IDENTITY_LOSSES, DDLSettings, Degradation

SETTINGS = DDLSettings(b=3, hard="abs(yaw) > 45", bins=20)
#: What needs batches of whole identities.
ONLINE = DDLSettings(online={"identities": 3, "images": 4, "repeat": True}, bins=20)
DOCUMENT = Path(__file__).parents[1] / "docs" / "LOSS.md"


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "LOSSES", dict(LOSSES))
    monkeypatch.setattr(registry, "SAMPLERS", dict(SAMPLERS))


def some_loss(F, embedding, settings, options):
    return F.mean(embedding), F.mean(embedding), ("mean",)


def some_sampler(labels, partition, pairs, settings, *, rows, devices, seed, options):
    return None


def data():
    """Labels, partition and pairs of 8 identities with 2 images each."""
    labels = np.repeat(np.arange(8, dtype=np.int32), 2)
    positions = np.arange(16)
    first = positions[::2].astype(np.int32)
    partition = Partition(
        tuple(Distribution(name, name, positions, Degradation()) for name in SETTINGS.names)
    )
    return labels, partition, (Pairs(first, first + 1, 8, 0),) * 2


def eager(name, options):
    from ddl_plugin.mxnet_setup import mx

    settings = ONLINE if name == "online_ddl" else SETTINGS
    x = mx.nd.array(np.random.default_rng(0).normal(size=(settings.rows, 4)) + 0.3)
    x.attach_grad()
    entry = get_loss(name)
    label = mx.nd.array(np.arange(settings.rows) % 5)
    with mx.autograd.record():
        given = {"label": label, "losses": mx.nd.sum(x * x, axis=1)}
        needs = {need: given[need] for need in entry.needs}
        loss, terms, names = entry.build(mx.nd, x, settings, entry.resolve(options), **needs)
    loss.backward()
    return loss, terms, names, x.grad.asnumpy()


@pytest.mark.usefixtures("needs_mxnet")
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_builds_what_its_contract_says(name):
    entry = get_loss(name)
    assert entry.name == name
    assert entry.description
    if name in IDENTITY_LOSSES:
        assert entry.build is None
        return
    loss, terms, names, gradient = eager(name, {})
    assert loss.shape == (1,)
    assert terms.shape == (1, len(names))
    assert np.isfinite(gradient).all()
    assert gradient.any()


@pytest.mark.usefixtures("needs_mxnet")
def test_the_built_in_names_are_ddl_its_rivals_and_the_hosts_identity_losses():
    assert set(LOSSES) == {
        "ddl", "online_ddl", "histogram", "semihard_triplet", "ohem", "focal", *IDENTITY_LOSSES,
    }  # fmt: skip
    assert eager("ddl", {})[2] == term_names(SETTINGS)


#: Rows of one device of every sampler: the pairs' follow from the settings, the images' are given.
SAMPLER_ROWS = {"pairs": SETTINGS.rows, "images": 5, "identities": ONLINE.rows}


def build_sampler(name, rows):
    """A sampler of two devices, called as the trainer calls it."""
    entry = get_sampler(name)
    settings = ONLINE if name == "identities" else SETTINGS
    return entry.build(*data(), settings, rows=rows, devices=2, seed=1, options=entry.resolve({}))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_builds_what_its_contract_says(name):
    entry = get_sampler(name)
    assert entry.description
    rows = SAMPLER_ROWS[name]
    built = build_sampler(name, rows)
    assert built.rows == 2 * rows
    assert built.steps_per_epoch >= 1
    assert len(built.batch(3).positions) == built.rows


def test_the_images_sampler_draws_from_its_partition_where_there_is_one():
    labels, partition, pairs = data()
    build = get_sampler("images").build
    own = build(labels, partition, pairs, None, rows=2, devices=1, seed=0, options={})
    everything = build(labels, None, (), None, rows=2, devices=1, seed=0, options={})
    drawn = np.concatenate([own.batch(step).positions for step in range(own.steps_per_epoch)])
    assert set(drawn) <= set(partition.distributions[0].positions)
    assert everything.steps_per_epoch == -(-len(labels) // 2)


def test_unknown_names_are_answered_with_the_nearest_and_the_list():
    with pytest.raises(
        UserError, match=r"loss: expected one of ddl, .*, got 'arcfase'; did you mean 'arcface'"
    ):
        get_loss("arcfase")
    with pytest.raises(
        UserError, match=r"sampler: expected one of pairs, images, identities, got 'pair'.*'pairs'"
    ):
        get_sampler("pair")


@pytest.mark.parametrize(
    "register, get, build",
    [(register_loss, get_loss, some_loss), (register_sampler, get_sampler, some_sampler)],
)
def test_what_is_registered_is_found_with_its_options(register, get, build):
    register("mine", build, description="a test", defaults={"weight": 1.0, "power": 2})
    entry = get("mine")
    assert entry.build is build
    assert entry.resolve({"weight": 0.5}) == {"weight": 0.5, "power": 2}
    with pytest.raises(UserError, match=r"'mine': options: unknown key 'wieght'; did you mean 'weight'"):
        entry.resolve({"wieght": 0.5})
    with pytest.raises(TypeError):
        entry.defaults["weight"] = 2


def test_a_name_is_given_once():
    register_loss("mine", some_loss, description="first")
    register_loss("mine", some_loss, description="first")
    with pytest.raises(UserError, match=r"loss 'mine': expected a new name.*\(first\); choose another"):
        register_loss("mine", lambda *given: None, description="second")
    for name in ("ddl", "arcface"):
        with pytest.raises(UserError, match=f"loss '{name}': expected a new name"):
            register_loss(name, some_loss, description="mine")
    with pytest.raises(UserError, match="sampler 'pairs': expected a new name"):
        register_sampler("pairs", some_sampler, description="mine")


@pytest.mark.parametrize(
    "name, build, message",
    [
        ("my loss", some_loss, "loss name: expected letters, digits and '_', got 'my loss'"),
        ("", some_loss, "loss name: expected"),
        (None, some_loss, "loss name: expected"),
        ("base", some_loss, "loss name: expected none of base, pretraining.*got 'base'"),
        ("pretraining", some_loss, "folders of a run's output, got 'pretraining'; choose another"),
        ("mine", None, "loss 'mine': expected build to be a function, got None"),
        ("mine", "some_loss", "loss 'mine': expected build to be a function, got 'some_loss'"),
    ],
)
def test_bad_registrations_are_named(name, build, message):
    with pytest.raises(UserError, match=message):
        register_loss(name, build, description="a test")


def examples():
    """The document's code blocks, in order: a loss and a sampler."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.S)


def test_the_documents_loss_runs_trains_and_may_be_executed_twice(tmp_path, mx):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(examples()[0])
    runpy.run_path(str(recipe))
    runpy.run_path(str(recipe))
    loss, terms, names, gradient = eager("reverse", {"weight": 0.5})
    assert names == ("reverse",)
    assert loss.asscalar() == pytest.approx(0.5 * terms.asscalar())
    assert 0 < terms.asscalar() < 1
    assert np.isfinite(gradient).all()
    assert gradient.any()

    from ddl_plugin.loss.symbol import training_symbol

    built = training_symbol(
        mx.sym.Variable("data"), num_classes=5, emb_size=4, loss="reverse", settings=SETTINGS
    )
    assert built.term_names == ("reverse",)
    shapes = built.symbol.infer_shape(data=(SETTINGS.rows, 4), softmax_label=(SETTINGS.rows,))[1]
    assert shapes[2:4] == [(1,), (1, 1)]


def test_the_same_name_from_another_recipe_is_refused(tmp_path):
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(examples()[0])
    runpy.run_path(str(tmp_path / "one.py"))
    with pytest.raises(UserError, match="loss 'reverse': expected a new name"):
        runpy.run_path(str(tmp_path / "two.py"))


def test_the_documents_sampler_runs(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(examples()[1])
    runpy.run_path(str(recipe))
    built = build_sampler("one_batch", SETTINGS.rows)
    assert built.steps_per_epoch == 1
    assert built.rows == 2 * SETTINGS.rows
    assert (built.batch(0).positions == built.batch(7).positions).all()


def test_the_document_names_every_field_of_the_loss():
    text = DOCUMENT.read_text()
    for field in (
        "b",
        "hard",
        "lambda_pos",
        "lambda_neg",
        "lambda_order",
        "bins",
        "gamma",
        "distance",
        "neg_mining",
    ):
        assert f"`ddl.{field}`" in text
    for name in ("detach_teacher", "identity_rows", *IDENTITY_LOSSES):
        assert name in text


def test_looking_names_up_imports_no_framework():
    code = (
        "import sys; from ddl_plugin.registry import get_loss; get_loss('ddl');"
        "import ddl_plugin.loss.terms, ddl_plugin.loss.identity, ddl_plugin.loss.reference;"
        "sys.exit('mxnet' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
