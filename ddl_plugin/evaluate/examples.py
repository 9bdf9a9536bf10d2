"""From what stands behind the results to examples: the worst failures of each model, and where models differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ddl_plugin.analysis.evaluation_report import Failures
from ddl_plugin.analysis.failures import Example, Face, turned
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.evidence import ACCEPTED, FAILURES, REJECTED, Evidence, Failure, Genuine

SHOWN = 6  # examples of a kind
_LOOKED_AT = 2 * SHOWN  # of which some may be the same


def wrong(model: str, line: Evidence, threshold: str) -> list[Failures]:
    """The worst failures of one model: of the same person, and of different ones. threshold: which one, in words."""
    if line.genuine is not None and len(line.genuine.roles) > 2:
        # The acceptances of a search are the same failures, seen from the other side.
        return [_not_found(model, line.genuine)]
    rejected, accepted = ([f for f in line.failures if f.kind == kind] for kind in (REJECTED, ACCEPTED))
    if line.genuine is None:
        many = _number(rejected)
    else:
        many = f"{np.count_nonzero(~line.genuine.right):,} of {line.genuine.right.size:,}"
    return [
        Failures(
            f"{model}: the same person, rejected",
            f"Comparisons of the same person below {threshold}: {many}.{_shown(rejected, 'lowest')}",
            _distinct(map(_example, rejected)),
        ),
        Failures(
            f"{model}: different persons, accepted",
            f"Comparisons of different persons above {threshold}: {_number(accepted)}.{_shown(accepted, 'highest')}",
            _distinct(map(_example, accepted)),
        ),
    ]


def _number(failures: Sequence[Failure]) -> str:
    return str(len(failures)) if len(failures) < FAILURES else f"{FAILURES} or more"


def _shown(failures: Sequence, extreme: str) -> str:
    return f" Shown: the {extreme}, at most {SHOWN}, the same faces once." if len(failures) else ""


def _example(failure: Failure) -> Example:
    side = "below" if failure.kind == REJECTED else "above"
    away = abs(failure.similarity - failure.threshold)
    line = f"{away:.3f} {side} the threshold {failure.threshold:.3f}"
    faces = _faces(("first", "second"), failure.names, failure.images)
    return Example(f"cosine {failure.similarity:.3f}", faces, (line,))


def _distinct(examples: Iterable[Example]) -> list[Example]:
    """The first `SHOWN` that do not have the very faces of one before: sets repeat pairs, also the other way round."""
    kept: dict[object, Example] = {}
    for number, example in enumerate(examples):
        pixels = [face.image for face in example.faces]
        unknown = any(image is None for image in pixels)
        kept.setdefault(number if unknown else frozenset(image.tobytes() for image in pixels), example)
        if len(kept) == SHOWN:
            break
    return list(kept.values())


def _faces(
    roles: Sequence[str], names: Sequence[str], images: Callable[[], Sequence[np.ndarray]]
) -> tuple[Face, ...]:
    """The faces; without pictures where they cannot be read any more."""
    try:
        pixels = images()
    except UserError:
        pixels = [None] * len(names)
    return tuple(Face(image, role, name) for image, role, name in zip(pixels, roles, names, strict=True))


def _not_found(model: str, genuine: Genuine) -> Failures:
    wrong = np.flatnonzero(~genuine.right)
    lead = genuine.score - genuine.bar
    worst = wrong[np.argsort(lead[wrong], kind="stable")][:_LOOKED_AT]
    return Failures(
        f"{model}: probes not found first",
        f"As high or higher with another person of the gallery: {wrong.size:,} of {genuine.right.size:,} probes."
        f"{_shown(wrong, 'farthest')}",
        _distinct(
            _of(genuine, i, f"cosine to the mate {genuine.score[i]:.3f}", [_said(genuine, i)])
            for i in worst.tolist()
        ),
    )


def _of(genuine: Genuine, i: int, title: str, lines: Sequence[str]) -> Example:
    return Example(title, _faces(genuine.roles, genuine.names(i), lambda: genuine.images(i)), tuple(lines))


def _said(genuine: Genuine, i: int) -> str:
    score, bar = genuine.score[i], genuine.bar[i]
    rival = "another person's" if len(genuine.roles) > 2 else "the threshold"
    if score == bar:
        return f"as high as {rival} {bar:.3f}"
    return f"{abs(score - bar):.3f} {'above' if score > bar else 'below'} {rival} {bar:.3f}"


def compared(lines: Mapping[str, Evidence]) -> list[Failures]:
    """What every other model gets right that the first gets wrong (the paper's Fig. 7), and the other way round."""
    known = {model: line.genuine for model, line in lines.items() if line.genuine is not None}
    if len(known) < 2:
        return []
    (base, before), *others = known.items()
    result = []
    for model, after in others:
        counts = {
            (one, other): int(np.count_nonzero((before.right == one) & (after.right == other)))
            for one in (True, False)
            for other in (True, False)
        }
        text = (
            f"Of {before.right.size:,} comparisons of the same person both models get {counts[True, True]:,} right and "
            f"{counts[False, False]:,} wrong; {model} alone is right in {counts[False, True]:,}."
        )
        result.append(_turned(base, before, model, after, text))
        text = f"{base} alone is right in {counts[True, False]:,} of {before.right.size:,} comparisons."
        result.append(_turned(model, after, base, before, text))
    return result


def _turned(wrong: str, before: Genuine, right: str, after: Genuine, text: str) -> Failures:
    """before, after: of the model that is wrong, and of the one that is right."""
    search = len(before.roles) > 2
    found = turned(before.score - before.bar, after.score - after.bar, before.right, after.right, _LOOKED_AT)
    examples = _distinct(
        _of(
            before,
            i,
            f"cosine{' to the mate' if search else ''} {before.score[i]:.3f} and {after.score[i]:.3f}",
            [f"{wrong}: {_said(before, i)}", f"{right}: {_said(after, i)}"],
        )
        for i in found.tolist()
    )
    return Failures(f"Right with {right}, wrong with {wrong}", text + _shown(examples, "clearest"), examples)
