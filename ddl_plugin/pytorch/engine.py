"""The engine over PyTorch: one device a process, several processes as DistributedDataParallel has them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ddl_plugin.data.batches import BatchSource
from ddl_plugin.pytorch.checkpoint import Backbone
from ddl_plugin.pytorch.identity import IdentityLoss
from ddl_plugin.pytorch.loader import Loader, TorchBatch
from ddl_plugin.pytorch.loss import DDLLoss
from ddl_plugin.pytorch.network import Network
from ddl_plugin.pytorch.optimizer import MomentumSGD
from ddl_plugin.pytorch.processes import Processes
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import IDENTITY_LOSSES, RunSettings
from ddl_plugin.training.engine import Arrays, Outcome, Pixels, identity_settings, learning_rate
from ddl_plugin.training.state import RunState

_DTYPES = {"bf16": torch.bfloat16}


class StepModule(torch.nn.Module):
    """Images to losses: the network, under autocast where there is `amp`, and in float32 what is on top of it.

    forward(pixels uint8 (rows, 112, 112, 3), labels int64 (rows,)) -> what is to be minimised, (); the values that
    are looked at, float64 (2 + T,): cross entropy, the loss beside the identity loss (0 without one) and its T terms;
    and how many rows' embeddings are not finite, float64 (1,).
    """

    def __init__(
        self, network: Network, identity: IdentityLoss, loss: DDLLoss | None, amp: torch.dtype | None
    ):
        super().__init__()
        self.network, self.identity, self.loss = network, identity, loss
        self._amp = amp

    def forward(
        self, pixels: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images = pixels.permute(0, 3, 1, 2).float()  # channels_last as they lie
        with torch.autocast(pixels.device.type, self._amp, enabled=self._amp is not None):
            embedding = self.network(images)
        losses = self.identity(embedding, labels)
        cross_entropy = losses.mean()
        total, own, terms = cross_entropy, cross_entropy.new_zeros(()), cross_entropy.new_zeros(0)
        if self.loss is not None:
            own, terms = self.loss(embedding, label=labels, losses=losses)
            total = own if self.loss.replaces_identity else cross_entropy + own
        values = torch.cat([torch.stack([cross_entropy, own]), terms]).detach().double()
        bad_rows = (~torch.isfinite(embedding.detach())).any(dim=1).sum().double()
        return total, values, bad_rows.reshape(1)


class _Pending(NamedTuple):
    """A step's values on their way to the host."""

    step: int
    values: torch.Tensor  # in host memory, there when `ready` is
    ready: torch.cuda.Event | None


