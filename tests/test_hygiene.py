"""Rules that hold for every file of the project."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ddl_plugin"

#: What may know MXNet; everything else serves hosts of other frameworks too.
MXNET_FOLDERS = ("backbone", "host", "loss", "training")
MXNET_FILES = ("mxnet_setup.py", "data/iterator.py")
#: May import it inside a function, where a check compares with MXNet.
MXNET_INSIDE = ("export/mxnet_network.py",)


def sources():
    """Python files of the package; its links to the top-level folders count as the package's."""
    folders = (ROOT / PACKAGE, ROOT / PACKAGE / "export", ROOT / PACKAGE / "recipes")
    return sorted({path for folder in folders for path in folder.rglob("*.py")})


def own_name(path):
    return path.relative_to(ROOT / PACKAGE).as_posix()


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


def is_mxnet(module):
    return module.split(".")[0] == "mxnet"


def brings_mxnet(module, names):
    return (
        is_mxnet(module)
        or module == f"{PACKAGE}.mxnet_setup"
        or (module, "mxnet_setup" in names) == (PACKAGE, True)
    )


def may_import_mxnet(name, at_top):
    allowed = name.split("/")[0] in MXNET_FOLDERS or name in MXNET_FILES
    return allowed or (name in MXNET_INSIDE and not at_top)


def test_there_are_files_to_look_at():
    names = {own_name(path) for path in sources()}
    assert {"settings.py", "export/mxnet_network.py", "recipes/demo.py", *MXNET_FILES} <= names


def test_mxnet_is_imported_in_one_place_alone():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    # The small trainer stands for code of others, and so does what starts it without us.
    others = {path for path in tests if path.parent.name == "small_host" or path.name == "seeded.py"}
    everywhere = [*sources(), *(path for path in tests if path not in others)]
    direct = {
        path.name for path in everywhere if any(is_mxnet(module) for module, _, _ in imported(parsed(path)))
    }
    assert direct == {"mxnet_setup.py"}


def test_only_the_parts_that_may_know_mxnet_import_it():
    wrong = [
        own_name(path)
        for path in sources()
        for module, names, at_top in imported(parsed(path))
        if brings_mxnet(module, names) and not may_import_mxnet(own_name(path), at_top)
    ]
    assert wrong == []


def test_the_other_parts_come_up_without_mxnet():
    names = [own_name(path) for path in sources()]
    free = [
        name for name in names
        if not may_import_mxnet(name, True) and not name.startswith("recipes/") and not name.endswith("__main__.py")
    ]  # fmt: skip
    modules = [
        f"{PACKAGE}.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for name in free
    ]
    modules = [module for module in modules if module != f"{PACKAGE}.__init__"]
    code = f"import sys, importlib\nfor m in {modules}: importlib.import_module(m)\nprint('mxnet' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


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
    assert not list((ROOT / "tests").rglob("__init__.py"))
