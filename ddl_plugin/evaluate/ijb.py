"""`evaluate ijb`: IJB-B and IJB-C, 1:1 verification and 1:N identification of templates."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.models import add_models, model_names, open_model, require_model_outputs
from ddl_plugin.evaluate.report import add_report, check_report, write_report
from ddl_plugin.evaluate.tables import write_results
from ddl_plugin.files import sha256, write_text

if TYPE_CHECKING:
    from ddl_plugin.evaluation.ijb.extraction import Extraction
    from ddl_plugin.evaluation.ijb.layout import Layout
    from ddl_plugin.evaluation.ijb.protocol import Curves, Lists
    from ddl_plugin.evaluation.ijb.templates import Weighting

_PROTOCOLS = ("11", "1n")
_FIGURES = ("roc", "cmc", "det")
_WEIGHTINGS = {
    "flip": "F1: add the embedding of the mirrored image",
    "norm-score": "N1: features keep their length, which weighs the images of a template",
    "detector-score": "D1: features are multiplied by the detector's score",
}


def add(kinds: Any) -> None:
    parser = kinds.add_parser("ijb", help="IJB-B and IJB-C: TAR at FAR (1:1), rank-k and TPIR at FPIR (1:N)")
    parser.add_argument("--root", required=True, metavar="DIR",
                        help="the folder that holds loose_crop/ and meta/, or the one above it")  # fmt: skip
    parser.add_argument("--target", required=True, choices=("IJBB", "IJBC"))
    parser.add_argument("--protocol", type=_protocols, default=_PROTOCOLS, metavar="11,1n",
                        help="11: verification, 1n: identification (default: both)")  # fmt: skip
    parser.add_argument("--preset", choices=("insightface", "paper"), default="insightface",
                        help="how image features are weighed: as InsightFace's scripts do (F1 N1 D1), or the plain "
                        "average of unit features (F0 N0 D0)")  # fmt: skip
    for name, text in _WEIGHTINGS.items():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction,
                            help=f"{text} (default: as the preset)")  # fmt: skip
    parser.add_argument("--features", type=Path, default=Path("ijb_features"), metavar="DIR",
                        help="where embeddings are kept for the next time (default: %(default)s)")  # fmt: skip
    parser.add_argument("--batch", type=_positive("--batch"), default=64, metavar="N",
                        help="images embedded at a time (default: %(default)s)")  # fmt: skip
    parser.add_argument("--workers", type=_positive("--workers"), default=min(8, os.cpu_count() or 1), metavar="N",
                        help="threads that decode images (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-problems", type=_share, default=0.001, metavar="SHARE",
                        help="part of the images, pairs, templates or probes that may be wrong in one way "
                        "before the command stops (default: %(default)s)")  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write the results there as a table, a line a figure")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw ROC, CMC and DET curves there")
    add_report(parser)
    add_models(parser)
    parser.set_defaults(command=_ijb)


def _protocols(text: str) -> tuple[str, ...]:
    given = text.lower().split(",")
    if not set(given) <= set(_PROTOCOLS) or not given:
        raise UserError(f"--protocol: expected 11, 1n or 11,1n, got {text!r}")
    return tuple(protocol for protocol in _PROTOCOLS if protocol in given)


def _positive(option: str) -> Callable[[str], int]:
    def parsed(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise UserError(f"{option}: expected a whole number above 0, got {text!r}")
        return int(text)

    return parsed


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"--max-problems: expected a share within 0..1 such as 0.001, got {text!r}")
    return share


def _ijb(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.evaluation.ijb.layout import find_layout
        from ddl_plugin.evaluation.ijb.problems import Problems
        from ddl_plugin.evaluation.ijb.protocol import read_lists

    names = model_names(options.model)
    layout = find_layout(options.root, options.target, options.protocol)
    lists_read = [layout.media, layout.landmarks, layout.pairs, *layout.galleries, layout.probes]
    figures = _figure_paths(options)
    report = check_report(options.report)
    outputs = {"--json": options.json, "--csv": options.csv, "--report": report}
    outputs.update({f"--figures ({path.name})": path for path in figures.values()})
    require_model_outputs(outputs, options.model, [*lists_read, options.features])
    problems = Problems(options.max_problems)
    lists = read_lists(layout, options.protocol, problems)
    weighting = _weighting(options)
    print(_in_words(options.target, lists, weighting))
    for problem in problems.found:
        print(f"note: {problem.in_words()}")
    results, curves = {}, {}
    for name, model in zip(names, options.model, strict=True):
        found = dataclasses.replace(problems, found=list(problems.found))
        results[name], curves[name], _ = measured(name, model, options, layout, lists, weighting, found)
        for problem in found.found[len(problems.found) :]:
            print(f"note: {name}: {problem.in_words()}")
    _print(results)
    write_results(options, "ijb", results)
    if options.csv:
        _write_csv(options.csv, results)
    _draw(figures, curves, options.target)
    write_report(report, "ijb", options.model, results, curves)


def measured(
    name: str, model: str, options: Any, layout: Layout, lists: Lists, weighting: Weighting, problems: Any
) -> tuple[dict[str, Any], Curves, Extraction]:
    """(results for JSON, curves, the embeddings and faces) of one model; `problems` grows."""
    from ddl_plugin.evaluation.ijb.extraction import Extraction
    from ddl_plugin.evaluation.ijb.protocol import measure, note_featureless
    from ddl_plugin.evaluation.ijb.templates import build_templates
    from ddl_plugin.export.graph import model_files

    extraction = Extraction(
        lists.images, layout.images, kept=options.features, model="+".join(map(sha256, model_files(model))),
        flip=weighting.flip, batch=options.batch, workers=options.workers,
    )  # fmt: skip
    usable = extraction.run(_Opened(model), problems, _bar(name))
    templates = build_templates(lists.images, extraction.read, usable, weighting)
    note_featureless(templates, problems)
    figures, curves = measure(templates, lists, extraction.face)
    about = {
        "target": options.target,
        "weighting": dataclasses.asdict(weighting),
        "images": len(lists.images),
        "templates": len(lists.numbers),
        "problems": [problem.as_dict() for problem in problems.found],
    }
    return {**about, **figures}, curves, extraction


class _Opened:
    """embed(images) of a model that is opened when it is needed: not where all embeddings are kept."""

    def __init__(self, model: str):
        self._model, self._embed = model, None

    def __call__(self, images):
        if self._embed is None:
            self._embed = open_model(self._model)
        return self._embed(images)


def _bar(name: str):
    from tqdm import tqdm

    return lambda done, total: tqdm(initial=done, total=total, desc=name, unit="image", disable=None)


def _weighting(options: Any) -> Weighting:
    from ddl_plugin.evaluation.ijb.templates import PRESETS

    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in _WEIGHTINGS}
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[options.preset], **chosen)


# -- what is printed and written --------------------------------------------------------------------------


def _in_words(target: str, lists: Lists, weighting: Weighting) -> str:
    letters = zip("FND", dataclasses.astuple(weighting), strict=True)
    mode = " ".join(f"{letter}{int(value)}" for letter, value in letters)
    return f"{target}: {len(lists.images):,} images of {len(lists.numbers):,} templates, {mode}"


def _print(results: Mapping[str, dict[str, Any]]) -> None:
    from tabulate import tabulate

    for title, rows in _tables(results):
        print(f"\n{title}")
        alignment = ("left", *["right"] * len(results))
        print(tabulate(rows, headers=["", *results], disable_numparse=True, colalign=alignment))


def _tables(results: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, list[list[str]]]]:
    some = next(iter(results.values()))
    if "verification" in some:
        entries = [result["verification"] for result in results.values()]
        counts = (
            f"{some['verification']['positives']:,} positive, {some['verification']['negatives']:,} negative"
        )
        yield (
            f"1:1, {counts} pairs; insightface: the ROC's point nearest to the FAR (its FAR)",
            _tars(entries, "insightface"),
        )
        yield (
            "1:1, at-most: the largest TAR whose FAR does not exceed it (its FAR)",
            _tars(entries, "at-most"),
        )
        yield "1:1, scores", _distributions(entries)
    if "identification" in some:
        entries = [result["identification"] for result in results.values()]
        galleries = " and ".join(
            f"{gallery['name']} ({gallery['templates']:,} templates, {gallery['probes_with_a_mate']:,} mated)"
            for gallery in some["identification"]["galleries"]
        )
        first = f"1:N, {some['identification']['probes']:,} probes in {galleries}"
        yield f"{first}; insightface: both galleries as one", _searches(entries, "insightface")
        yield (
            "1:N, insightface-evals: gallery by gallery, as ijb_evals.py",
            _searches(entries, "insightface-evals"),
        )
        yield (
            "1:N, benchmark: open set, gallery by gallery, averaged (FPIR obtained)",
            _searches(entries, "benchmark"),
        )


def _tars(entries: Sequence[dict], convention: str) -> list[list[str]]:
    columns = [entry["conventions"][convention]["tar_at_far"] for entry in entries]
    return [
        [f"TAR at FAR {points[0]['far']:.0e}"]
        + [f"{100 * point['tar']:.2f} ({point['obtained_far']:.2g})" for point in points]
        for points in zip(*columns, strict=True)
    ]


def _distributions(entries: Sequence[dict]) -> list[list[str]]:
    found = [entry["distributions"] for entry in entries]
    return [
        [kind, *(f"{one[f'{key}_mean']:.3f} ± {one[f'{key}_std']:.3f}" for one in found)]
        for kind, key in (("same subject", "positive"), ("different subjects", "negative"))
    ] + [
        [title, *(_value(one[key], "{:.3f}") for one in found)]
        for title, key in (
            ("expectation margin", "margin"),
            ("histogram intersection", "intersection"),
            ("d'", "d_prime"),
        )
    ]


def _searches(entries: Sequence[dict], convention: str) -> list[list[str]]:
    columns = [entry["conventions"][convention] for entry in entries]
    rows = [
        [f"rank-{k}", *(_value(column[f"rank{k}"], "{:.2%}").rstrip("%") for column in columns)]
        for k in (1, 5, 10)
    ]
    for points in zip(*(column["tpir_at_fpir"] for column in columns), strict=True):
        rows.append([f"TPIR at FPIR {points[0]['fpir']:g}", *map(_search_point, points)])
    return rows


def _search_point(point: dict) -> str:
    text = _value(point["tpir"], "{:.2%}").rstrip("%")
    obtained = [rate for rate in point.get("obtained_fpirs", ()) if rate is not None]
    return f"{text} ({', '.join(f'{rate:.2g}' for rate in obtained)})" if obtained else text


def _value(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _write_csv(path: str, results: Mapping[str, dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "protocol", "convention", "measure", "at", "value", "obtained"])
    for model, result in results.items():
        for protocol in ("verification", "identification"):
            for convention, entry in result.get(protocol, {}).get("conventions", {}).items():
                for row in _csv_rows(entry):
                    writer.writerow([model, protocol, convention, *row])
    write_text(path, text.getvalue())


def _csv_rows(entry: dict[str, Any]) -> Iterator[tuple]:
    for point in entry.get("tar_at_far", ()):
        yield "TAR at FAR", point["far"], point["tar"], point["obtained_far"]
    for k in (1, 5, 10):
        if f"rank{k}" in entry:
            yield "rank", k, entry[f"rank{k}"], ""
    for point in entry.get("tpir_at_fpir", ()):
        obtained = " ".join("" if rate is None else str(rate) for rate in point.get("obtained_fpirs", ()))
        yield "TPIR at FPIR", point["fpir"], point["tpir"], obtained


# -- figures ---------------------------------------------------------------------------------------------


def _figure_paths(options: Any) -> dict[str, Path]:
    """The files of --figures by kind, {} without it; asked before any work."""
    if options.figures is None:
        return {}
    from ddl_plugin.analysis.drawing import check_output

    kinds = [
        kind
        for kind in _FIGURES
        if (kind == "roc") == ("11" in options.protocol) or len(options.protocol) > 1
    ]
    return {kind: check_output(options.figures / f"{options.target.lower()}_{kind}.png") for kind in kinds}


def _draw(paths: Mapping[str, Path], curves: Mapping[str, Curves], target: str) -> None:
    if not paths:
        return
    from ddl_plugin.analysis.curves import cmc_figure, det_figure, roc_figure

    drawing = {
        "roc": (roc_figure, "1:1", lambda one: one.verification and one.verification.curve),
        "cmc": (cmc_figure, "1:N, benchmark", lambda one: one.cmc),
        "det": (det_figure, "1:N, benchmark", lambda one: one.det),
    }
    for kind, path in paths.items():
        draw, title, pick = drawing[kind]
        lines = {name: pick(one) for name, one in curves.items() if pick(one) is not None}
        if lines:
            draw(lines, path, f"{target}, {title}")
            print(f"\nfigure: {path}")
