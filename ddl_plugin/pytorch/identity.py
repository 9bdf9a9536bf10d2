"""The identity losses beside DDL (Eq. 8) as a torch module: the host's softmax and margin softmax."""

from __future__ import annotations

from ddl_plugin.errors import UserError
from ddl_plugin.loss import identity as identity_loss
from ddl_plugin.loss.identity import IdentitySettings
from ddl_plugin.loss.terms import singles
from ddl_plugin.pytorch.array import Array
from ddl_plugin.pytorch.functions import Functions
from ddl_plugin.pytorch.precision import without_autocast
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.settings import DDLSettings, require


class IdentityLoss(torch.nn.Module):
    """The classifier and its loss of each row: softmax, norm-softmax, ArcFace, CosFace or their combination.

    The logit of the true class, s cos(theta), becomes s (cos(m1 theta + m2) - m3).

    Args:
        num_classes: identities of the classifier.
        emb_size: length of an embedding.
        settings: which loss, with which margins, on which rows.
        ddl: layout of the batches; needed for `settings.rows` 'singles'.

    Parameters, float32: `weight` (num_classes, emb_size), MXNet's fc7_weight, from N(0, 0.01^2); with plain softmax
    `bias` (num_classes,), fc7_bias, from 0.

    Raises `UserError` for sizes below 1, for 'singles' without `ddl`, and in forward() for shapes that do not fit.
    """

    def __init__(
        self, num_classes: int, emb_size: int, settings: IdentitySettings, ddl: DDLSettings | None = None
    ):
        super().__init__()
        for key, size in (("num_classes", num_classes), ("emb_size", emb_size)):
            require(isinstance(size, int) and size >= 1, key, size, "a whole number >= 1")
        if settings.rows == "singles" and ddl is None:
            raise UserError(
                "identity_rows 'singles': expected settings of the batches (config.ddl), got none"
            )
        self.settings = settings
        self.ddl = ddl
        self.num_classes = num_classes
        self.weight = torch.nn.Parameter(torch.empty(num_classes, emb_size))
        torch.nn.init.normal_(self.weight, std=0.01)
        bias = None if settings.margin_softmax else torch.nn.Parameter(torch.zeros(num_classes))
        self.register_parameter("bias", bias)

    def extra_repr(self) -> str:
        return f"{self.settings.name}, {self.num_classes} classes, rows={self.settings.rows}"

    def multipliers(self) -> dict[str, tuple[float, float]]:
        """(lr_mult, wd_mult) of each parameter: the host's bias has twice the rate and no decay."""
        factor = self.settings.fc7_lr_mult
        found = {"weight": (factor, 1.0)}
        if self.bias is not None:
            found["bias"] = (2 * factor, 0.0)
        return found

    def forward(self, embedding: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Cross entropy in nats of each row that it sees: (rows, emb_size), (rows,) -> (n,).

        embedding: any float dtype, of any length. label: class numbers, any dtype. n is rows, or with 'singles' a
        third of them. In float32, or float64 for a float64 embedding, under autocast too.
        """
        emb_size = self.weight.shape[1]
        if embedding.shape[1:] != (emb_size,) or label.shape != embedding.shape[:1]:
            raise UserError(
                f"identity: expected embeddings (n, {emb_size}) and labels (n,), got {tuple(embedding.shape)} and "
                f"{tuple(label.shape)}"
            )
        with without_autocast(embedding):
            F = Functions.like(embedding)
            x, y = F.array(embedding), Array(F, label)
            if self.settings.rows == "singles":
                x, y = singles(F, x, self.ddl), singles(F, y, self.ddl)
            bias = None if self.bias is None else F.array(self.bias)
            logits = identity_loss.logits(
                F, x, y, F.array(self.weight), bias, num_classes=self.num_classes, settings=self.settings
            )
            return identity_loss.row_losses(F, logits, y).tensor
