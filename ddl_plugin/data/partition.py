"""Which images make the teacher distribution (easy) and which the K student distributions (hard), section 3.1."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.records import Records
from ddl_plugin.data.rules import select
from ddl_plugin.errors import UserError
from ddl_plugin.settings import DDLSettings, Degradation, HardSettings

_IDENTITIES = 20  # what a stream of random numbers is for, beside those of the samplers


@dataclass(frozen=True)
class Distribution:
    """The images that one distribution draws from, and how they are degraded."""

    name: str  # easy, hard or hard1..hardK
    label: str  # its rule and degradations, for tables and figures
    positions: np.ndarray  # int64 (n,) ascending
    degradation: Degradation
    identities: int = 0  # how many identities the positions have
    rule: str | None = None  # None: every record, or those of the easy set


@dataclass(frozen=True)
class Partition:
    """Index 0 is the easy distribution, 1..K are the hard ones; with several groups, group after group.

    They may share images.
    """

    distributions: tuple[Distribution, ...]

    def summary(self) -> list[dict]:
        """One row per distribution: name, label, images, identities."""
        return [
            {"name": d.name, "label": d.label, "images": len(d.positions), "identities": d.identities}
            for d in self.distributions
        ]

    def of_identities(self, labels: np.ndarray, part: float, seed: int) -> Partition:
        """With the images of `part` of all identities alone, at least one, drawn by `seed`.

        labels: (N,) int, identity of each position. Of two parts with one seed the smaller is within the larger.
        """
        everyone = np.unique(labels)
        drawn = np.random.default_rng((seed, _IDENTITIES)).permutation(everyone)
        kept = drawn[: max(1, round(part * len(everyone)))]
        return Partition(tuple(_of_identities(one, labels, kept) for one in self.distributions))

    def members(self, count: int) -> np.ndarray:
        """Which of `count` positions each distribution has: bool (K + 1, count)."""
        members = np.zeros((len(self.distributions), count), bool)
        for own, distribution in zip(members, self.distributions, strict=True):
            own[distribution.positions] = True
        return members


def _of_identities(distribution: Distribution, labels: np.ndarray, kept: np.ndarray) -> Distribution:
    own = labels[distribution.positions]
    there = np.isin(own, kept)
    return dataclasses.replace(
        distribution,
        positions=distribution.positions[there],
        identities=len(np.unique(own[there])),
    )


def build_partition(
    records: Records, settings: DDLSettings, attributes: AttributeTable | None = None
) -> Partition:
    """The records of the easy and the hard distributions.

    Without an easy rule every record is easy; without a hard rule the easy set's records are degraded. Online DDL
    divides while it trains: its one distribution is all that the easy rule selects.

    Raises `UserError` for a rule that cannot be applied or selects nothing, for fewer than b identities (a
    batch holds b singles of distinct ones) and for no identity with two images (there would be no pair).
    """
    if settings.online is not None:
        return undivided(records, settings.easy, attributes)
    names, distributions = iter(settings.names), []
    for team in settings.teams:
        name = next(names)
        if team.easy is None:
            easy = np.arange(len(records), dtype=np.int64)
        else:
            easy = _selected(records, name, team.easy, attributes)
        distributions.append(
            _distribution(records, name, team.easy or "all", easy, HardSettings(team.easy), settings.b)
        )
        for hard in team.hard:
            name = next(names)
            positions = easy if hard.rule is None else _selected(records, name, hard.rule, attributes)
            distributions.append(_distribution(records, name, hard.label, positions, hard, settings.b))
    return Partition(tuple(distributions))


def undivided(records: Records, rule: str | None, attributes: AttributeTable | None) -> Partition:
    """One distribution, undivided: the images that `rule` selects, or all."""
    if rule is not None:
        return single_partition(records, rule, attributes)
    positions = np.arange(len(records), dtype=np.int64)
    identities = len(np.unique(records.labels))
    return Partition((Distribution("images", "all", positions, Degradation(), identities),))


def single_partition(records: Records, rule: str, attributes: AttributeTable | None) -> Partition:
    """One distribution of the records that satisfy `rule`, for training without hard ones."""
    positions = _selected(records, "images", rule, attributes)
    identities = len(np.unique(records.labels[positions]))
    return Partition((Distribution("images", rule, positions, Degradation(), identities, rule),))


def _selected(records: Records, name: str, rule: str, attributes: AttributeTable | None) -> np.ndarray:
    """Positions of the records that satisfy `rule`, int64 ascending; at least one."""
    if attributes is None:
        raise UserError(
            f"ddl: {name}: rule {rule!r} needs an attribute table, got none; name a .csv or .npz with a "
            "'record' column in the recipe's 'attributes'"
        )
    used: dict[str, np.ndarray] = {}

    def column(wanted: str) -> np.ndarray:
        used[wanted] = attributes.column(wanted, records.keys)
        return used[wanted]

    try:
        positions = np.flatnonzero(select(rule, column))
    except UserError as error:
        raise UserError(f"ddl: {name}: {error}") from error
    if not positions.size:
        spans = "; ".join(_span(wanted, values) for wanted, values in used.items())
        raise UserError(
            f"ddl: {name}: rule {rule!r}: expected some of the {len(records)} records, got none: {spans}; "
            "widen the rule"
        )
    return positions


def _span(name: str, values: np.ndarray) -> str:
    """'yaw is -44.9 to 45' or 'race is a, b, c': why nothing was selected."""
    if values.dtype.kind == "f":
        return f"{name} is {values.min():g} to {values.max():g}"
    kinds = np.unique(values)
    return f"{name} is {', '.join(map(str, kinds[:5]))}" + (", ..." if len(kinds) > 5 else "")


def _distribution(
    records: Records, name: str, label: str, positions: np.ndarray, chosen: HardSettings, b: int
) -> Distribution:
    """The distribution, after a check that batches can be drawn from it."""
    identities, images = np.unique(records.labels[positions], return_counts=True)
    if len(identities) < b:
        raise UserError(
            f"ddl: {name} ({label}): too few identities for b: expected at least b = {b} of them for the "
            f"singles of a batch, got {len(identities)} ({len(positions)} images); lower ddl.b or widen the rule"
        )
    if images.max() < 2:
        raise UserError(
            f"ddl: {name} ({label}): expected identities with two images or more to make positive pairs of, "
            f"got one image of each of its {len(identities)} identities; widen the rule or add images"
        )
    return Distribution(name, label, positions, chosen.degradation, len(identities), chosen.rule)
