"""`evaluate identification`: rank-k and TAR at FAR of probes in a gallery."""

from __future__ import annotations

from typing import Any

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.evaluate.models import add_models, measured, require_outputs_distinct
from ddl_plugin.evaluate.tables import print_table, write_results


def add(kinds: Any) -> None:
    parser = kinds.add_parser("identification", help="rank-1 and TAR at FAR of probes in a gallery")
    parser.add_argument("--rec", required=True, help=".rec file, or a folder holding train.rec")
    parser.add_argument("--protocol", metavar="CSV",
                        help="columns record, role (gallery or probe), condition (optional); without it: "
                        "first image of each identity against its second")  # fmt: skip
    parser.add_argument("--size", nargs="+", type=_size, default=[None, 24, 14], metavar="PIXELS",
                        help="resolution of the probes: full, or pixels a side (default: full 24 14)")  # fmt: skip
    add_models(parser)
    parser.set_defaults(command=_identification)


def _size(text: str) -> int | None:
    if text == "full":
        return None
    if text.isascii() and text.isdigit() and 4 <= int(text) <= 112:
        return int(text)
    raise UserError(f"--size: expected 'full' or a whole number of pixels within 4..112, got {text!r}")


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
    columns = measured(
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
        print_table(title, {name: column["results"][i] for name, column in columns.items()})
    write_results(options, "identification", columns)
