"""The connections by which workers know of each other's end."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddl_plugin.training import link as module
from ddl_plugin.training.link import Door, UnreachableError, connect, own_address


def linked(others):
    """Worker 0's link and those of `others` more workers."""
    door = Door("127.0.0.1")
    links = [None] * others
    threads = [
        threading.Thread(target=lambda i=i: links.__setitem__(i, connect(door.address, i + 1)))
        for i in range(others)
    ]
    for thread in threads:
        thread.start()
    first = door.admit(others + 1)
    for thread in threads:
        thread.join()
    return [first, *links]


@pytest.fixture
def links():
    made = linked(2)
    yield made
    for link in made:
        link.close()


def until(condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def vanish(link):
    """As the kernel does for a process that was killed, which hears nothing of it."""
    link._over = True
    for peer in link._peers.values():
        peer.connection.shutdown(socket.SHUT_RDWR)


def test_a_worker_that_vanishes_is_lost_to_all(links):
    vanish(links[2])
    until(lambda: links[0].lost and links[1].lost)
    assert links[0].lost == links[1].lost == "worker 2 on 127.0.0.1 was lost"


def test_worker_0_that_vanishes_is_lost_to_all(links):
    vanish(links[0])
    until(lambda: links[1].lost and links[2].lost)
    assert links[1].lost == links[2].lost == "worker 0 on 127.0.0.1 was lost"


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_worker_ends_of_is_told_to_all(links, rank):
    links[rank].stopped("record 3 is no image")
    links[rank].close()
    rest = [link for i, link in enumerate(links) if i != rank]
    until(lambda: all(link.lost for link in rest))
    expected = f"worker {rank} on 127.0.0.1 stopped: record 3 is no image"
    assert {link.lost for link in rest} == {expected}


def test_the_first_loss_is_the_one_that_is_told(links):
    links[1].stopped("a first")
    until(lambda: links[0].lost and links[2].lost)
    vanish(links[2])
    vanish(links[0])
    time.sleep(0.05)
    assert {links[0].lost, links[2].lost} == {"worker 1 on 127.0.0.1 stopped: a first"}


def leave(links):
    with ThreadPoolExecutor(len(links)) as pool:
        return list(pool.map(lambda link: link.leave(), links))


def test_a_regular_end_is_no_loss(links):
    assert leave(links) == [None] * 3
    time.sleep(0.05)
    assert [link.lost for link in links] == [None] * 3


def test_nobody_leaves_before_the_others(links):
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(links[1].leave)
        until(lambda: links[0].left == {1})
        other = pool.submit(links[0].leave)
        until(lambda: links[2].left == {0})
        time.sleep(0.05)
        assert not one.done() and not other.done()
        assert links[2].leave() is None
    assert one.result() is other.result() is None


def test_a_worker_that_vanishes_after_it_left_is_lost_to_all(links):
    """The others still need it: the kvstore ends with all of them."""
    links[2]._tell({"left": True})
    until(lambda: links[0].left == {2})
    vanish(links[2])
    assert leave(links[:2]) == ["worker 2 on 127.0.0.1 was lost"] * 2


def test_whoever_waits_is_woken(links):
    with links[0].changed:
        links[1]._tell({"left": True})
        assert links[0].changed.wait_for(lambda: links[0].left == {1}, timeout=20)
        links[1].stopped("odd")
        assert links[0].changed.wait_for(lambda: links[0].lost, timeout=20)


def test_strangers_are_not_let_in(monkeypatch):
    monkeypatch.setattr(module, "_HELLO", 0.05)
    door = Door("127.0.0.1")
    place = door.address["host"], door.address["port"]
    strangers = [socket.create_connection(place) for _ in range(4)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[1].sendall(json.dumps({"worker": 1, "token": "guessed"}).encode() + b"\n")
    strangers[2].sendall(b"[1, 2]\n")
    other = connect(door.address, 1)
    link = door.admit(2)
    for stranger in strangers:
        stranger.close()
    time.sleep(0.05)
    assert list(link._peers) == [1]
    assert link.lost is None
    other.close()
    link.close()


def test_a_worker_that_does_not_come(monkeypatch):
    monkeypatch.setattr(module, "_JOIN", 0.1)
    door = Door("127.0.0.1")
    one = connect(door.address, 2)
    with pytest.raises(
        UnreachableError, match=r"worker 1, 3 did not reach worker 0 at 127\.0\.0\.1:\d+ within"
    ):
        door.admit(4)
    one.close()


def test_worker_0_that_cannot_be_reached():
    door = Door("127.0.0.1")
    door._socket.close()
    with pytest.raises(
        UnreachableError, match=r"worker 1 cannot reach worker 0 at 127\.0\.0\.1:\d+ \(.*refused"
    ):
        connect(door.address, 1)


def test_an_address_of_another_machine_is_told_though_it_cannot_be_listened_at():
    """As behind a NAT: 203.0.113.77 is nobody's."""
    door = Door("203.0.113.77")
    assert door.address["host"] == "203.0.113.77"
    connect({**door.address, "host": "127.0.0.1"}, 1).close()
    door._socket.close()


def test_connections_are_kept_alive(links):
    for link in links:
        for peer in link._peers.values():
            assert peer.connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert peer.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
            assert peer.connection.gettimeout() is None  # hours may pass without a word


def test_own_address():
    assert own_address("127.0.0.1") == "127.0.0.1"
