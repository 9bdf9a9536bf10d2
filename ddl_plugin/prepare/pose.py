"""`prepare pose`: yaw, pitch and roll of every image of a data set, by ONNX head-pose models."""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.cli import require_outputs, uninterrupted, write_json
from ddl_plugin.errors import UserError
from ddl_plugin.prepare.record_files import record_files

_SHOWN = 10  # record numbers


def add(commands: argparse._SubParsersAction) -> None:
    text = "estimate yaw, pitch and roll of every image"
    parser = commands.add_parser(
        "pose",
        help=text,
        description=text[0].upper() + text[1:] + ", as an attribute table for rules such as 'abs(yaw) > 45'. "
        "A run that was stopped goes on where it was.",
    )
    parser.add_argument(
        "rec",
        nargs="?",
        metavar="REC",
        help=".rec file, a folder holding train.rec, or a verification set .bin",
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="ONNX",
        help="FSA-Net style or InsightFace's 1k3d68.onnx; give --model again to average several",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="TABLE", help="attribute table, .npz or .parquet")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="images at a time (default: one per processor)"
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--shard", metavar="I/N", help="do part I (from 0) of N, on one of N machines")
    parts.add_argument(
        "--merge", action="store_true", help="join the parts into TABLE; without REC and --model"
    )
    parser.add_argument("--json", metavar="FILE", help="write counts and record numbers there too")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    with uninterrupted():
        from ddl_plugin.annotation.pose import merge_poses

    if not options.merge:
        _estimate(options)
        return
    if options.rec or options.model:
        raise UserError("--merge: expected --output alone, got REC or --model too; leave them out")
    require_outputs({"--output": options.output, "--json": options.json}, [])
    table = merge_poses(options.output)
    _report(
        options, table.columns["yaw"], {"records": table.provenance["records"], "images": len(table.keys)}
    )


def _estimate(options: argparse.Namespace) -> None:
    with uninterrupted():
        from ddl_plugin.annotation.bin_images import BinImages
        from ddl_plugin.annotation.pose import estimate_pose
        from ddl_plugin.annotation.pose_models import open_models
        from ddl_plugin.data.records import Records
        from ddl_plugin.data.shards import parse_shard

    if not options.rec or not options.model:
        raise UserError("pose: expected REC and at least one --model, e.g. data --model fsanet.onnx")
    threads = len(os.sched_getaffinity(0)) if options.threads is None else options.threads
    if threads < 1:
        raise UserError(f"--threads: expected a whole number >= 1, got {threads}")
    shard = None if options.shard is None else parse_shard(options.shard)
    of_a_bin = Path(options.rec).suffix == ".bin"
    records = BinImages(options.rec) if of_a_bin else Records(options.rec)
    files = [records.path] if of_a_bin else record_files(records.path)
    outputs = {"--output": _written(options), "--json": options.json}
    require_outputs(outputs, [*files, *options.model])
    _require_own_table(_written(options))
    result = estimate_pose(
        records, open_models(options.model), options.output, shard=shard, threads=threads, progress=True
    )
    if result.found:
        print(f"{result.found:,} images were done before")
    facts = {
        "records": records.fingerprint(),
        "images": len(result.table.keys),
        "found": result.found,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 1),
        "unreadable": result.unreadable.tolist(),
        "without_pose": result.without_pose.tolist(),
    }
    _report(options, result.table.columns["yaw"], facts)


def _require_own_table(output: Path) -> None:
    """`UserError` where the table there holds what a user or another command has put into it."""
    from ddl_plugin.data.attributes import AttributeTable

    if not output.is_file():
        return
    others = sorted({*AttributeTable.load(output).columns} - {"yaw", "pitch", "roll"})
    if others:
        raise UserError(
            f"--output: expected a table of yaw, pitch and roll alone, got {output}, which holds {', '.join(others)} "
            "too; name another file, and join the two with 'prepare attributes table'"
        )


def _report(options: argparse.Namespace, yaw: np.ndarray, facts: dict[str, Any]) -> None:
    from tabulate import tabulate

    from ddl_plugin.annotation.pose import YAW_EDGES, yaw_counts

    counts = yaw_counts(yaw)
    bins = [f"{low} to {high}" for low, high in itertools.pairwise(YAW_EDGES)]
    rows = [
        (name, f"{count:,}", f"{100 * count / len(yaw):.1f} %")
        for name, count in zip(bins, counts.tolist(), strict=True)
    ]
    print(tabulate(rows, ("|yaw|, degrees", "images", "share"), colalign=("left", "right", "right")))
    for key, what in (("unreadable", "cannot be decoded"), ("without_pose", "got NaN from a model")):
        if facts.get(key):
            print(f"without a value: {_images(facts[key])} {what}")
    missing = int(np.isnan(yaw).sum())
    values = f"{len(yaw) - missing:,} of {len(yaw):,}" if missing else f"{len(yaw):,}"
    speed = f", {facts['images_per_second']:,.0f} images/s" if facts.get("images_per_second") else ""
    print(f"{_written(options)}: yaw, pitch and roll of {values} images{speed}")
    if options.json:
        write_json(options.json, {**facts, "yaw_edges": list(YAW_EDGES), "yaw_counts": counts.tolist()})


def _written(options: argparse.Namespace) -> Path:
    from ddl_plugin.data.shards import parse_shard, shard_path

    return shard_path(options.output, *parse_shard(options.shard)) if options.shard else Path(options.output)


def _images(keys: list[int]) -> str:
    shown = ", ".join(map(str, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")
    return f"{len(keys):,} images (records {shown})" if len(keys) > 1 else f"1 image (record {shown})"
