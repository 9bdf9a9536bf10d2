"""`python -m ddl_plugin.evaluate`: verification and identification scores of one or several models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddl_plugin.cli import Parser, require_distinct, run, uninterrupted, write_json
from ddl_plugin.errors import UserError

MODEL = (
    "an .onnx file, a checkpoint PREFIX,EPOCH or a folder of a run such as runs/demo/ddl; give --model again"
)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = Parser("python -m ddl_plugin.evaluate", description="Measure face recognition models.")
    kinds = parser.add_subparsers(metavar="KIND", required=True)

    verification = kinds.add_parser("verification", help="10-fold accuracy and TAR at FAR on .bin sets")
    verification.add_argument("--bin", nargs="+", action="extend", required=True, metavar="FILE",
                              help="InsightFace verification sets, e.g. lfw.bin cfp_fp.bin")  # fmt: skip
    verification.set_defaults(command=_verification)

    identification = kinds.add_parser("identification", help="rank-1 and TAR at FAR of probes in a gallery")
    identification.add_argument("--rec", required=True, help=".rec file, or a folder holding train.rec")
    identification.add_argument("--protocol", metavar="CSV",
                                help="columns record, role (gallery or probe), condition (optional); without it: "
                                "first image of each identity against its second")  # fmt: skip
    identification.add_argument("--size", nargs="+", type=_size, default=[None, 24, 14], metavar="PIXELS",
                                help="resolution of the probes: full, or pixels a side (default: full 24 14)")  # fmt: skip
    identification.set_defaults(command=_identification)

    for kind in (verification, identification):
        kind.add_argument("--model", action="append", required=True, help=f"{MODEL} to compare")
        kind.add_argument("--json", metavar="FILE", help="write the results there too")
    options = parser.parse_args(arguments)
    options.command(options)


def _size(text: str) -> int | None:
    if text == "full":
        return None
    if text.isascii() and text.isdigit() and 4 <= int(text) <= 112:
        return int(text)
    raise UserError(f"--size: expected 'full' or a whole number of pixels within 4..112, got {text!r}")


def _verification(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.evaluation.bins import load_bin
        from ddl_plugin.evaluation.verification import verify

    require_outputs_distinct({"--json": options.json}, options.model, options.bin)
    sets = [load_bin(path) for path in options.bin]
    columns = _measure(
        options.model,
        lambda embed, progress: [verify(embed, bin_set, progress=progress) for bin_set in sets],
    )
    for i, bin_set in enumerate(sets):
        _print(f"{bin_set.name}: {len(bin_set)} pairs", {name: column[i] for name, column in columns.items()})
    _write(options, "verification", columns)


def _identification(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.data.records import Records
        from ddl_plugin.evaluation.identification import first_second, identify, load_protocol

    records = Records(options.rec)
    inputs = [records.path, records.path.with_suffix(".idx"), records.path.with_name("property")]
    if options.protocol:
        inputs.append(options.protocol)
    require_outputs_distinct({"--json": options.json}, options.model, inputs)
    protocol = load_protocol(options.protocol, records) if options.protocol else first_second(records)
    columns = _measure(
        options.model,
        lambda embed, progress: identify(embed, records, protocol, options.size, progress=progress),
    )
    some = next(iter(columns.values()))
    print(f"{some['set']}: {some['gallery']} gallery images of {some['gallery_identities']} identities")
    for i, entry in enumerate(some["results"]):
        size = "full size" if entry["size"] == "full" else f"{entry['size']} x {entry['size']} pixels"
        title = f"{size}: {entry['probes']} probes"
        if entry["condition"] != "all":
            title += f" ({entry['condition']})"
        if entry["outside_gallery"]:
            title += f", {entry['outside_gallery']} of identities outside the gallery, not in rank-k"
        _print(title, {name: column["results"][i] for name, column in columns.items()})
    _write(options, "identification", columns)


def _measure(models: Sequence[str], measure: Callable) -> dict[str, Any]:
    """measure(embed, progress) of each model, by its name in the tables; each is opened once, one at a time."""
    results = {}
    for name, model in zip(model_names(models), models, strict=True):
        results[name] = measure(open_model(model), progress_bar(name))
    return results


def require_outputs_distinct(
    outputs: Mapping[str, str | None], models: Sequence[str], inputs: Sequence[str | Path]
) -> None:
    """`cli.require_distinct` with the files of `models` among the inputs."""
    from ddl_plugin.export.graph import model_files

    if any(outputs.values()):
        require_distinct(outputs, [*inputs, *(path for model in models for path in model_files(model))])


def open_model(model: str) -> Callable:
    """embed(images) of an .onnx file or a checkpoint; an .onnx file is measured where there is no MXNet."""
    if model.endswith(".onnx"):
        with uninterrupted():
            from ddl_plugin.evaluation.onnx_model import OnnxEmbedder

        return OnnxEmbedder(model)
    with uninterrupted():
        from ddl_plugin.backbone.embedder import open_embedder

    return open_embedder(model)


def progress_bar(name: str) -> Callable:
    """A tqdm bar for each set of batches, on a terminal only."""
    from tqdm import tqdm

    return lambda batches: tqdm(batches, desc=name, unit="batch", leave=False, disable=None)


def model_names(models: Sequence[str]) -> list[str]:
    """How tables call the models: the file names, or as much of the paths as tells them apart."""
    if len(set(models)) < len(models):
        raise UserError(f"--model: expected different models, got one twice: {', '.join(models)}")
    parts = [Path(model).parts for model in models]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return list(models)


def _print(title: str, columns: dict[str, dict[str, Any]]) -> None:
    from tabulate import tabulate

    rows = {name: dict(_lines(entry)) for name, entry in columns.items()}
    first = next(iter(rows.values()))
    table = [[line, *(rows[name][line] for name in rows)] for line in first]
    print(f"\n{title}")
    print(
        tabulate(table, headers=["", *rows], disable_numparse=True, colalign=("left", *["right"] * len(rows)))
    )


def _lines(entry: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if "accuracy" in entry:
        spread = f"{entry['accuracy']:.2%} ± {100 * entry['accuracy_std']:.2f}"
        lines.append(("accuracy, 10 folds", spread))
    lines += [(f"rank-{k}", f"{entry[f'rank{k}']:.2%}") for k in (1, 5) if f"rank{k}" in entry]
    for point in entry["tar_at_far"]:
        line = f"TAR at FAR {point['far']:.2g} (obtained)"
        lines.append((line, f"{point['tar']:.2%} ({point['obtained_far']:.2g})"))
    lines += [
        ("equal error rate", f"{entry['eer']:.2%}"),
        ("expectation margin", f"{entry['margin']:.3f}"),
        ("histogram intersection", f"{entry['intersection']:.3f}"),
    ]
    return lines


def _write(options: Any, kind: str, columns: dict[str, Any]) -> None:
    if options.json:
        models = dict(zip(columns, options.model, strict=True))
        write_json(options.json, {"kind": kind, "models": models, "results": columns})


if __name__ == "__main__":
    sys.exit(main())
