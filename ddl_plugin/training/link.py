"""Whether the other workers are still there.

MXNet's kvstore waits for a dead worker for ever, so each worker holds a TCP connection to worker 0 beside it. It
breaks when the process at its other end dies, however it dies, and says of one that ends what it ended of.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

_JOIN = 60.0  # seconds in which all workers connect, once MXNet has found them all
_HELLO = 5.0  # seconds in which one who connects says who it is
_LONGEST = 4096  # characters of a message
#: A machine that vanishes without a word is noticed after 10 + 3 * 5 seconds.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class UnreachableError(Exception):
    """The workers did not all find worker 0."""


class _Peer(NamedTuple):
    connection: socket.socket
    host: str
    lines: BinaryIO  # what it says, a line a message


class Link:
    """The connections of one worker: worker 0's to all others, another one's to worker 0.

    `changed` is notified when `lost` (what happened, in words, once a worker is lost) or `left` (ranks at the
    other ends that have nothing more to do) change. Of several losses the first counts: the others follow from
    it. A worker that has left may still be lost, until all have left.
    """

    def __init__(self, rank: int, peers: Mapping[int, _Peer]):
        self.changed = threading.Condition()
        self.lost: str | None = None
        self.left: set[int] = set()
        self._rank = rank
        self._peers = dict(peers)
        self._losing = threading.Lock()
        self._over = False  # all have left, or this worker ends: connections may break
        for other in peers:
            threading.Thread(target=self._listen, args=(other,), daemon=True).start()

    def stopped(self, why: str) -> None:
        """Tell the others what this worker ends of; how they end of that is no news."""
        with self._losing:
            self._over = True
            self._tell({"stopped": why[:_LONGEST]})

    def leave(self) -> str | None:
        """Tell the others that this worker has nothing more to do, and wait until that is so for all.

        Returns what happened to one that was lost before, else None.
        """
        self._tell({"left": True})
        with self.changed:
            self.changed.wait_for(lambda: self.lost or self._over or self._all_left())
            if self.lost is None:
                self._over = True
        if self.lost is None and self._rank == 0:
            self._tell({"over": True})
        self.close()
        return self.lost

    def close(self) -> None:
        self._over = True
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)
            peer.connection.close()

    def _all_left(self) -> bool:
        return self._rank == 0 and self.left >= self._peers.keys()

    def _tell(self, message: dict[str, Any], but: int | None = None) -> None:
        line = json.dumps(message).encode() + b"\n"
        for rank, peer in self._peers.items():
            if rank != but:
                with contextlib.suppress(OSError):  # whoever listens to that one notices too
                    peer.connection.sendall(line)

    def _listen(self, rank: int) -> None:
        who = f"worker {rank} on {self._peers[rank].host}"
        with contextlib.suppress(OSError, ValueError):  # a broken connection, or one closed here
            for line in self._peers[rank].lines:
                message = _parsed(line)
                if "left" in message or "over" in message:
                    with self.changed:
                        self.left.add(rank)
                        self._over = self._over or "over" in message
                        self.changed.notify_all()
                elif "stopped" in message:
                    self._lose(f"{who} stopped: {message['stopped']}", rank)
                elif "lost" in message:
                    self._lose(message["lost"], rank)
        self._lose(f"{who} was lost", rank)

    def _lose(self, what: str, rank: int) -> None:
        with self._losing:
            if self.lost is not None or self._over:
                return
            if self._rank == 0:  # the only one who hears of all, and tells before it may end itself
                self._tell({"lost": what}, but=rank)
            with self.changed:
                self.lost = what
                self.changed.notify_all()


class Door:
    """Where worker 0 lets the others in. `address` is what they need to know."""

    def __init__(self, host: str):
        try:
            self._socket = socket.create_server((host, 0))
        except OSError:  # an address that others reach, but none of this machine's own, as behind a NAT
            self._socket = socket.create_server(("", 0))
        self._token = secrets.token_hex(16)
        port = self._socket.getsockname()[1]
        self.address: dict[str, Any] = {"host": host, "port": port, "token": self._token}

    def admit(self, workers: int) -> Link:
        """The link to workers 1 to `workers` - 1 once all are there; `UnreachableError` where one does not come."""
        limit = time.monotonic() + _JOIN
        peers: dict[int, _Peer] = {}
        with self._socket:
            while len(peers) < workers - 1:
                self._socket.settimeout(max(0.01, limit - time.monotonic()))
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    missing = ", ".join(str(rank) for rank in range(1, workers) if rank not in peers)
                    raise UnreachableError(
                        f"worker {missing} did not reach worker 0 at {self.address['host']}:"
                        f"{self.address['port']} within {_JOIN:.0f} s"
                    ) from None
                peers |= self._let_in(connection)
        return Link(0, peers)

    def _let_in(self, connection: socket.socket) -> dict[int, _Peer]:
        """Who has come; nobody, and the door shut again, where it is no worker of ours."""
        with contextlib.suppress(OSError):
            connection.settimeout(_HELLO)
            peer = _peer(connection)
            hello = _parsed(peer.lines.readline(_LONGEST))
            if hello.get("token") == self._token:
                connection.settimeout(None)
                return {hello["worker"]: peer}
        connection.close()
        return {}


def connect(address: Mapping[str, Any], rank: int) -> Link:
    """The link of worker `rank` to worker 0 at the `address` of its `Door`; `UnreachableError` where there is none."""
    host, port = address["host"], address["port"]
    try:
        connection = socket.create_connection((host, port), timeout=_JOIN)
        connection.sendall(json.dumps({"worker": rank, "token": address["token"]}).encode() + b"\n")
        connection.settimeout(None)
        return Link(rank, {0: _peer(connection)})
    except OSError as error:
        raise UnreachableError(f"worker {rank} cannot reach worker 0 at {host}:{port} ({error})") from error


def own_address(towards: str) -> str:
    """The address of this machine on the way to the host `towards`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing
        return probe.getsockname()[0]


def _peer(connection: socket.socket) -> _Peer:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return _Peer(connection, connection.getpeername()[0], connection.makefile("rb"))


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
