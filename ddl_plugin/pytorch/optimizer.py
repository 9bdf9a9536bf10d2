"""SGD with MXNet's update rule, which skips by itself what was not finite."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from ddl_plugin.pytorch.torch_setup import torch


class MomentumSGD:
    """m = mom * m - lr * lr_mult * (g + wd * wd_mult * w), w = w + m, in one kernel over all parameters.

    PyTorch's own keeps m / -(lr * lr_mult): what it keeps is scaled where lr changes, so that a step goes on with
    the speed that it had, as MXNet's does.

    parameters: those that train, by name. multipliers: of each (lr_mult, wd_mult).
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        multipliers: Mapping[str, tuple[float, float]],
        *,
        mom: float,
        wd: float,
    ):
        self._parameters = dict(parameters)
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self._parameters.items():
            groups.setdefault(tuple(multipliers[name]), []).append(parameter)
        options = [
            {"params": group, "lr_mult": lr, "weight_decay": wd * own} for (lr, own), group in groups.items()
        ]
        self._sgd = torch.optim.SGD(options, lr=0.0, momentum=mom, fused=True)
        for parameter in self._parameters.values():
            self._sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self._lr = 0.0

    def clear(self) -> None:
        """Forget the gradients."""
        self._sgd.zero_grad(set_to_none=True)

    def step(self, lr: float, skip: torch.Tensor) -> None:
        """Update by the gradients; where `skip`, float32 () on the device, is 1, nothing changes."""
        if lr != self._lr:
            self._set(lr)
        self._sgd.found_inf = skip
        self._sgd.step()

    def _set(self, lr: float) -> None:
        if self._lr and lr:
            torch._foreach_mul_(list(self._momenta().values()), self._lr / lr)
        for group in self._sgd.param_groups:
            group["lr"] = lr * group["lr_mult"]
        self._lr = lr

    def _momenta(self) -> dict[str, torch.Tensor]:
        return {name: self._sgd.state[p]["momentum_buffer"] for name, p in self._parameters.items()}

    def state(self) -> bytes:
        """What the next step depends on, for `set_state`; waits for the device."""
        momenta = {f"momentum:{name}": tensor.cpu().numpy() for name, tensor in self._momenta().items()}
        file = io.BytesIO()
        np.savez(file, lr=np.float64(self._lr), **momenta)
        return file.getvalue()

    def set_state(self, content: bytes) -> None:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            for name, tensor in self._momenta().items():
                tensor.copy_(torch.from_numpy(file[f"momentum:{name}"]))
            lr = float(file["lr"])
        self._lr = 0.0
        self._set(lr)
