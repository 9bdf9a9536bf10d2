"""The Distribution Distillation Loss, or any registered loss beside the identity loss, as a torch module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.loss.registered import build_checked, expected_shapes, wrong_shape
from ddl_plugin.loss.scope import together
from ddl_plugin.pytorch.functions import Functions
from ddl_plugin.pytorch.gathering import gathered, processes
from ddl_plugin.pytorch.precision import without_autocast
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.registry import NEEDS, LossEntry, get_loss
from ddl_plugin.settings import DDLSettings

#: Length of the embedding with which a loss is tried out; no values are computed.
_ANY_SIZE = 16


class DDLLoss(torch.nn.Module):
    """L_DDL (Eq. 7 of the paper) of one process's batch, or of all processes' with `settings.scope` 'global'.

    L = lambda_1 sum_k D(P+, Q_k+) + lambda_2 sum_k D(P-, Q_k-) - lambda_3 sum_ij (E[S_i+] - E[S_j-]); see
    `ddl_plugin.loss.terms.ddl_terms`. It has no parameters. The identity loss of Eq. 8 is
    `ddl_plugin.pytorch.identity.IdentityLoss`.

    Args:
        settings: batch layout, weights and the rest of `config.ddl`.
        loss: name of a registered loss; the built-in ones are 'ddl', 'online_ddl' and its rivals.
        options: of that loss, over its registered defaults.
        group: the process group of scope 'global'; None: all processes.

    Raises `UserError` for an unknown loss, for the name of an identity loss, for options it does not have, for what
    a user's loss does wrong (an operator that is not in `Functions`, other shapes), and for scope 'global' with a
    loss that needs the rows' labels or losses.

    Attributes:
        term_names: names of the T columns of the terms.
        needs: which of `label` and `losses` forward() must be given.
        replaces_identity: whether the loss stands in the place of the mean of the identity losses.
    """

    def __init__(
        self,
        settings: DDLSettings,
        *,
        loss: str = "ddl",
        options: Mapping[str, Any] | None = None,
        group: Any | None = None,
    ):
        super().__init__()
        entry = get_loss(loss)
        if entry.build is None:
            raise UserError(
                f"loss {loss!r}: expected a loss beside the identity loss, got an identity loss; "
                f"use ddl_plugin.pytorch.identity.IdentityLoss"
            )
        self.settings = settings
        self.loss = loss
        self.options = entry.resolve(options or {})
        self.group = group
        self.needs = entry.needs
        self.replaces_identity = entry.replaces_identity
        self._build = entry.function
        self.term_names = _tried_out(entry, settings, self.options)

    def extra_repr(self) -> str:
        return f"{self.loss}, rows={self.settings.rows}, scope={self.settings.scope}"

    def forward(
        self,
        embedding: torch.Tensor,
        *,
        label: torch.Tensor | None = None,
        losses: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss (), terms (T,)) of a batch; in float32, or float64 for a float64 embedding, under autocast too.

        embedding: (rows, D), any float dtype, of any length, in the layout of docs/LOSS.md.
        label: (rows,), any dtype; losses: (n,), those of the identity loss, with their gradient. Where `needs` says so.

        The terms have no gradient; with scope 'global' they are those of all processes. Nothing waits for the device.
        Raises `UserError` for another number of rows, and for a missing `label` or `losses`.
        """
        rows = self.settings.rows
        if embedding.dim() != 2 or embedding.shape[0] != rows:
            raise UserError(
                f"loss {self.loss!r}: expected an embedding of shape ({rows}, D), which is "
                f"{self.settings.rows_in_words}, got {tuple(embedding.shape)}"
            )
        given = {"label": label, "losses": losses}
        missing = [need for need in self.needs if given[need] is None]
        if missing:
            raise UserError(f"loss {self.loss!r}: expected {' and '.join(missing)} of each row, got none")
        for need in self.needs:
            expected, got = (_rows_of(need, self.settings),), tuple(given[need].shape)
            if got != expected:
                raise UserError(
                    f"loss {self.loss!r}: expected {need} of {expected[0]} rows, got a tensor of shape {got}"
                )
        with without_autocast(embedding):
            F = Functions.like(embedding)
            x, settings = F.array(embedding), self.settings
            if settings.scope == "global":
                world = processes(self.group)
                x = together(F, F.array(gathered(x.tensor, self.group)), settings, world)
                settings = dataclasses.replace(settings, b=world * settings.b)
            needed = {need: F.array(given[need]) for need in self.needs}
            value, terms, _ = self._build(F, x, settings, self.options, **needed)
        return value.tensor.reshape(()), terms.tensor.reshape(-1).detach()


def _rows_of(need: str, settings: DDLSettings) -> int:
    """How many rows `label` or `losses` has: the identity loss may see the singles alone."""
    singles = need == "losses" and settings.identity_rows == "singles"
    return settings.rows // 3 if singles else settings.rows


def _tried_out(entry: LossEntry, settings: DDLSettings, options: dict[str, Any]) -> tuple[str, ...]:
    """The names of the terms, after the loss was built once on tensors without values."""
    F = Functions(torch.float32, torch.device("meta"))
    known = {}
    if settings.scope == "device":
        known = {need: F.array(torch.empty(_rows_of(need, settings), device="meta")) for need in NEEDS}
    embedding = F.array(torch.empty(settings.rows, _ANY_SIZE, device="meta"))
    value, terms, names = build_checked(F, entry, embedding, settings, options, known)
    for (what, shape), found in zip(expected_shapes(names).items(), (value, terms), strict=True):
        got = tuple(found.tensor.shape)
        if got != shape:
            raise wrong_shape(entry, what, shape, got, names)
    return names
