"""`--report FILE.html` of the commands: what was measured, as one page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def add_report(parser: Any) -> None:
    parser.add_argument("--report", metavar="FILE.html",
                        help="write a page for people too: models, protocols, figures, and where the models fail")  # fmt: skip


def check_report(path: str | None) -> Path | None:
    """Where the report goes; asked before any work. UserError for another suffix and where there is no Matplotlib."""
    if path is None:
        return None
    from ddl_plugin.analysis.drawing import check_output
    from ddl_plugin.analysis.page import check_page

    check_output("figure.svg")
    return check_page(path)


def write_report(
    path: Path | None,
    kind: str,
    models: Sequence[str],
    results: Mapping[str, Any],
    evidence: Mapping[str, Any],
) -> None:
    """Write the page of a command and say so; nothing without a path.

    kind: verification, identification or ijb. models: as given, in the order of `results`. evidence: what stands
    behind the results, as `report_parts.write_verification` and the others take it.
    """
    if path is None:
        return
    from ddl_plugin.evaluate import report_parts

    write = getattr(report_parts, f"write_{kind}")
    write(path, dict(zip(results, models, strict=True)), results, evidence)
    print(f"\nreport: {path}")
