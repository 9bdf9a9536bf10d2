"""`analyze embeddings`: a map (t-SNE) of the images of some identities, easy and hard, a panel a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddl_plugin.analyze.distributions import MODEL
from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError


def add(kinds: Any) -> None:
    parser = kinds.add_parser(
        "embeddings", help="a t-SNE map of the images of some identities, a panel a model"
    )
    parser.add_argument("--model", action="append", required=True, help=f"{MODEL} for a panel each")
    parser.add_argument("--rec", required=True, help=".rec file, or a folder holding train.rec")
    parser.add_argument(
        "--identities", type=int, default=5, metavar="N", help="how many, drawn at random (default: 5)"
    )
    parser.add_argument("--images", type=int, default=20, metavar="N", help="of each, at most (default: 20)")
    parser.add_argument(
        "--hard", metavar="RULE", help="which images are hard, e.g. 'abs(yaw) > 45'; needs --attributes"
    )
    parser.add_argument("--attributes", metavar="TABLE", help="table that the rule reads")
    parser.add_argument("--size", type=int, metavar="PIXELS",
                        help="in the place of --hard: every image once more at this resolution is hard")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, metavar="FIGURE", help="a .png, .pdf or .svg file")
    parser.set_defaults(command=_embeddings)


def _embeddings(options: Any) -> None:
    _check(options)
    with uninterrupted():
        from ddl_plugin.analysis.drawing import check_output
        from ddl_plugin.analysis.embedding_map import choose, load, map_figure, tsne
        from ddl_plugin.data.attributes import AttributeTable, require_of
        from ddl_plugin.data.records import Records
        from ddl_plugin.data.rules import select
        from ddl_plugin.evaluate.models import model_names, open_model, require_model_outputs

    output = check_output(options.output)
    records = Records(options.rec)
    inputs = [records.path, records.path.with_suffix(".idx")]
    names = model_names(options.model)
    require_model_outputs(
        {"--output": output}, options.model, [*inputs, *([options.attributes] if options.attributes else [])]
    )
    hard = None
    if options.hard:
        table = AttributeTable.load(Path(options.attributes))
        require_of(table, records.fingerprint())
        hard = select(options.hard, lambda column: table.column(column, records.keys))
    positions = choose(records.labels, hard, options.identities, options.images, options.seed)
    shown = load(records, positions, hard, options.size)
    maps = {}
    for name, model in zip(names, options.model, strict=True):
        maps[name] = tsne(open_model(model)(shown.images), options.seed)
    map_figure(maps, shown, output)
    print(
        f"{len(shown.images)} images of {options.identities} identities, {int(shown.hard.sum())} of them hard"
    )
    print(f"figure: {output}")


def _check(options: Any) -> None:
    if (options.hard is None) == (options.size is None):
        raise UserError("--hard: expected it, or --size, to say which images are hard; give one of the two")
    if (options.hard is None) != (options.attributes is None):
        raise UserError("--attributes: expected it with --hard, and only with it; give both, or --size")
    for name, low in (("identities", 2), ("images", 2), ("seed", 0)):
        if getattr(options, name) < low:
            raise UserError(f"--{name}: expected a whole number >= {low}, got {getattr(options, name)}")
    if options.size is not None and not 4 <= options.size <= 112:
        raise UserError(f"--size: expected pixels within 4..112, got {options.size}")
