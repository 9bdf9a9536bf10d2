"""The command line of the export: convert, check, and only then write."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ddl_plugin.cli import Parser, require_distinct, write_json
from ddl_plugin.errors import UserError
from ddl_plugin.export.check import TOLERANCE, check_same_graph, compare_runtimes, real_images
from ddl_plugin.export.convert import OPSET, read_model
from ddl_plugin.export.graph import Checkpoint, find_checkpoint, model_files
from ddl_plugin.files import replaced


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ddl_plugin.export",
        description="Write a checkpoint's embedding as ONNX, after comparing it with MXNet. "
        "Exit code 1: a check failed, nothing is written.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT",
        help="PREFIX,EPOCH, or a folder that holds model-symbol.json (its newest epoch)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="MODEL.onnx", type=Path)
    parser.add_argument(
        "--base",
        metavar="CHECKPOINT|BASE.onnx",
        help="require the same graph as this model's: only weights may differ",
    )
    parser.add_argument("--images", metavar="REC", help="compare on images of this .rec file too")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE,
        help="largest difference of unit embeddings (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON")
    return parser


def _base_model(text: str) -> onnx.ModelProto:
    if not text.endswith(".onnx"):
        return read_model(text)
    if not Path(text).is_file():
        raise UserError(f"{text}: no such ONNX file")
    try:
        return onnx.load(text)
    except Exception as error:  # protobuf's DecodeError, whose module depends on its version
        raise UserError(f"{text}: expected an ONNX model: {error}") from error


def _inputs(options: Namespace, files: Checkpoint) -> list[Path]:
    """The files that the command line names to read."""
    found = [files.symbol, files.params]
    if options.base:
        found += model_files(options.base)
    if options.images:
        rec = Path(options.images)
        rec = rec / "train.rec" if rec.is_dir() else rec
        found += [rec, rec.with_suffix(".idx")]
    return found


def export(options: Namespace) -> dict[str, Any]:
    """Convert and check as the command line says; the file is written only when every check held."""
    if not options.tolerance > 0:
        raise UserError(f"--tolerance: expected a number > 0, got {options.tolerance:g}")
    if options.output.suffix != ".onnx":
        raise UserError(f"--output: expected a name that ends in .onnx, got {str(options.output)!r}")
    files = find_checkpoint(options.checkpoint)
    require_distinct({"--output": options.output, "--json": options.json}, _inputs(options, files))
    base = _base_model(options.base) if options.base else None
    images = real_images(options.images) if options.images else None
    return export_checked(files, options.output, base, options.base, images, options.tolerance)


def export_checked(
    files: Checkpoint,
    output: Path,
    base: onnx.ModelProto | None,
    base_name: str | None,
    images: np.ndarray | None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Write `output`, but only when every check held; returns the report of what was checked.

    `base`, called `base_name` in messages: the model whose graph it must have; None: any. `images`, uint8
    (n, 112, 112, 3): real ones to compare on beside the synthetic ones. Raises CheckError.
    """
    model = read_model(files)
    report: dict[str, Any] = {
        "checkpoint": str(files.params),
        "output": str(output),
        "opset": OPSET,
        "nodes": len(model.graph.node),
        "dimension": model.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
    }
    with replaced(output) as temporary:
        temporary.write_bytes(model.SerializeToString())
        if base is not None:
            report["same_graph"] = check_same_graph(model, base, base_name)
        report["parity"] = compare_runtimes(files, temporary, images, tolerance)
    report["bytes"] = output.stat().st_size
    return report


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['output']}: {report['nodes']} nodes, opset {report['opset']}, "
        f"embedding of {report['dimension']}, {report['bytes'] / 1e6:.1f} MB"
    )
    parity = report["parity"]
    if parity["compared"]:
        sets = ", ".join(dict.fromkeys(row["images"] for row in parity["rows"]))
        batches = ", ".join(dict.fromkeys(str(row["batch"]) for row in parity["rows"]))
        print(
            f"MXNet {parity['mxnet']} and ONNX Runtime ({parity['onnxruntime']}) agree: largest difference of unit "
            f"embeddings {parity['max_difference']:.1e}, least cosine {parity['min_cosine']:.7f} "
            f"({sets} images, batches {batches})"
        )
    else:
        print(f"not compared with MXNet: {parity['mxnet']}")
    if "same_graph" in report:
        same = report["same_graph"]
        print(f"same graph as {same['base']}: {same['nodes']} nodes, only weights differ")


def command(arguments: Sequence[str] | None) -> None:
    """Run the command line; raises UserError and CheckError."""
    options = _parser().parse_args(arguments)
    report = export(options)
    _print(report)
    if options.json:
        write_json(options.json, report)
