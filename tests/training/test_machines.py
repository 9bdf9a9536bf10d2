"""What workers exchange, and how they end: workers as threads, with a store that adds up as MXNet's does."""

import threading
import time

import numpy as np
import pytest

from ddl_plugin.cli import INTERRUPTED
from ddl_plugin.errors import CheckError, UserError
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.training import machines as module
from ddl_plugin.training.workers import WorkerLostError

WORKERS = 3  # of `everywhere`, unless told


# -- what is exchanged -----------------------------------------------------------------------------------


def test_gradients_become_the_sum_over_devices_and_workers(everywhere):
    def gradient(rank, device, name):
        shape = (2, 3) if name == "weight" else (4,)
        return np.random.default_rng([rank, device, len(name)]).normal(size=shape).astype(np.float32)

    def exchange(machines):
        results = []
        for step in range(3):
            own = [
                [mx.nd.array(gradient(machines.rank + step, d, name), ctx=mx.cpu(d)) for d in (0, 1)]
                for name in ("weight", "bias")
            ]
            machines.sum_gradients(["weight", "fixed", "bias"], [own[0], [None, None], own[1]])
            assert [array.context for array in own[0]] == [mx.cpu(0), mx.cpu(1)]
            results.append([[array.asnumpy() for array in devices] for devices in own])
        return results

    for results in everywhere(exchange):
        for step, found in enumerate(results):
            for devices, name in zip(found, ("weight", "bias"), strict=True):
                each = [gradient(rank + step, d, name) for rank in range(WORKERS) for d in (0, 1)]
                for array in devices:
                    np.testing.assert_allclose(array, sum(each), rtol=1e-5, atol=1e-6)


def test_what_is_sent_is_not_what_the_trainer_goes_on_writing_to(everywhere):
    """MXNet sends in the background."""
    sent = []

    def exchange(machines):
        own = mx.nd.ones((2,)) * machines.rank
        push = machines._store.push
        machines._store.push = lambda key, values, priority: (
            sent.extend(values),
            push(key, values, priority),
        )
        machines.sum_gradients(["weight"], [[own]])
        return own

    grads = everywhere(exchange)
    assert len(sent) == WORKERS
    before = [array.asnumpy() for array in sent]
    for array in grads:
        array[:] = -1
    np.testing.assert_array_equal([array.asnumpy() for array in sent], before)


def test_arrays_of_worker_0_are_everywheres(everywhere):
    """As often as wanted, between sums by the same names, and whatever the others hold."""

    def exchange(machines):
        own = {
            "weight": mx.nd.ones((2, 2)) * (5 + machines.rank),
            "mean": mx.nd.array([np.nan, machines.rank]),
        }
        if machines.rank == 0:
            own["mean"][:] = mx.nd.array([1.5, -2])
        first = machines.broadcast(own)
        machines.sum_gradients(["weight"], [[mx.nd.ones((2, 2))]])
        second = machines.broadcast({"weight": mx.nd.ones((2, 2)) * (7 + machines.rank)})
        assert first["weight"] is not own["weight"]
        return first["weight"].asnumpy(), first["mean"].asnumpy(), second["weight"].asnumpy()

    for weight, mean, again in everywhere(exchange):
        np.testing.assert_array_equal(weight, np.full((2, 2), 5))
        np.testing.assert_array_equal(mean, [1.5, -2])
        np.testing.assert_array_equal(again, np.full((2, 2), 7))


def test_a_name_may_come_back_with_another_shape(everywhere):
    def exchange(machines):
        sums = []
        for shape in ((2,), (3,), (2,)):
            own = mx.nd.ones(shape)
            machines.sum_gradients(["fc7_weight"], [[own]])
            sums.append(own.asnumpy().tolist())
        return sums

    assert everywhere(exchange) == [[[3, 3], [3, 3, 3], [3, 3]]] * WORKERS


def test_means_of_terms(everywhere):
    def exchange(machines):
        return machines.mean({"ddl": machines.rank + 1 / 3, "order": np.nan if machines.rank == 2 else 1.0})

    for means in everywhere(exchange):
        assert means == {
            "ddl": pytest.approx(1 + 1 / 3, rel=1e-12),
            "order": pytest.approx(np.nan, nan_ok=True),
        }


def test_what_worker_0_publishes_is_read_to_the_bit(everywhere):
    contents = [
        b"",
        b"a",
        b"1234567",
        np.random.default_rng(0).bytes(10_001),
        b"\xff" * 8,
        b"\x01\x00\xa0\x7f",
    ]

    def exchange(machines):
        own = contents if machines.rank == 0 else [b"other"] * len(contents)
        values = [
            machines.publish(v if machines.rank == 0 else "?") for v in ({"step": 3, "to": [1.5, None]}, None)
        ]
        return [machines.publish_bytes(content) for content in own], values

    assert everywhere(exchange) == [(contents, [{"step": 3, "to": [1.5, None]}, None])] * WORKERS


def test_what_differs_is_named_where_it_does(everywhere):
    def exchange(machines):
        machines.require_same({"seed": 3, "ddl": {"hard": ("a", 1)}})
        lr = 0.1 if machines.rank < 2 else 0.2
        machines.require_same({"seed": 3, "lr": lr})

    first, second, third = everywhere(exchange)
    assert first is None is second
    assert isinstance(third, UserError)
    assert str(third) == (
        "lr: expected 0.1 as worker 0 has, got 0.2 in worker 2; start all workers with the same recipe and data"
    )


