"""Easy and hard parts of an evaluation, by rules over what is known of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.rules import select
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import BinSet

EASY, HARD = "easy", "hard"


@dataclass(frozen=True)
class Rules:
    """easy: a rule, or None: what no hard rule selects. hard: one rule or more."""

    easy: str | None
    hard: tuple[str, ...]

    def named(self) -> list[tuple[str, str]]:
        """(name, rule) of each hard set: 'hard', or 'hard 1', 'hard 2'."""
        many = len(self.hard) > 1
        return [(f"{HARD} {k}" if many else HARD, rule) for k, rule in enumerate(self.hard, 1)]


@dataclass(frozen=True)
class Subset:
    """name: easy, hard, hard 1, ..; rule: in words; chosen: bool (n,) of the pairs, or of the probes."""

    name: str
    rule: str
    chosen: np.ndarray


def rules_of(easy: str | None, hard: Sequence[str] | None, attributes: object) -> Rules | None:
    """What --easy, --hard and --attributes say; None for none of them. UserError for a part of them."""
    if not attributes and easy is None and not hard:
        return None
    if not attributes:
        raise UserError("--easy, --hard: expected --attributes TABLE with the columns in the rules, got none")
    if not hard:
        given = "--attributes" if easy is None else "--easy"
        raise UserError(f"{given}: expected --hard RULE with it, such as 'abs(yaw) > 45', got none")
    return Rules(easy, tuple(hard))


def image_subsets(rules: Rules, table: AttributeTable, keys: np.ndarray) -> list[Subset]:
    """Easy and hard images among those with these record numbers: `chosen` is bool (len(keys),)."""

    def column(name: str) -> np.ndarray:
        return table.column(name, keys)

    hard = [Subset(name, rule, select(rule, column)) for name, rule in rules.named()]
    if rules.easy is None:
        easy = Subset(EASY, "not hard", ~np.logical_or.reduce([part.chosen for part in hard]))
    else:
        easy = Subset(EASY, rules.easy, select(rules.easy, column))
    return [easy, *hard]


def pair_subsets(rules: Rules, table: AttributeTable, bin_set: BinSet) -> list[Subset]:
    """Easy and hard pairs of a verification set, whose images have the numbers 0 .. 2 pairs - 1 in the table.

    A pair is easy when both images satisfy the easy rule, and hard when either of them satisfies the hard one: a
    profile makes a pair hard whatever stands beside it. Without an easy rule the pairs that are in no hard set are
    easy. A pair may be in several sets, or in none.

    Raises:
        UserError: images without a value, rules that cannot be applied, a set without pairs of either kind.
    """
    keys = np.arange(2 * len(bin_set))
    subsets = []
    for part in image_subsets(rules, table, keys):
        both = part.chosen[0::2] & part.chosen[1::2]
        either = part.chosen[0::2] | part.chosen[1::2]
        of_both = part.name == EASY
        words = f"{'both' if of_both else 'either'} of the images: {part.rule}"
        subsets.append(Subset(part.name, words, both if of_both else either))
    for part in subsets:
        for kind, labels in (("the same person", bin_set.issame), ("different persons", ~bin_set.issame)):
            if not (part.chosen & labels).any():
                raise UserError(
                    f"{bin_set.name}, {part.name} ({part.rule}): expected pairs of {kind}, got none among "
                    f"{int(part.chosen.sum())} pairs; change the rule"
                )
    return subsets
