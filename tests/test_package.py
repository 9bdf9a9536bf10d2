"""The wheel: what an installation has, and that it works without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, so that a build folder left in the checkout neither gets in nor is made.
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "runs", "tests", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", folder, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_alone_with_export_and_recipes(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ddl_plugin"}
    packaged = {name for name in names if name.endswith(".py")}
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ddl_plugin").rglob("*.py")}
    linked = {
        f"ddl_plugin/{path.relative_to(ROOT).as_posix()}"
        for folder in ("export", "recipes")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert packaged == own | linked
    assert not [name for name in names if name.endswith((".rec", ".params", ".onnx"))]


def test_the_installed_wheel_works_outside_the_checkout(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel],
        check=True,
    )
    code = (
        "import ddl_plugin.export.convert, ddl_plugin.train, ddl_plugin.recipe as r;"
        "print(ddl_plugin.__file__, ddl_plugin.export.__file__, sorted(r.shipped_recipes()));"
        "print(r.load_recipe('demo').ddl.b)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(site)) == 2
    assert "'vgg2_pose'" in done.stdout


def test_the_readme_and_ci_give_the_same_test_command():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert ci in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_the_commands_answer_to_help(tmp_path):
    for module in ("train", "prepare", "export", "evaluate", "analyze"):
        done = subprocess.run(
            [sys.executable, "-m", f"ddl_plugin.{module}", "--help"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert f"python -m ddl_plugin.{module}" in done.stdout
        assert done.stderr == ""
