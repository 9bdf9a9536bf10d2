"""Start-up and sampling at the size of MS1M: a generated data set of 5.8 M records of 85 k identities, whose
images are 4 bytes each (nothing is decoded here), with yaw for every record and 100 pairs an identity.

Each part is a process of its own, which says its time and its peak memory. A step of the sampler is compared
with one on a data set of 10,000 records, step by step in turn in one process.

    python benchmarks/scale.py
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ddl_plugin.data.attributes import AttributeTable
from ddl_plugin.data.candidates import candidate_pairs
from ddl_plugin.data.pairs import Pairs, load_pairs, save_pairs
from ddl_plugin.data.partition import build_partition
from ddl_plugin.data.records import MAGIC, Records
from ddl_plugin.data.sampler import PairSampler
from ddl_plugin.settings import DDLSettings

SETTINGS = DDLSettings(b=32, easy="abs(yaw) < 10", hard=("abs(yaw) > 20",))
SMALL = 10_000
PAIRS_AN_IDENTITY = 100
MADE_FROM = {"data": "generated"}
_IMAGE = np.dtype(
    [
        ("magic", "<u4"),
        ("length", "<u4"),
        ("flag", "<u4"),
        ("label", "<f4"),
        ("ids", "<u8", 2),
        ("jpeg", "<u4"),
    ]
)
_RANGE = np.dtype(
    [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("range", "<f4", 2)]
)  # fmt: skip


def generate(folder: Path, images: int, identities: int) -> None:
    """train.rec and train.idx in InsightFace's layout, and yaw.npz, of identities of 1 to several hundred images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shares = rng.gamma(2.0, size=identities)
    sizes = 1 + rng.multinomial(images - identities, shares / shares.sum())
    ends = 1 + np.cumsum(sizes)
    head, ranges = _records(_RANGE, 1, 2), _records(_RANGE, identities, 2)
    head["range"] = images + 1, images + 1 + identities
    ranges["range"] = np.stack([ends - sizes, ends], axis=1)
    faces = _records(_IMAGE, images, 0)
    faces["label"] = np.repeat(np.arange(identities), sizes)
    faces["jpeg"] = 0xFFD9D8FF
    with (folder / "train.rec").open("wb") as file:
        for part in (head, faces, ranges):
            part.tofile(file)
    _write_idx(folder / "train.idx", [len(head), len(faces), len(ranges)])
    AttributeTable(np.arange(1, images + 1), {"yaw": rng.normal(0, 20, images)}).save(folder / "yaw.npz")


def _records(kind: np.dtype, count: int, flag: int) -> np.ndarray:
    records = np.zeros(count, kind)
    records["magic"], records["length"], records["flag"] = MAGIC, kind.itemsize - 8, flag
    return records


def _write_idx(path: Path, counts: list[int]) -> None:
    sizes = np.repeat([_RANGE.itemsize, _IMAGE.itemsize, _RANGE.itemsize], counts)
    offsets = np.cumsum(sizes) - sizes
    with path.open("w") as file:
        for start in range(0, len(offsets), 1 << 16):
            lines = enumerate(offsets[start : start + (1 << 16)].tolist(), start)
            file.write("".join([f"{number}\t{offset}\n" for number, offset in lines]))


# -- what is measured, each in a process of its own --------------------------------------------------------


def make_pairs(folder: Path) -> None:
    """Candidate pairs of every distribution, as if every cosine were above 0."""
    records = Records(folder)
    partition = build_partition(records, SETTINGS, AttributeTable.load(folder / "yaw.npz"))
    pairs = []
    with timed("candidate pairs"):
        for number, distribution in enumerate(partition.distributions):
            first, second, _ = candidate_pairs(
                distribution.positions, records.labels[distribution.positions], PAIRS_AN_IDENTITY,
                np.random.default_rng(number),
            )  # fmt: skip
            pairs.append(Pairs(first, second, len(first), 0))
    save_pairs(folder / "pairs.npz", pairs, MADE_FROM)


