"""`evaluate verification`: 10-fold accuracy and TAR at FAR on verification sets."""

from __future__ import annotations

from typing import Any

from ddl_plugin.cli import uninterrupted
from ddl_plugin.evaluate.models import add_models, measured, require_outputs_distinct
from ddl_plugin.evaluate.tables import print_table, write_results


def add(kinds: Any) -> None:
    parser = kinds.add_parser("verification", help="10-fold accuracy and TAR at FAR on .bin sets")
    parser.add_argument("--bin", nargs="+", action="extend", required=True, metavar="FILE",
                        help="InsightFace verification sets, e.g. lfw.bin cfp_fp.bin")  # fmt: skip
    add_models(parser)
    parser.set_defaults(command=_verification)


def _verification(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.evaluation.bins import load_bin
        from ddl_plugin.evaluation.verification import verify

    require_outputs_distinct({"--json": options.json}, options.model, options.bin)
    sets = [load_bin(path) for path in options.bin]
    columns = measured(
        options.model,
        lambda embed, progress: [verify(embed, bin_set, progress=progress) for bin_set in sets],
    )
    for i, bin_set in enumerate(sets):
        print_table(
            f"{bin_set.name}: {len(bin_set)} pairs", {name: column[i] for name, column in columns.items()}
        )
    write_results(options, "verification", columns)
