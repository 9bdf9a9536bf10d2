"""What happens without torch, and that neither framework's users need the other one."""

import subprocess
import sys

import pytest


def ran(code):
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    "torch, message",
    [
        ("None", "PyTorch is not installed; pip install 'ddl_plugin[torch]'"),
        (
            "types.SimpleNamespace(__version__='1.13.1+cu117')",
            "PyTorch 2.4 or later is needed, got 1.13.1+cu117; pip install 'ddl_plugin[torch]'",
        ),
        ("types.SimpleNamespace()", "PyTorch 2.4 or later is needed, got a module without a version"),
    ],
    ids=["missing", "old", "another"],
)
def test_a_torch_that_cannot_be_used_is_a_line_for_the_user(torch, message):
    code = (
        f"import sys, types; sys.modules['torch'] = {torch}\n"
        "from ddl_plugin.errors import UserError\n"
        "try:\n    from ddl_plugin.pytorch.loss import DDLLoss\n"
        "except UserError as error:\n    print(error)"
    )
    assert message in ran(code).stdout


def test_the_losses_need_neither_framework():
    code = (
        "import sys; sys.modules['mxnet'] = sys.modules['torch'] = None\n"
        "from ddl_plugin.loss import histogram, identity, online, reference, registered, scope, terms\n"
        "from ddl_plugin.loss.rivals import focal, histogram, ohem, semihard_triplet"
    )
    result = ran(code)
    assert result.returncode == 0, result.stderr


def test_the_torch_modules_need_no_mxnet():
    pytest.importorskip("torch")
    code = (
        "import sys; sys.modules['mxnet'] = None\n"
        "from ddl_plugin.loss.identity import IdentitySettings\n"
        "from ddl_plugin.pytorch.identity import IdentityLoss\n"
        "from ddl_plugin.pytorch.loss import DDLLoss\n"
        "from ddl_plugin.settings import DDLSettings\n"
        "settings = DDLSettings(b=2, hard='yaw > 4')\n"
        "for loss in ('ddl', 'histogram', 'semihard_triplet', 'ohem', 'focal'):\n"
        "    DDLLoss(settings, loss=loss)\n"
        "IdentityLoss(3, 4, IdentitySettings(rows='singles'), settings)"
    )
    result = ran(code)
    assert result.returncode == 0, result.stderr
