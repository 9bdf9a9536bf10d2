"""The training graph: a backbone's embedding, the identity loss and a registered loss, as one Symbol.

Its outputs stand in the order in which InsightFace's MXNet trainer reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ddl_plugin.errors import UserError
from ddl_plugin.loss import identity as identity_loss
from ddl_plugin.loss.identity import IdentitySettings
from ddl_plugin.loss.registered import build_checked
from ddl_plugin.loss.shapes import require_shapes
from ddl_plugin.loss.terms import singles
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.registry import LossEntry, get_loss
from ddl_plugin.settings import DDLSettings, require


class TrainingSymbol(NamedTuple):
    """A graph to train and the names of the columns of its terms output, () without one."""

    symbol: Any
    term_names: tuple[str, ...]


class _AutomaticNames(mx.name.NameManager):
    """Prefixes the names MXNet invents, which repeat those in a backbone read from a file."""

    def __init__(self, prefix: str):
        super().__init__()
        self._prefix = prefix

    def get(self, name: str | None, hint: str) -> str:
        return name or f"{self._prefix}_{super().get(None, hint)}"


def training_symbol(
    embedding: Any,
    *,
    num_classes: int,
    emb_size: int,
    loss: str = "ddl",
    settings: DDLSettings | None = None,
    identity: IdentitySettings | None = None,
    options: dict[str, Any] | None = None,
    gathered: bool = False,
) -> TrainingSymbol:
    """The graph that a Module trains, on each device on its own slice of the batch.

    Args:
        embedding: Symbol of the backbone's output, (rows, emb_size), any float dtype.
        num_classes: identities of the classifier.
        emb_size: length of an embedding.
        loss: name of a registered loss; the name of an identity loss means that one alone.
        settings: batch layout and weights; needed by a loss beside the identity loss and by
            `identity.rows == 'singles'`.
        identity: the identity loss with its margins; None: the host's table entry for
            `settings.identity`, or for `loss` if that is an identity loss, on `settings.identity_rows`.
        options: of the loss, over its registered defaults.
        gathered: the loss is computed outside, over all devices (`gathered.GatheredLoss`): output 0 takes its
            gradient, outputs 2 and 3 are missing.

    Outputs, n being the rows that the identity loss sees and T the number of terms:
        [0]  `embedding_output`  (rows, emb_size), without gradient
        [1]  `softmax_output`    (n, num_classes), the identity loss; its gradient is that of the mean, and
                                 none where the loss replaces it (`LossEntry.replaces_identity`)
        [2]  `<loss>_loss_output`   (1,) if there is such a loss
        [3]  `<loss>_terms_output`  (1, T) if there is such a loss, without gradient
        [-1] `ce_loss_output`    (1,) mean cross entropy of the identity loss, without gradient

    All but the backbone's inputs is computed in float32. Free variables besides the backbone's:
    `softmax_label`, `fc7_weight`, and `fc7_bias` with plain softmax. Both losses are means over the
    device's slice, so `rescale_grad` is 1/devices.

    Raises `UserError` for an unknown loss, sizes below 1, missing settings, two identity losses, or a
    registered loss that does not return what it must.
    """
    entry = get_loss(loss)
    for key, size in (("num_classes", num_classes), ("emb_size", emb_size)):
        require(isinstance(size, int) and size >= 1, key, size, "a whole number >= 1")
    if settings is None and entry.build is not None:
        raise UserError(f"loss {loss!r}: expected settings of its batches (config.ddl), got none")
    identity = _identity(entry, settings, identity)

    with _AutomaticNames("identity"):
        label = mx.sym.Variable("softmax_label")
        softmax, losses = _identity_outputs(
            embedding,
            label,
            num_classes=num_classes,
            emb_size=emb_size,
            identity=identity,
            settings=settings,
            trains=not entry.replaces_identity,
        )
        exposed = mx.sym.identity if gathered else mx.sym.BlockGrad
        outputs, names = [exposed(embedding, name="embedding"), softmax], ()
        if entry.build is not None and not gathered:
            known = {"label": label, "losses": losses}
            added, names = loss_outputs(embedding, loss, settings, options or {}, emb_size, known)
            outputs += added
        outputs.append(mx.sym.BlockGrad(mx.sym.mean(losses), name="ce_loss"))
        return TrainingSymbol(mx.sym.Group(outputs), names)


def loss_outputs(
    embedding: Any,
    loss: str,
    settings: DDLSettings,
    options: dict[str, Any],
    emb_size: int,
    known: Mapping[str, Any] | None = None,
) -> tuple[list[Any], tuple[str, ...]]:
    """Outputs [2] and [3] of a training graph for a loss beside the identity loss, and its terms' names.

    known: the Symbols of what a loss may need (`registry.NEEDS`) that this graph has.
    """
    entry = get_loss(loss)
    options = entry.resolve(options)
    with _AutomaticNames(loss):
        value, terms, names = build_checked(mx.sym, entry, embedding, settings, options, known or {})
        require_shapes(entry, emb_size, settings, options)
        outputs = [
            mx.sym.MakeLoss(value, name=f"{loss}_loss"),
            mx.sym.BlockGrad(terms, name=f"{loss}_terms"),
        ]
    return outputs, names


def _identity(
    entry: LossEntry, settings: DDLSettings | None, identity: IdentitySettings | None
) -> IdentitySettings:
    """The identity loss that is asked for, whichever way."""
    if identity is None:
        rows = settings.identity_rows if settings else "all"
        return IdentitySettings.preset(settings.identity if entry.build else entry.name, rows=rows)
    if entry.build is None and identity.name != entry.name:
        raise UserError(
            f"identity: expected {entry.name!r}, which is what loss {entry.name!r} trains with, got {identity.name!r}"
        )
    if identity.rows == "singles" and settings is None:
        raise UserError("identity_rows 'singles': expected settings of the batches (config.ddl), got none")
    return identity


def _identity_outputs(
    embedding: Any,
    label: Any,
    *,
    num_classes: int,
    emb_size: int,
    identity: IdentitySettings,
    settings: DDLSettings | None,
    trains: bool,
) -> tuple[Any, Any]:
    """SoftmaxOutput, or without `trains` the probabilities alone, and the loss of each row that is seen."""
    if identity.rows == "singles":
        embedding, label = singles(mx.sym, embedding, settings), singles(mx.sym, label, settings)
    weight = mx.sym.Variable(
        "fc7_weight",
        shape=(num_classes, emb_size),
        lr_mult=identity.fc7_lr_mult,
        wd_mult=1.0,
        init=mx.init.Normal(0.01),
    )
    bias = None
    if not identity.margin_softmax:
        # The host's bias: twice the weights' learning rate, no decay.
        bias = mx.sym.Variable(
            "fc7_bias",
            shape=(num_classes,),
            lr_mult=2 * identity.fc7_lr_mult,
            wd_mult=0.0,
            init=mx.init.Zero(),
        )
    fc7 = identity_loss.logits(
        mx.sym, embedding, label, weight, bias, num_classes=num_classes, settings=identity
    )
    if trains:
        softmax = mx.sym.SoftmaxOutput(fc7, label, name="softmax", normalization="valid")
    else:
        softmax = mx.sym.BlockGrad(mx.sym.softmax(fc7), name="softmax")
    return softmax, identity_loss.row_losses(mx.sym, fc7, label)
