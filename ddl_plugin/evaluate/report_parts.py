"""From the results of a command to the parts of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddl_plugin.analysis.evaluation_report import Group, Part, write_report
from ddl_plugin.analysis.evaluation_tables import (
    Entry,
    averages_table,
    headline,
    measures_table,
    percent,
    rates_table,
    searches_table,
    standard_error,
    unattained,
)
from ddl_plugin.analysis.page import Html, paragraph
from ddl_plugin.evaluate.examples import compared, wrong
from ddl_plugin.evaluation.evidence import Evidence

_AT_MOST = (
    "TAR at FAR, 'at most': the lowest threshold whose real FAR does not exceed the requested one, over all "
    "comparisons of the set; the FAR obtained stands beside it."
)
_SOFT = (
    "Distributions: means and standard deviations of the cosines, their expectation margin, and the intersection of "
    "their soft histograms with 100 nodes from -1 to 1 and gamma 50."
)
_EMBEDDED = "Cosines of embeddings of 112 x 112 faces as they are in the set; nothing is aligned again."

VERIFICATION = (
    "A set is a list of pairs of faces, the same person or two. A pair's score is the cosine of its two embeddings; "
    "an image's embedding is the sum of its own and of its mirror image's, as InsightFace's verification has it.",
    _EMBEDDED,
    "Accuracy: InsightFace's ten folds, in the order of the file. Each tenth is judged at the threshold that is best "
    "on the other nine, among the squared distances 0, 0.01, .. 3.99; mean and standard deviation over the folds.",
    "VAL at FAR 0.001, also InsightFace's: each tenth at the threshold that gives this FAR on the other nine; a set of "
    "some thousand pairs hardly resolves it, and the FAR obtained on the tenths stands beside it.",
    _AT_MOST,
    _SOFT,
    "Easy and hard pairs, where there are such: judged at the thresholds of the whole set's folds, since a deployed "
    "model has one threshold for all; TAR at FAR over their own pairs.",
)
IDENTIFICATION = (
    "Every probe is compared with every image of the gallery by the cosine of the embeddings, without mirror images. "
    "A person's score is the best of the person's gallery images.",
    _EMBEDDED,
    "Rank-k: the share of the probes whose own person is among the k best; a tie counts as lost. It is over the probes "
    "whose person is in the gallery (closed set); the others are counted and named, and missing probes count as not "
    "found.",
    "Probes at a reduced size are shrunk to so many pixels a side (mean over areas) and enlarged again (bicubic); the "
    "gallery is as it is, but where its images are reduced alike ('gallery too').",
    _AT_MOST,
    _SOFT,
)
_IJB = (
    "Faces are cut out of the loose crops by five landmarks, as InsightFace aligns them, and embedded. A template's "
    "feature is the sum over its media of the mean over each medium's images, divided by its length; a score is the "
    "cosine of two templates.",
)
_IJB_WEIGHTS = {
    "flip": ("F1: an image's feature is the sum of its embedding and its mirror image's", "F0: without mirror images"),
    "norm_score": ("N1: features keep their length, which weighs them", "N0: image features are divided by their length"),
    "detector_score": ("D1: features are multiplied by the detector's score", "D0: without the detector's score"),
}  # fmt: skip
_IJB_11 = (
    "1:1, 'insightface': the TAR at the point of the ROC whose FAR is nearest to the one asked for, which may lie above "
    "it; so do published tables. 'At most': the largest TAR whose real FAR does not exceed it.",
    "A template without a feature stays in the totals and is rejected at every threshold.",
    "Of a template that is shown as an example, its first image stands for all of them.",
    _SOFT,
)
_IJB_1N = (
    "1:N, 'insightface': both galleries as one, as InsightFace's ijb_1n.py and so the paper's Table 6: the threshold is "
    "the k-th highest of all scores of a probe with another subject, k the FPIR times the number of probes; found are "
    "probes whose mate scores higher, at whatever rank.",
    "1:N, 'insightface-evals': gallery by gallery, as ijb_evals.py: the threshold is the k-th highest of the best "
    "scores of probes without a mate; found are those whose mate scores higher than it and than all others.",
    "1:N, 'benchmark': open set, gallery by gallery, averaged over the galleries. FPIR is the share of probes without "
    "a mate whose best score reaches the threshold, TPIR that of probes with one whose mate is first and reaches it; the "
    "threshold is the lowest whose real FPIR does not exceed the one asked for. A tie counts as lost.",
)
_NEAREST = "TAR at FAR, insightface: at the point of the ROC whose FAR is nearest to the requested one"


def write_verification(
    path: Path, models: Mapping[str, str], results: Mapping[str, list[Entry]], evidence: Mapping[str, Any]
) -> None:
    """The page of `evaluate verification`.

    results: model -> an entry for each set, with `subsets` where there are such. evidence: model -> for each set
    what stands behind it and behind its subsets, in that order.
    """
    groups = []
    for i, some in enumerate(next(iter(results.values()))):
        entries = {model: own[i] for model, own in results.items()}
        lines = {model: own[i] for model, own in evidence.items()}
        parts = [_part(some["set"], [("pairs", f"{some['pairs']:,}")], entries, _line(lines, 0))]
        for k, subset in enumerate(some.get("subsets", ())):
            facts = [("which", subset["rule"]), ("pairs", f"{subset['pairs']:,}")]
            own = {model: entry["subsets"][k] for model, entry in entries.items()}
            parts.append(_part(f"{some['set']}, {subset['subset']}", facts, own, _line(lines, k + 1)))
        facts = []
        if len(parts) > 1:
            parts[0] = replace(parts[0], failures=())  # they are shown where they belong, easy or hard
            if some["in_no_subset"]:
                facts = [("pairs in no subset", f"{some['in_no_subset']:,}")]
        groups.append(Group(f"Set {some['set']}", parts, facts))
    write_report(
        path, "Face verification", models, VERIFICATION, groups, [("Evaluation", "verification, 1:1")]
    )


def write_identification(
    path: Path,
    models: Mapping[str, str],
    results: Mapping[str, Entry],
    evidence: Mapping[str, Sequence[Evidence]],
) -> None:
    """The page of `evaluate identification`.

    results: model -> its result. evidence: model -> what stands behind each of its `results`, in their order.
    """
    some = next(iter(results.values()))
    lines = [{model: own[i] for model, own in evidence.items()} for i in range(len(some["results"]))]
    parts = []
    for i, entry in enumerate(some["results"]):
        entries = {model: result["results"][i] for model, result in results.items()}
        facts = [("probes", f"{entry['probes']:,}")]
        for key, words in (("missing", "missing probes, counted as not found"),
                           ("outside_gallery", "probes of persons outside the gallery, not in rank-k")):  # fmt: skip
            if entry[key]:
                facts.append((words, f"{entry[key]:,}"))
        parts.append(_part(next(iter(lines[i].values())).title, facts, entries, lines[i]))
    facts = [
        ("gallery", f"{some['gallery']:,} images of {some['gallery_identities']:,} identities"),
        ("probes", f"{some['probes']:,}"),
    ]
    averages = {model: result["averages"] for model, result in results.items() if "averages" in result}
    tables = [averages_table(averages)] if averages else []
    groups = [Group(f"Set {some['set']}", parts, facts, tables)]
    write_report(
        path, "Face identification", models, IDENTIFICATION, groups, [("Evaluation", "identification, 1:N")]
    )


def _part(
    title: str, facts: Sequence[tuple[str, str]], entries: Mapping[str, Entry], lines: Mapping[str, Evidence]
) -> Part:
    some = next(iter(entries.values()))
    curves = {"roc": {model: line.curve for model, line in lines.items()}}
    ranked = {model: line.cmc for model, line in lines.items() if line.cmc is not None}
    if ranked:
        curves["cmc"] = ranked
    return Part(
        title,
        [*facts, ("comparisons", f"{some['positives']:,} of the same person, {some['negatives']:,} of different persons")],
        headline(entries),
        [rates_table(entries), *_error(entries), measures_table(entries)],
        curves,
        {model: (line.negatives, line.positives) for model, line in lines.items()},
        unattained(entries),
        [*(f for model, line in lines.items() for f in wrong(model, line, "its fold's threshold")), *compared(lines)],
    )  # fmt: skip


def _error(entries: Mapping[str, Entry]) -> list[Html]:
    text = standard_error(entries)
    return [paragraph(text)] if text else []


def _line(lines: Mapping[str, Sequence[Evidence]], i: int) -> dict[str, Evidence]:
    return {model: own[i] for model, own in lines.items()}


def write_ijb(
    path: Path, models: Mapping[str, str], results: Mapping[str, Entry], curves: Mapping[str, Any]
) -> None:
    """The page of `evaluate ijb`.

    results: model -> its result. curves: model -> its `ijb.protocol.Curves`.
    """
    some = next(iter(results.values()))
    target, weighting = some["target"], some["weighting"]
    mode = " ".join(f"{letter}{int(value)}" for letter, value in zip("FND", weighting.values(), strict=True))
    protocol = [*_IJB, "; ".join(_IJB_WEIGHTS[name][0 if on else 1] for name, on in weighting.items()) + "."]
    groups = []
    if "verification" in some:
        protocol += _IJB_11
        groups.append(_ijb_verification(target, results, curves))
    if "identification" in some:
        protocol += _IJB_1N
        groups.append(_ijb_identification(target, results, curves))
    facts = [
        ("Benchmark", target),
        ("Features", mode),
        ("Read", f"{some['images']:,} images of {some['templates']:,} templates"),
        *_problems(results),
    ]
    write_report(path, f"{target}: template verification and identification", models, protocol, groups, facts)


def _problems(results: Mapping[str, Entry]) -> list[tuple[str, str]]:
    """What is wrong with the data, once where it is the same for all models."""
    found: dict[str, list[str]] = {}
    for model, result in results.items():
        for problem in result["problems"]:
            first = ", ".join(problem["first"])
            text = f"{problem['count']:,} of {problem['of']:,} {problem['kind']} ({first}, ..): {problem['effect']}"
            found.setdefault(text, []).append(model)
    everyone = len(results)
    return [
        ("Problem", text if len(names) == everyone else f"{text} [{', '.join(names)}]")
        for text, names in found.items()
    ]


def _ijb_verification(target: str, results: Mapping[str, Entry], curves: Mapping[str, Any]) -> Group:
    found = {model: result["verification"] for model, result in results.items()}
    lines = {model: own.verification for model, own in curves.items() if own.verification is not None}
    convention = {
        name: {
            model: {**own, **own["distributions"], **own["conventions"][name]} for model, own in found.items()
        }
        for name in ("insightface", "at-most")
    }
    strict = convention["at-most"]
    some = next(iter(found.values()))
    part = Part(
        f"{target}, 1:1",
        [("pairs", f"{some['positives']:,} of the same subject, {some['negatives']:,} of different ones")],
        headline(strict),
        [rates_table(convention["insightface"], _NEAREST), rates_table(strict), *_error(strict),
         measures_table(strict)],
        {"roc": {model: line.curve for model, line in lines.items()}},
        {model: (line.negatives, line.positives) for model, line in lines.items()},
        unattained(strict),
        [*(f for model, line in lines.items() for f in wrong(model, line, "the threshold of FAR 0.0001")),
         *compared(lines)],
    )  # fmt: skip
    return Group("1:1 verification", [part])


def _ijb_identification(target: str, results: Mapping[str, Entry], curves: Mapping[str, Any]) -> Group:
    found = {model: result["identification"] for model, result in results.items()}
    some = next(iter(found.values()))

    def of(convention: str) -> dict[str, Entry]:
        return {model: own["conventions"][convention] for model, own in found.items()}

    strict = of("benchmark")
    summary = {"rank-1, benchmark": [percent(own["rank1"]) for own in strict.values()]}
    for i, point in enumerate(next(iter(strict.values()))["tpir_at_fpir"]):
        rates = [percent(own["tpir_at_fpir"][i]["tpir"]) for own in strict.values()]
        summary[f"TPIR at FPIR {point['fpir']:g}, benchmark"] = rates
    galleries = [
        (f"gallery {gallery['name']}", f"{gallery['templates']:,} templates; probes with a mate in it: "
         f"{gallery['probes_with_a_mate']:,}")
        for gallery in some["galleries"]
    ]  # fmt: skip
    drawn = {}
    for kind in ("cmc", "det"):
        lines = {model: getattr(own, kind) for model, own in curves.items() if getattr(own, kind) is not None}
        if lines:
            drawn[kind] = lines
    part = Part(
        f"{target}, 1:N",
        [("probes", f"{some['probes']:,} templates"), *galleries],
        summary,
        [searches_table(of(name), f"1:N, {words}") for name, words in _CONVENTIONS],
        drawn,
    )
    return Group("1:N identification", [part])


_CONVENTIONS = (
    ("insightface", "insightface: both galleries as one"),
    ("insightface-evals", "insightface-evals: gallery by gallery, as ijb_evals.py"),
    ("benchmark", "benchmark: open set, gallery by gallery, averaged; FPIR obtained in each"),
)
