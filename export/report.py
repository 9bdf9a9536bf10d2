"""The report of an export, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tabulate import tabulate


def print_report(report: dict[str, Any]) -> None:
    print("\n".join(_lines(report)))
    if "note" in report["parity"]:
        print(f"warning: {report['parity']['note']}", file=sys.stderr)


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{report['output']}: {report['nodes']} nodes, opset {report['opset']}, "
        f"embedding of {report['dimension']}, {_megabytes(report['bytes'])}"
    )
    yield from _parity(report["parity"])
    if "same_graph" in report:
        yield from _same(report["same_graph"], report.get("cost"), report.get("latency"))
    for kind in ("fp16", "int8"):
        if kind in report:
            yield from _reduced(kind, report[kind], report["bytes"])
    yield from _verification(report)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _parity(parity: dict[str, Any]) -> Iterator[str]:
    if not parity["compared"]:
        yield f"not compared with MXNet: {parity['mxnet']}"
        return
    host = f"PyTorch {parity['torch']}" if "torch" in parity else f"MXNet {parity['mxnet']}"
    sets = ", ".join(dict.fromkeys(row["images"] for row in parity["rows"]))
    batches = ", ".join(dict.fromkeys(str(row["batch"]) for row in parity["rows"]))
    yield (
        f"{host} and ONNX Runtime ({parity['onnxruntime']}) agree: largest difference of unit "
        f"embeddings {parity['max_difference']:.1e}, least cosine {parity['min_cosine']:.7f} "
        f"({sets} images, batches {batches})"
    )


def _same(same: dict[str, Any], cost: dict[str, Any] | None, latency: dict[str, Any] | None) -> Iterator[str]:
    yield f"same graph as {same['base']}: {same['nodes']} nodes, only weights differ"
    if same["renamed"]:
        yield f"  names differ: {', '.join(same['renamed'])}; nothing else"
    if cost:
        own, base = cost["model"], cost["base"]
        yield (
            f"  {own['total_multiply_adds'] / 1e6:,.1f} million multiply-adds an image, {own['parameters']:,} parameters, "
            f"{own['weight_bytes']:,} bytes of weights: equal"
        )
        kinds = sorted(own["multiply_adds"].items(), key=lambda item: -item[1])
        yield "  of them " + ", ".join(f"{kind} {count / 1e6:.1f}" for kind, count in kinds if count >= 5e4)
        apart = own["file_bytes"] - base["file_bytes"]
        why = "equal" if apart == 0 else f"{apart:+,} bytes of names and metadata"
        yield f"  files of {own['file_bytes']:,} and {base['file_bytes']:,} bytes: {why}"
    for row in latency["batches"] if latency else ():
        low, high = row["ratio_quartiles"]
        yield (
            f"  latency at batch {row['batch']}: {row['milliseconds']:.1f} ms, the base model {row['base_milliseconds']:.1f} ms, "
            f"ratio {row['ratio']:.3f} (quartiles {low:.3f} to {high:.3f}, {row['rounds']} rounds in turns)"
        )


def _reduced(kind: str, found: dict[str, Any], full: int) -> Iterator[str]:
    yield f"{found['output']}: {kind}, {_megabytes(found['bytes'])}, {found['bytes'] / full:.0%} of float32"
    cosines = (
        f"{name} {entry['min_cosine']:.5f} ({entry['mean_cosine']:.5f})"
        for name, entry in found["cosine"].items()
    )
    yield f"  least (mean) cosine with float32: {', '.join(cosines)}"
    for name, why in found.get("kept_float32", {}).items():
        yield f"  {name} stays in float32: {why}"


def _verification(report: dict[str, Any]) -> Iterator[str]:
    if "verification" not in report:
        if "fp16" in report or "int8" in report:
            yield "accuracy not measured: give verification sets with --verify"
        return
    models = report["verification"]
    rows = []
    for name in next(iter(models.values())):
        columns = [model[name] for model in models.values()]
        rows.append(
            [
                name,
                "accuracy, 10 folds",
                *(f"{c['accuracy']:.2%} ± {100 * c['accuracy_std']:.2f}" for c in columns),
            ]
        )
        for i, point in enumerate(columns[0]["tar_at_far"]):
            rows.append(
                ["", f"TAR at FAR {point['far']:g}", *(f"{c['tar_at_far'][i]['tar']:.2%}" for c in columns)]
            )
    yield tabulate(rows, headers=["set", "measure", *models], disable_numparse=True)
