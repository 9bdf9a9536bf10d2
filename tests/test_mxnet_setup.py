"""What holds when MXNet is imported, each case in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PIP_LINE = "pip install 'mxnet==1.9.1' 'numpy>=1.23.5,<1.24'"

#: NumPy as from 1.24 on: without the aliases that mxnet 1.9.1 uses.
WITHOUT_ALIASES = """
import numpy
original = numpy.__getattr__
def missing(name):
    if name in ("bool", "object", "int", "float"):
        raise AttributeError(name)
    return original(name)
numpy.__getattr__ = missing
"""

REPORTING_MXNET = """
import os, numpy
__version__ = "1.9.1"
seen = {name: value for name, value in os.environ.items() if name.startswith("MXNET_")}
aliases = (numpy.bool, numpy.object, numpy.int, numpy.float)
"""


@pytest.fixture
def python(tmp_path):
    """python(code, mxnet=None, **environment): run it, with `mxnet` as the source of the module of that name."""

    def execute(code, mxnet=None, **environment):
        paths = [str(Path(__file__).parents[1])]
        if mxnet is not None:
            (tmp_path / "mxnet.py").write_text(mxnet)
            paths.insert(0, str(tmp_path))
        # Without the one thread of the other tests: as a user's shell has it.
        ours = ("MXNET_", "OMP_NUM_THREADS")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment},
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip

    return execute


def test_the_environment_is_set_before_the_import(python):
    code = "from ddl_plugin.mxnet_setup import mx; print(*(f'{n}={v}' for n, v in mx.seen.items()))"
    done = python(code, REPORTING_MXNET, OMP_NUM_THREADS="1")  # threads: the test below
    expected = {
        "MXNET_SUBGRAPH_BACKEND=default", "MXNET_SUBGRAPH_VERBOSE=0", "MXNET_STORAGE_FALLBACK_LOG_VERBOSE=0",
    }  # fmt: skip
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


def test_what_the_user_has_set_is_kept(python):
    code = "from ddl_plugin.mxnet_setup import mx; print(mx.seen['MXNET_SUBGRAPH_BACKEND'])"
    done = python(code, REPORTING_MXNET, MXNET_SUBGRAPH_BACKEND="MKLDNN")
    assert done.stdout.split() == ["MKLDNN"]


@pytest.mark.parametrize(
    ("smt", "omp", "expected"),
    [("0", None, True), ("1", None, False), ("0", "1", False), (None, None, False)],
)
@pytest.mark.usefixtures("needs_mxnet")
def test_every_core_is_used_where_no_core_runs_two_threads(tmp_path, monkeypatch, smt, omp, expected):
    import ddl_plugin.mxnet_setup as setup

    monkeypatch.delenv("MXNET_OMP_MAX_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    if smt:
        (tmp_path / "active").write_text(f"{smt}\n")
    monkeypatch.setattr(setup, "_SMT", tmp_path / "active")
    setup._use_every_core()
    threads = str(len(os.sched_getaffinity(0))) if expected else None
    assert os.environ.get("MXNET_OMP_MAX_THREADS") == threads


@pytest.mark.skipif(
    np.__version__ >= "2", reason="NumPy 2 has a bool of its own; MXNet 1.9.1 is not installed with it"
)
def test_numpys_aliases_are_there_when_mxnet_is_imported(python):
    code = (
        WITHOUT_ALIASES
        + "from ddl_plugin.mxnet_setup import mx\nprint(mx.aliases == (bool, object, int, float))"
    )
    done = python(code, REPORTING_MXNET, OMP_NUM_THREADS="1")  # threads: the test below
    assert (done.stdout.strip(), done.stderr) == ("True", "")


@pytest.mark.usefixtures("needs_mxnet")
def test_the_real_mxnet_comes_up_without_numpys_aliases(python):
    code = WITHOUT_ALIASES + "from ddl_plugin.mxnet_setup import mx\nprint(mx.nd.ones((2,)).asnumpy().sum())"
    done = python(code)
    assert (done.returncode, done.stdout.strip()) == (0, "2.0"), done.stderr


@pytest.mark.parametrize(
    ("mxnet", "reason"),
    [
        ("__version__ = '2.0.0'", "MXNet 1.9.1 is needed, got 2.0.0: "),
        ("__version__ = '1.10.0'", "MXNet 1.9.1 is needed, got 1.10.0: "),
        ("", "MXNet 1.9.1 is needed, got a module without a version: "),
        ("raise ImportError('no module named x')", "MXNet cannot be imported (no module named x): "),
        ("raise OSError('libcudart.so.11.0: cannot open')", "MXNet cannot be imported (libcudart.so.11.0: cannot open): "),
        ("import numpy; numpy.nonesuch", "MXNet cannot be imported (module 'numpy' has no attribute 'nonesuch'): "),
    ],
)  # fmt: skip
def test_another_mxnet_is_answered_with_the_pip_line(python, mxnet, reason):
    code = (
        "import sys\nfrom ddl_plugin.cli import run\n"
        "def command():\n    import ddl_plugin.mxnet_setup\nsys.exit(run(command))"
    )
    done = python(code, mxnet)
    assert (done.returncode, done.stderr) == (2, f"error: {reason}{PIP_LINE}\n")


#: A network of MobileFaceNet's kind on which the default oneDNN backend fails at the second forward.
TWICE = """
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.backbone.checkpoint import new_backbone
executor = new_backbone("y1", None, 0).symbol.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, 112, 112))
for _ in range(3):
    executor.forward(is_train=False)[0].wait_to_read()
"""


@pytest.mark.usefixtures("needs_mxnet")
def test_an_inference_bind_runs_more_than_once_and_silently(python):
    done = python(TWICE)
    assert (done.returncode, done.stderr) == (0, "")


OLD_SYMBOL = """
import json
from ddl_plugin.mxnet_setup import mx, symbol_from_json
symbol = mx.sym.LeakyReLU(mx.sym.Variable("data"), act_type="prelu", name="p")
content = json.loads(symbol.tojson())
content["attrs"]["mxnet_version"] = ["int", {version}]
print(symbol_from_json(json.dumps(content)).tojson() == symbol.tojson())
"""


@pytest.mark.usefixtures("needs_mxnet")
@pytest.mark.parametrize(("version", "silent"), [(10000, True), (10901, True), (905, False)])
def test_a_symbol_that_needs_no_upgrade_is_read_silently(python, version, silent):
    done = python(OLD_SYMBOL.format(version=version))
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert (done.stderr == "") == silent
