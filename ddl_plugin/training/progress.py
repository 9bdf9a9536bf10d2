"""What is seen of a run while it goes on: a bar in a terminal, lines in a log file; and what asks it to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

_LINE_EVERY = 20  # steps, as InsightFace's `frequent`
_BAR = "{desc} {percentage:3.0f}%|{bar:5}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"


class Progress:
    """Steps `start` to `total` of the run `name`. A context manager."""

    def __init__(self, name: str, start: int, total: int, *, bar: bool, lines: bool):
        self._name, self._total, self._lines = name, total, lines
        self._bar = tqdm(
            total=total, initial=start, desc=name, bar_format=_BAR, dynamic_ncols=True, disable=not bar
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def done(self, step: int, terms: dict[str, float], rate: float) -> None:
        """Step `step` is done; `rate` in images/s."""
        text = _short(terms, rate)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        if self._lines and (step + 1) % _LINE_EVERY == 0:
            print(f"{self._name} {step + 1}/{self._total} {text}", flush=True)


def _short(terms: dict[str, float], rate: float) -> str:
    """The speed, the loss terms, and of the statistics the margins.

    Loss terms first, so that a narrow terminal cuts off what matters least.
    """
    shown = [n for n in terms if n.split("_")[0] not in ("mean", "intersection", "outliers", "margin")]
    shown += [n for n in terms if n.startswith("margin")]
    return " ".join(
        [f"{rate:.0f} img/s", *(f"{name.removesuffix('_loss')} {terms[name]:.3g}" for name in shown)]
    )


@contextmanager
def interrupts(launched: bool = False) -> Iterator[list]:
    """A list that becomes non-empty at Ctrl-C, or at SIGTERM, which schedulers send before they take a machine. A
    second Ctrl-C interrupts at once.

    `launched`: by a program that passes Ctrl-C on to processes that have got it already: then no second one does.
    """
    received: list[int] = []

    def note(number, frame) -> None:
        if number == signal.SIGINT and number in received and not launched:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever started the thread handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
