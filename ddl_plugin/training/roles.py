"""Which part this process plays in a training by several: read from MXNet's own DMLC_* environment, or torchrun's.

Asked before MXNet is imported: the import of a scheduler or a server does not return.
"""

from __future__ import annotations

import os
import signal

from ddl_plugin.errors import UserError

ONE_MACHINE = ("local", "device")
SEVERAL_MACHINES = ("dist_sync", "dist_device_sync")
KVSTORES = (*ONE_MACHINE, *SEVERAL_MACHINES)

ROOT_URI = "DMLC_PS_ROOT_URI"
_ROLE, _PORT, _SERVERS, _WORKERS = "DMLC_ROLE", "DMLC_PS_ROOT_PORT", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER"
_ROLES = ("scheduler", "server", "worker")
_REMEDY = "set them as docs/MACHINES.md says, or start with MXNet's tools/launch.py"


def require_environment(kvstore: str | None) -> None:
    """`UserError` where the kvstore and the environment do not say the same of how many machines there are."""
    if kvstore not in SEVERAL_MACHINES:
        role = os.environ.get(_ROLE)
        if role is not None:
            raise UserError(
                f"--kvstore: expected {' or '.join(SEVERAL_MACHINES)} where {_ROLE} is set (to {role!r}), got "
                f"{kvstore}, with which every worker would train for itself; add it, or unset {_ROLE}"
            )
        return
    names = (_ROLE, ROOT_URI, _PORT, _SERVERS, _WORKERS)
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"--kvstore: {kvstore} expects {', '.join(names)} in the environment, "
            f"got no {', '.join(missing)}; {_REMEDY}"
        )
    if os.environ[_ROLE] not in _ROLES:
        raise UserError(
            f"{_ROLE}: expected {', '.join(_ROLES)}, got {os.environ[_ROLE]!r} in the environment; {_REMEDY}"
        )
    for name in (_PORT, _SERVERS, _WORKERS):
        text = os.environ[name]
        if not text.isdecimal() or int(text) < 1:
            raise UserError(
                f"{name}: expected a whole number >= 1, got {text!r} in the environment; {_REMEDY}"
            )


#: What torchrun sets in every process that it starts.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_by_torchrun() -> bool:
    """Also alone: torchrun passes Ctrl-C on to its processes, which have got it already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_processes() -> int:
    """How many processes torchrun has started, 1 where it has not; `UserError` where its environment is incomplete."""
    if not launched_by_torchrun():
        return 1
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise UserError(
            f"torchrun: expected {', '.join(_TORCHRUN)} in the environment, got no {', '.join(missing)}; start the "
            f"processes with torchrun, or unset RANK and WORLD_SIZE"
        )
    text = os.environ["WORLD_SIZE"]
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"WORLD_SIZE: expected a whole number >= 1, got {text!r} in the environment")
    return int(text)


def meeting_place() -> str:
    """Where scheduler, servers and workers find each other, and how many of them there are to be."""
    value = os.environ.get
    return (
        f"the scheduler at {value(ROOT_URI)}:{value(_PORT)}, {value(_SERVERS)} server(s) and "
        f"{value(_WORKERS)} worker(s)"
    )


def serve_if_not_worker() -> None:
    """In a scheduler or server: do its work, and end the process when the workers have ended."""
    if is_server():
        let_ctrl_c_end()
        import ddl_plugin.mxnet_setup  # noqa: F401 - serves, then raises SystemExit


def is_server() -> bool:
    """Whether `import mxnet` does a scheduler's or a server's work in this process."""
    return os.environ.get(_ROLE) in ("scheduler", "server")


def let_ctrl_c_end() -> None:
    """Of a scheduler or server, in which Python's own handler never gets to run: Ctrl-C would do nothing."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
