"""The loss's terms in the trainer's own log and TensorBoard."""

from __future__ import annotations

import logging
from typing import Any

from ddl_plugin.pytorch.torch_setup import torch

distributed = torch.distributed


class Terms:
    """Means of the terms over the steps since they were last shown, on the device until then.

    names: of the columns; the trainer's own loss, `identity`, is the first.
    """

    def __init__(self, names: tuple[str, ...]):
        self._names = ("identity", *names)
        self._sums: torch.Tensor | None = None
        self._steps = 0

    def add(self, identity: torch.Tensor, terms: torch.Tensor) -> None:
        """Take in a step's: identity (), terms (T,). Nothing waits for the device."""
        values = torch.cat([identity.detach().reshape(1).to(terms), terms])
        self._sums = values if self._sums is None else self._sums + values
        self._steps += 1

    def means(self) -> dict[str, float]:
        """Over the steps and over all ranks, which must all ask; begins anew. {} before the first step."""
        if self._sums is None:
            return {}
        means = self._sums / self._steps
        distributed.all_reduce(means)
        values = (means / distributed.get_world_size()).tolist()
        self._sums, self._steps = None, 0
        return dict(zip(self._names, values, strict=True))


def with_terms(callback_class: type, terms: Terms, shown: tuple[str, ...], begin: Any) -> type:
    """A subclass of the trainer's CallBackLogging that logs the terms after its own line.

    shown: names of the terms for the log line; TensorBoard gets all, as ddl/NAME. begin(step): told from which step
    the trainer starts.
    """

    class CallBackLoggingWithTerms(callback_class):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            begin(self.start_step)

        def __call__(self, global_step: int, *arguments: Any, **options: Any) -> Any:
            result = super().__call__(global_step, *arguments, **options)
            if global_step % self.frequent == 0:
                self._show(global_step, terms.means())
            return result

        def _show(self, step: int, means: dict[str, float]) -> None:
            if self.rank != 0 or not means:
                return
            values = "  ".join(f"{name}={means[name]:.6f}" for name in shown)
            logging.info("Global Step: %d   %s", step, values)
            if self.writer is not None:
                for name, value in means.items():
                    self.writer.add_scalar(f"ddl/{name}", value, step)

    return CallBackLoggingWithTerms
