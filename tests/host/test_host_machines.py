"""train.py on two machines through MXNet's kvstore: the parameters of one machine with both devices."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ddl_plugin.export.params import load_params

STEPS = 4


@pytest.fixture
def cluster(small_host, tmp_path):
    """cluster(steps, environment of the second worker alone) -> the two workers, beside a scheduler and a server.

    Each is a process in a folder of its own.
    """
    started = []

    def start(steps, second_workers=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with (small_host / "config.py").open("a") as file:
            file.write(f"config.max_steps = {steps}\n")
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port),
            "DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": "2",
        }  # fmt: skip
        command = [
            sys.executable, "-m", "ddl_plugin.host", small_host, "--devices", "cpu", "--", "--loss", "ddl",
            "--kvstore", "dist_sync", "--verbose", STEPS,
        ]  # fmt: skip
        for number, role in enumerate(("scheduler", "server", "worker", "worker")):
            folder = tmp_path / f"process{number}"
            folder.mkdir()
            own = {"DMLC_ROLE": role, **((second_workers or {}) if number == 3 else {})}
            process = subprocess.Popen(
                list(map(str, command)), env={**environment, **own}, cwd=folder,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
            process.folder = folder
            started.append(process)
        return started[2:]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_two_machines_train_as_one_with_two_devices(cluster, run_host, tmp_path):
    workers = cluster(STEPS)
    logs = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(logs)
    saved = [worker.folder / f"models/small-ddl-small/model-000{STEPS}.params" for worker in workers]
    assert sorted(path.is_file() for path in saved) == [False, True]  # only worker 0 writes
    found = load_params(next(path for path in saved if path.is_file()))[0]

    done = run_host(its=("--loss", "ddl", "--verbose", STEPS))
    assert done.returncode == 0, done.stderr
    expected = load_params(tmp_path / f"models/small-ddl-small/model-000{STEPS}.params")[0]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name] == pytest.approx(array, rel=1e-4, abs=1e-5), name


def test_a_lost_worker_ends_the_other_with_what_was_trained(cluster):
    workers = cluster(1_000_000)
    deadline = time.monotonic() + 240
    saved = [worker.folder / f"models/small-ddl-small/model-000{STEPS}.params" for worker in workers]
    while not any(path.is_file() for path in saved) and time.monotonic() < deadline:
        time.sleep(0.1)
    first = 0 if saved[0].is_file() else 1
    os.killpg(workers[1 - first].pid, signal.SIGKILL)
    log = workers[first].communicate(timeout=60)[0]
    assert workers[first].returncode == 1, log
    (line,) = [line for line in log.splitlines() if line.startswith("check failed: ")]
    assert "worker 1" in line
    assert (
        "start all workers again with --pretrained models/small-ddl-small/lost --pretrained-epoch 0" in line
    )
    arg, _ = load_params(workers[first].folder / "models/small-ddl-small/lost-0000.params")
    assert {"fc7_weight", "pre_fc1_weight"} <= arg.keys()


#: The trainer reads its lr_steps after each step: here one worker's fails at the third.
BREAKING = """
import os, signal
class Breaking(str):
    steps = 0
    def split(self, _):
        Breaking.steps += 1
        if Breaking.steps == 3 and "BREAKS" in os.environ:
            if os.environ["BREAKS"] == "interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("no disk left")
        return [""]
default.lr_steps = Breaking()
"""


@pytest.mark.parametrize(
    ("how", "code", "said"), [("error", 1, "RuntimeError: no disk left"), ("interrupted", 130, "interrupted")]
)
def test_what_ends_the_trainer_on_one_machine_is_told_to_the_other(cluster, small_host, how, code, said):
    with (small_host / "config.py").open("a") as file:
        file.write(BREAKING)
    other, broken = cluster(1_000_000, {"BREAKS": how})
    own = broken.communicate(timeout=240)[0]
    assert broken.returncode == code, own
    assert own.splitlines()[-1] == said
    log = other.communicate(timeout=60)[0]
    assert other.returncode == 1, log
    (line,) = [line for line in log.splitlines() if line.startswith("check failed: ")]
    assert f"stopped: {said}" in line