def test_other_arrays_are_refused_before_the_server_hears_of_them(everywhere):
    def exchange(machines):
        machines._store.init = refuse_unless_published(machines._store.init)
        shape = (2, 3) if machines.rank == 1 else (3, 2)
        machines.sum_gradients(["weight"], [[mx.nd.ones(shape)]])

    def refuse_unless_published(init):
        def checked(keys, values):
            if isinstance(keys, list):
                raise CheckError("told to the server")
            init(keys, values)

        return checked

    results = everywhere(exchange)
    assert "the network's arrays: expected" in str(results[1])
    assert [str(results[rank]) for rank in (0, 2)] == ["told to the server"] * 2


def test_worker_0_first(everywhere):
    entered = []

    def exchange(machines):
        with machines.worker_0_first():
            if machines.rank == 0:
                time.sleep(0.05)
            entered.append(machines.rank)

    everywhere(exchange)
    assert entered[0] == 0
    assert sorted(entered) == [0, 1, 2]


# -- the end ---------------------------------------------------------------------------------------------


def test_a_lost_worker_wakes_the_others(everywhere):
    """Though MXNet's own call never returns."""

    def exchange(machines):
        with machines:
            machines.publish(None)
            if machines.rank == 2:
                raise UserError("record 3 is no image")
            machines._store.init = lambda key, value: threading.Event().wait()
            began = time.monotonic()
            try:
                machines.publish(None)
            finally:
                assert time.monotonic() - began < 5

    results = everywhere(exchange, linked=True)
    assert str(results[2]) == "record 3 is no image"
    for rank in (0, 1):
        assert isinstance(results[rank], WorkerLostError)
        assert str(results[rank]) == "worker 2 on 127.0.0.1 stopped: record 3 is no image"


def test_a_worker_that_has_less_to_do_is_lost_too(everywhere, monkeypatch):
    monkeypatch.setattr(module, "_GRACE", 0.1)

    def exchange(machines):
        with machines:
            if machines.rank != 1:
                machines._store.init = lambda key, value: threading.Event().wait()
                machines.publish(None)

    results = everywhere(exchange, linked=True)
    assert str(results[0]) == "worker 1 has ended, this one has more to do"
    for rank in (1, 2):
        assert str(results[rank]) == f"worker 0 on 127.0.0.1 stopped: {results[0]}"


def test_a_regular_end_waits_for_worker_0(everywhere):
    ends = []

    def exchange(machines):
        with machines:
            if machines.rank == 0:
                time.sleep(0.1)
                ends.append(0)
        ends.append(f"left {machines.rank}")
        return machines._guard.code, machines._guard.store

    assert everywhere(exchange, linked=True) == [(1, None)] * WORKERS  # released: the code is not used
    assert ends[0] == 0


@pytest.mark.parametrize(("lost", "codes"), [(1, {0: 0, 2: 1}), (0, {1: 1, 2: 1})])
def test_a_worker_lost_at_the_end_costs_worker_0_nothing(everywhere, capfd, lost, codes):
    def exchange(machines):
        machines._guard.store = "held"
        try:
            if machines.rank == lost:
                machines._link._over = True  # it hears nothing of its end
                machines._link.close()
            else:
                with machines:
                    machines.publish = None
        finally:
            if machines.rank != lost:
                assert machines._guard.store == "held"
        return machines._guard.code

    results = everywhere(exchange, linked=True)
    for rank, code in codes.items():
        if code == 0:
            assert results[rank] == 0
        else:
            assert str(results[rank]) == f"worker {lost} on 127.0.0.1 was lost"
    note = "note: worker 1 on 127.0.0.1 was lost after its last step; this run is complete; end the scheduler and the servers by hand\n"
    assert capfd.readouterr().err == (note if lost == 1 else "")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("expected\n  this"), 2, "expected this"),
        (CheckError("no"), 1, "no"),
        (KeyboardInterrupt("saved after step 3"), INTERRUPTED, "interrupted: saved after step 3"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (ValueError("odd"), 1, "ValueError: odd"),
        (SystemExit(3), 3, "exit code: 3"),
        (SystemExit("why"), 1, "exit code: why"),
    ],
)
def test_what_it_ends_of_is_its_exit_code_and_is_told(everywhere, error, code, told):
    def exchange(machines):
        if machines.rank == 0:
            machines.close(error)
            machines.close(None)  # the first counts
            return machines._guard.code
        with machines._link.changed:
            assert machines._link.changed.wait_for(lambda: machines._link.lost, timeout=20)
        return machines._link.lost

    assert everywhere(exchange, workers=2, linked=True) == [code, f"worker 0 on 127.0.0.1 stopped: {told}"]


@pytest.mark.parametrize("error", [None, SystemExit(), SystemExit(0)])
def test_a_trainer_may_end_with_exit_code_0(everywhere, error):
    assert everywhere(lambda machines: machines.close(error), linked=True) == [None] * WORKERS


def test_waiting_for_long_is_said_once(capfd, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    assert module._waited(lambda: time.sleep(1.2), None, "the scheduler at 10.0.0.1") is None
    assert capfd.readouterr().err == "waiting for the scheduler at 10.0.0.1\n"
