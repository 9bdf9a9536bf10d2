"""Benchmarks in the layout of IJB-B and IJB-C, small enough for tests, and the definitions in plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

GALLERIES = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}
PLACES = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


@dataclass
class Set:
    """Lines of the lists; whoever wants a damaged set changes them before `write`."""

    target: str = "IJBC"
    media: list[str] = field(default_factory=list)
    landmarks: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    galleries: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    probes: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        meta, name = root / "meta", self.target.lower()
        meta.mkdir(parents=True, exist_ok=True)
        (root / "loose_crop").mkdir(exist_ok=True)
        header = ["TEMPLATE_ID,SUBJECT_ID"]
        files = {f"{name}_face_tid_mid.txt": self.media, f"{name}_name_5pts_score.txt": self.landmarks,
                 f"{name}_template_pair_label.txt": self.pairs,
                 f"{name}_1N_probe_mixed.csv": header + self.probes}  # fmt: skip
        for gallery, lines in zip(GALLERIES[self.target], self.galleries, strict=True):
            files[f"{name}_1N_gallery_{gallery}.csv"] = header + lines
        for file, lines in files.items():
            (meta / file).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        for file, picture in self.pictures.items():
            cv2.imwrite(str(root / "loose_crop" / file), picture[:, :, ::-1])
        return root


def small_set(subjects: int = 12, seed: int = 0, target: str = "IJBC") -> Set:
    """Subjects with a colour pattern of their own, one to four templates each of one to five images."""
    rng = np.random.default_rng(seed)
    result, image, template, medium = Set(target), 0, 0, 0
    owner, gallery = {}, {}
    for subject in range(subjects):
        pattern = rng.integers(0, 256, (14, 14, 3)).astype(np.float64)
        for number in range(rng.integers(2, 5)):
            template += int(rng.integers(1, 3))
            owner[template] = subject
            if number == 0:
                gallery[subject] = template
                result.galleries[subject % 2].append(f"{template},{subject}")
            else:
                result.probes.append(f"{template},{subject}")
            for i in range(rng.integers(1, 6)):
                image += 1
                medium += i == 0 or rng.random() < 0.5
                noisy = np.clip(pattern + rng.normal(0, 220, pattern.shape), 0, 255).astype(np.uint8)
                shift = rng.uniform(4, 20, 2)
                face = cv2.resize(noisy, (112, 112), interpolation=cv2.INTER_NEAREST)
                move = np.column_stack((np.eye(2), shift))
                picture = cv2.warpAffine(face, move, (136, 140), borderMode=cv2.BORDER_REPLICATE)
                result.pictures[f"{image}.png"] = picture
                points = " ".join(f"{value:.3f}" for value in (PLACES + shift).ravel())
                result.landmarks.append(f"{image}.png {points} {rng.uniform(0.4, 1):.3f}")
                result.media.append(f"{image}.png {template} {medium}")
    probes = [int(line.split(",")[0]) for line in result.probes]
    for own in gallery.values():
        result.pairs += [f"{own} {probe} {int(owner[own] == owner[probe])}" for probe in probes]
    return result


# -- definitions in plain loops ---------------------------------------------------------------------------


def slow_templates(rows, plain, mirrored, scores, flip, norm_score, detector_score):
    """{template: unit vector}: rows (template, medium); mean of each medium, their sum, divided by its length."""
    result = {}
    for template in sorted({t for t, _ in rows}):
        total = [0.0] * len(plain[0])
        for medium in sorted({m for t, m in rows if t == template}):
            own = [i for i, row in enumerate(rows) if row == (template, medium)]
            for i in own:
                value = [float(x) for x in plain[i]]
                if flip:
                    value = [x + float(y) for x, y in zip(value, mirrored[i], strict=True)]
                if not norm_score:
                    length = math.sqrt(math.fsum(x * x for x in value))
                    value = [x / length for x in value]
                if detector_score:
                    value = [x * float(scores[i]) for x in value]
                total = [a + b / len(own) for a, b in zip(total, value, strict=True)]
        length = math.sqrt(math.fsum(x * x for x in total))
        result[template] = [x / length for x in total] if length else None
    return result


def slow_cosine(one, other):
    """Rounded to 12 decimals; -2 where there is no feature."""
    if one is None or other is None:
        return -2.0
    return round(math.fsum(x * y for x, y in zip(one, other, strict=True)), 12)


def slow_points(scores, same):
    """(false, true) counts accepted at every distinct score, from the highest on."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        accepted = [s for score, s in zip(scores, same, strict=True) if score >= threshold]
        points.append((accepted.count(False), accepted.count(True)))
    return points


def slow_nearest(scores, same, far):
    """TAR and FAR of the nearest point of the ROC without those between two equal steps."""
    points = slow_points(scores, same)
    kept = [(0, 0)]
    for i, (false, true) in enumerate(points):
        if 0 < i < len(points) - 1:
            before = (false - points[i - 1][0], true - points[i - 1][1])
            after = (points[i + 1][0] - false, points[i + 1][1] - true)
            if before == after:
                continue
        kept.append((false, true))
    negatives, positives = points[-1]
    best = None
    for false, true in kept:
        distance = abs(false / negatives - far)
        if best is None or distance <= best[0]:  # of equal ones the last
            best = (distance, true / positives, false / negatives)
    return best[1:]


def slow_at_most(scores, same, far):
    """The largest TAR among all points whose FAR does not exceed the one asked for."""
    points = [(0, 0), *slow_points(scores, same)]
    negatives, positives = points[-1]
    return max(true / positives for false, true in points if false / negatives <= far)
