"""Which MXNet operators the export takes, as a table made of the registry itself."""

from __future__ import annotations

from tabulate import tabulate

from ddl_plugin.export.ops import OPERATORS

_HEADERS = ("MXNet operators", "ONNX operators", "taken")


def coverage_table(tablefmt: str = "github") -> str:
    """One row for each way of converting: MXNet's names, what may be written for them, and on what condition.

    Names that become the same in the same way share a row; what falls away at inference stands as such.
    """
    names: dict[tuple, list[str]] = {}
    for name, operator in OPERATORS.items():
        names.setdefault((operator.convert, operator.becomes, operator.takes), []).append(name)
    rows = sorted(
        (", ".join(shared), ", ".join(becomes) or "nothing: falls away", takes or "always")
        for (_, becomes, takes), shared in names.items()
    )
    return tabulate(rows, headers=_HEADERS, tablefmt=tablefmt, disable_numparse=True)
