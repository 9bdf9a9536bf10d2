"""Where the files of IJB-B and IJB-C lie, as InsightFace's evaluation has them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ddl_plugin.errors import UserError

#: The two galleries of each benchmark.
GALLERIES = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}

VERIFICATION, IDENTIFICATION = "11", "1n"
PROTOCOLS = (VERIFICATION, IDENTIFICATION)


@dataclass(frozen=True)
class Layout:
    target: str  # IJBB or IJBC
    images: Path  # folder of the loosely cropped faces
    media: Path  # lines 'image template medium'
    landmarks: Path  # lines 'image x1 y1 .. x5 y5 score'
    pairs: Path  # lines 'template template label'
    galleries: tuple[Path, Path]  # CSV: template, subject, ..
    probes: Path  # the same


def find_layout(root: str | os.PathLike, target: str, protocols: Collection[str] = PROTOCOLS) -> Layout:
    """The files below `root`, the folder of the target or the one that holds it as IJBB/ or IJBC/.

    Raises UserError naming every file that the protocols need and that is not there.
    """
    root = Path(root)
    folder = root if (root / "meta").is_dir() else root / target
    meta, name = folder / "meta", target.lower()
    if not meta.is_dir():
        raise UserError(
            f"--root {root}: expected the folder with {target}'s loose_crop/ and meta/, or the one that holds it as "
            f"{target}/, got neither {root / 'meta'} nor {meta}"
        )
    layout = Layout(
        target,
        folder / "loose_crop",
        meta / f"{name}_face_tid_mid.txt",
        meta / f"{name}_name_5pts_score.txt",
        meta / f"{name}_template_pair_label.txt",
        tuple(meta / f"{name}_1N_gallery_{gallery}.csv" for gallery in GALLERIES[target]),
        meta / f"{name}_1N_probe_mixed.csv",
    )
    needed = [layout.images, layout.media, layout.landmarks]
    if VERIFICATION in protocols:
        needed.append(layout.pairs)
    if IDENTIFICATION in protocols:
        needed += [*layout.galleries, layout.probes]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        raise UserError(
            f"--root {root}: expected the {target} files as InsightFace's evaluation has them, got no "
            f"{' and no '.join(missing)}; see docs/EVALUATION.md for the layout, or leave a protocol out "
            "with --protocol"
        )
    return layout
