"""Exit codes, one line on stderr, and machine-readable results."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddl_plugin.cli import INTERRUPTED, Parser, require_outputs, run, uninterrupted, write_json
from ddl_plugin.errors import CheckError, UserError


def failing(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            UserError("lr: expected a number\n   >= 0,\tgot 'x'"),
            2,
            "error: lr: expected a number >= 0, got 'x'",
        ),
        (CheckError("difference 0.1"), 1, "check failed: difference 0.1"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_an_ending_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert run(failing(error)) == code
    assert capsys.readouterr() == ("", line + "\n")


def test_success_is_silent_and_0(capsys):
    assert run(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_bug_is_not_dressed_up_as_a_users_error():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_a_parser_answers_in_one_line_that_points_to_help(capsys):
    parser = Parser(prog="ddl")
    parser.add_argument("--steps", type=int)
    with pytest.raises(UserError, match=r"^argument --steps: invalid int value: 'x' \(see 'ddl --help'\)$"):
        parser.parse_args(["--steps", "x"])
    assert capsys.readouterr().err == ""


def test_help_is_a_success(capsys):
    with pytest.raises(SystemExit) as ending:
        run(lambda: Parser(prog="ddl").parse_args(["--help"]))
    assert ending.value.code == 0
    assert "usage: ddl" in capsys.readouterr().out


@pytest.mark.parametrize("lines", [1, 100_000])  # one that the buffer holds until the end, and too many
def test_a_closed_pipe_is_no_traceback(lines):
    code = (
        "import sys\nfrom ddl_plugin.cli import run\n"
        "sys.stdin.readline()\n"
        f"sys.exit(run(lambda: [print('a line') for _ in range({lines})]))"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=buffered,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), errors) == (1, b"")


def test_results_are_json_in_the_order_given(tmp_path):
    path = tmp_path / "new" / "result.json"
    write_json(path, {"b": 1, "a": [0.5, None, "é"]})
    assert path.read_text().endswith("}\n")
    assert list(json.loads(path.read_text())) == ["b", "a"]
    assert json.loads(path.read_text())["a"] == [0.5, None, "é"]
    assert list(path.parent.iterdir()) == [path]


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_ignored_ctrl_c_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_of_the_block_is_not_replaced_by_the_interrupt():
    with pytest.raises(ZeroDivisionError), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_outputs_are_neither_inputs_nor_each_other(tmp_path):
    model = tmp_path / "m.onnx"
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "loop").symlink_to("loop")
    require_outputs({"--output": tmp_path / "o.onnx", "--csv": tmp_path / "loop", "--json": None}, [model])
    for same in (model, tmp_path / "x" / ".." / "m.onnx", tmp_path / "link"):
        with pytest.raises(UserError, match=r"--json: expected a file of its own, got .*the input .*m\.onnx"):
            require_outputs({"--json": same}, [model])
    with pytest.raises(UserError, match=r"--json: expected a file of its own, got a, which is what --output"):
        require_outputs({"--output": "a", "--json": "a"}, [])


def test_outputs_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    require_outputs({"--json": file, "--csv": tmp_path / "new" / "folder" / "file.csv"}, [])
    with pytest.raises(UserError, match=r"--json: expected the name of a file to write, got the folder"):
        require_outputs({"--json": tmp_path}, [])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        UserError, match=r"--json: expected the name of a file to write, got the device or pipe"
    ):
        require_outputs({"--json": tmp_path / "pipe"}, [])
    (tmp_path / "gone").symlink_to("nowhere")
    for parent in (file, tmp_path / "gone"):
        message = rf"--json: expected a file in a folder, got .*x\.json, but {parent} is no folder"
        with pytest.raises(UserError, match=message):
            require_outputs({"--json": parent / "new" / "x.json"}, [])
    with pytest.raises(UserError, match=r"--json: x+ cannot be written \(File name too long\)"):
        require_outputs({"--json": "x" * 300}, [])
    access = os.access  # the tests may run as root, who may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))
    with pytest.raises(
        UserError, match=rf"--json: .*x\.json cannot be written: {tmp_path} may not be written to"
    ):
        require_outputs({"--json": tmp_path / "new" / "x.json"}, [])
    for name in ("stat", "lstat"):  # nor look into a folder of someone else's
        monkeypatch.setattr(os, name, _denied(getattr(os, name), tmp_path))
    with pytest.raises(UserError, match=r"--json: .*x\.json cannot be written \(Permission denied\)"):
        require_outputs({"--json": tmp_path / "x.json"}, [])


def _denied(call, folder):
    def asked(path, **options):
        if folder in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return call(path, **options)

    return asked


def test_a_second_ctrl_c_does_not_break_off_the_cleaning_up(capsys):
    cleaned = []

    def command():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
            cleaned.append(True)

    before = signal.getsignal(signal.SIGINT)
    assert run(command) == INTERRUPTED
    assert cleaned == [True]
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_that_is_ignored_stays_so(capsys):
    """As in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    """So that a scheduler's end leaves neither half a file nor a traceback."""
    program = (
        "import sys, time\n"
        "from ddl_plugin.cli import run\n"
        "from ddl_plugin.files import replaced\n"
        "def command():\n"
        f"    with replaced({str(tmp_path / 'model.onnx')!r}) as part:\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.exit(run(command))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.glob("*.part"))) == 1
    process.terminate()
    assert (process.communicate(timeout=60)[1], process.returncode) == ("interrupted\n", INTERRUPTED)
    assert list(tmp_path.iterdir()) == []


def test_a_forked_worker_is_ended_by_sigterm_as_ever(capsys):
    def command():
        child = os.fork()
        if child == 0:
            try:
                time.sleep(60)
            finally:
                os._exit(1)  # a handler that raises would end here
        time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == signal.SIGTERM

    assert run(command) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
