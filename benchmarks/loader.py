"""Images/s and peak memory of loaders on one .rec, and of decoding its JPEGs alone: all give batches of 128,
shuffled and mirrored. Each measurement is a process of its own; the rounds are interleaved, and ratios are taken round
by round.

Batches are float32 planes (rows, 3, 112, 112), but for "ddl_plugin": it gives uint8 images (rows, 112, 112, 3), which
our trainer converts on its devices. "ddl_plugin, float32" is what the trainers of InsightFace get from it, "ddl_plugin,
processes" has worker processes in the place of threads, as many.

    python benchmarks/loader.py --rec FOLDER_OR_REC --insightface CHECKOUT

mx.io.ImageRecordIter stops at the header records of InsightFace's sets: it gets a temporary copy without them, and
shuffles as InsightFace's trainers let it, within chunks; the others draw from the whole set.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ddl_plugin.data.faces import SHAPE
from ddl_plugin.data.records import Records

ROWS = 128  # of one device, by default, in InsightFace
CHANNELS_FIRST = (SHAPE[2], *SHAPE[:2])
ARCFACE = Path("recognition") / "arcface_mxnet"
WARM_UP = 1.0  # seconds, until what was prepared ahead is used up
OURS, DECODING, FACES, RECORDS = "ddl_plugin", "JPEG decoding alone", "FaceImageIter", "ImageRecordIter"
OURS_PLANES, OURS_PROCESSES = "ddl_plugin, float32", "ddl_plugin, processes"
GLUON = "MXIndexedRecordIO, DataLoader"


# -- the loaders: each yields the number of images of one batch after the other, when it can be read -------


def ours(options: argparse.Namespace) -> Iterator[int]:
    return batches(our_iterator(options))


def our_planes(options: argparse.Namespace) -> Iterator[int]:
    return batches(our_iterator(options, planar=True))


def our_processes(options: argparse.Namespace) -> Iterator[int]:
    from ddl_plugin.data.batches import BatchSource
    from ddl_plugin.data.processes import ProcessBatches
    from ddl_plugin.data.sampler import ImageSampler
    from ddl_plugin.settings import Degradation

    records = Records(options.rec)
    source = BatchSource(
        records, ImageSampler(np.arange(len(records)), ROWS), records.labels, [Degradation()]
    )
    prepared = ProcessBatches(source, workers=options.threads)
    while True:
        yield len(prepared.next().pixels)


def our_iterator(options: argparse.Namespace, *, planar: bool = False):
    from ddl_plugin.data.iterator import BatchIterator
    from ddl_plugin.data.sampler import ImageSampler
    from ddl_plugin.settings import Degradation

    records = Records(options.rec)
    sampler = ImageSampler(np.arange(len(records)), ROWS)
    return BatchIterator(
        records, sampler, records.labels, [Degradation()], threads=options.threads, planar=planar
    )


def face_image_iter(options: argparse.Namespace) -> Iterator[int]:
    """InsightFace's, as its trainer sets it up."""
    from ddl_plugin.mxnet_setup import mx

    sys.path.insert(0, str(options.insightface / ARCFACE))
    from image_iter import FaceImageIter

    plain = FaceImageIter(
        ROWS, CHANNELS_FIRST, path_imgrec=str(Records(options.rec).path), shuffle=True, rand_mirror=True
    )
    return batches(mx.io.PrefetchingIter(plain))


def image_record_iter(options: argparse.Namespace) -> Iterator[int]:
    from ddl_plugin.mxnet_setup import mx

    return batches(
        mx.io.ImageRecordIter(
            path_imgrec=str(options.plain), data_shape=CHANNELS_FIRST, batch_size=ROWS, rand_mirror=True,
            preprocess_threads=options.threads, shuffle=True, shuffle_chunk_size=1024,
        )
    )  # fmt: skip


def data_loader(options: argparse.Namespace) -> Iterator[int]:
    from ddl_plugin.mxnet_setup import mx

    records = Records(options.rec)
    keys = records.keys.tolist()

    class Faces(mx.gluon.data.Dataset):
        def __init__(self):
            self._file = mx.recordio.MXIndexedRecordIO(
                str(records.path.with_suffix(".idx")), str(records.path), "r"
            )

        def __len__(self):
            return len(keys)

        def __getitem__(self, i):
            header, content = mx.recordio.unpack(self._file.read_idx(keys[i]))
            image = mx.image.imdecode(content)
            if random.random() < 0.5:
                image = mx.nd.flip(image, axis=1)
            return mx.nd.transpose(image, (2, 0, 1)).astype("float32"), header.label

    loader = mx.gluon.data.DataLoader(
        Faces(), batch_size=ROWS, shuffle=True, last_batch="discard", num_workers=options.threads
    )
    while True:
        for data, _ in loader:
            data.wait_to_read()
            yield len(data)


def batches(iterator) -> Iterator[int]:
    """Endless, pass after pass."""
    while True:
        for batch in iterator:
            batch.data[0].wait_to_read()
            yield len(batch.data[0])
        iterator.reset()


