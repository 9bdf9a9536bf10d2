"""`prepare attributes`: what data sets ship, or users have, as one attribute table by record number."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl_plugin.cli import require_outputs, uninterrupted, write_json

if TYPE_CHECKING:
    from ddl_plugin.data.attributes import AttributeTable

_VALUES = 8  # of a column of texts, or of few numbers, that are counted one by one


def add(commands: argparse._SubParsersAction) -> None:
    text = "make an attribute table of lists, file names or tables"
    parser = commands.add_parser(
        "attributes",
        help=text,
        description=text[0].upper() + text[1:] + ", for rules such as 'distance == 3'.",
    )
    kinds = parser.add_subparsers(title="sources", metavar="SOURCE", required=True)

    vggface2 = kinds.add_parser("vggface2", help="VGGFace2's pose templates: pose, template")
    vggface2.add_argument("list", metavar="LIST", help="test_posetemp_imglist.txt")
    vggface2.set_defaults(inputs=lambda options: [options.list], read=_vggface2)

    scface = kinds.add_parser("scface", help="SCface's file names: subject, kind, camera, distance, ...")
    scface.set_defaults(inputs=lambda options: [], read=_scface)

    cox = kinds.add_parser("cox", help="COX's paths: subject, source, camera")
    cox.set_defaults(inputs=lambda options: [], read=_cox)

    tables = kinds.add_parser("table", help="your own tables, joined: by record, name, label or identity")
    tables.add_argument(
        "tables", nargs="+", metavar="TABLE", help=".csv with a header line, .npz or .parquet"
    )
    tables.set_defaults(inputs=lambda options: options.tables, read=_tables)

    for kind in (vggface2, scface, cox, tables):
        kind.add_argument(
            "--names", required=kind is not tables, metavar="FILE",
            help="names file of the data set (train_names.txt): record, label, perhaps identity, name",
        )  # fmt: skip
        kind.add_argument("--output", required=True, metavar="TABLE", help=".npz or .parquet")
        kind.add_argument("--json", metavar="FILE", help="write what was made there too")
        kind.set_defaults(command=_import)

    show = kinds.add_parser("show", help="say what a table holds and where it comes from")
    show.add_argument("table", metavar="TABLE")
    show.set_defaults(command=_show)


def _import(options: argparse.Namespace) -> None:
    with uninterrupted():
        from ddl_plugin.annotation.names import Names
        from ddl_plugin.data.attributes import require_output

    inputs = [*options.inputs(options), *([options.names] if options.names else [])]
    require_outputs({"--output": options.output, "--json": options.json}, inputs)
    require_output(options.output)
    imported = options.read(options, Names.load(options.names) if options.names else None)
    imported.table.save(options.output)
    if imported.missing:
        print(
            f"{imported.missing:,} of {imported.listed:,} rows are of no record of {options.names}: left out"
        )
    print(f"{options.output}:", end=" ")
    summary = _summary(imported.table)
    _print(summary)
    if options.json:
        write_json(options.json, {**summary, "listed": imported.listed, "missing": imported.missing})


def _vggface2(options: argparse.Namespace, names: Any) -> Any:
    from ddl_plugin.annotation.importers import import_vggface2

    return import_vggface2(options.list, names)


def _scface(options: argparse.Namespace, names: Any) -> Any:
    from ddl_plugin.annotation.importers import import_scface

    return import_scface(names)


def _cox(options: argparse.Namespace, names: Any) -> Any:
    from ddl_plugin.annotation.importers import import_cox

    return import_cox(names)


def _tables(options: argparse.Namespace, names: Any) -> Any:
    from ddl_plugin.annotation.importers import import_tables

    return import_tables(options.tables, names)


def _show(options: argparse.Namespace) -> None:
    with uninterrupted():
        from ddl_plugin.data.attributes import AttributeTable

    table = AttributeTable.load(options.table)
    print(f"{Path(options.table).name}:", end=" ")
    _print(_summary(table))
    print("made by:", json.dumps(table.provenance, indent=2) if table.provenance else "not said")


def _print(summary: dict[str, Any]) -> None:
    print(f"{summary['records']:,} records")
    for name, about in summary["columns"].items():
        if "counts" in about:
            text = ", ".join(f"{value} {count:,}" for value, count in about["counts"].items())
        elif "distinct" in about:
            text = f"{about['distinct']:,} different texts"
        else:
            text = f"{about['min']:.6g} to {about['max']:.6g}, median {about['median']:.6g}"
        holes = f"{', ' if text else ''}no value {about['holes']:,}" if about["holes"] else ""
        print(f"  {name}: {text}{holes}")


def _summary(table: AttributeTable) -> dict[str, Any]:
    columns = {name: _column(values) for name, values in table.columns.items()}
    return {"records": len(table.keys), "columns": columns, "provenance": table.provenance}


def _column(values: np.ndarray) -> dict[str, Any]:
    number = values.dtype.kind == "f"
    given = (
        values[np.isfinite(values)]
        if number
        else values[values != ""]
        if values.dtype.kind == "U"
        else values
    )
    holes = len(values) - len(given)
    distinct, counts = np.unique(given, return_counts=True)
    if len(distinct) <= _VALUES:
        texts = [f"{value:g}" if number else str(value) for value in distinct]
        return {"holes": holes, "counts": dict(zip(texts, counts.tolist(), strict=True))}
    if number:
        low, middle, high = (float(x) for x in np.quantile(given, (0, 0.5, 1)))
        return {"holes": holes, "min": low, "median": middle, "max": high}
    return {"holes": holes, "distinct": len(distinct)}
