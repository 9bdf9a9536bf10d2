"""The command line of the export: convert, check, and only then write."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ddl_plugin.cli import Parser, require_outputs, uninterrupted, write_json
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.bins import BinSet, load_bin
from ddl_plugin.export.convert import OPSET, read_model
from ddl_plugin.export.cost import check_same_cost
from ddl_plugin.export.departure import Reference
from ddl_plugin.export.graph import Checkpoint, find_checkpoint, is_state_dict, model_files
from ddl_plugin.export.half import to_half
from ddl_plugin.export.images import images_of_identities, real_images, smooth_images
from ddl_plugin.export.latency import compare_latency
from ddl_plugin.export.mxnet_network import open_mxnet
from ddl_plugin.export.parity import TOLERANCE, OpenNetwork, compare_runtimes
from ddl_plugin.export.quantised import CALIBRATION_IMAGES, require_quantisation, to_int8
from ddl_plugin.export.reduced import compare_reduced, verify_models
from ddl_plugin.export.report import print_report
from ddl_plugin.export.sameness import check_same_graph
from ddl_plugin.files import replaced

_SIZE = 112


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ddl_plugin.export",
        description="Write a checkpoint's embedding as ONNX, after comparing it with MXNet, or with PyTorch where MXNet "
        "is not installed. Exit code 1: a check failed, nothing is written.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?",
        help="PREFIX,EPOCH, a folder that holds model-symbol.json (its newest epoch), or a state dict of arcface_torch",
    )  # fmt: skip
    parser.add_argument("--output", metavar="MODEL.onnx", type=Path)
    parser.add_argument(
        "--base",
        metavar="CHECKPOINT|BASE.onnx",
        help="prove that inference is this model's: same graph, same cost; only weights may differ",
    )
    parser.add_argument("--images", metavar="REC", help="compare on images of this .rec file too")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE,
        help="largest difference of unit embeddings (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--fp16", action="store_true", help="write MODEL.fp16.onnx too, in half precision")
    parser.add_argument("--int8", action="store_true", help="write MODEL.int8.onnx too; needs --calibrate")
    parser.add_argument(
        "--calibrate", metavar="REC", help="images of this .rec file set the ranges of --int8"
    )
    parser.add_argument("--verify", nargs="+", action="extend", default=[], metavar="BIN",
                        help="measure verification accuracy of every model written, on these sets")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON")
    parser.add_argument(
        "--list-ops", action="store_true", help="show the MXNet operators that can be exported"
    )
    return parser


@dataclass(frozen=True)
class Extras:
    """What is written and measured beside the float32 model and its parity.

    latency: of the model and the base model. calibration: uint8 (n, S, S, 3) for the int8 model; None for none.
    """

    latency: bool = False
    fp16: bool = False
    calibration: np.ndarray | None = None
    sets: Sequence[BinSet] = field(default=())


PLAIN = Extras()


def _base_model(text: str) -> onnx.ModelProto:
    if not text.endswith(".onnx"):
        with ExitStack() as written:
            return read_model(_files(text, written))
    if not Path(text).is_file():
        raise UserError(f"{text}: no such ONNX file")
    try:
        model = onnx.load(text)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's DecodeError, whose module depends on its version
        raise UserError(f"{text}: expected an ONNX model: {error}") from error
    return model


def _rec_files(text: str) -> list[Path]:
    rec = Path(text)
    rec = rec / "train.rec" if rec.is_dir() else rec
    return [rec, rec.with_suffix(".idx")]


def _files(model: str, written: ExitStack) -> Checkpoint:
    """The two files of a checkpoint; a state dict of torch is written as one, as long as `written` is open."""
    if not is_state_dict(model):
        return find_checkpoint(model)
    with uninterrupted():
        from ddl_plugin.pytorch.checkpoint import load_backbone, save_backbone

    prefix = Path(written.enter_context(tempfile.TemporaryDirectory())) / "model"
    save_backbone(prefix, 0, load_backbone(model))
    return find_checkpoint(f"{prefix},0")


def _inputs(options: Namespace) -> list[Path]:
    """The files that the command line names to read."""
    found = [*model_files(options.checkpoint), *map(Path, options.verify)]
    if options.base:
        found += model_files(options.base)
    for records in filter(None, (options.images, options.calibrate)):
        found += _rec_files(records)
    return found


def reduced_name(output: Path, kind: str) -> Path:
    """'MODEL.fp16.onnx' of 'MODEL.onnx'."""
    return output.with_suffix(f".{kind}.onnx")


def _check_options(options: Namespace) -> None:
    if options.checkpoint is None or options.output is None:
        missing = "CHECKPOINT" if options.checkpoint is None else "--output MODEL.onnx"
        raise UserError(f"expected {missing} (see 'python -m ddl_plugin.export --help')")
    if not options.tolerance > 0:
        raise UserError(f"--tolerance: expected a number > 0, got {options.tolerance:g}")
    if options.output.suffix != ".onnx":
        raise UserError(f"--output: expected a name that ends in .onnx, got {str(options.output)!r}")
    if options.int8 and not options.calibrate:
        raise UserError(
            "--int8: expected --calibrate REC, faces such as the training set's that set its ranges"
        )
    if options.calibrate and not options.int8:
        raise UserError("--calibrate: expected --int8 beside it, which alone needs it")
    if options.int8:
        require_quantisation()


def export(options: Namespace) -> dict[str, Any]:
    """Convert and check as the command line says; files are written only when every check held."""
    _check_options(options)
    outputs = {"--output": options.output, "--json": options.json}
    outputs |= {
        f"--{kind}": reduced_name(options.output, kind) for kind in ("fp16", "int8") if getattr(options, kind)
    }
    require_outputs(outputs, _inputs(options))
    base = _base_model(options.base) if options.base else None
    images = real_images(options.images) if options.images else None
    calibration = images_of_identities(options.calibrate, _SIZE, CALIBRATION_IMAGES) if options.int8 else None
    if images is None and options.calibrate:
        images = real_images(options.calibrate)
    sets = [load_bin(path) for path in options.verify]
    extras = Extras(base is not None, options.fp16, calibration, sets)
    with ExitStack() as written:
        files = _files(options.checkpoint, written)
        report = export_checked(
            files, options.output, base, options.base, images, options.tolerance, extras, _open_host
        )
    if is_state_dict(options.checkpoint):
        report["checkpoint"] = options.checkpoint
    return report


def _open_host(files: Checkpoint) -> tuple[Reference | None, str]:
    """The network in MXNet, which has a reader of its own, or else in PyTorch; None where neither is installed."""
    network, version = open_mxnet(files)
    if network is None and importlib.util.find_spec("torch") is not None:
        from ddl_plugin.pytorch.reference import open_torch

        return open_torch(files)
    return network, version


def export_checked(
    files: Checkpoint,
    output: Path,
    base: onnx.ModelProto | None,
    base_name: str | None,
    images: np.ndarray | None,
    tolerance: float = TOLERANCE,
    extras: Extras = PLAIN,
    open_network: OpenNetwork = open_mxnet,
) -> dict[str, Any]:
    """Write `output`, but only when every check held; returns the report of what was checked.

    `base`, called `base_name` in messages: the model whose graph it must have; None: any. `images`, uint8
    (n, 112, 112, 3): real ones to compare on beside the synthetic ones. `open_network`: what it is compared with.
    Raises CheckError.
    """
    model = read_model(files)
    report: dict[str, Any] = {
        "checkpoint": str(files.params),
        "output": str(output),
        "opset": OPSET,
        "nodes": len(model.graph.node),
        "dimension": model.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
    }
    with ExitStack() as written:  # all files or none
        temporary = written.enter_context(replaced(output))
        temporary.write_bytes(model.SerializeToString())
        report["bytes"] = temporary.stat().st_size
        if base is not None:
            report["same_graph"] = check_same_graph(model, base, base_name)
            report["cost"] = check_same_cost(model, base, base_name)
        report["parity"] = compare_runtimes(files, temporary, images, tolerance, open_network)
        models = {"fp32": temporary, **_reduce(report, written, model, output, temporary, images, extras)}
        if extras.sets:
            report["verification"] = verify_models(models, extras.sets)
        if base is not None and extras.latency:
            report["latency"] = _latency(temporary, base)
    return report


def _reduce(
    report: dict[str, Any],
    written: ExitStack,
    model: onnx.ModelProto,
    output: Path,
    single: Path,
    images: np.ndarray | None,
    extras: Extras,
) -> dict[str, Path]:
    """The models in fewer bits, checked, each with its part of the report; {kind: temporary file}."""
    models = {}
    if extras.fp16:
        seen = smooth_images(4, _SIZE) if images is None else images[:4]
        half, kept = to_half(model, seen)
        models["fp16"] = written.enter_context(replaced(reduced_name(output, "fp16")))
        models["fp16"].write_bytes(half.SerializeToString())
        report["fp16"] = {"kept_float32": kept}
    if extras.calibration is not None:
        models["int8"] = written.enter_context(replaced(reduced_name(output, "int8")))
        to_int8(single, models["int8"], extras.calibration)
        report["int8"] = {"calibration_images": len(extras.calibration)}
    for kind, path in models.items():
        report[kind] = {
            "output": str(reduced_name(output, kind)),
            "bytes": path.stat().st_size,
            "cosine": compare_reduced(kind, path, single, images),
            **report[kind],
        }
    return models


def _latency(path: Path, base: onnx.ModelProto) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        base_path = Path(folder) / "base.onnx"
        base_path.write_bytes(base.SerializeToString())
        return compare_latency(path, base_path)


def command(arguments: Sequence[str] | None) -> None:
    """Run the command line; raises UserError and CheckError."""
    options = _parser().parse_args(arguments)
    if options.list_ops:
        from ddl_plugin.export.coverage import coverage_table

        print(coverage_table())
        return
    # Read when MXNet is loaded: where others use the processors too, its threads would wait for each other in busy
    # loops, and the command take two to three times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    report = export(options)
    print_report(report)
    if options.json:
        write_json(options.json, report)
