"""What is wrong with a data set: counted, named, and too much of it refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ddl_plugin.errors import UserError

#: How many of a kind are named.
NAMED = 5

#: Part of a kind's total that may be wrong before the work stops: 469 of IJB-C's 469,375 images.
MAX_PROBLEMS = 0.001


@dataclass(frozen=True)
class Problem:
    kind: str  # in the plural, such as 'images without a file'
    count: int
    of: int  # how many there are with and without the problem
    first: tuple[str, ...]  # names of the first few
    effect: str  # what it does to the figures

    def in_words(self) -> str:
        more = ", .." if self.count > len(self.first) else ""
        return f"{self.count:,} of {self.of:,} {self.kind} ({', '.join(self.first)}{more}): {self.effect}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "count": self.count,
            "of": self.of,
            "first": list(self.first),
            "effect": self.effect,
        }


@dataclass
class Problems:
    """The problems found so far; more of a kind than `limit` times its total is a UserError at once."""

    limit: float = MAX_PROBLEMS
    found: list[Problem] = field(default_factory=list)  # one a kind

    def add(self, kind: str, count: int, of: int, names: Iterable[object], effect: str) -> None:
        """Note `count` of `of`; nothing where the count is 0. names: of all or the first of them."""
        if not count:
            return
        first = tuple(str(name) for name, _ in zip(names, range(NAMED), strict=False))
        problem = Problem(kind, int(count), int(of), first, effect)
        if count > self.limit * of:
            raise UserError(
                f"expected at most {self.limit:.2%} {kind}, got {count:,} of {of:,}, the first are "
                f"{', '.join(first)}; mend the data, or allow more with --max-problems"
            )
        self.found.append(problem)
