"""`prepare bin`: InsightFace's verification sets from the original distributions of LFW, CFP, CPLFW, CALFW, AgeDB."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddl_plugin.cli import require_outputs, uninterrupted, write_json
from ddl_plugin.errors import UserError

_SHOWN = 3  # names


def add(commands: argparse._SubParsersAction) -> None:
    text = "write a verification set (.bin) from the files that a benchmark's authors distribute"
    parser = commands.add_parser("bin", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "layout", metavar="LAYOUT", help="lfw, cfp_ff, cfp_fp, cplfw, calfw, agedb_30, or list"
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="the folder of the distribution, or of aligned images"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.bin")
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE", help="the list of pairs, where it is not where it usually lies"
    )
    faces = parser.add_argument_group("faces", "one of these")
    faces.add_argument("--aligned", action="store_true", help="the images are 112x112 faces already")
    faces.add_argument(
        "--detector", metavar="MODEL.onnx", help="align by landmarks that this InsightFace detector finds"
    )
    faces.add_argument(
        "--landmarks", metavar="FILE", help="align by landmarks: lines 'path, x1, y1, .., x5, y5'"
    )
    parser.add_argument(
        "--max-fallback", type=int, default=0, metavar="N",
        help="of so many images in which no face is found take the middle (default: 0)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="processes; one for each CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was made there too")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    with uninterrupted():
        from ddl_plugin.evaluation.packing import Packing, pack, table_path
        from ddl_plugin.evaluation.pair_lists import LAYOUTS

    read = _reader(options, LAYOUTS)
    ways = [options.aligned, options.detector is not None, options.landmarks is not None]
    if sum(ways) != 1:
        raise UserError(
            "--aligned, --detector, --landmarks: expected one of them to say where the faces are, got "
            f"{'none' if not any(ways) else 'several'}"
        )
    if options.max_fallback < 0:
        raise UserError(f"--max-fallback: expected a whole number >= 0, got {options.max_fallback}")
    if options.output.suffix != ".bin":
        raise UserError(f"--output: expected a file named .bin, got {options.output}")
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: expected the folder of the distribution, got no such folder")
    inputs = [path for path in (options.pairs, options.detector, options.landmarks) if path is not None]
    table = table_path(options.output)
    require_outputs(
        {"--output": options.output, "--output (its table)": table, "--json": options.json}, inputs
    )
    packing = Packing(options.detector, options.landmarks, options.max_fallback, options.workers)
    report = pack(read(), options.output, packing, _bar)
    print(_text(options.output, table if table.is_file() else None, report))
    if options.json:
        write_json(options.json, report)


def _reader(options: argparse.Namespace, layouts: dict) -> Any:
    from ddl_plugin.errors import did_you_mean

    if options.layout not in layouts:
        raise UserError(
            f"LAYOUT: expected one of {', '.join(layouts)}, got {options.layout!r}"
            f"{did_you_mean(options.layout, layouts)}"
        )
    if options.pairs is not None and options.layout.startswith("cfp"):
        raise UserError("--pairs: CFP's pairs lie in its folder Protocol/; leave --pairs out")
    return lambda: layouts[options.layout][1](options.folder, options.pairs)


def _bar(results: Any, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(results, total=total, desc="images", unit="job", leave=False, disable=None)


def _text(output: Path, table: Path | None, report: dict[str, Any]) -> str:
    lines = [
        f"{output}: {report['pairs']} pairs, {report['same']} of the same person and {report['different']} of different "
        f"persons, of {report['images']} images"
    ]
    lines += [f"{count} images {how}" for how, count in report["stored"].items()]
    for key, what in (
        ("fallback", "without a face that was found: the middle of the picture was taken"),
        ("damaged", "damaged, yet decoded"),
    ):
        if report[key]:
            lines.append(f"{len(report[key])} images {what} ({_some(report[key])})")
    if report["several_faces"]:
        lines.append(f"{report['several_faces']} images with several faces: the large, central one was taken")
    lines += [f"note: {note}; they are kept" for note in report["notes"]]
    if table is not None:
        lines.append(f"{table}: what is known of its images, for evaluate verification --attributes")
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", .." if len(names) > _SHOWN else "")