def decoding(options: argparse.Namespace) -> float:
    """Images/s of threads that do nothing but decode JPEGs, which lie in memory."""
    import cv2

    cv2.setNumThreads(0)
    records = Records(options.rec)
    chosen = np.random.default_rng(0).permutation(len(records))[:20_000]
    encoded = [np.frombuffer(records.payload(i), np.uint8) for i in chosen]
    ends = time.perf_counter() + options.seconds
    done = [0] * options.threads

    def work(thread: int) -> None:
        while True:
            for jpeg in encoded[thread :: options.threads]:
                cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
                done[thread] += 1
                if time.perf_counter() > ends:
                    return

    threads = [threading.Thread(target=work, args=(i,)) for i in range(options.threads)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


LOADERS: dict[str, Callable[[argparse.Namespace], Iterator[int]]] = {
    OURS: ours, OURS_PROCESSES: our_processes, OURS_PLANES: our_planes, FACES: face_image_iter,
    RECORDS: image_record_iter, GLUON: data_loader,
}  # fmt: skip


# -- one measurement ---------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """Print images/s and the peak memory in MB of this process and its workers."""
    name = options.measure
    if name == DECODING:
        rate = decoding(options)
    else:
        loader = LOADERS[name](options)  # its workers live as long as it does
        rate = rate_of(loader, options.seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + sum(map(own_memory, children()))
    print("RESULT", rate, peak / 1024, flush=True)
    os._exit(0)  # some of MXNet's loaders do not end their threads


def rate_of(counts: Iterator[int], seconds: float) -> float:
    began = time.perf_counter()
    while time.perf_counter() - began < WARM_UP:
        next(counts)
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        images += next(counts)
    return images / (time.perf_counter() - began)


def children() -> list[int]:
    """Processes whose parent is this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(path.parent.name))
    return found


def own_memory(process: int) -> int:
    """Memory in KB that a worker process does not share with its parent."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


# -- the comparison ----------------------------------------------------------------------------------------


def run_once(options: argparse.Namespace, name: str, threads: int, plain: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "--measure", name, "--rec", str(options.rec), "--plain", str(plain)]
    command += ["--threads", str(threads), "--seconds", str(options.seconds)]
    if options.insightface:
        command += ["--insightface", str(options.insightface)]
    # FaceImageIter decodes in operators of MXNet; operators themselves are not to be parallel.
    environment = {"OMP_NUM_THREADS": "1", "MXNET_CPU_WORKER_NTHREADS": str(threads)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    results = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not results:
        sys.exit(f"{name}: {done.stderr[-800:]}")
    return float(results[0][0]), float(results[0][1])


def without_headers(rec: Path, folder: Path) -> Path:
    """A copy of the images alone."""
    from ddl_plugin.mxnet_setup import mx

    records = Records(rec)
    path = folder / "plain.rec"
    file = mx.recordio.MXRecordIO(str(path), "w")
    for i in range(len(records)):
        file.write(mx.recordio.pack(mx.recordio.IRHeader(0, records.labels[i], i, 0), records.payload(i)))
    file.close()
    return path


def table(results: dict[str, np.ndarray]) -> str:
    """`results`: name -> (rounds, 2) images/s and MB."""
    rows = []
    for name, values in results.items():
        rates = values[:, 0]
        row = [
            name,
            f"{np.median(rates):.0f}",
            f"{rates.min():.0f}-{rates.max():.0f}",
            f"{values[:, 1].max():.0f}",
        ]
        for other in (FACES, RECORDS, DECODING):
            ratio = np.median(rates / results[other][:, 0]) if other in results else None
            row.append("-" if ratio is None else f"{ratio:.2f}")
        rows.append(row)
    headers = ["loader", "images/s", "range", "peak MB", f"x {FACES}", f"x {RECORDS}", "x decoding"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rec", type=Path, help="data set of 112x112 images; default: the synthetic one, drawn"
    )
    parser.add_argument("--insightface", type=Path, help="a checkout of InsightFace, for its FaceImageIter")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        options.threads = options.threads[0]
        measure(options)
    if options.rec is None:
        from ddl_plugin.data.synthetic import ensure

        options.rec = Path("data") / "synthetic"
        ensure(options.rec)
    names = [DECODING, *LOADERS]
    if options.insightface is None or not (options.insightface / ARCFACE / "image_iter.py").is_file():
        names.remove(FACES)
        print(f"without {FACES}: --insightface names no checkout with {ARCFACE}/image_iter.py")
    with tempfile.TemporaryDirectory() as folder:
        plain = without_headers(options.rec, Path(folder))
        records = Records(options.rec)
        size = records.path.stat().st_size / len(records)
        print(f"{len(records)} images of {size:.0f} bytes, batches of {ROWS}, {options.rounds} round(s)")
        for threads in options.threads:
            results = {name: [] for name in names}
            for _ in range(options.rounds):
                for name in names:
                    results[name].append(run_once(options, name, threads, plain))
            print(f"\n{threads} thread(s)")
            print(table({name: np.array(values) for name, values in results.items()}))


if __name__ == "__main__":
    main()
