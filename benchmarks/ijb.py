"""Scoring at the size of IJB-C: 469,375 images, 23,124 templates, 15,658,489 pairs, and 19,593 probes in two galleries
of together 3,531 templates. Features of 512 values and lists are generated; no image is read.

Each part is a process of its own, which says its time and its peak memory. At a tenth of the size the same is done
beside it by plain code: all features in memory, a loop over the templates, the pairs by blocks of 100,000,
scikit-learn's roc_curve, all scores of the search sorted. It gathers the features as InsightFace's ijb_onnx.py (1:1) and
ijb_1n.py (1:N) do. Both have one thread there: with two, the times are those of other work on the machine.

    python benchmarks/ijb.py [--folder DIR]
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = {"images": 469_375, "gallery": 3_531, "probes": 19_593, "pairs": 15_658_489, "positives": 19_557}
DIMENSION = 512
TURNS = 5


def generate(folder: Path, share: float) -> None:
    """Features, lists and arrays of a benchmark of `share` times IJB-C's size."""
    rng = np.random.default_rng(0)
    images, gallery, probes, pairs, positives = (int(size * share) for size in SIZES.values())
    templates = gallery + probes
    subject = np.concatenate([np.arange(gallery), rng.integers(0, gallery, probes)])
    template = np.sort(np.concatenate([np.arange(templates), rng.integers(0, templates, images - templates)]))
    media = np.cumsum(rng.random(images) < 0.3)
    scores = rng.uniform(0.5, 1, images).astype(np.float32)
    folder.mkdir()
    centres = rng.standard_normal((gallery, DIMENSION)).astype(np.float32)
    for name in ("images", "mirrored"):
        features = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (images, DIMENSION))
        for start in range(0, images, 10_000):
            part = template[start : start + 10_000]
            noise = rng.standard_normal((len(part), DIMENSION), np.float32)
            features[start : start + len(part)] = centres[subject[part]] + 14 * noise
        del features
    own = np.arange(gallery, templates)
    some = rng.permutation(own)[:positives]
    first = rng.integers(0, gallery, pairs)
    second = rng.integers(gallery, templates, pairs)
    first[: len(some)], second[: len(some)] = subject[some], some
    order = np.lexsort((second, first))
    first, second = first[order] + 1, second[order] + 1
    same = subject[first - 1] == subject[second - 1]
    np.savez(folder / "lists.npz", template=template + 1, media=media, scores=scores, subject=subject)
    np.savez(folder / "pairs.npz", first=first, second=second, same=same)
    with (folder / "pairs.txt").open("w") as file:
        for start in range(0, pairs, 100_000):
            part = np.stack([array[start : start + 100_000] for array in (first, second, same)], axis=1)
            file.write("".join([f"{a} {b} {c}\n" for a, b, c in part.tolist()]))
    print(f"SIZE\t{images}\t{templates}\t{pairs}\t{probes}\t{gallery}")


class timed:  # noqa: N801 - used as a statement
    """A block that prints how long it took, and the process's peak memory after it."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_) -> None:
        print(f"TIMED\t{self._what}\t{time.perf_counter() - self._began}\t{peak_memory()}")


def peak_memory() -> float:
    """MB of this process. Not getrusage: that knows of the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# -- ours --------------------------------------------------------------------------------------------------


