"""Losses and samplers by name: the built-in ones and those that a user's recipe adds.

A registry is a dict of frozen descriptors. Nothing heavy is imported before an entry is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.settings import IDENTITY_LOSSES, unknown_keys

#: What a loss may ask for beside the embedding: the identity of each row, and each row's identity loss.
NEEDS = ("label", "losses")

#: Folders of a run's output beside the one that is called as its loss.
_RESERVED = ("base", "pretraining")


@dataclass(frozen=True)
class Entry:
    """What a registry holds of one loss or sampler.

    `defaults` are its options: a recipe may set these and no others.
    """

    name: str
    build: Callable[..., Any] | None
    description: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    kind = "entry"

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with `options` over them; raises `UserError` for an option it does not have."""
        unknown_keys(f"{self.kind} {self.name!r}: options", dict(options), tuple(self.defaults))
        return {**self.defaults, **options}


@dataclass(frozen=True)
class LossEntry(Entry):
    """A loss beside the identity loss; `build` None: the identity loss of this name, and nothing else.

    build(F, embedding, settings: DDLSettings, options: dict) -> (loss, terms, names): `F` is `mx.sym`
    (or `mx.nd` in a test), or in PyTorch a `ddl_plugin.pytorch.functions.Functions` with the same operators;
    `embedding` (3b(K+1), D) of one device in the layout of docs/LOSS.md; `loss` has shape (1,), `terms` (1, T),
    and `names` is a tuple of T distinct strings. The loss is a mean over the device's rows, so that the number of
    devices does not change the gradient.

    `needs` names what it takes as keyword arguments too: `label` (3b(K+1),), the identity of each row, and
    `losses` (n,), the identity loss of each of the n rows that it sees, with its gradient. Only a device's own
    graph has them: not the scope `global`, nor InsightFace's own trainers.
    `replaces_identity`: the loss is made of `losses`, so that the identity loss by itself does not train.
    """

    needs: tuple[str, ...] = ()
    replaces_identity: bool = False

    kind = "loss"

    @property
    def function(self) -> Callable[..., Any] | None:
        """`build` itself, of a built-in loss too: what a compiler can look into."""
        return self.build.function() if isinstance(self.build, _Lazily) else self.build


@dataclass(frozen=True)
class SamplerEntry(Entry):
    """A source of batches.

    build(labels, partition, pairs, settings, *, rows, devices, seed, options) -> an object with `rows` (of a
    whole batch, all devices; the argument is that of one device), `steps_per_epoch`, and `batch(step)`, a pure function of seed and step
    that returns a `ddl_plugin.data.sampler.SampledBatch`.
    """

    kind = "sampler"


@dataclass(frozen=True)
class _Lazily:
    """The function `build` of a module of `ddl_plugin.loss`, imported when it is called or asked for."""

    module: str

    def function(self) -> Callable[..., Any]:
        return importlib.import_module(f"ddl_plugin.loss.{self.module}").build

    def __call__(self, *arguments: Any, **needs: Any) -> Any:
        return self.function()(*arguments, **needs)


def _pairs(labels, partition, pairs, settings, *, rows: int, devices: int, seed: int, options: Any) -> Any:
    from ddl_plugin.data.sampler import PairSampler

    together = settings.scope == "global"
    return PairSampler(labels, partition, pairs, settings, devices=devices, seed=seed, together=together)


def _images(labels, partition, pairs, settings, *, rows: int, devices: int, seed: int, options: Any) -> Any:
    import numpy as np

    from ddl_plugin.data.sampler import ImageSampler

    positions = np.arange(len(labels)) if partition is None else partition.distributions[0].positions
    return ImageSampler(positions, rows, devices=devices, seed=seed)


def _identities(
    labels, partition, pairs, settings, *, rows: int, devices: int, seed: int, options: Any
) -> Any:
    from ddl_plugin.data.identity_sampler import IdentitySampler

    positions = partition.distributions[0].positions
    return IdentitySampler(labels, positions, settings.online, devices=devices, seed=seed)


