"""DMLC_* environment and --kvstore have to fit; asked before MXNet is imported, which would block."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from ddl_plugin.errors import UserError
from ddl_plugin.train import main
from ddl_plugin.training.roles import meeting_place, require_environment

COMPLETE = {
    "DMLC_ROLE": "worker", "DMLC_PS_ROOT_URI": "10.0.0.1", "DMLC_PS_ROOT_PORT": "9091",
    "DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": "2",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """environment(NAME=value or None): a complete environment with changes."""

    def put(**changes):
        for name, value in {**COMPLETE, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("kvstore", ["dist_sync", "dist_device_sync"])
@pytest.mark.parametrize("role", ["worker", "server", "scheduler"])
def test_a_complete_environment_fits(environment, kvstore, role):
    environment(DMLC_ROLE=role)
    require_environment(kvstore)
    assert meeting_place() == "the scheduler at 10.0.0.1:9091, 1 server(s) and 2 worker(s)"


@pytest.mark.parametrize("kvstore", [None, "local", "device"])
def test_one_machine_needs_none(environment, kvstore):
    environment(**dict.fromkeys(COMPLETE))
    require_environment(kvstore)


@pytest.mark.parametrize("kvstore", [None, "local", "device"])
@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_several_trainings_side_by_side_are_refused(environment, kvstore, role):
    environment(DMLC_ROLE=role)
    message = rf"--kvstore: expected dist_sync or .* where DMLC_ROLE is set \(to '{role}'\), got {kvstore}, .*unset DMLC_ROLE"
    with pytest.raises(UserError, match=message):
        require_environment(kvstore)


@pytest.mark.parametrize("missing", [[name] for name in COMPLETE] + [["DMLC_ROLE", "DMLC_NUM_WORKER"]])
def test_what_is_missing_is_named(environment, missing):
    environment(**dict.fromkeys(missing))
    with pytest.raises(
        UserError, match=rf"--kvstore: dist_sync expects .*, got no {', '.join(missing)}; set them as"
    ):
        require_environment("dist_sync")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "DMLC_ROLE",
            "master",
            r"DMLC_ROLE: expected scheduler, server, worker, got 'master' in the environment",
        ),
        ("DMLC_NUM_WORKER", "two", r"DMLC_NUM_WORKER: expected a whole number >= 1, got 'two'"),
        ("DMLC_NUM_SERVER", "0", r"DMLC_NUM_SERVER: expected a whole number >= 1, got '0'"),
        ("DMLC_PS_ROOT_PORT", "-1", r"DMLC_PS_ROOT_PORT: expected a whole number >= 1, got '-1'"),
    ],
)
def test_values_that_cannot_be(environment, name, value, message):
    environment(**{name: value})
    with pytest.raises(UserError, match=message):
        require_environment("dist_sync")


# -- the command ----------------------------------------------------------------------------------------


def refused(capfd, *arguments):
    code = main([*map(str, arguments), "--quiet"])
    err = capfd.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    return err


def test_the_command_names_what_is_missing(environment, write_recipe, tmp_path, capfd):
    environment(DMLC_PS_ROOT_URI=None)
    recipe = write_recipe(tmp_path)
    err = refused(capfd, recipe, "--kvstore", "dist_sync", "--output", tmp_path / "out")
    assert re.match(
        r"error: --kvstore: dist_sync expects .*, got no DMLC_PS_ROOT_URI; .*docs/MACHINES\.md", err
    )
    assert not (tmp_path / "out").exists()


def test_the_command_asks_for_the_kvstore(environment, write_recipe, tmp_path, capfd):
    environment(DMLC_ROLE="scheduler")  # importing MXNet would block here
    err = refused(capfd, write_recipe(tmp_path), "--output", tmp_path / "out")
    assert err.startswith("error: --kvstore: expected dist_sync")


def test_an_unknown_kvstore(write_recipe, tmp_path, capfd):
    err = refused(capfd, write_recipe(tmp_path), "--kvstore", "dist_async")
    assert re.match(r"error: argument --kvstore: invalid choice: 'dist_async' \(choose from .*dist_sync", err)


def test_a_dry_run_is_one_machines(environment, write_recipe, tmp_path, capfd):
    environment()
    err = refused(capfd, write_recipe(tmp_path), "--kvstore", "dist_sync", "--dry-run")
    assert err == "error: --dry-run: expected one machine, got --kvstore dist_sync; leave --kvstore out\n"


def test_a_base_model_is_trained_on_one_machine_first(environment, write_recipe, tmp_path, capfd):
    environment()
    recipe = write_recipe(tmp_path, pretrained="base.py")
    err = refused(capfd, recipe, "--kvstore", "dist_device_sync")
    assert re.match(
        r"error: pretrained: expected a trained model .*, got the recipe 'base\.py'; train it on one", err
    )


def test_ctrl_c_ends_a_scheduler(environment, write_recipe, tmp_path):
    """Its import of MXNet never returns to Python, whose own handler would never be asked."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        environment(
            DMLC_ROLE="scheduler", DMLC_PS_ROOT_URI="127.0.0.1", DMLC_PS_ROOT_PORT=str(free.getsockname()[1])
        )
    recipe = write_recipe(tmp_path)
    command = [sys.executable, "-m", "ddl_plugin.train", str(recipe), "--kvstore", "dist_sync"]
    with subprocess.Popen(command, env=dict(os.environ)) as process:
        try:
            limit = time.monotonic() + 120
            while not listening(int(os.environ["DMLC_PS_ROOT_PORT"])):
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == -signal.SIGINT
        finally:
            process.kill()


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