class TorchEngine:
    """`training.engine.Engine`. On a GPU a step's outcome is read when the next one has been sent to it, so that it
    never waits for the host; until then the GPU itself keeps from updating by what was not finite."""

    def __init__(
        self,
        settings: RunSettings,
        backbone: Backbone,
        num_classes: int,
        devices: Sequence[torch.device],
        rows: int,
        kvstore: str | None,
        machines: Processes | None,
    ):
        (self._device,) = devices
        self._settings = settings
        self._processes = machines
        self._rank, self._workers = (0, 1) if machines is None else (machines.rank, machines.workers)
        self._rows = rows
        self._lag = 1 if self._device.type == "cuda" else 0
        if self._device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all batches are of one size
        network = backbone.network(bn_frozen=settings.bn_frozen)
        self.fixed_gammas = list(network.fixed_gammas)
        identity = IdentityLoss(num_classes, backbone.emb_size, identity_settings(settings), settings.ddl)
        loss = None
        if settings.loss not in IDENTITY_LOSSES:
            loss = DDLLoss(settings.ddl, loss=settings.loss, options=settings.loss_options)
        self._names = () if loss is None else loss.term_names
        module = StepModule(network, identity, loss, _DTYPES.get(settings.amp))
        self._module = module.to(self._device, memory_format=torch.channels_last)
        self._fc7 = {"fc7_weight": identity.weight}
        if identity.bias is not None:
            self._fc7["fc7_bias"] = identity.bias
        self._statistics = list(network.buffers())

    def start(self, state: RunState) -> None:
        network, identity = self._module.network, self._module.identity
        own = network.parameters_by_name()
        network.set_arrays({name: state.arg[name] for name in own}, state.aux)
        with torch.no_grad():
            for name, parameter in self._fc7.items():
                parameter.copy_(torch.from_numpy(state.arg[name]))
        self._module.train()
        multipliers = {name: tuple(own) for name, own in network.multipliers().items()}
        multipliers |= {f"fc7_{name}": own for name, own in identity.multipliers().items()}
        trained = {name: p for name, p in {**own, **self._fc7}.items() if p.requires_grad}
        self._forward = self._module
        if self._processes is not None:
            self._processes.give(self._statistics)
            with self._processes.watched():  # gives worker 0's parameters to all
                self._forward = torch.nn.parallel.DistributedDataParallel(
                    self._module, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        self._optimizer = MomentumSGD(trained, multipliers, mom=self._settings.mom, wd=self._settings.wd)
        if state.optimizer:
            self._optimizer.set_state(state.optimizer)
        # Set once, by a step that was not finite: from it on no update is made.
        self._skip = torch.zeros((), device=self._device)
        self._pending: deque[_Pending] = deque()
        # BatchNorm's before a step, of as many steps as can be undone.
        self._kept = [[torch.empty_like(tensor) for tensor in self._statistics] for _ in range(1 + self._lag)]

    def batches(self, pixels: Pixels, start: int, stop: int) -> Loader:
        """By threads of this process, or for a GPU by processes, which leave Python to the training step."""
        gpu, count = self._device.type == "cuda", self._settings.num_threads
        return Loader(
            BatchSource(**pixels.arguments()), start, stop,
            workers=count if gpu else 0, threads=count, pin_memory=gpu,
        )  # fmt: skip

    def forward_backward(self, batch: TorchBatch, step: int, stopping: bool = False) -> None:
        # Dropout draws from PyTorch's generator; seeded by the step, a resumed run draws the same.
        torch.manual_seed(self._settings.seed * 1_000_003 + step + 499_979 * self._rank)
        _copy(self._statistics, self._kept[step % len(self._kept)])
        pixels = batch.pixels.to(self._device, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        self._optimizer.clear()
        with self._watched():
            total, values, bad_rows = self._forward(pixels, labels)
            told = self._told(step, values, bad_rows, stopping)
            total.backward()
        self._pending.append(told)

    def _told(self, step: int, values: torch.Tensor, bad_rows: torch.Tensor, stopping: bool) -> _Pending:
        """What a step gave, sent on its way to the host: (2 + T) means over the processes, then two sums."""
        asked = torch.full_like(bad_rows, float(stopping))
        told = torch.cat([values / self._workers, bad_rows, asked])
        if self._processes is not None:
            self._processes.sum(told)
        self._skip = torch.maximum(self._skip, (~torch.isfinite(told)).any().to(self._skip.dtype))
        ready = None
        if self._device.type == "cuda":
            there = torch.empty(told.shape, dtype=told.dtype, pin_memory=True)
            told, ready = there.copy_(told, non_blocking=True), torch.cuda.Event()
            ready.record()
        return _Pending(step, told, ready)

    def outcomes(self, wait: bool = False) -> list[Outcome]:
        found = []
        while len(self._pending) > (0 if wait else self._lag):
            found.append(self._outcome(self._pending.popleft()))
        return found

    def _outcome(self, pending: _Pending) -> Outcome:
        if pending.ready is not None:
            pending.ready.synchronize()
        cross_entropy, loss, *terms, bad_rows, asked = pending.values.tolist()
        named = {"ce_loss": cross_entropy, **dict(zip(self._names, terms, strict=True))}
        losses = {f"{self._settings.loss}_loss": loss} if self._names else {}
        return Outcome(
            pending.step, named, losses, self._workers * self._rows, int(bad_rows), stopping=asked > 0
        )

    def update(self, step: int) -> None:
        self._optimizer.step(learning_rate(self._settings, step), self._skip)

    def undo(self, step: int) -> None:
        """BatchNorm has taken the step, and what was sent after it, into its statistics."""
        _copy(self._kept[step % len(self._kept)], self._statistics)

    def arrays(self) -> tuple[Arrays, Arrays]:
        arg, aux = self._module.network.arrays()
        return {**arg, **{name: p.detach().cpu().numpy().copy() for name, p in self._fc7.items()}}, aux

    def optimizer_state(self) -> bytes:
        return self._optimizer.state()

    def memory(self) -> str:
        if self._device.type != "cuda":
            return ""
        peak = torch.cuda.max_memory_allocated(self._device) / 2**20
        return f"{peak:.0f} MB allocated by PyTorch on {self._device}"

    def _watched(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._processes is None else self._processes.watched()


def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)
