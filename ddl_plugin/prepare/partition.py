"""`prepare partition`: the easy and the hard sets, counted and shown."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ddl_plugin.prepare.sets import Sets, add_sets, open_sets


def add(commands: argparse._SubParsersAction) -> None:
    text = "split a data set into easy and hard sets; count them and show samples of their faces"
    parser = commands.add_parser("partition", help=text, description=text[0].upper() + text[1:] + ".")
    add_sets(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR",
        help="for sheet.png, partition.json and partition.npz",
    )  # fmt: skip
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddl_plugin.analysis.partition_report import save_partition, set_counts, shared_counts
    from ddl_plugin.analysis.sheet import write_sheet
    from ddl_plugin.cli import require_outputs, write_json

    sets = open_sets(options)
    outputs = {name: options.output / name for name in ("sheet.png", "partition.json", "partition.npz")}
    require_outputs(outputs, sets.inputs)
    counts, shared = set_counts(sets.records, sets.partition), shared_counts(sets.records, sets.partition)
    damaged = f", {len(sets.records.damaged)} damaged ones left out" if len(sets.records.damaged) else ""
    print(f"{sets.records.path}: {len(sets.records)} images{damaged}\n")
    print(_table(counts, shared) + "\n")
    seed = 0 if sets.recipe is None else sets.recipe.seed
    provenance = _provenance(sets, seed)
    write_sheet(outputs["sheet.png"], sets.records, sets.partition, sets.attributes, seed=seed)
    print(f"{outputs['sheet.png']}: faces of each set as training sees them; look at it")
    save_partition(outputs["partition.npz"], sets.records, sets.partition, provenance)
    print(f"{outputs['partition.npz']}: the sets by record number, a table that rules can name")
    write_json(outputs["partition.json"], {**provenance, "sets": counts, "none_or_several": shared})
    print(f"{outputs['partition.json']}: these counts")


def _provenance(sets: Sets, seed: int) -> dict[str, Any]:
    """What the sets were made from."""
    from ddl_plugin.data.attributes import made_by, source

    return made_by(
        "partition",
        records=sets.records.fingerprint(),
        images=len(sets.records),
        attributes=None if sets.attributes is None else source(sets.attributes.path),
        rules=[
            {
                "name": d.name,
                "rule": d.rule,
                "degradation": dataclasses.asdict(d.degradation) if d.degradation.active else None,
            }
            for d in sets.partition.distributions
        ],
        b=sets.b,
        seed=seed,
    )


def _table(counts: list[dict], shared: list[dict]) -> str:
    from tabulate import tabulate

    rows = [
        (
            row["name"], row["label"], row["images"], row["identities"], row["with_one_image"],
            f"{row['images_per_identity']['median']:g}, {row['images_per_identity']['most']}", row["possible_pairs"],
        )
        for row in counts
    ]  # fmt: skip
    for row in shared:
        name = " and ".join(row["sets"]) if row["sets"] else "in no set"
        rows.append((name, "", row["images"], row["identities"], "", "", ""))
    headers = [
        "set", "drawn from", "images", "identities", "with one\nimage", "images of one:\nmedian, most", "possible\npairs"
    ]  # fmt: skip
    align = ("left", "left", *["right"] * 5)
    return tabulate(rows, headers=headers, tablefmt="simple", colalign=align, disable_numparse=True)
