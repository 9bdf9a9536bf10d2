"""`python -m ddl_plugin.evaluate KIND ...`: scores of one or several models side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ddl_plugin.cli import dispatch, run
from ddl_plugin.evaluate import identification, ijb, verification

_KINDS = (verification, identification, ijb)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(
        lambda: dispatch(
            arguments, "python -m ddl_plugin.evaluate", "Measure face recognition models.", _KINDS, "KIND"
        )
    )


if __name__ == "__main__":
    sys.exit(main())
