"""What a run is: validated, frozen settings. No I/O here; `recipe.py` reads them from a recipe file.

Field names are InsightFace's where it has one (`lr`, `wd`, `mom`, `loss_m2`, `dataset_path`, `verbose`).
Every mistake raises `UserError` with the key, the value got and what was expected.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ddl_plugin.errors import UserError, did_you_mean

DISTANCES = ("kl", "js", "emd")
NEG_MINING = ("hardest", "top", "random")
IDENTITY_ROWS = ("all", "singles")
SCOPES = ("device", "global")
_WEIGHTS = ("lambda_pos", "lambda_neg", "lambda_order")
BACKENDS = ("mxnet", "torch")
AMPS = ("bf16",)
FC7_INITS = ("mean", "checkpoint", "random")

#: Settings of a run that do not touch what is trained: an unfinished run may go on with others.
LOOKING_ONLY = ("val_targets", "identification", "num_threads", "max_damaged")

#: Part of a data set's records that may be damaged before a run stops.
MAX_DAMAGED = 0.001

#: The host's identity losses: name -> (loss_m1, loss_m2, loss_m3, loss_s); softmax has no scale.
IDENTITY_LOSSES: dict[str, tuple[float, float, float, float] | None] = {
    "softmax": None,
    "nsoftmax": (1.0, 0.0, 0.0, 64.0),
    "arcface": (1.0, 0.5, 0.0, 64.0),
    "cosface": (1.0, 0.0, 0.35, 64.0),
    "combined": (1.0, 0.3, 0.2, 64.0),
}


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raise `UserError` naming the key, the value got and what was expected, unless `holds`."""
    if not holds:
        raise UserError(f"{key}: expected {expected}, got {value!r}")


