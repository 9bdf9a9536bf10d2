"""The training graph: a backbone's embedding, the identity loss and a registered loss, as one Symbol.

Its outputs stand in the order in which InsightFace's MXNet trainer reads them.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

from ddl_plugin.errors import UserError
from ddl_plugin.loss import identity as identity_loss
from ddl_plugin.loss.identity import IdentitySettings
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

    def get(self, name: str | None, hint: str) -> str:
        return name or f"ddl_{super().get(None, hint)}"


def training_symbol(
    embedding: Any,
    *,
    num_classes: int,
    emb_size: int,
    loss: str = "ddl",
    settings: DDLSettings | None = None,
    identity: IdentitySettings | None = None,
    options: dict[str, Any] | None = None,
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

    Outputs, n being the rows that the identity loss sees and T the number of terms:
        [0]  `embedding_output`  (rows, emb_size), without gradient
        [1]  `softmax_output`    (n, num_classes), the identity loss; its gradient is that of the mean
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

    with _AutomaticNames():
        label = mx.sym.Variable("softmax_label")
        softmax, cross_entropy = _identity_outputs(
            embedding, label, num_classes=num_classes, emb_size=emb_size, identity=identity, settings=settings
        )
        outputs, names = [mx.sym.BlockGrad(embedding, name="embedding"), softmax], ()
        if entry.build is not None:
            options = entry.resolve(options or {})
            value, terms, names = _registered(entry, embedding, settings, options)
            _check_shapes(entry, emb_size, settings, options)
            outputs += [
                mx.sym.MakeLoss(value, name=f"{loss}_loss"),
                mx.sym.BlockGrad(terms, name=f"{loss}_terms"),
            ]
        outputs.append(mx.sym.BlockGrad(cross_entropy, name="ce_loss"))
        return TrainingSymbol(mx.sym.Group(outputs), names)


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
) -> tuple[Any, Any]:
    """SoftmaxOutput and mean cross entropy of the rows that the identity loss sees."""
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
    softmax = mx.sym.SoftmaxOutput(fc7, label, name="softmax", normalization="valid")
    return softmax, identity_loss.cross_entropy(mx.sym, fc7, label)


def _registered(
    entry: LossEntry, embedding: Any, settings: DDLSettings, options: dict[str, Any]
) -> tuple[Any, Any, tuple[str, ...]]:
    """What a registered loss built, checked: its author is a user."""
    try:
        built = entry.build(mx.sym, embedding, settings, options)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:2]  # of build itself, if it was entered
        where = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)
        raise UserError(
            f"loss {entry.name!r}: build() raised {type(error).__name__}: {error}{where}"
        ) from error
    good = isinstance(built, tuple) and len(built) == 3
    good = good and all(isinstance(part, mx.sym.Symbol) for part in built[:2])
    if not good:
        raise UserError(
            f"loss {entry.name!r}: expected build() to return (loss, terms, names) with two Symbols, "
            f"got {type(built).__name__}"
        )
    value, terms, names = built
    listed = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
    if not listed or not names or len(set(names)) < len(names):
        raise UserError(f"loss {entry.name!r}: expected distinct names of its terms, got {names!r}")
    return value, terms, tuple(names)


def _check_shapes(entry: LossEntry, emb_size: int, settings: DDLSettings, options: dict[str, Any]) -> None:
    """Raise `UserError` unless the loss is (1,) and the terms are (1, T), as far as MXNet can infer it.

    Asked of a graph on a variable, whose shape is known while that of the backbone's output is not.
    """
    with mx.name.NameManager():  # the names in the training graph are not counted on
        value, terms, names = _registered(entry, mx.sym.Variable("embedding"), settings, options)
    expected = {"loss": (1,), "terms": (1, len(names))}
    for (what, shape), symbol in zip(expected.items(), (value, terms), strict=True):
        known = {"embedding": (settings.rows, emb_size)} if "embedding" in symbol.list_arguments() else {}
        try:
            inferred = symbol.infer_shape_partial(**known)[1]
        except mx.base.MXNetError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"loss {entry.name!r}: shapes do not fit an embedding of ({settings.rows}, {emb_size}): {reason}"
            ) from error
        if inferred and inferred[0] and 0 not in inferred[0] and inferred[0] != shape:
            named = f", one for each of the names {names}" if what == "terms" else ""
            raise UserError(
                f"loss {entry.name!r}: expected {what} of shape {shape}{named}, got {inferred[0]}"
            )