LOSSES: dict[str, LossEntry] = {
    "ddl": LossEntry(
        "ddl", _Lazily("terms"), "Distribution Distillation Loss beside the identity loss `ddl.identity`"
    ),
    **{name: LossEntry(name, None, f"the host's identity loss {name!r} alone") for name in IDENTITY_LOSSES},
    "online_ddl": LossEntry(
        "online_ddl",
        _Lazily("online"),
        "DDL whose hard samples are found by their identity loss (the supplement's section 6)",
        needs=("losses",),
    ),
    "histogram": LossEntry(
        "histogram",
        _Lazily("rivals.histogram"),
        "histogram loss (Ustinova and Lempitsky 2016) beside the identity loss",
        {"weight": 1.0, "bins": 100},
        needs=("label",),
    ),
    "semihard_triplet": LossEntry(
        "semihard_triplet",
        _Lazily("rivals.semihard_triplet"),
        "semi-hard triplets (Schroff et al. 2015) beside the identity loss",
        {"weight": 1.0, "alpha": 0.3},
        needs=("label",),
    ),
    "ohem": LossEntry(
        "ohem",
        _Lazily("rivals.ohem"),
        "the identity loss of the hardest rows alone (Shrivastava et al. 2016)",
        {"keep": 0.5},
        needs=("losses",),
        replaces_identity=True,
    ),
    "focal": LossEntry(
        "focal",
        _Lazily("rivals.focal"),
        "the identity loss with the weight (1 - p)^gamma (Lin et al. 2017)",
        {"gamma": 2.0},
        needs=("losses",),
        replaces_identity=True,
    ),
}

SAMPLERS: dict[str, SamplerEntry] = {
    "pairs": SamplerEntry("pairs", _pairs, "positive pairs and singles of each distribution, for DDL"),
    "images": SamplerEntry(
        "images",
        _images,
        "shuffled passes over the images, per_batch_size of them a device; of those that `rule` selects",
        {"rule": None},
    ),
    "identities": SamplerEntry(
        "identities",
        _identities,
        "some images of each of some identities, as `ddl.online` says, for online_ddl",
    ),
}


def _same_source(old: Callable[..., Any] | None, new: Callable[..., Any]) -> bool:
    """Whether both are one object, or one function of one file that was executed twice."""
    if old is new:
        return True
    codes = getattr(old, "__code__", None), getattr(new, "__code__", None)
    return None not in codes and _place(codes[0]) == _place(codes[1])


def _place(code: Any) -> tuple[str, int, str]:
    return code.co_filename, code.co_firstlineno, code.co_name


def _register(registry: dict[str, Any], entry: Entry) -> None:
    if not isinstance(entry.name, str) or not entry.name.isidentifier():
        raise UserError(f"{entry.kind} name: expected letters, digits and '_', got {entry.name!r}")
    if entry.name in _RESERVED:
        raise UserError(
            f"{entry.kind} name: expected none of {', '.join(_RESERVED)}, which are folders of a run's output, "
            f"got {entry.name!r}; choose another"
        )
    if not callable(entry.build):
        raise UserError(f"{entry.kind} {entry.name!r}: expected build to be a function, got {entry.build!r}")
    old = registry.get(entry.name)
    if old is not None and not _same_source(old.build, entry.build):
        raise UserError(
            f"{entry.kind} {entry.name!r}: expected a new name, got one that is registered already "
            f"({old.description}); choose another"
        )
    registry[entry.name] = entry


def register_loss(
    name: str,
    build: Callable[..., Any],
    *,
    description: str,
    defaults: Mapping[str, Any] | None = None,
    needs: Sequence[str] = (),
    replaces_identity: bool = False,
) -> None:
    """Make `config.loss = name` train with `build` (see `LossEntry`) beside the identity loss.

    `defaults` are its options; a recipe sets them in the dict `config.<name>`.
    Called at the top of a recipe. Executing the same recipe again replaces its own entry; any other
    reuse of a name raises `UserError`.
    """
    for need in needs:
        if need not in NEEDS:
            raise UserError(
                f"loss {name!r}: needs: expected some of {', '.join(NEEDS)}, got {need!r}{did_you_mean(need, NEEDS)}"
            )
    _register(LOSSES, LossEntry(name, build, description, defaults or {}, tuple(needs), replaces_identity))


def register_sampler(
    name: str,
    build: Callable[..., Any],
    *,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Make `config.sampler = name` draw batches with `build` (see `SamplerEntry`); see `register_loss`."""
    _register(SAMPLERS, SamplerEntry(name, build, description, defaults or {}))


def _get(registry: dict[str, Any], kind: str, name: str) -> Any:
    if name not in registry:
        raise UserError(
            f"{kind}: expected one of {', '.join(registry)}, got {name!r}{did_you_mean(name, registry)}"
        )
    return registry[name]


def get_loss(name: str) -> LossEntry:
    """The loss of this name; raises `UserError` with the known names and the nearest one."""
    return _get(LOSSES, "loss", name)


def get_sampler(name: str) -> SamplerEntry:
    """The sampler of this name; raises `UserError` with the known names and the nearest one."""
    return _get(SAMPLERS, "sampler", name)