def start_up(folder: Path) -> PairSampler:
    """All that lies between a command and its first batch, but for the model."""
    with timed("open the records"):
        records = Records(folder)
    with timed("read the table of yaw"):
        table = AttributeTable.load(folder / "yaw.npz")
    with timed("partition"):
        partition = build_partition(records, SETTINGS, table)
    with timed("read the pairs"):
        pairs, reason = load_pairs(folder / "pairs.npz", MADE_FROM)
        if pairs is None:
            sys.exit(reason)
    with timed("pair sampler"):
        sampler = PairSampler(records.labels, partition, pairs, SETTINGS)
    with timed("first batch"):
        sampler.batch(0)
    return sampler


def steps(large: Path, small: Path, count: int) -> None:
    """Print medians of a step of the two samplers, and of their ratio step by step, in microseconds."""
    samplers = [start_up(folder) for folder in (large, small)]
    times = np.array([[_microseconds(sampler, step) for sampler in samplers] for step in range(1, count + 1)])
    ratios = times[:, 0] / times[:, 1]
    print("STEP", *np.median(times, axis=0), *np.percentile(ratios, (25, 50, 75)))


def _microseconds(sampler: PairSampler, step: int) -> float:
    began = time.perf_counter()
    sampler.batch(step)
    return 1e6 * (time.perf_counter() - began)


class timed:  # noqa: N801 - used as a statement
    """A block that prints how long it took, and the process's peak memory after it."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_) -> None:
        seconds = time.perf_counter() - self._began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"TIMED\t{self._what}\t{seconds}\t{peak}")


# -- the table ---------------------------------------------------------------------------------------------


def run_part(part: str, *arguments: str) -> list[str]:
    """The lines that a part printed."""
    command = [sys.executable, __file__, "--part", part, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{part}: {done.stderr[-800:]}")
    return done.stdout.splitlines()


def rows_of(lines: list[str]) -> list[tuple[str, float, float]]:
    cells = [line.split("\t")[1:] for line in lines if line.startswith("TIMED")]
    return [(what, float(seconds), float(peak)) for what, seconds, peak in cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5_800_000)
    parser.add_argument("--identities", type=int, default=85_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--folder", type=Path, help="where there is room; default: the system's temporary folder"
    )
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, *folders = options.part
        {"pairs": make_pairs, "start": start_up, "steps": lambda a, b: steps(a, b, options.steps)}[part](
            *map(Path, folders)
        )
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        measure(folder, options)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, options: argparse.Namespace) -> None:
    large, small = folder / "large", folder / "small"
    generate(large, options.images, options.identities)
    generate(small, SMALL, max(2 * SETTINGS.b, SMALL * options.identities // options.images))
    size = sum(path.stat().st_size for path in large.iterdir()) / 2**20
    print(f"{options.images} records of {options.identities} identities, {size:.0f} MB on the disk")
    made = [row for path in (large, small) for row in rows_of(run_part("pairs", str(path)))][:1]
    start = rows_of(run_part("start", str(large)))
    total = ("start-up in all", sum(seconds for _, seconds, _ in start), start[-1][2])
    headers = ["part", "s", "peak MB of the process by then"]
    print(tabulate([*start, total], headers=headers, floatfmt=".2f"))
    print(f"before that, once: {made[0][0]} in {made[0][1]:.1f} s, peak {made[0][2]:.0f} MB")
    lines = run_part("steps", str(large), str(small), "--steps", str(options.steps))
    values = next(line.split()[1:] for line in lines if line.startswith("STEP"))
    big, little, low, median, high = map(float, values)
    print(
        f"a step of {SETTINGS.rows} rows: median {big:.0f} us, at {SMALL} records {little:.0f} us; ratio step by step over "
        f"{options.steps} steps: median {median:.2f}, quartiles {low:.2f} to {high:.2f}"
    )


if __name__ == "__main__":
    main()
