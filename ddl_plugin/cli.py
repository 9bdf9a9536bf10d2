"""What all command lines share: one-line errors, exit codes, machine-readable results."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.files import write_text

INTERRUPTED = 130  # what shells expect of a program ended by Ctrl-C; SIGTERM ends one of ours alike


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that points to --help, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')")


def run(command: Callable[[], None]) -> int:
    """Run `command`; turn its ending into an exit code and at most one line on stderr."""
    try:
        with _one_interrupt():
            command()
        sys.stdout.flush()  # a broken pipe must show here, not at exit
    except UserError as error:
        return _fail("error", error, 2)
    except CheckError as error:
        return _fail("check failed", error, 1)
    except KeyboardInterrupt as error:
        return _fail("interrupted", error, INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`); stdout must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def dispatch(
    arguments: Sequence[str] | None, prog: str, description: str, commands: Iterable[Any], metavar: str
) -> None:
    """Carry out the one of `commands` that `arguments` name: modules with add(subparsers), which sets `command`."""
    parser = Parser(prog, description=description)
    subparsers = parser.add_subparsers(title="commands", metavar=metavar, required=True)
    for command in commands:
        command.add(subparsers)
    options = parser.parse_args(arguments)
    options.command(options)


def exiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for callers that know nothing of our errors: it ends the program as a command of ours ends."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        results: list[Any] = []
        code = run(lambda: results.append(function(*arguments, **options)))
        if code:
            raise SystemExit(code)
        return results[0]

    return wrapped


def _fail(kind: str, error: BaseException, code: int) -> int:
    text = " ".join(str(error).split())
    print(f"{kind}: {text}" if text else kind, file=sys.stderr)
    return code


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Only the first Ctrl-C, or SIGTERM, counts until the block ends: another one would break off the cleaning
    up, where threads of C++ libraries abort the process."""
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield
        return
    owner = os.getpid()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Not those that a caller has taken, or that are ignored, as Ctrl-C in a shell's background job.
    ours = [n for n, handler in before.items() if handler in (signal.default_int_handler, signal.SIG_DFL)]

    def interrupt(number: int, _: Any) -> None:
        if os.getpid() != owner:  # a forked worker, which its pool ends by SIGTERM
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in ours:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends: within an import it would end in an ImportError, or be lost."""
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield
        return
    held = []
    before = signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held and callable(before):  # not where Ctrl-C is ignored, as in a shell's background job
        before(*held[-1])


def split_devices(text: str) -> tuple[str, str]:
    """'cpu:0,1' of `--devices` as its kind and its numbers, ('cpu', '0,1'); without numbers they are '0'."""
    match = re.fullmatch(r"(cpu|gpu)(?::(\d+(?:,\d+)*))?", text)
    if not match:
        raise UserError(f"--devices: expected cpu, cpu:0,1, gpu or gpu:0,1, got {text!r}")
    return match[1], match[2] or "0"


def require_outputs(
    outputs: Mapping[str, str | os.PathLike | None], inputs: Iterable[str | os.PathLike]
) -> None:
    """Raise UserError where an output file ({option: path, or None where not given}) cannot be written, or is an
    input or another output: writing the one would destroy the other.

    Asked before any work, so that none is lost at its end.
    """
    taken = {os.path.realpath(path): f"the input {path}" for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        other = taken.setdefault(os.path.realpath(path), f"what {option} writes")
        if other != f"what {option} writes":
            raise UserError(f"{option}: expected a file of its own, got {path}, which is {other}")
        try:
            _require_writable(option, Path(path))
        except OSError as error:  # a folder that may not be looked into, a name too long
            raise UserError(
                f"{option}: {path} cannot be written ({error.strerror}); name another file"
            ) from error


def _require_writable(option: str, path: Path) -> None:
    if path.exists() and not path.is_file():  # /dev/null would be replaced by a file
        kind = "folder" if path.is_dir() else "device or pipe"
        raise UserError(f"{option}: expected the name of a file to write, got the {kind} {path}")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise UserError(f"{option}: expected a file in a folder, got {path}, but {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{option}: {path} cannot be written: {folder} may not be written to; name another file"
        )


def write_json(path: str | os.PathLike, result: object) -> None:
    """Write `result` as readable JSON, atomically."""
    write_text(path, json.dumps(result, indent=2, sort_keys=False) + "\n")
