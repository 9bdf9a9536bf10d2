"""The page of an evaluation: models compared, what is computed, figures, and where the models fail."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddl_plugin import __version__
from ddl_plugin.analysis.curves import Curves, cmc_figure, det_figure, roc_figure
from ddl_plugin.analysis.evaluation_tables import highlighted, percent
from ddl_plugin.analysis.failures import Example
from ddl_plugin.analysis.figures import distribution_figure
from ddl_plugin.analysis.page import (
    Html,
    Section,
    code,
    definitions,
    element,
    figure,
    listing,
    note,
    paragraph,
    side_by_side,
    strip,
    strong,
    table,
    together,
    write_page,
)
from ddl_plugin.evaluation.tally import Tally
from ddl_plugin.export.graph import model_files
from ddl_plugin.files import sha256

Rows = Mapping[str, Sequence[str]]  # name of a figure -> its value for each model


@dataclass(frozen=True)
class Failures:
    """Examples of one kind. text: what they have in common, and how many there are that are not shown."""

    title: str
    text: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Part:
    """One set of comparisons, the same for every model.

    facts: its conditions, (name, value). headline: what the summary says of it. tables: its figures. curves: "roc",
    "cmc" or "det" -> those of the models. scores: model -> (negatives, positives). notes: what must not be missed.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    headline: Rows = field(default_factory=dict)
    tables: Sequence[Html] = ()
    curves: Mapping[str, Curves] = field(default_factory=dict)
    scores: Mapping[str, tuple[Tally | np.ndarray, Tally | np.ndarray]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failures: Sequence[Failures] = ()


@dataclass(frozen=True)
class Group:
    """Parts that belong together, such as a verification set with its easy and hard pairs; tables: of them all."""

    title: str
    parts: Sequence[Part]
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Html] = ()


