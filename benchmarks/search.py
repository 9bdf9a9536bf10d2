"""A search of many probes in a large gallery: time and memory, beside the plain way that holds every score.

python benchmarks/search.py [--probes 20000] [--gallery 5000] [--dimension 512] [--plain]
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np

from ddl_plugin.evaluation.metrics import eer, tar_at_far
from ddl_plugin.evaluation.search import search

FARS = (1e-2, 1e-3, 1e-4, 1e-5)


def made(count: int, identities: np.ndarray, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors around their identity's own, float32 (count, dimension)."""
    centres = np.random.default_rng(0).normal(size=(int(identities.max()) + 1, dimension))
    rows = centres[identities] + np.random.default_rng(seed).normal(0, 2.5, (count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plain(gallery, gallery_labels, probes, probe_labels) -> dict:
    """All scores in one matrix."""
    scores = probes @ gallery.T
    same = probe_labels[:, None] == gallery_labels
    own = np.where(same, scores, -2).max(axis=1)
    other = np.where(same, -2, scores).max(axis=1)
    negatives, positives = scores[~same], scores[same]
    return {
        "rank1": float(np.mean(own > other)),
        "tar": tar_at_far(negatives, positives, np.array(FARS)).tar.tolist(),
        "eer": eer(negatives, positives),
    }


def blocks(gallery, gallery_labels, probes, probe_labels) -> dict:
    """What `evaluate identification` does."""
    found = search(gallery, gallery_labels, probes, probe_labels, FARS)
    return {
        "rank1": float(np.mean(found.ranks == 1)),
        "tar": found.rates.tar_at_far().tar.tolist(),
        "eer": found.rates.eer(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=20_000)
    parser.add_argument("--gallery", type=int, default=5_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--plain", action="store_true", help="measure the plain way instead")
    options = parser.parse_args()
    gallery_labels = np.arange(options.gallery)
    probe_labels = np.arange(options.probes) % options.gallery
    gallery = made(options.gallery, gallery_labels, options.dimension, 1)
    probes = made(options.probes, probe_labels, options.dimension, 2)
    tracemalloc.start()
    start = time.perf_counter()
    result = (plain if options.plain else blocks)(gallery, gallery_labels, probes, probe_labels)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    print(
        f"{'plain' if options.plain else 'blocks'}: {options.probes} probes x {options.gallery} gallery images"
    )
    print(f"  {seconds:.1f} s, {peak:.0f} MiB beside the features")
    print(f"  {result}")


if __name__ == "__main__":
    main()