def ours(folder: Path, protocol: str) -> None:
    from ddl_plugin.evaluation.ijb import identification
    from ddl_plugin.evaluation.ijb.extraction import Rows
    from ddl_plugin.evaluation.ijb.lists import Images, Members, read_pairs
    from ddl_plugin.evaluation.ijb.problems import Problems
    from ddl_plugin.evaluation.ijb.protocol import Lists, measure
    from ddl_plugin.evaluation.ijb.templates import Weighting, build_templates

    lists = np.load(folder / "lists.npz")
    count = len(lists["template"])
    images = Images(
        np.zeros(count, "S1"), lists["template"], lists["media"], np.zeros((count, 5, 2), np.float32),
        lists["scores"],
    )  # fmt: skip
    pairs = None
    if protocol == "11":
        with timed("read the pairs"):
            pairs = read_pairs(folder / "pairs.txt", np.unique(images.templates), Problems(1.0))

    files = [Rows(folder / f"{name}.npy", count) for name in ("images", "mirrored")]
    for rows in files:
        rows.open()

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return tuple(rows.read(start, stop) for rows in files)

    with timed("templates"):
        templates = build_templates(images, read, np.ones(count, bool), Weighting())
    if protocol == "11":
        with timed("1:1 scores and table"):
            result, _ = measure(templates, Lists(images, templates.numbers, pairs, None, None))
        tars = result["verification"]["conventions"]["insightface"]["tar_at_far"]
        print("FIGURES", *(round(point["tar"], 6) for point in tars))
        return
    subject, gallery = lists["subject"], len(np.unique(lists["subject"]))
    half = gallery // 2
    row = np.arange(len(subject), dtype=np.int32)
    members = [
        Members(name, row[part] + 1, subject[part], row[part])
        for name, part in (
            ("G1", slice(0, half)),
            ("G2", slice(half, gallery)),
            ("mixed", slice(gallery, None)),
        )
    ]
    with timed("1:N search and table"):
        result, _ = measure(templates, Lists(images, templates.numbers, None, tuple(members[:2]), members[2]))
    convention = result["identification"]["conventions"]["insightface"]
    ranks = [convention[f"rank{k}"] for k in identification.RANKS]
    print(
        "FIGURES", *(round(x, 6) for x in ranks), *(round(p["tpir"], 6) for p in convention["tpir_at_fpir"])
    )


# -- plain code --------------------------------------------------------------------------------------------


def plain(folder: Path, protocol: str) -> None:
    lists = np.load(folder / "lists.npz")
    with timed("templates"):
        values = (plain_features if protocol == "11" else plain_search_features)(folder, lists["scores"])
        numbers, features = plain_templates(values, lists["template"], lists["media"])
    if protocol == "11":
        pairs = np.load(folder / "pairs.npz")
        first, second, same = (pairs[name] for name in ("first", "second", "same"))
        with timed("1:1 scores and table"):
            found = plain_verification(features, numbers, first, second, same)
    else:
        subject = lists["subject"]
        gallery = len(np.unique(subject))
        with timed("1:N search and table"):
            found = plain_search(features[gallery:], features[:gallery], subject[gallery:], subject[:gallery])
    print("FIGURES", *(round(float(x), 6) for x in found))


def plain_features(folder: Path, scores: np.ndarray) -> np.ndarray:
    """As ijb_onnx.py gathers them: embeddings and mirrored ones side by side in one float64 array."""
    both = np.zeros((len(scores), 2 * DIMENSION))
    for i, name in enumerate(("images", "mirrored")):
        both[:, i * DIMENSION : (i + 1) * DIMENSION] = np.load(folder / f"{name}.npy", mmap_mode="r")
    values = both[:, :DIMENSION] + both[:, DIMENSION:]
    return values * scores[:, None]


def plain_search_features(folder: Path, scores: np.ndarray) -> np.ndarray:
    """As ijb_1n.py does: a list of vectors made a float32 array, and the scores repeated to its width."""
    both = []
    for start in range(0, len(scores), 1000):
        part = slice(start, start + 1000)
        sides = [np.load(folder / f"{name}.npy", mmap_mode="r")[part] for name in ("images", "mirrored")]
        both += list(np.concatenate(sides, axis=1))
    both = np.array(both).astype(np.float32)
    values = both[:, :DIMENSION] + both[:, DIMENSION:]
    return values * np.tile(scores[:, None], (1, DIMENSION))