def require_number(key: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = good and abs(value) <= sys.float_info.max  # not NaN, not infinite, no int beyond floats
    good = good and (value > low if above else value >= low) and value <= high
    bounds = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
    require(good, key, value, f"a number {bounds}")


def require_whole(key: str, value: Any, low: int) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low
    require(good, key, value, f"a whole number >= {low}")


def _choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise UserError(f"{key}: expected one of {', '.join(choices)}, got {value!r}{hint}")


def _flag(key: str, value: Any) -> None:
    require(isinstance(value, bool), key, value, "True or False")


def _text(key: str, value: Any, expected: str) -> None:
    require(isinstance(value, str) and bool(value.strip()), key, value, expected)


def unknown_keys(where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise `UserError` for the first key of `given` that is not known, with a suggestion."""
    for key in given:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")


def field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


@dataclass(frozen=True)
class Degradation:
    """Random degradations of a 112x112 image, each drawn uniformly from (low, high); None: not applied.

    Applied in the order of a camera: darken, blur, size, occlude, jpeg.
    """

    darken: tuple[float, float] | None = None  # factor on the pixel values, 0..1
    blur: tuple[float, float] | None = None  # Gaussian sigma, pixels of the full-size image
    size: tuple[int, int] | None = None  # side in pixels: shrunk to it and enlarged again
    occlude: tuple[float, float] | None = None  # side of a grey square, fraction of the image's
    jpeg: tuple[int, int] | None = None  # JPEG quality, 1..100
    one_of: tuple[Degradation, ...] | None = None  # instead of all others: one of these, equally likely

    _BOUNDS: ClassVar[dict[str, tuple[float, float]]] = {
        "darken": (0.0, 1.0),
        "blur": (0.1, 20.0),
        "size": (4, 112),
        "occlude": (0.01, 1.0),
        "jpeg": (1, 100),
    }
    _WHOLE: ClassVar[tuple[str, ...]] = ("size", "jpeg")
    NAMES: ClassVar[tuple[str, ...]] = (*_BOUNDS, "one_of")

    def __post_init__(self) -> None:
        for name, (low, high) in self._BOUNDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            pair = (value, value) if isinstance(value, (int, float)) else value
            good = isinstance(pair, (tuple, list)) and len(pair) == 2
            kind, types = ("whole number", int) if name in self._WHOLE else ("number", (int, float))
            good = good and all(isinstance(v, types) and not isinstance(v, bool) for v in pair)
            good = good and low <= pair[0] <= pair[1] <= high
            expected = f"a {kind} or a pair (low, high) of them within {low:g}..{high:g}"
            require(good, f"ddl.hard: {name}", value, expected)
            object.__setattr__(self, name, tuple(pair))
        if self.one_of is not None:
            self._check_one_of()

    def _check_one_of(self) -> None:
        own = any(getattr(self, name) is not None for name in self._BOUNDS)
        listed = isinstance(self.one_of, (tuple, list)) and len(self.one_of) > 0
        require(
            listed and not own,
            "ddl.hard: one_of",
            self.one_of,
            "a list of degradations, and no others beside it",
        )
        parsed = tuple(Degradation.parse(one, "ddl.hard: one_of") for one in self.one_of)
        for one in parsed:
            flat = one.one_of is None and one.active
            require(flat, "ddl.hard: one_of", one, "degradations such as {'size': (12, 16)}")
        object.__setattr__(self, "one_of", parsed)

    @classmethod
    def parse(cls, value: Any, where: str) -> Degradation:
        """From a dict of degradations."""
        if isinstance(value, Degradation):
            return value
        require(isinstance(value, dict), where, value, "a dict such as {'size': (12, 16)}")
        given = {key: item for key, item in value.items() if item is not None}
        unknown_keys(where, given, cls.NAMES)
        return cls(**given)

    @property
    def active(self) -> bool:
        return any(getattr(self, name) is not None for name in self.NAMES)

    @property
    def label(self) -> str:
        """How tables and figures call it, e.g. 'size 12-16'; '' where it does nothing."""
        if self.one_of is not None:
            return " or ".join(one.label for one in self.one_of)
        parts = []
        for name in self._BOUNDS:
            bounds = getattr(self, name)
            if bounds is not None:
                low, high = bounds
                parts.append(f"{name} {low:g}" + ("" if low == high else f"-{high:g}"))
        return ", ".join(parts)


@dataclass(frozen=True)
class HardSettings:
    """One student distribution: which records it draws from and how they are degraded.

    `rule` None with a degradation: the records of the easy set, made hard by degrading them.
    """

    rule: str | None = None
    degradation: Degradation = field(default_factory=Degradation)

    @classmethod
    def parse(cls, value: Any) -> HardSettings:
        """From a rule ('abs(yaw) > 45') or a dict of degradations, optionally with 'rule'."""
        if isinstance(value, HardSettings):
            return value
        if isinstance(value, str):
            value = {"rule": value}
        require(
            isinstance(value, dict) and bool(value),
            "ddl.hard",
            value,
            "a rule or a dict like {'size': (12, 16)}",
        )
        unknown_keys("ddl.hard", value, ("rule", "degradation", *Degradation.NAMES))
        rule, parts = value.get("rule"), {key: value[key] for key in value if key != "rule"}
        if rule is not None:
            _text("ddl.hard: rule", rule, "a rule such as 'abs(yaw) > 45'")
        return cls(rule, Degradation.parse(parts.pop("degradation", parts), "ddl.hard"))

    @property
    def label(self) -> str:
        """How tables and figures call this distribution, e.g. 'size 12-16' or 'abs(yaw) > 45'."""
        return ", ".join(part for part in (self.rule, self.degradation.label) if part)


def mixed(hard: tuple[HardSettings, ...]) -> HardSettings:
    """All hard distributions as one (Table 2, "mixture"): the images of all, degraded as any of them.

    Raises `UserError` where rules and degradations are both different: an image has no one degradation then.
    """
    rules = tuple(dict.fromkeys(h.rule for h in hard))
    degradations = tuple(dict.fromkeys(h.degradation for h in hard))
    if len(rules) > 1 and (None in rules or len(degradations) > 1):
        raise UserError(
            f"ddl.mixture: expected hard distributions by rules alone, or by degradations of the same images, got "
            f"{'; '.join(h.label for h in hard)}; write the one mixed distribution in ddl.hard by hand"
        )
    rule = rules[0] if len(rules) == 1 else " or ".join(f"({rule})" for rule in rules)
    flat = tuple(one for d in degradations for one in (d.one_of or (d,)))
    return HardSettings(rule, flat[0] if len(flat) == 1 else Degradation(one_of=flat))


@dataclass(frozen=True)
class GroupSettings:
    """One teacher and its students, where there are several such groups (section 3.4: several tasks at once)."""

    name: str  # begins the names of its distributions: pose_easy, pose_hard
    easy: str | None = None  # rule of the teacher's records; None: every record
    hard: tuple[HardSettings, ...] = ()  # its students
    lambda_pos: float | None = None  # weights of this group; None: those of ddl
    lambda_neg: float | None = None
    lambda_order: float | None = None

    def __post_init__(self) -> None:
        where = "ddl.groups"
        good = isinstance(self.name, str) and self.name.isidentifier()
        require(good, f"{where}: name", self.name, "letters, digits and '_', e.g. 'pose'")
        hard = self.hard
        if isinstance(hard, (str, dict, HardSettings)):
            hard = (hard,)
        good = isinstance(hard, (tuple, list)) and len(hard) >= 1
        require(good, f"{where}: {self.name}: hard", hard, "a list of one rule or degradation at least")
        object.__setattr__(self, "hard", tuple(HardSettings.parse(h) for h in hard))
        for h in self.hard:
            require(h.rule is not None or h.degradation.active, "ddl.hard", h, "a rule or a degradation")
        if self.easy is not None:
            _text(f"{where}: {self.name}: easy", self.easy, "a rule such as 'abs(yaw) < 10', or None")
        for name in _WEIGHTS:
            if getattr(self, name) is not None:
                require_number(f"{where}: {self.name}: {name}", getattr(self, name), 0.0)

    @classmethod
    def parse(cls, value: Any) -> GroupSettings:
        """From a dict of its fields."""
        if isinstance(value, GroupSettings):
            return value
        expected = "a dict such as {'name': 'pose', 'easy': 'abs(yaw) < 10', 'hard': ['abs(yaw) > 45']}"
        require(isinstance(value, dict) and "name" in value, "ddl.groups", value, expected)
        unknown_keys("ddl.groups", value, field_names(cls))
        return cls(**value)


#: The hard distribution of online DDL; made once, as torch.compile does not make dataclasses with default factories.
_LARGER_LOSSES = HardSettings("the larger losses")


@dataclass(frozen=True)
class OnlineSettings:
    """Online DDL (supplement, section 6): batches of whole identities, hard samples found by their loss."""

    identities: int = 64  # of one device's batch
    images: int = 8  # of each identity: the half with the larger identity loss is hard
    repeat: bool = False  # identities with fewer images repeat them; False: they are refused

    def __post_init__(self) -> None:
        require_whole("ddl.online.identities", self.identities, 2)
        require_whole("ddl.online.images", self.images, 4)
        require(self.images % 2 == 0, "ddl.online.images", self.images, "an even number")
        _flag("ddl.online.repeat", self.repeat)


@dataclass(frozen=True)
class DDLSettings:
    """The Distribution Distillation Loss, with the paper's symbols and values (sections 3.1-3.3, 4.1)."""

    b: int = 32  # b: positive pairs, and singles, of one distribution on one device; 16 on SCface
    easy: str | None = None  # rule of the teacher's records; None: every record
    hard: tuple[HardSettings, ...] = ()  # the K student distributions
    lambda_pos: float = 0.1  # lambda_1, weight of the distance between positive distributions
    lambda_neg: float = 0.02  # lambda_2, weight of the distance between negative distributions
    lambda_order: float = 0.5  # lambda_3, weight of the order loss
    bins: int = 100  # R, nodes of the histograms on [-1, 1]
    gamma: float = 50.0  # gamma of Eq. 4, per squared cosine; the authors' code: sigma 0.1 = 50
    distance: str = "kl"  # kl | js | emd (Table 2)
    neg_mining: str = "hardest"  # hardest (Eq. 2) | top (the b largest of all pairs) | random
    detach_teacher: bool = False  # True: no gradient through the teacher's histograms
    identity: str = "arcface"  # the identity loss beside it (Eq. 8)
    identity_rows: str = "all"  # all | singles (as the authors released it)
    scope: str = "device"  # whose similarities make a histogram: each device's, or all devices' (global)
    mixture: bool = False  # the hard distributions are mixed into one (Table 2)
    groups: tuple[
        GroupSettings, ...
    ] = ()  # several teachers with their students, in the place of easy and hard
    online: OnlineSettings | None = None  # hard samples by their loss, in the place of hard (supplement 6)

    def __post_init__(self) -> None:
        require_whole("ddl.b", self.b, 2)
        _flag("ddl.mixture", self.mixture)
        self._resolve_hard()
        if self.easy is not None:
            _text("ddl.easy", self.easy, "a rule such as 'abs(yaw) < 10', or None for every record")
        for name in _WEIGHTS:
            require_number(f"ddl.{name}", getattr(self, name), 0.0)
        require_whole("ddl.bins", self.bins, 2)
        require(self.bins <= 10_000, "ddl.bins", self.bins, "10000 nodes at most")
        require_number("ddl.gamma", self.gamma, 0.0, 1e5, above=True)
        _choice("ddl.distance", self.distance, DISTANCES)
        _choice("ddl.neg_mining", self.neg_mining, NEG_MINING)
        require(
            self.neg_mining != "top" or self.b >= 3, "ddl.b", self.b,
            "b >= 3 with neg_mining 'top', which needs b of the b(b-1)/2 pairs",
        )  # fmt: skip
        _flag("ddl.detach_teacher", self.detach_teacher)
        _choice("ddl.identity", self.identity, tuple(IDENTITY_LOSSES))
        _choice("ddl.identity_rows", self.identity_rows, IDENTITY_ROWS)
        _choice("ddl.scope", self.scope, SCOPES)

    def _resolve_hard(self) -> None:
        hard = self.hard
        if isinstance(hard, (str, dict, HardSettings)):
            hard = (hard,)
        require(isinstance(hard, (tuple, list)), "ddl.hard", hard, "a list of rules or degradations")
        hard = tuple(HardSettings.parse(h) for h in hard)
        for h in hard:
            require(h.rule is not None or h.degradation.active, "ddl.hard", h, "a rule or a degradation")
        groups, online = self.groups, self.online
        if isinstance(online, dict):
            unknown_keys("ddl.online", online, field_names(OnlineSettings))
            online = OnlineSettings(**online)
        require(
            online is None or isinstance(online, OnlineSettings),
            "ddl.online",
            online,
            "a dict such as {'identities': 64, 'images': 8}",
        )
        require(isinstance(groups, (tuple, list)), "ddl.groups", groups, "a list of groups")
        groups = tuple(GroupSettings.parse(group) for group in groups)
        names = [group.name for group in groups]
        require(len(set(names)) == len(names), "ddl.groups: names", names, "names that differ")
        given = [name for name, value in (("hard", hard), ("groups", groups), ("online", online)) if value]
        if not given:
            raise UserError(
                "ddl.hard: expected K >= 1 hard distributions, e.g. ['abs(yaw) > 45'] or [{'size': (12, 16)}], got []"
            )
        require(len(given) == 1, "ddl", given, "one of hard, groups and online")
        require(not groups or self.easy is None, "ddl.easy", self.easy, "the easy rules in ddl.groups")
        if self.mixture:
            require(bool(hard), "ddl.mixture", True, "hard distributions in ddl.hard to mix")
            hard = (mixed(hard),)
        for name, value in (("hard", hard), ("groups", groups), ("online", online)):
            object.__setattr__(self, name, value)

    @property
    def teams(self) -> tuple[GroupSettings, ...]:
        """The groups; without `groups` the one of `easy` and `hard`, with all weights filled in."""
        if self.groups:
            return tuple(
                dataclasses.replace(
                    group,
                    **{name: getattr(self, name) for name in _WEIGHTS if getattr(group, name) is None},
                )
                for group in self.groups
            )
        weights = {name: getattr(self, name) for name in _WEIGHTS}
        hard = self.hard or (_LARGER_LOSSES,)  # online
        return (GroupSettings("ddl", self.easy, hard, **weights),)

    @property
    def distributions(self) -> int:
        """K+1, or their sum over the groups: the distributions of one device's batch."""
        return sum(1 + len(team.hard) for team in self.teams)

    @property
    def rows(self) -> int:
        """3b(K+1), the images of one device's batch; online: those of its identities."""
        if self.online is not None:
            return self.online.identities * self.online.images
        return 3 * self.b * self.distributions

    @property
    def rows_in_words(self) -> str:
        """How messages write the size of a batch."""
        return "3b(K+1)" if not self.groups else f"3b x {self.distributions} distributions"

    @property
    def names(self) -> tuple[str, ...]:
        """'easy', then 'hard' or 'hard1'..'hardK': how terms, logs and tables call the distributions.

        Of a group 'pose': 'pose_easy', 'pose_hard'.
        """
        found: list[str] = []
        for team in self.teams:
            start = f"{team.name}_" if self.groups else ""
            count = len(team.hard)
            hard = ("hard",) if count == 1 else tuple(f"hard{k}" for k in range(1, count + 1))
            found += [f"{start}{name}" for name in ("easy", *hard)]
        return tuple(found)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each distribution draws from, in the order of `names`."""
        return tuple(
            label for team in self.teams for label in (team.easy or "all", *(h.label for h in team.hard))
        )


@dataclass(frozen=True)
class IdentificationSettings:
    """Rank-1 and TAR@FAR on gallery and probe images of a .rec, at full size and degraded."""

    rec: str = "val.rec"  # path, or a name in `dataset_path`
    protocol: str | None = None  # CSV of record, role[, condition]; None: first image against others
    sizes: tuple[str | int, ...] = ("full",)  # side of the probe in pixels, or 'full'
    both_sizes: tuple[int, ...] = ()  # side of probe and gallery image alike, in pixels
    probes: int = 1  # without a protocol: how many images of an identity after its first, at most

    def __post_init__(self) -> None:
        _text("identification.rec", self.rec, "a .rec file, by path or by its name in dataset_path")
        if self.protocol is not None:
            _text("identification.protocol", self.protocol, "a CSV file of record, role[, condition]")
        require_whole("identification.probes", self.probes, 1)
        self._check_sizes("sizes", ["full", 24], "full")
        self._check_sizes("both_sizes", [24, 14])

    def _check_sizes(self, name: str, example: list[str | int], *words: str) -> None:
        """One size or several: pixels, or one of `words`."""
        where, sizes = f"identification.{name}", getattr(self, name)
        sizes = (sizes,) if isinstance(sizes, (str, int)) else sizes
        require(isinstance(sizes, (tuple, list)), where, sizes, f"a list such as {example}")
        for size in sizes:
            good = size in words or (isinstance(size, int) and 4 <= size <= 112)
            require(good, where, size, " or ".join([*map(repr, words), "pixels within 4..112"]))
        object.__setattr__(self, name, tuple(sizes))


@dataclass(frozen=True)
class RunSettings:
    """One run, resolved. Defaults are the paper's (section 4.1) where it names a value."""

    # data
    dataset_path: str = ""  # folder of train.rec, train.idx and the .bin sets; 'synthetic': drawn
    attributes: str | None = (
        None  # table joined by record number (.npz, .parquet, .csv); name in dataset_path or path
    )
    data_rand_mirror: bool = True
    train_identities: float = 1.0  # part of the identities that is trained on, drawn by `seed`
    max_pairs_per_identity: int = 100  # positive pairs kept of one identity and distribution
    positive_pairs: str | None = None  # file of `prepare pairs`; name in dataset_path or path
    num_threads: int = 2  # decoding threads
    max_damaged: float = MAX_DAMAGED  # part of the records that may be damaged, and are skipped
    # loss
    loss: str = "ddl"  # a name in registry.LOSSES
    ddl: DDLSettings | None = None  # None only for a loss without distributions
    loss_options: dict[str, Any] = field(default_factory=dict)  # of a registered loss
    loss_m1: float | None = None  # margins and scale of the identity loss; None: its preset
    loss_m2: float | None = None
    loss_m3: float | None = None
    loss_s: float | None = None
    sampler: str = "pairs"  # a name in registry.SAMPLERS
    sampler_options: dict[str, Any] = field(default_factory=dict)
    # model
    pretrained: str = (
        ""  # 'PREFIX,EPOCH', a folder of ours, or a recipe (.py) that trains it; '': from scratch
    )
    network: str | None = None  # graph built anew; None: the pretrained checkpoint's own graph
    emb_size: int | None = None  # of a graph built anew
    rename: dict[str, str] = field(default_factory=dict)  # name in the checkpoint -> name in the graph
    fc7_init: str = "mean"  # classifier rows: mean | checkpoint | random
    fc7_lr_mult: float = 1.0
    bn_frozen: bool = False  # BatchNorm uses and keeps the pretrained statistics
    # optimisation
    max_steps: int = 1000
    lr: float = 1e-3
    lr_steps: tuple[int, ...] | None = None  # steps at which lr is divided by 10; None: half of max_steps
    mom: float = 0.9
    wd: float = 5e-4
    per_batch_size: int | None = None  # images per device; of 'pairs' it is 3b(K+1)
    seed: int = 0
    # host
    backend: str = "mxnet"  # mxnet | torch: what trains
    amp: str | None = None  # None | bf16: the network's matrix products in bfloat16 (torch)
    # looking
    verbose: int = 0  # validate every this many steps; 0: only at the end
    val_targets: tuple[str, ...] = ()  # .bin sets in dataset_path
    identification: IdentificationSettings | None = None
    baseline: bool = False  # also fine-tune with the identity loss alone on the same batches

    def __post_init__(self) -> None:
        _text("dataset_path", self.dataset_path, "the folder of train.rec, or 'synthetic'")
        require(
            isinstance(self.pretrained, str), "pretrained", self.pretrained, "text such as 'PREFIX,EPOCH'"
        )
        for name, expected in (
            ("attributes", "a .npz, .parquet or .csv table"),
            ("positive_pairs", "a .npz file of prepare pairs"),
            ("network", "the name of a graph such as 'y1'"),
        ):
            if getattr(self, name) is not None:
                _text(name, getattr(self, name), expected)
        for name in ("data_rand_mirror", "bn_frozen", "baseline"):
            _flag(name, getattr(self, name))
        for name, low in (
            ("max_pairs_per_identity", 1),
            ("num_threads", 1),
            ("max_steps", 1),
            ("seed", 0),
            ("verbose", 0),
        ):
            require_whole(name, getattr(self, name), low)
        for name in ("emb_size", "per_batch_size"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1)
        for name in ("lr", "wd", "mom", "fc7_lr_mult"):
            require_number(name, getattr(self, name), 0.0)
        require_number("train_identities", self.train_identities, 0.0, 1.0, above=True)
        require_number("max_damaged", self.max_damaged, 0.0, 1.0)
        require(self.mom < 1, "mom", self.mom, "a number below 1")
        for name in ("loss_m1", "loss_m2", "loss_m3", "loss_s"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), 0.0, above=name == "loss_s")
        _choice("fc7_init", self.fc7_init, FC7_INITS)
        _choice("backend", self.backend, BACKENDS)
        if self.amp is not None:
            _choice("amp", self.amp, AMPS)
            require(self.backend == "torch", "amp", self.amp, f"None with backend {self.backend!r}")
        good = isinstance(self.rename, dict)
        good = good and all(isinstance(name, str) for pair in self.rename.items() for name in pair)
        require(good, "rename", self.rename, "a dict {name in checkpoint: name in graph}")
        targets = self.val_targets
        if isinstance(targets, str):  # val_targets=lfw,cfp_fp on the command line
            targets = tuple(part for part in targets.split(",") if part)
        good = isinstance(targets, (tuple, list)) and all(isinstance(name, str) and name for name in targets)
        require(good, "val_targets", targets, "names of .bin sets, e.g. ['lfw', 'cfp_fp']")
        object.__setattr__(self, "val_targets", tuple(targets))
        object.__setattr__(self, "lr_steps", self._resolved_lr_steps())
        require(
            bool(self.pretrained) or self.network is not None,
            "pretrained",
            self.pretrained,
            "a checkpoint 'PREFIX,EPOCH', or else `network`, the name of a graph to train from scratch",
        )
        require(
            bool(self.pretrained) or self.fc7_init == "random",
            "fc7_init",
            self.fc7_init,
            "'random' when there is no `pretrained` model to start the classifier from",
        )
        self._check_batch()

    def _resolved_lr_steps(self) -> tuple[int, ...]:
        steps = self.lr_steps
        if steps is None:
            return (self.max_steps // 2,) if self.max_steps > 1 else ()
        if isinstance(steps, str):  # InsightFace writes '100000,160000'
            steps = [int(part) if part.strip().isdigit() else part for part in steps.split(",") if part]
        steps = (steps,) if isinstance(steps, int) else steps
        good = isinstance(steps, (tuple, list))
        good = good and all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in steps)
        good = good and list(steps) == sorted(set(steps))
        require(good, "lr_steps", self.lr_steps, "increasing steps, e.g. [500, 800]")
        return tuple(steps)

    def _check_batch(self) -> None:
        alone = self.loss in IDENTITY_LOSSES
        if self.sampler == "images":
            require(
                alone,
                "sampler",
                self.sampler,
                f"batches of distributions such as 'pairs' for loss {self.loss!r}",
            )
            singles = self.ddl is not None and self.ddl.identity_rows == "singles"
            require(not singles, "ddl.identity_rows", "singles", "'all' for sampler 'images'")
        self._check_online()
        if self.sampler != "pairs" and alone and (self.sampler == "images" or self.ddl is None):
            require(
                self.per_batch_size is not None, "per_batch_size", None, "images per device for this sampler"
            )
            return
        if self.ddl is None:
            raise UserError(
                "ddl: expected a dict with b and hard, e.g. {'b': 16, 'hard': ['abs(yaw) > 45']}, got None"
            )
        rows, group = self.ddl.rows, 3 * self.ddl.distributions
        if self.per_batch_size in (None, rows):
            return
        if self.ddl.online is not None:
            raise UserError(
                f"per_batch_size: expected identities x images = {rows} of ddl.online, got {self.per_batch_size}; "
                f"leave it out"
            )
        near = max(2, round(self.per_batch_size / group))
        raise UserError(
            f"per_batch_size: expected {self.ddl.rows_in_words} = {rows} for b = {self.ddl.b}, "
            f"K = {self.ddl.distributions - len(self.ddl.teams)}, got {self.per_batch_size}; leave it out, or set "
            f"ddl.b={near} for {near * group} images"
        )

    def _check_online(self) -> None:
        """Batches of whole identities go with `ddl.online`, and the loss that splits them with both."""
        online = self.ddl is not None and self.ddl.online is not None
        if self.sampler == "identities" or self.loss == "online_ddl":
            require(online, "ddl.online", None, "a dict such as {'identities': 64, 'images': 8}")
        if online:
            require(
                self.sampler == "identities",
                "sampler",
                self.sampler,
                "'identities', which draws for ddl.online",
            )
            pairwise = self.loss not in IDENTITY_LOSSES and self.loss in ("ddl", "semihard_triplet")
            require(
                not pairwise, "loss", self.loss, "'online_ddl', or one that draws no pairs, with ddl.online"
            )
            for name, value in (("identity_rows", "all"), ("scope", "device"), ("neg_mining", "hardest")):
                got = getattr(self.ddl, name)
                require(got == value, f"ddl.{name}", got, f"{value!r} with ddl.online")

    @property
    def batch_rows(self) -> int:
        """Images of one device's batch."""
        return self.ddl.rows if self.per_batch_size is None else self.per_batch_size

    @property
    def identity(self) -> str:
        """Name of the identity loss: the loss itself, or the one beside a registered loss."""
        if self.loss in IDENTITY_LOSSES:
            return self.loss
        return self.ddl.identity if self.ddl else "arcface"

    def without_distributions_loss(self) -> RunSettings:
        """The baseline run: the same batches and steps with the identity loss alone."""
        return dataclasses.replace(self, loss=self.identity, loss_options={})
