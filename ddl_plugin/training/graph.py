"""The graph that trains: the backbone as it runs best here, with the losses on top."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ddl_plugin.backbone.checkpoint import Backbone
from ddl_plugin.backbone.graph_rewrite import with_fast_prelu, with_frozen_batchnorm
from ddl_plugin.loss.gathered import GatheredLoss
from ddl_plugin.loss.symbol import TrainingSymbol, training_symbol
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import IDENTITY_LOSSES, RunSettings
from ddl_plugin.training.engine import identity_settings


def fixed_gammas(symbol: mx.sym.Symbol) -> list[str]:
    """The gammas that MXNet takes for 1 whatever they hold (BatchNorm's `fix_gamma`, its default).

    Weight decay moves them where several devices train; readers other than MXNet take what is stored.
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    fixed = (
        n
        for n in nodes
        if n["op"] == "BatchNorm" and n.get("attrs", {}).get("fix_gamma", "True") in ("True", "1")
    )
    return [nodes[node["inputs"][1][0]]["name"] for node in fixed]


def training_graph(
    settings: RunSettings, backbone: Backbone, num_classes: int, contexts: Sequence[mx.Context]
) -> TrainingSymbol:
    """On the CPU with MXNet's slow PReLU replaced; with frozen BatchNorm where the recipe says so.

    With `scope: global` without the loss of the embeddings, which is `gathered_loss`.
    """
    symbol = backbone.symbol
    if settings.bn_frozen:
        symbol = with_frozen_batchnorm(symbol)
    if all(context.device_type == "cpu" for context in contexts):
        symbol = with_fast_prelu(symbol, backbone.shapes)
    return training_symbol(
        symbol,
        num_classes=num_classes,
        emb_size=backbone.emb_size,
        identity=identity_settings(settings),
        loss=settings.loss,
        settings=settings.ddl,
        options=settings.loss_options,
        gathered=_spans_devices(settings),
    )


def gathered_loss(
    settings: RunSettings, emb_size: int, contexts: Sequence[mx.Context]
) -> GatheredLoss | None:
    """The loss that `training_graph` leaves out because it spans the devices; None where it is in the graph."""
    if not _spans_devices(settings):
        return None
    return GatheredLoss(
        settings.loss, settings.ddl, settings.loss_options,
        devices=len(contexts), emb_size=emb_size, context=contexts[0],
    )  # fmt: skip


def _spans_devices(settings: RunSettings) -> bool:
    return (
        settings.ddl is not None and settings.ddl.scope == "global" and settings.loss not in IDENTITY_LOSSES
    )
