"""What both hosts' config files share: what has been translated so far, and the choices it leaves open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ddl_plugin import registry
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.recipe_styles.keys import HOSTS_KEYS, Telling
from ddl_plugin.settings import IDENTITY_LOSSES, DDLSettings, RunSettings, field_names, require

#: The graphs of backbone.networks, which brings MXNet and therefore is not imported here.
NETWORKS = ("y1", "y2", "tiny")

#: How the host's fmobilefacenet is built here: a config that asks for another one is refused.
_MOBILEFACENET = {"net_name": "fmobilefacenet", "net_output": "GDC", "net_act": "prelu", "bn_mom": 0.9}
_GRAPHS: dict[str, dict[str, Any]] = {
    "y1": {**_MOBILEFACENET, "net_blocks": (1, 4, 6, 2)},
    "y2": {**_MOBILEFACENET, "net_blocks": (2, 8, 16, 4)},
    "tiny": {},
}

DDL_FIELDS = field_names(DDLSettings)
MARGINS = ("loss_m1", "loss_m2", "loss_m3")


@dataclass
class Translation:
    """A host's config file as far as it has been translated."""

    config: dict[str, Any] = field(default_factory=dict)  # our keys
    sources: dict[str, str] = field(
        default_factory=dict
    )  # our key -> what the file calls it, where it differs
    read_as: str = ""  # what was chosen of the file, for the first note
    notes: list[str] = field(default_factory=list)
    overridden: set[str] = field(default_factory=set)  # our keys that the command line has set
    network: Any = None  # the host's name of the graph
    network_source: str = "config.network"
    graph: dict[str, Any] = field(default_factory=dict)  # the host's keys that describe the graph
    margins: tuple[Any, ...] | None = None  # (m1, m2, m3), where the file has them under a name of the host's
    steps: dict[str, Any] = field(default_factory=dict)  # the host's keys for how long it trains

    def take(self, key: str, value: Any, source: str) -> None:
        """Set our `key`, which the file calls `source`."""
        self.config[key] = value
        if source != f"config.{key}":
            self.sources[key] = source

    def override(self, key: str) -> None:
        """Note that the command line has set `key`, such as 'lr' or 'ddl.b': it is no longer the file's."""
        self.overridden |= {key, key.partition(".")[0]}
        self.sources.pop(key, None)

    @property
    def ddl(self) -> Mapping[str, Any] | None:
        """Settings of DDL, where there are any and they are a dict as they should be."""
        ddl = self.config.get("ddl")
        return ddl if isinstance(ddl, Mapping) else None

    @property
    def identity_alone(self) -> bool:
        loss = self.config.get("loss")
        return isinstance(loss, str) and loss in IDENTITY_LOSSES


def our_keys() -> tuple[str, ...]:
    """What a recipe of ours may set, with the names of registered losses and samplers."""
    fields = [name for name in field_names(RunSettings) if name not in ("loss_options", "sampler_options")]
    return (*fields, *(name for name in (*registry.LOSSES, *registry.SAMPLERS) if name not in fields))


