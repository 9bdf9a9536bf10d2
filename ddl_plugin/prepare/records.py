"""`prepare records`: a data set in InsightFace's layout from folders, lists or other data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddl_plugin.cli import require_outputs, write_json
from ddl_plugin.errors import UserError
from ddl_plugin.prepare.record_files import record_files
from ddl_plugin.prepare.words import images_each, images_of_identities


def add(commands: argparse._SubParsersAction) -> None:
    text = "write train.rec, .idx and property from image folders, lists or other .rec files"
    parser = commands.add_parser(
        "records",
        help=text,
        description=text[0].upper() + text[1:] + ". The same command goes on where an earlier run was ended.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="folder of identity folders, image list, .lst, or .rec; several are joined, identities staying apart",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="what paths in lists are relative to; the list's folder"
    )
    parser.add_argument(
        "--keep-identities", type=Path, metavar="FILE", help="names of identities to take, one a line"
    )
    parser.add_argument(
        "--drop-identities", type=Path, metavar="FILE", help="names of identities to leave out, one a line"
    )
    parser.add_argument(
        "--min-images", type=int, default=1, metavar="N", help="leave out identities with fewer images"
    )
    parser.add_argument(
        "--resize", action="store_true", help="scale square images of another size to 112x112"
    )
    parser.add_argument("--align", action="store_true", help="align faces to 112x112 by five landmarks")
    parser.add_argument(
        "--detector", type=Path, metavar="MODEL.onnx", help="InsightFace detector that finds the landmarks"
    )
    parser.add_argument(
        "--landmarks",
        type=Path,
        metavar="FILE",
        help="lines 'path, x1, y1, .., x5, y5'; else those of the .lst",
    )
    parser.add_argument(
        "--min-face",
        type=float,
        default=0,
        metavar="PIXELS",
        help="leave out faces whose 112 pixels were fewer than this",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes; one for each CPU")
    parser.add_argument("--force", action="store_true", help="replace another data set in DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ddl_plugin.ingest.job import write_records
    from ddl_plugin.ingest.treatment import Treatment

    _require_own_report(arguments)
    if arguments.min_face and not (arguments.align or arguments.resize):
        raise UserError(
            "--min-face: expected --align or --resize with it, got neither; an image that is taken as it is "
            "does not say how large its face was"
        )
    report = write_records(
        arguments.sources,
        arguments.output,
        treatment=Treatment(
            align=arguments.align,
            detector=None if arguments.detector is None else str(arguments.detector),
            resize=arguments.resize,
            min_face=arguments.min_face,
        ),
        root=arguments.root,
        landmarks=arguments.landmarks,
        keep=arguments.keep_identities,
        drop=arguments.drop_identities,
        min_images=arguments.min_images,
        workers=arguments.workers,
        force=arguments.force,
        progress=True,
        say=print,
    )
    print(_text(arguments.output, report))
    if arguments.json:
        write_json(arguments.json, report)


def _require_own_report(arguments: argparse.Namespace) -> None:
    """`UserError` where --json would replace what is read, or the data set that is written."""
    from ddl_plugin.ingest.job import REPORT, SIZES

    inputs = (arguments.keep_identities, arguments.drop_identities, arguments.detector, arguments.landmarks)
    sources = [file for source in arguments.sources for file in record_files(source)]
    require_outputs({"--json": arguments.json}, [*sources, *filter(None, inputs)])
    written = [
        *record_files(arguments.output / "train.rec"),
        arguments.output / REPORT,
        arguments.output / SIZES,
    ]
    if arguments.json and arguments.json.resolve() in {file.resolve() for file in written}:
        raise UserError(f"--json: expected a file of its own, got {arguments.json}, which --output writes")
    for folder in filter(Path.is_dir, arguments.sources):
        if arguments.json and arguments.json.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--json: expected a file outside the source {folder}, got {arguments.json}")


def _text(output: Path, report: dict[str, Any]) -> str:
    from tabulate import tabulate

    each = report["images_per_identity"]
    rows = [("stored", text, count, "") for text, count in report["stored"].items()]
    for kind, title in (("notes", "of these"), ("skipped", "left out")):
        rows += [(title, text, what["count"], _some(what["first"])) for text, what in report[kind].items()]
    table = tabulate(rows, headers=("", "", "images", "the first of them"), tablefmt="simple")
    return (
        f"{table}\n\n{output / 'train.rec'}: {images_of_identities(report['images'], report['identities'])}, "
        f"{images_each(each['min'], each['max'])} (median {each['median']:g})"
    )


def _some(names: list[str]) -> str:
    """Two names for the table; the report has more."""
    return ", ".join(names[:2]) + (", .." if len(names) > 2 else "")
