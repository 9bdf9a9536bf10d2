"""A version of the trainers is known by what it has."""

import re
import shutil
from pathlib import Path

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.host.checkout import inspect

SMALL_HOST = Path(__file__).parent / "small_host"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SMALL_HOST, tmp_path / "host", ignore=shutil.ignore_patterns("__pycache__"))


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_both_trainers_are_known(folder):
    found = inspect(folder)
    assert (found.kind, found.iterator, found.path) == (
        "replicated",
        "get_face_image_iter",
        folder / "train.py",
    )
    assert inspect(folder, "train_parall.py").kind == "class-parallel"


def test_the_iterator_is_the_one_that_the_trainer_imports(folder):
    """Not the one that image_iter.py would have too."""
    replace(folder / "train.py", "import get_face_image_iter", "import FaceImageIter")
    assert inspect(folder).iterator == "FaceImageIter"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train.py", "def get_symbol(", "def network(", r"train.py is no trainer that is known: looked for the functions get_symbol, train_net, parse_args or get_symbol_embedding"),
        ("train.py", "from config import config, default, generate_config", "from config import config, default", r"train.py: looked for generate_config, imported from config there"),
        ("train.py", "import AccMetric, ", "import ", r"train.py: looked for AccMetric, imported from metric there"),
        ("train.py", "from image_iter import get_face_image_iter", "import image_iter", r"train.py: looked for get_face_image_iter or FaceImageIter, imported from image_iter there"),
        ("image_iter.py", "def get_face_image_iter", "def other", r"image_iter.py: looked for get_face_image_iter, defined there"),
        ("metric.py", "class AccMetric", "class Accuracy", r"metric.py: looked for AccMetric, defined there"),
        ("train.py", "import argparse", "print 'Python 2'", r"train.py cannot be read as Python: "),
    ],
)  # fmt: skip
def test_a_version_that_is_not_known_is_refused_with_what_was_looked_for(folder, file, old, new, message):
    replace(folder / file, old, new)
    with pytest.raises(UserError, match=message):
        inspect(folder)


def test_importing_all_of_a_module_counts(folder):
    replace(folder / "train.py", "from metric import AccMetric, LossValueMetric", "from metric import *")
    assert inspect(folder).kind == "replicated"


def test_a_missing_module_is_named(folder):
    (folder / "parall_module_local_v1.py").unlink()
    with pytest.raises(UserError, match=f"expected parall_module_local_v1.py in {re.escape(str(folder))}"):
        inspect(folder, "train_parall.py")
