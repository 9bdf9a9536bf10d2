"""Is one kind of model better than another beyond chance? Differences of rank-1 and EER, paired seed by seed, with a
95 % interval from drawing the identities of the set again and again.

    python benchmarks/paired.py --rec val.rec --first runs/s*/arcface.onnx --second runs/s*/ddl.onnx

The first file of one list is compared with the first of the other, and so on; the interval is of their mean. An
identity is drawn with all its images, as gallery and as probe: images of one person are no independent witnesses.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from ddl_plugin.data.records import Records
from ddl_plugin.evaluation.faces import RecordFaces
from ddl_plugin.evaluation.identification import embed_faces
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
from ddl_plugin.evaluation.protocols import first_others

#: (side of the probes, side of the gallery images), None: as they are
SHOWN = ((None, None), (24, None), (14, None), (24, 24), (14, 14))
_GRID = np.linspace(0.001, 0.5, 2000)  # FARs among which the EER is looked for


class Compared:
    """Scores of probes (rows) and gallery images (columns); what does not depend on how often each counts is kept."""

    def __init__(self, scores: np.ndarray, same: np.ndarray):
        self._same = same
        self._hit = np.take_along_axis(same, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
        self._falling = np.argsort(-scores[~same])
        self._rising = np.argsort(scores[same])
        self._negatives = scores[~same][self._falling]
        self._positives = scores[same][self._rising]

    def rank1(self, weight: np.ndarray) -> float:
        """Percent of the probes whose best gallery image is their own; weight: (probes,), how often each counts."""
        return 100 * float((weight * self._hit).sum() / weight.sum())

    def eer(self, probe_weight: np.ndarray, gallery_weight: np.ndarray) -> float:
        """Percent at which as many genuine pairs are rejected as others are accepted, pairs counting by their weights."""
        weight = probe_weight[:, None] * gallery_weight
        accepted = np.cumsum(weight[~self._same][self._falling])
        at = np.searchsorted(accepted, _GRID * accepted[-1])
        thresholds = self._negatives[np.minimum(at, len(accepted) - 1)]
        rejected = np.cumsum(np.r_[0, weight[self._same][self._rising]])
        missed = rejected[np.searchsorted(self._positives, thresholds, side="right")] / rejected[-1]
        nearest = np.abs(missed - _GRID).argmin()
        return 50 * float(missed[nearest] + _GRID[nearest])


def compare(
    first: list[np.ndarray], second: list[np.ndarray], probes: np.ndarray, gallery: np.ndarray, draws: int
) -> list[list[str]]:
    """Rows of measure, differences, their mean, its interval. first, second: scores (probes, gallery) a model.

    probes, gallery: the identities of the rows and columns, numbered from 0.
    """
    same = probes[:, None] == gallery
    count = int(gallery.max()) + 1
    pairs = [(Compared(a, same), Compared(b, same)) for a, b in zip(first, second, strict=True)]

    def differences(times: np.ndarray) -> np.ndarray:
        weights = times[probes], times[gallery]
        return np.array(
            [[b.rank1(weights[0]) - a.rank1(weights[0]), b.eer(*weights) - a.eer(*weights)] for a, b in pairs]
        )

    rng = np.random.default_rng(0)
    own = differences(np.ones(count))
    drawn = [
        differences(rng.multinomial(count, np.full(count, 1 / count))).mean(axis=0) for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return [
        [name, "  ".join(f"{d:+.2f}" for d in own[:, i]), f"{own[:, i].mean():+.2f}", f"{low[i]:+.2f} to {high[i]:+.2f}"]
        for i, name in enumerate(("rank-1", "EER"))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rec", required=True)
    parser.add_argument("--first", nargs="+", required=True, metavar="ONNX")
    parser.add_argument("--second", nargs="+", required=True, metavar="ONNX")
    parser.add_argument(
        "--probes", type=int, default=5, help="images of an identity after its first, at most"
    )
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    if len(options.first) != len(options.second):
        parser.error("--first and --second: expected as many files of each")
    records = Records(options.rec)
    protocol = first_others(records, options.probes)
    gallery = records.labels[protocol.gallery]
    identities, places = np.unique(gallery, return_inverse=True)
    probes = np.searchsorted(identities, records.labels[protocol.probes])
    faces = RecordFaces(records)

    embedded: dict[str, list[list[np.ndarray]]] = {}
    for name in ("first", "second"):
        embedded[name] = []
        for path in tqdm(getattr(options, name), name):
            embed = partial(embed_faces, OnnxEmbedder(path), faces)
            of_probes = {s: embed(protocol.probes, s) for s in {s for s, _ in SHOWN}}
            of_gallery = {g: embed(protocol.gallery, g) for g in {g for _, g in SHOWN}}
            embedded[name].append([of_probes[s] @ of_gallery[g].T for s, g in SHOWN])
    rows = []
    for i, (side, gallery_side) in enumerate(SHOWN):
        both = [[scores[i] for scores in embedded[name]] for name in ("first", "second")]
        shown = f"{side or 'full size'}, gallery {gallery_side or 'full size'}"
        rows += [[shown, *row] for row in compare(*both, probes, places, options.draws)]
    print(f"{len(probes)} probes, {len(identities)} identities; second less first, points")
    print(tabulate(rows, headers=["probes", "measure", "by pair of models", "mean", "95 % of the mean"]))


if __name__ == "__main__":
    main()