def plain_templates(
    values: np.ndarray, template: np.ndarray, media: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A loop over the templates, and one over the media of each."""
    from sklearn.preprocessing import normalize

    numbers = np.unique(template)
    features = np.zeros((len(numbers), DIMENSION))
    for i, number in enumerate(numbers):
        (rows,) = np.where(template == number)
        own, own_media = values[rows], media[rows]
        parts = []
        for medium, count in zip(*np.unique(own_media, return_counts=True), strict=True):
            (of_medium,) = np.where(own_media == medium)
            part = own[of_medium]
            parts.append(part if count == 1 else np.mean(part, axis=0, keepdims=True))
        features[i] = np.sum(np.array(parts), axis=0)
    return numbers, normalize(features)


def plain_verification(features, numbers, first, second, same) -> list[float]:
    from sklearn.metrics import roc_curve

    row = np.zeros(numbers.max() + 1, int)
    row[numbers] = np.arange(len(numbers))
    scores = np.zeros(len(first))
    for start in range(0, len(first), 100_000):
        part = slice(start, start + 100_000)
        scores[part] = np.sum(features[row[first[part]]] * features[row[second[part]]], axis=-1)
    far, tar, _ = roc_curve(same, scores)
    far, tar = far[::-1], tar[::-1]
    return [tar[min(zip(np.abs(far - 10.0**-k), range(len(far)), strict=True))[1]] for k in range(6, 0, -1)]


def plain_search(probes, gallery, probe_subjects, gallery_subjects) -> list[float]:
    mates = []
    for subject in probe_subjects:
        (mate,) = [i for i, other in enumerate(gallery_subjects) if other == subject]
        mates.append(mate)
    scores = probes @ gallery.T
    order = np.argsort(-scores)
    ranks = [np.mean([mate in row[:k] for mate, row in zip(mates, order, strict=True)]) for k in (1, 5, 10)]
    own = []
    for i, mate in enumerate(mates):
        own.append(scores[i, mate])
        scores[i, mate] = -2
    counts = [math.ceil(len(mates) * fpir) for fpir in (0.01, 0.1)]
    others = heapq.nlargest(max(counts), scores[scores > -2])
    return [*ranks, *(np.mean(np.array(own) > others[count - 1]) for count in counts)]


# -- the table ---------------------------------------------------------------------------------------------


def run_part(*arguments: str, threads: int = 2) -> list[str]:
    """The lines that a part printed."""
    command = [sys.executable, __file__, "--part", *arguments]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr[-800:]}")
    return done.stdout.splitlines()


def rows_of(lines: list[str]) -> list[tuple[str, float, float]]:
    cells = [line.split("\t")[1:] for line in lines if line.startswith("TIMED")]
    return [(what, float(seconds), float(peak)) for what, seconds, peak in cells]


def measure_all(folder: Path) -> None:
    from tabulate import tabulate

    full, tenth = folder / "full", folder / "tenth"
    for name, share in ((full, "1"), (tenth, "0.1")):
        size = next(line.split("\t")[1:] for line in run_part("generate", str(name), share) if "SIZE" in line)
        print(
            "{}: {} images, {} templates, {} pairs, {} probes, {} in the galleries".format(name.name, *size)
        )
    for protocol in ("11", "1n"):
        lines = rows_of(run_part("ours", str(full), protocol))
        total = ("in all", sum(seconds for _, seconds, _ in lines), lines[-1][2])
        print(f"\nfull size, {protocol}")
        print(
            tabulate([*lines, total], headers=["part", "s", "peak MB of the process by then"], floatfmt=".1f")
        )
    rows = []
    for protocol in ("11", "1n"):
        runs = {who: [] for who in ("ours", "plain")}
        for _ in range(TURNS):
            for who, done in runs.items():
                lines = run_part(who, str(tenth), protocol, threads=1)
                figures = next(line for line in lines if line.startswith("FIGURES"))
                parts = [row for row in rows_of(lines) if row[0] != "read the pairs"]
                done.append((sum(row[1] for row in parts), parts[-1][2], figures))
        if len({figures for done in runs.values() for *_, figures in done}) > 1:
            sys.exit(f"figures differ: {runs}")
        (seconds, memory), (plain_seconds, plain_memory) = (
            np.min([run[:2] for run in done], axis=0) for done in runs.values()
        )
        times = [plain_seconds / seconds, plain_memory / memory]
        rows.append([protocol, seconds, plain_seconds, times[0], memory, plain_memory, times[1]])
    print(
        f"\na tenth of the size, beside plain code; the lists are in memory; the best of {TURNS} runs in turn"
    )
    headers = ["protocol", "ours s", "plain s", "times faster", "ours MB", "plain MB", "times less"]
    print(tabulate(rows, headers=headers, floatfmt=".2f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, help="with 3 GB of room; default: the system's temporary folder"
    )
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, folder, argument = options.part
        if part == "generate":
            generate(Path(folder), float(argument))
        else:
            {"ours": ours, "plain": plain}[part](Path(folder), argument)
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        measure_all(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
