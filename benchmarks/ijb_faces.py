"""A small benchmark in the layout of IJB-B or IJB-C from any .rec of aligned faces, to try the commands on.

    python benchmarks/ijb_faces.py REC FOLDER [--target IJBC] [--images 4000] [--seed 0]

Every identity becomes a subject in one of the two galleries. One template of its images is in the gallery, the
others are probes; some images share a medium, as frames of a video do. Faces are pasted, turned and scaled, into
larger pictures, and the five landmarks are where the turn has taken them: aligned again, they are the faces of the
.rec but for the resampling. An identity with one image has it in the gallery alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import cv2
import numpy as np

from ddl_plugin.data.records import Records
from ddl_plugin.evaluation.ijb.layout import GALLERIES

_PLACES = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_NEGATIVES = 100  # pairs of different subjects for each of the same


def build(
    rec: str | os.PathLike, folder: str | os.PathLike, target: str = "IJBC", images: int = 4000, seed: int = 0
) -> Path:
    """Write the set below `folder`/`target` from the first identities of the .rec; the folder of the target."""
    rng = np.random.default_rng(seed)
    records, root = Records(rec), Path(folder) / target
    (root / "loose_crop").mkdir(parents=True, exist_ok=True)
    (root / "meta").mkdir(exist_ok=True)
    members, media, templates = _templates(records.labels[:images], rng)
    lines = []
    for number, position in enumerate(members, 1):
        picture, points = _loose(records.image(int(position)), rng)
        path = root / "loose_crop" / f"{number}.jpg"
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
        score = rng.choice([rng.uniform(0.5, 0.99), 0.999], p=[0.05, 0.95])
        lines.append(" ".join([path.name, *(f"{value:.3f}" for value in points.ravel()), f"{score:.3f}"]))
    name = root / "meta" / target.lower()
    _write(f"{name}_name_5pts_score.txt", lines)
    numbered = enumerate(zip(templates, media, strict=True), 1)
    _write(f"{name}_face_tid_mid.txt", [f"{i}.jpg {template} {medium}" for i, (template, medium) in numbered])
    _write_searches(name, target, templates, records.labels[members], rng)
    return root


def _templates(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions of the images, their media, their templates), of each identity one template or more."""
    members, media, templates = [], [], []
    template = medium = 0
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))[:40]
        parts = np.array_split(own, rng.integers(2, min(len(own), 5) + 1)) if len(own) > 1 else [own]
        for part in parts:
            template += 1
            for i, position in enumerate(part):
                medium += i == 0 or rng.random() < 0.6
                members.append(position)
                media.append(medium)
                templates.append(template)
    return np.array(members), np.array(media), np.array(templates)


def _loose(face: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A larger picture with the face turned and scaled in it, and the five landmarks (5, 2)."""
    scale, angle = rng.uniform(1.0, 2.0), np.deg2rad(rng.uniform(-20, 20))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sides = np.array([round(112 * scale * 1.7), round(112 * scale * 1.7)])
    shift = sides / 2 + rng.uniform(-8, 8, 2) - turn @ [55.5, 55.5]
    picture = cv2.warpAffine(
        face, np.column_stack((turn, shift)), tuple(map(int, sides)), flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return picture, _PLACES @ turn.T + shift


def _write_searches(
    name: Path, target: str, templates: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> None:
    """Galleries, probes and pairs: the first template of a subject is in the gallery, the others are probes."""
    numbers, first = np.unique(templates, return_index=True)
    subjects = labels[first]
    _, first = np.unique(subjects, return_index=True)
    in_gallery = np.isin(np.arange(len(numbers)), first)
    second_half = rng.permutation(len(first)) % 2 == 1
    for half, gallery in enumerate(GALLERIES[target]):
        chosen = first[second_half == half]
        _write_members(f"{name}_1N_gallery_{gallery}.csv", numbers[chosen], subjects[chosen])
    _write_members(f"{name}_1N_probe_mixed.csv", numbers[~in_gallery], subjects[~in_gallery])
    probes = np.flatnonzero(~in_gallery)
    own = first[np.searchsorted(subjects[first], subjects[probes])]
    others = rng.integers(0, len(first), (len(probes), _NEGATIVES))
    pairs = [f"{numbers[a]} {numbers[b]} 1" for a, b in zip(own, probes, strict=True)]
    for probe, row in zip(probes, others, strict=True):
        strangers = np.unique(first[row][subjects[first[row]] != subjects[probe]])
        pairs += [f"{numbers[a]} {numbers[probe]} 0" for a in strangers]
    _write(f"{name}_template_pair_label.txt", pairs)


def _write_members(path: str, numbers: np.ndarray, subjects: np.ndarray) -> None:
    rows = [f"{number},{subject}" for number, subject in zip(numbers, subjects, strict=True)]
    _write(path, ["TEMPLATE_ID,SUBJECT_ID", *rows])


def _write(path: str, lines: list[str]) -> None:
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rec")
    parser.add_argument("folder")
    parser.add_argument("--target", choices=tuple(GALLERIES), default="IJBC")
    parser.add_argument("--images", type=int, default=4000, help="of the .rec, the first ones")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(build(options.rec, options.folder, options.target, options.images, options.seed))


if __name__ == "__main__":
    sys.exit(main())
