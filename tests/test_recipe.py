"""Recipe files: what they may hold, overrides, and every mistake named with its place."""

import ast
import json
import re

import pytest

from ddl_plugin import registry
from ddl_plugin.errors import UserError
from ddl_plugin.recipe import describe, find_recipe, load_recipe, resolve, shipped_recipes
from ddl_plugin.registry import LOSSES, SAMPLERS, register_loss, register_sampler
from ddl_plugin.settings import DDLSettings, IdentificationSettings

HEAD = """\
from easydict import EasyDict

config = EasyDict()
config.dataset_path = "faces"
config.pretrained = "model,0"
config.ddl = EasyDict(b=4, hard=["abs(yaw) > 45"])
"""
CONFIG = {"dataset_path": "faces", "pretrained": "model,0", "ddl": {"b": 4, "hard": ["abs(yaw) > 45"]}}


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test registers is gone after it."""
    for name, entries in (("LOSSES", LOSSES), ("SAMPLERS", SAMPLERS)):
        own = dict(entries)
        monkeypatch.setattr(registry, name, own)
        monkeypatch.setattr(f"ddl_plugin.recipe.{name}", own)


@pytest.fixture
def recipe(tmp_path):
    """recipe(lines, *overrides): the settings of a recipe that ends in these lines."""

    def load(lines="", *overrides, head=HEAD):
        path = tmp_path / "mine.py"
        path.write_text(head + lines)
        return load_recipe(str(path), overrides)

    return load


def build(*given, **options):
    raise AssertionError("nothing is built when a recipe is read")


def test_a_recipe_is_its_keys_over_the_defaults(recipe):
    settings = recipe(
        "config.lr = 0.01\nconfig.identification = EasyDict(rec='v.rec', sizes=['full', 24], both_sizes=14)"
    )
    assert (settings.dataset_path, settings.pretrained, settings.lr, settings.wd) == (
        "faces",
        "model,0",
        0.01,
        5e-4,
    )
    assert settings.ddl == DDLSettings(b=4, hard=("abs(yaw) > 45",))
    assert settings.identification == IdentificationSettings("v.rec", None, ("full", 24), (14,))


def test_easydicts_own_types_are_plain_again(recipe):
    settings = recipe(
        "config.ddl.hard = [{'size': (22, 26)}, {'size': [12, 16], 'rule': 'yaw > 3'}]\n"
        "config.rename = {'fc1_weight': 'pre_fc1_weight'}\nconfig.val_targets = ['lfw']"
    )
    first, second = settings.ddl.hard
    assert (first.degradation.size, second.degradation.size) == ((22, 26), (12, 16))
    assert (first.rule, second.rule) == (None, "yaw > 3")
    assert type(settings.rename) is dict
    assert type(settings.val_targets) is tuple


def test_the_options_of_a_loss_are_plain_too(recipe):
    register_loss("mine", build, description="a test", defaults={"parts": (), "table": None})
    options = recipe(
        "config.loss = 'mine'\nconfig.mine = EasyDict(parts=[{'w': [1]}], table={'a': {'b': 1}})"
    )
    assert options.loss_options == {"parts": ({"w": (1,)},), "table": {"a": {"b": 1}}}
    assert type(options.loss_options["parts"][0]) is dict
    assert type(options.loss_options["table"]["a"]) is dict


def test_numpys_numbers_and_paths_are_plain_too(recipe):
    settings = recipe(
        "import numpy as np\nfrom pathlib import Path\nconfig.lr = np.float64(0.25)\n"
        "config.seed = np.int64(7)\nconfig.dataset_path = Path('a') / 'b'"
    )
    assert (settings.lr, settings.seed, settings.dataset_path) == (0.25, 7, "a/b")
    assert type(settings.lr) is float
    assert type(settings.seed) is int
    json.dumps(describe(settings))


def test_a_plain_dict_will_do(recipe):
    assert recipe(head=f"config = {CONFIG}\n").ddl.b == 4


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("config.max_step = 5", "config: unknown key 'max_step'; did you mean 'max_steps'?"),
        (
            "config.learning_speed = 5",
            "config: unknown key 'learning_speed'; known: amp, arcface, attributes, ",
        ),
        ("config.loss_options = {}", "config: unknown key 'loss_options'"),
        (
            "config.ddl.lamda_order = 1",
            "config.ddl: unknown key 'lamda_order'; did you mean 'lambda_order'?",
        ),
        ("config.ddl.hard = [{'sise': 14}]", "ddl.hard: unknown key 'sise'; did you mean 'size'?"),
        (
            "config.identification = {'rek': 'v.rec'}",
            "config.identification: unknown key 'rek'; did you mean",
        ),
        (
            "config.identification = 'v.rec'",
            "identification: expected a dict of rec, protocol, sizes, both_sizes, probes, got 'v.rec'",
        ),
        (
            "config.identification = {'both_sizes': ['full']}",
            "identification.both_sizes: expected pixels within 4..112, got 'full'",
        ),
        (
            "config.identification = {'both_sizes': {}}",
            "both_sizes: expected a list such as [24, 14], got {}",
        ),
        ("config.ddl = 4", "ddl: expected a dict of b, easy, hard, lambda_pos"),
        ("config.ddl = {'b': 4}", "ddl.hard: expected K >= 1 hard distributions"),
        ("config.loss = 'dll'", "loss: expected one of ddl, softmax, "),
        ("config.loss = ['ddl']", "loss: expected a name such as 'ddl' or 'arcface', got ['ddl']"),
        ("config.sampler = 'pair'", "got 'pair'; did you mean 'pairs'?"),
        (
            "config.sampler = ['pairs']",
            "sampler: expected a name such as 'pairs' or 'images', got ['pairs']",
        ),
        (
            "config.images = {'rule': 'yaw > 3'}",
            "config: options of 'images', but loss is 'ddl' and sampler 'pairs'",
        ),
        ("config.arcface = {'m': 1}", "config: options of 'arcface', but loss is 'ddl' and sampler 'pairs'"),
        (
            "config.loss = 'arcface'\nconfig.arcface = {'m': 1}",
            "loss 'arcface': options: unknown key 'm'; known: none",
        ),
        (
            "config.loss, config.sampler, config.images = 'arcface', 'images', 5",
            "images: expected a dict of its options, got 5",
        ),
        ("config.per_batch_size = 25", "per_batch_size: expected 3b(K+1) = 24 for b = 4, K = 1, got 25"),
        ("config.val_targets = [{'a': 1}]", "val_targets: expected names of .bin sets"),
    ],
)
def test_mistakes_name_the_recipe_and_the_key(recipe, tmp_path, lines, message):
    with pytest.raises(UserError) as error:
        recipe(lines)
    assert str(error.value).startswith(f"{tmp_path / 'mine.py'}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "mine.py: config: expected an EasyDict named `config` in the recipe, got 'NoneType'"),
        ("config = [1]\n", "mine.py: config: expected an EasyDict named `config` in the recipe, got 'list'"),
        ("a = 1\nb = = 2\n", "mine.py, line 2: SyntaxError: invalid syntax"),
        ("a = 1\n\nb = 1 / 0\n", "mine.py, line 3: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')\n", "mine.py, line 2: JSONDecodeError: "),
        ("import nonesuch\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nonesuch'"),
        ("\nraise SystemExit(0)\n", "mine.py, line 2: SystemExit: 0"),
        ("def f():\n    raise KeyError('x')\n\n\nf()\n", "mine.py, line 2: KeyError: 'x'"),
        (
            "from ddl_plugin.registry import register_loss\nregister_loss('a b', len, description='x')\n",
            "mine.py: loss name: expected letters",
        ),
    ],
)
def test_what_fails_while_a_recipe_is_executed(recipe, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        recipe(head=text)


def test_a_syntax_error_elsewhere_has_the_line_of_its_import(recipe, tmp_path, monkeypatch):
    (tmp_path / "broken_part.py").write_text("\n\n\n\n= 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"mine\.py, line 2: SyntaxError: .*broken_part\.py, line 5"):
        recipe(head="\nimport broken_part\n")


def test_overrides_nest_and_are_literals_or_text(recipe):
    settings = recipe(
        "config.ddl.bins = 50", "ddl.lambda_order=0.4", "max_steps=7", "baseline=True", "pretrained=a b=c,0",
        "ddl.hard=['yaw > 1', {'size': (12, 16)}]", "identification.rec=v.rec", "lr_steps=3,5",
        "val_targets=lfw", "rename.fc1_weight=pre_fc1_weight",
    )  # fmt: skip
    assert (settings.ddl.lambda_order, settings.ddl.bins, settings.ddl.b) == (0.4, 50, 4)
    assert [h.label for h in settings.ddl.hard] == ["yaw > 1", "size 12-16"]
    assert (settings.max_steps, settings.baseline, settings.pretrained) == (7, True, "a b=c,0")
    assert (settings.identification.rec, settings.lr_steps) == ("v.rec", (3, 5))
    assert (settings.val_targets, settings.rename) == (("lfw",), {"fc1_weight": "pre_fc1_weight"})


def test_the_last_of_two_overrides_holds(recipe):
    assert recipe("", "lr=1", "lr=2").lr == 2


def test_an_override_leaves_the_recipes_own_dict_alone():
    options = {"b": 4, "hard": ["yaw > 1"]}
    config = {**CONFIG, "ddl": options}
    from ddl_plugin.recipe import _override

    _override(config, "ddl.b=8")
    assert (config["ddl"]["b"], options["b"]) == (8, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "override: expected KEY=VALUE such as ddl.lambda_order=0.4, got 'lr'"),
        ("=3", "override: expected KEY=VALUE such as ddl.lambda_order=0.4, got '=3'"),
        ("pretrained.x=3", "override pretrained.x: expected pretrained to be a dict, got 'model,0'"),
        ("ddl.lamda_order=1", "mine.py: config.ddl: unknown key 'lamda_order'; did you mean 'lambda_order'?"),
        ("max_step=1", "mine.py: config: unknown key 'max_step'; did you mean 'max_steps'?"),
        ("lr=0.1*2", "mine.py: lr: expected a number >= 0, got '0.1*2'"),
        ("ddl.hard=[]", "mine.py: ddl.hard: expected K >= 1 hard distributions"),
    ],
)
def test_mistakes_in_overrides(recipe, override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        recipe("", override)


def test_options_of_a_registered_loss_and_sampler_stand_under_their_names():
    register_loss("mine", build, description="a test", defaults={"weight": 1.0, "power": 2})
    register_sampler("own", build, description="a test", defaults={"first": 0})
    config = {**CONFIG, "loss": "mine", "sampler": "own", "mine": {"weight": 0.5}, "own": {"first": 3}}
    settings = resolve(config)
    assert settings.loss_options == {"weight": 0.5, "power": 2}
    assert settings.sampler_options == {"first": 3}
    assert resolve({**CONFIG, "loss": "mine"}).loss_options == {"weight": 1.0, "power": 2}
    with pytest.raises(UserError, match=r"loss 'mine': options: unknown key 'wieght'; did you mean 'weight'"):
        resolve({**config, "mine": {"wieght": 0.5}})
    with pytest.raises(UserError, match=r"sampler 'own': options: unknown key 'frist'; did you mean 'first'"):
        resolve({**config, "own": {"frist": 0.5}})
    with pytest.raises(UserError, match="options of 'mine', but loss is 'ddl' and sampler 'pairs'"):
        resolve({**CONFIG, "mine": {"weight": 0.5}})


def test_the_options_of_plain_images():
    config = {"dataset_path": "faces", "pretrained": "m,0", "loss": "arcface", "sampler": "images"}
    config.update(per_batch_size=4, images={"rule": "yaw > 3"})
    assert resolve(config).sampler_options == {"rule": "yaw > 3"}
    assert resolve(config).ddl is None


def test_resolving_leaves_the_config_alone():
    config = {**CONFIG, "ddl": dict(CONFIG["ddl"])}
    resolve(config)
    assert config == CONFIG


def test_described_settings_are_json_and_resolve_to_themselves():
    settings = resolve({**CONFIG, "rename": {"a": "b"}, "identification": {"sizes": ["full", 24]}})
    again = json.loads(json.dumps(describe(settings)))
    assert again == describe(settings)  # no tuples: what is read back is compared with it
    assert (again["ddl"]["hard"][0]["rule"], again["lr_steps"]) == ("abs(yaw) > 45", [500])
    assert again["identification"]["sizes"] == ["full", 24]
    assert again["rename"] == {"a": "b"}


def test_recipes_are_found_by_path_or_by_the_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = shipped_recipes()
    assert "demo" in shipped
    assert "__init__" not in shipped
    for name in ("demo", "demo.py", "recipes/demo.py", "recipes/demo"):
        assert find_recipe(name) == shipped["demo"]
    (tmp_path / "demo.py").write_text(HEAD)
    assert str(find_recipe("demo.py")) == "demo.py"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("demmo.py", "; did you mean 'demo'?"),
        ("elsewhere/demo.py", "; did you mean 'demo'?"),
        ("elsewhere/recipes/demo.py", "; did you mean 'demo'?"),
        ("demo.json", "; did you mean 'demo'?"),
        ("zzz", "; known: "),
        ("", "; known: "),
    ],
)
def test_a_missing_recipe_is_answered_with_the_shipped_ones(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"recipe: no file {name!r}, and no shipped recipe of that name{hint}"
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(name)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_says_what_it_is(name):
    settings = load_recipe(name)
    assert settings.batch_rows > 0
    json.dumps(describe(settings))
    header = ast.get_docstring(ast.parse(shipped_recipes()[name].read_text()))
    for entry in ("Paper", "Data", "Command"):
        assert re.search(rf"^{entry} +\S", header, flags=re.M), f"{name}: no {entry} in its header"
    command = re.search(r"^Command.*", header, flags=re.M | re.S)[0]
    assert f"python -m ddl_plugin.train recipes/{name}.py" in command


def test_the_command_in_a_header_has_overrides_that_hold():
    for path in shipped_recipes().values():
        header = ast.get_docstring(ast.parse(path.read_text()))
        words = re.search(r"^Command.*", header, flags=re.M)[0].split()
        load_recipe(str(path), [word for word in words if re.fullmatch(r"[\w.]+=\S+", word)])


@pytest.mark.parametrize("loss, need", [("histogram", "label"), ("ohem", "losses")])
def test_a_loss_of_one_devices_graph_is_refused_over_all_before_any_work(loss, need):
    config = {"dataset_path": "x", "pretrained": "x,0", "loss": loss, "ddl": {"hard": "yaw > 4"}}
    assert resolve(config).loss == loss
    config["ddl"]["scope"] = "global"
    with pytest.raises(
        UserError, match=rf"ddl\.scope: expected 'device' for loss '{loss}', which needs {need} of"
    ):
        resolve(config)