def require_known(key: Any, where: str, more: Iterable[str] = ()) -> None:
    """Raise `UserError` for a key that none of the three styles has (nor `more`), with the nearest one."""
    known = {*our_keys(), *HOSTS_KEYS, *more}
    if key not in known:
        raise UserError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def nearest(name: Any, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near: the list would be long."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith("; did you mean") else ""


def leave_out(translation: Translation, rest: Mapping[str, Any], telling: Mapping[str, Telling]) -> None:
    """Name every key of `rest` ({name in the file: value}): in one line, or on its own where that matters."""
    quiet = []
    for name, value in rest.items():
        entry = telling.get(name.rpartition(".")[2])
        if entry is not None and entry.tells(value):
            translation.notes.append(f"{name} {value!r}: {entry.instead}")
        else:
            quiet.append(name)
    if quiet:
        translation.notes.append(f"no meaning here, left out: {', '.join(quiet)}")


def identity_of(m1: Any, m2: Any, m3: Any) -> str:
    """The name that the margin softmax with these margins has."""
    if m1 == 1 and not (m2 and m3):
        return "arcface" if m2 else "cosface" if m3 else "nsoftmax"
    return "combined"


def name_identity(translation: Translation) -> None:
    """Give the identity loss beside DDL the name of the margins that the file sets."""
    config, ddl = translation.config, translation.ddl
    if ddl is None or "identity" in ddl or not all(name in config for name in MARGINS):
        return
    config["ddl"] = {**ddl, "identity": identity_of(*(config[name] for name in MARGINS))}


def choose_graph(translation: Translation) -> None:
    """The pretrained checkpoint's own graph; without a checkpoint, one that can be built here."""
    config, name, graph = translation.config, translation.network, translation.graph
    if not config.get("pretrained"):
        config.setdefault("fc7_init", "random")  # there is no model to make the classifier from
    if "network" in translation.overridden:  # in our sense: the graph built anew
        return
    if config.get("pretrained"):
        translation.notes.append(
            f"network {name!r}: the graph is that of the checkpoint {config['pretrained']}{_left_out(graph)}"
        )
        return
    remedy = "pretrained=PREFIX,EPOCH names a checkpoint of MXNet, which brings its own"
    if name not in NETWORKS:
        raise UserError(
            f"{translation.network_source}: expected one of {', '.join(NETWORKS)}, the graphs that are built here, "
            f"got {name!r}; {remedy}"
        )
    for key, built in _GRAPHS[name].items():
        given = graph.get(key, built)
        if (tuple(given) if isinstance(given, list) else given) != built:
            raise UserError(
                f"{key}: expected {built!r}, as network {name!r} is built here, got {given!r}; {remedy}"
            )
    rest = [key for key in graph if key not in _GRAPHS[name]]
    if rest:
        translation.notes.append(f"network {name!r}: the graph is the one built here{_left_out(rest)}")
    config["network"] = name


def _left_out(names: Iterable[str]) -> str:
    return f"; left out: {', '.join(names)}" if names else ""


def choose_sampler(translation: Translation) -> None:
    """Without distributions, batches are what the host's are: images in a shuffled order."""
    if translation.identity_alone and translation.config.get("ddl") is None:
        translation.config.setdefault("sampler", "images")
    elif translation.identity_alone and translation.config.get("sampler", "pairs") == "pairs":
        translation.notes.append(
            f"loss {translation.config['loss']!r}: ddl says what the batches are, and is not in the loss; "
            f"loss=ddl puts it there"
        )


def fit_batch(translation: Translation) -> None:
    """Let b follow from the host's images per device, or these from b where it is given."""
    config, ddl, size = translation.config, translation.ddl, translation.config.get("per_batch_size")
    hard_count = _count(ddl.get("hard")) if ddl is not None else 0
    if config.get("sampler") == "images" or not hard_count or not _whole(size):
        return  # nothing to fit, or a mistake that settings.py names
    group = 3 * (hard_count + 1)
    name = translation.sources.get("per_batch_size", "per_batch_size")
    asked = "per_batch_size" in translation.overridden  # then it is held to: settings.py checks it
    if "b" not in ddl:
        b = size // group
        require(
            b >= 2, name, size,
            f"3b(K+1) images with b >= 2, {2 * group} or more for K = {hard_count}; ddl.b=N sets them",
        )  # fmt: skip
        config["ddl"] = {**ddl, "b": b}
        translation.notes.append(
            f"{name} {size}: ddl.b is {b}, the largest with 3b(K+1) = {b * group} <= {size} images a device; "
            f"ddl.b=N sets another"
        )
    elif _whole(ddl["b"]) and ddl["b"] * group != size:
        translation.notes.append(
            f"{name} {size}: with ddl.b {ddl['b']} there are 3b(K+1) = {ddl['b'] * group} images a device"
        )
    if not asked:
        del config["per_batch_size"]


def _count(hard: Any) -> int:
    if isinstance(hard, (str, Mapping)):
        return 1
    return len(hard) if isinstance(hard, (list, tuple)) else 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
