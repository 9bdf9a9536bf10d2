"""`prepare check`: what is wrong with a .rec, in plain words."""

from __future__ import annotations

import argparse
from pathlib import Path

from ddl_plugin.cli import require_outputs, write_json
from ddl_plugin.errors import CheckError
from ddl_plugin.prepare.record_files import record_files
from ddl_plugin.prepare.words import images_each, images_of_identities


def add(commands: argparse._SubParsersAction) -> None:
    text = "say what is wrong with a .rec; exit code 1 when something is"
    parser = commands.add_parser("check", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("rec", type=Path, metavar="REC", help=".rec file, or a folder with train.rec")
    parser.add_argument("--quick", action="store_true", help="do not decode the images")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; one for each CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ddl_plugin.ingest.check import check_records

    require_outputs({"--json": arguments.json}, record_files(arguments.rec))
    report = check_records(
        arguments.rec, decode=not arguments.quick, workers=arguments.workers, progress=True
    )
    least, median, most = report.images_per_identity
    print(
        f"{report.path}: {images_of_identities(report.images, report.identities)}, {images_each(least, most)} "
        f"(median {median:g})" + ("" if report.decoded else "; the images were not decoded")
    )
    for finding in report.findings:
        print(f"  {finding.text}")
    if arguments.json:
        write_json(
            arguments.json,
            {
                "rec": str(report.path),
                "images": report.images,
                "identities": report.identities,
                "images_per_identity": {"min": least, "median": median, "max": most},
                "decoded": report.decoded,
                "findings": [vars(finding) for finding in report.findings],
            },
        )
    if report.findings:
        things = "one thing is" if len(report.findings) == 1 else f"{len(report.findings)} things are"
        raise CheckError(f"{report.path}: {things} wrong, as listed")
    print("  nothing is wrong with it")
