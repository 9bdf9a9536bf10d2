"""Rules that hold for every file of the project."""

import ast
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ddl_plugin"

#: The one module that imports each framework.
SETUP = {"mxnet": "mxnet_setup.py", "torch": "pytorch/torch_setup.py"}
#: What needs MXNet to be imported; everything else serves hosts of other frameworks too.
MXNET_FILES = {
    "mxnet_setup.py",
    "backbone/checkpoint.py", "backbone/embedder.py", "backbone/graph_rewrite.py",
    "data/iterator.py",
    "host/batches.py", "host/class_parallel.py", "host/replicated.py", "host/run.py",
    "loss/gathered.py", "loss/shapes.py", "loss/symbol.py",
    "training/devices.py", "training/graph.py", "training/machines.py", "training/module.py",
    "training/mxnet_backend.py", "training/mxnet_engine.py",
}  # fmt: skip
#: May import it inside a function.
MXNET_INSIDE = {"export/mxnet_network.py", "training/roles.py"}
#: What may need PyTorch.
TORCH_FOLDERS = ("pytorch/", "host/arcface_torch/")


@functools.cache
def sources():
    """Python files of the package; its links to the top-level folders count as the package's."""
    folders = (ROOT / PACKAGE, ROOT / PACKAGE / "export", ROOT / PACKAGE / "recipes")
    return sorted({path for folder in folders for path in folder.rglob("*.py")})


def own_name(path):
    return path.relative_to(ROOT / PACKAGE).as_posix()


def module_name(name):
    return f"{PACKAGE}.{name}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree):
    """(module, names, whether at the top of the file) of every import."""
    top = set(
        ast.walk(ast.Module([n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))], []))
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), node in top
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", tuple(alias.name for alias in node.names), node in top


def brings(framework, module, names):
    """Whether this import is the framework's, or that of the module which has it."""
    setup = module_name(SETUP[framework])
    package, _, last = setup.rpartition(".")
    return module.split(".")[0] == framework or module == setup or (module == package and last in names)


def may_bring(framework, name, at_top=True):
    if framework == "torch":
        return name.startswith(TORCH_FOLDERS)
    return name in MXNET_FILES or (name in MXNET_INSIDE and not at_top)


def test_there_are_files_to_look_at():
    names = {own_name(path) for path in sources()}
    assert {"settings.py", "recipes/demo.py", *SETUP.values(), *MXNET_FILES, *MXNET_INSIDE} <= names


@pytest.mark.parametrize("framework", SETUP)
def test_a_framework_is_imported_in_one_place_alone(framework):
    direct = {
        own_name(path)
        for path in sources()
        if any(module.split(".")[0] == framework for module, _, _ in imported(parsed(path)))
    }
    assert direct == {SETUP[framework]}


def of_a_small_host(path):
    """The small trainers stand for code of others."""
    return any(parent.name.startswith("small_") for parent in path.relative_to(ROOT).parents)


def test_tests_get_mxnet_from_where_everything_gets_it():
    """What must hold before `import mxnet` holds for them as well."""
    direct = {
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        if not of_a_small_host(path)
        and any(module.split(".")[0] == "mxnet" for module, _, _ in imported(parsed(path)))
    }
    # It starts a small trainer without us.
    assert direct <= {"seeded.py"}


@pytest.mark.parametrize("framework", SETUP)
def test_only_the_parts_that_may_know_a_framework_import_it(framework):
    wrong = [
        own_name(path)
        for path in sources()
        for module, names, at_top in imported(parsed(path))
        if brings(framework, module, names) and not may_bring(framework, own_name(path), at_top)
    ]
    assert wrong == []


IMPORT_WITHOUT = """
import importlib, json, sys
blocked, modules = json.load(sys.stdin)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
failed = {}
for module in modules:
    try:
        importlib.import_module(module)
    except Exception as error:
        failed[module] = str(error)
print(json.dumps(failed))
"""


def import_without(blocked, names):
    """Those of the package's files that cannot be imported as if `blocked` were not installed, and why."""
    modules = {module_name(name): name for name in names}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT],
        input=json.dumps([blocked, list(modules)]), capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {modules[module]: why for module, why in json.loads(done.stdout.splitlines()[-1]).items()}


def test_the_other_parts_come_up_without_a_framework():
    names = [own_name(path) for path in sources()]
    failed = import_without(["mxnet", "torch"], names)
    assert {
        name: why for name, why in failed.items() if not name.startswith(TORCH_FOLDERS)
    }.keys() == MXNET_FILES, failed
    # Each in one line that says what to install.
    assert [why for why in failed.values() if "pip install" not in why] == []


@pytest.mark.parametrize(("framework", "other"), [("mxnet", "torch"), ("torch", "mxnet")])
def test_the_parts_of_a_framework_come_up_without_the_other(framework, other):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    names = [name for name in map(own_name, sources()) if may_bring(framework, name)]
    assert import_without([other], names) == {}


def test_every_module_says_what_it_is_for():
    assert [own_name(path) for path in sources() if not (ast.get_docstring(parsed(path)) or "").strip()] == []


def tracked():
    """Files that git holds or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_file_names_a_place_of_one_machine():
    needles = ["/" + place + "/" for place in ("work", "root", "Users")]
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if any(needle.encode() in path.read_bytes() for needle in needles)
    ]
    assert wrong == []


def test_test_files_have_names_of_their_own():
    """pytest imports them by name, since tests/ has no packages."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert [path for path in (ROOT / "tests").rglob("__init__.py") if not of_a_small_host(path)] == []
