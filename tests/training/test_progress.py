"""What asks a run to stop, and that its caller has the signals again afterwards."""

import os
import signal

import pytest

from ddl_plugin.training.progress import interrupts

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """Those of the caller, by signal, which must be there again after each test."""

    def unheard(number, frame):
        raise AssertionError("a signal has not come to the run")

    before = {number: signal.signal(number, unheard) for number in BOTH}
    yield
    found = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert found == dict.fromkeys(BOTH, unheard)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("launched", [False, True])
def test_the_first_signal_is_noted(number, launched):
    with interrupts(launched) as received:
        assert not received
        send(number)
        assert received == [number]


def test_a_second_ctrl_c_alone_interrupts():
    """`timeout` and some schedulers send SIGTERM twice, a study's command Ctrl-C to runs that have got SIGTERM too."""
    with interrupts() as received:
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
        assert len(received) == 4
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_none_interrupts_what_torchrun_has_launched():
    with interrupts(launched=True) as received:
        send(signal.SIGINT, signal.SIGINT, signal.SIGTERM)
        assert len(received) == 3