def write_report(
    path: str | os.PathLike,
    title: str,
    models: Mapping[str, str],
    protocol: Sequence[str],
    groups: Sequence[Group],
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page, whole or not at all. The same results of the same files give the same bytes.

    models: name -> path, as the command line has it. protocol: sentences on what is computed. facts: what holds for
    all groups, (name, value). `UserError` where a model's files are gone, and where the page cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        draw = _Drawer(Path(folder))
        sections = [
            Section("Summary", _summary(models, groups)),
            Section("Models", [models_table(models)]),
            Section("What is computed", [listing(protocol)]),
            *(_group(group, draw) for group in groups),
            Section("How to read the figures", [listing(_GLOSSARY)]),
        ]
    about = [*facts, ("Models", ", ".join(models)), ("Measured with", f"ddl_plugin {__version__}")]
    write_page(path, title, about, sections)


class _Drawer:
    """Figures, drawn into a folder and taken from there into the page."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "figure.svg"

    def __call__(self, draw: Callable[[Path], None], alt: str, caption: str) -> Html:
        draw(self._path)
        return figure(self._path, alt, caption)


# What was measured


def models_table(models: Mapping[str, str]) -> Html:
    """The files of every model with their hashes, and what they say of their origin."""
    rows = []
    for name, model in models.items():
        files = [
            together(
                code(path),
                *_lines([f"{path.stat().st_size:,} bytes", together("sha256 ", code(sha256(path)))]),
            )
            for path in model_files(model)
        ]
        rows.append([name, together(*_lines(files)), together(*_lines(_origin(model)))])
    return table(
        "The models, and the files that were read of them", ["model", "files", "origin"], rows, text_columns=3
    )


def _origin(model: str) -> list[str]:
    if not model.endswith(".onnx"):
        return ["a checkpoint, measured with MXNet as it is"]
    import onnx

    proto = onnx.load(model, load_external_data=False)
    producer = f"{proto.producer_name} {proto.producer_version}".strip()
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    said = [together(f"{key} ", code(value)) for key, value in sorted(properties.items())]
    return [
        f"written by {producer or 'a program without a name'}",
        *(said or ["of what, the file does not say"]),
    ]


def _lines(parts: Iterable[str]) -> list[Html]:
    return [element("div", part) for part in parts]


def _summary(models: Mapping[str, str], groups: Sequence[Group]) -> list[Html]:
    rows = []
    for group in groups:
        for part in group.parts:
            rows += [[part.title, name, *highlighted(name, values)] for name, values in part.headline.items()]
    if not rows:
        return []
    best = (
        "The best of a line is bold, which may be chance: see the standard errors. "
        if len(models) > 1
        else ""
    )
    text = f"{best}What the words mean is said at the end."
    return [table("What was found", ["set", "measure", *models], rows, text_columns=2), paragraph(text)]


# Sections


def _group(group: Group, draw: _Drawer) -> Section:
    blocks = [definitions(group.facts), *group.tables]
    drawn = {part.title: part.scores for part in group.parts if part.scores}
    if drawn:
        blocks.append(_distributions(drawn, draw))
    if len(group.parts) == 1:
        (part,) = group.parts
        own = _part(part, draw)
        return Section(group.title, [*blocks, *own.blocks], own.sections)
    return Section(group.title, blocks, [_part(part, draw) for part in group.parts])


def _distributions(drawn: Mapping[str, Mapping[str, tuple]], draw: _Drawer) -> Html:
    """Of all parts: a column a model, a row a part (the paper's Fig. 6)."""
    models = list(next(iter(drawn.values())))
    by_model = {model: {title: scores[model] for title, scores in drawn.items()} for model in models}
    return draw(
        lambda path: distribution_figure(by_model, path),
        f"Distributions of the cosines of the same and of different persons: {_count(models, 'model')} in columns, "
        f"{', '.join(drawn)} in rows; their statistics are in the tables below.",
        "Distributions of similarities, as densities: solid the same person, dashed different persons, grey what the "
        "two have in common, dotted the means. The farther apart and the less grey, the better.",
    )


def _part(part: Part, draw: _Drawer) -> Section:
    blocks = [definitions(part.facts), *(note(text) for text in part.notes), *part.tables]
    curves = [_curve(kind, curves, part.title, draw) for kind, curves in part.curves.items()]
    if curves:
        blocks.append(side_by_side(curves))
    return Section(part.title, blocks, [_failures(failures) for failures in part.failures])


_CURVES = {
    "roc": (
        roc_figure,
        "ROC",
        "ROC: the share of comparisons of the same person that are accepted, over the share of different persons that "
        "are. Up and left is better. Pale: no comparison of different persons is accepted.",
    ),
    "cmc": (cmc_figure, "CMC", "CMC: the share of probes whose person is among the first so many of the gallery."),
    "det": (
        det_figure,
        "DET",
        "DET of the open-set search: the share of probes with a mate in the gallery that are not found, over the "
        "share of probes without one that raise a false alarm. Down and left is better.",
    ),
}  # fmt: skip


def _curve(kind: str, curves: Curves, title: str, draw: _Drawer) -> Html:
    function, name, caption = _CURVES[kind]
    values = ", ".join(f"{model} {_middle(kind, *curve)}" for model, curve in curves.items())
    alt = f"{name} curve of {title} for {_count(curves, 'model')}: {values}."
    return draw(lambda path: function(curves, path), alt, caption)


def _middle(kind: str, x: np.ndarray, y: np.ndarray) -> str:
    """One point of a curve in words."""
    if kind == "cmc":
        return f"{percent(float(y[0]))} at rank {int(x[0])}"
    at = max(int(np.searchsorted(x, 0.01 * (1 + 1e-9), side="right")) - 1, 0)
    return f"{percent(float(y[at]))} at {float(x[at]):.2g}"


def _failures(failures: Failures) -> Section:
    blocks = [paragraph(failures.text)]
    if failures.examples:
        blocks.append(side_by_side(strip(example) for example in failures.examples))
    return Section(failures.title, blocks, listed=False)


def _count(things: Iterable, word: str) -> str:
    number = len(list(things))
    return f"{number} {word}{'' if number == 1 else 's'}"


_GLOSSARY = (
    together(strong("Similarity"), ": the cosine of two embeddings, -1 to 1. A comparison is accepted, that is taken "
             "for the same person, when it is at or above the threshold."),
    together(strong("FAR"), ": the share of comparisons of different persons (negatives) that are accepted. ",
             strong("TAR"), ": the share of comparisons of the same person (positives) that are accepted, at a "
             "threshold chosen for a FAR. The FAR obtained can be below the requested one, since the negatives are "
             "finite in number and some tie; it stands beside each TAR."),
    together(strong("Below one in N"), ": a FAR under one in the number of negatives cannot be measured with them. "
             "The threshold is then just above the highest negative."),
    together(strong("Equal error rate"), ": where as large a share of negatives is accepted as of positives rejected."),
    together(strong("Expectation margin"), ": the mean cosine of the positives less that of the negatives; larger is "
             "better. ", strong("Histogram intersection"), ": what the two distributions have in common, 0 to 1, each "
             "in 100 soft bins from -1 to 1; smaller is better. Both as in the paper of Distribution Distillation "
             "Loss, 4.3. ", strong("d'"), ": the margin in standard deviations."),
)  # fmt: skip
