"""`prepare pairs`: positive pairs by the base model, with a report and a figure of what was kept and dropped."""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.prepare.sets import Sets, add_sets, open_sets

if TYPE_CHECKING:
    import numpy as np

    from ddl_plugin.data.pairs import Pairs

Embed = Callable[["np.ndarray"], "np.ndarray"]

_NOT_MERGED = (
    "records", "recipe", "easy", "hard", "attributes", "model", "max_pairs", "seed", "embeddings"
)  # fmt: skip


def add(commands: argparse._SubParsersAction) -> None:
    text = "build the positive pairs of the easy and the hard sets with the base model"
    parser = commands.add_parser("pairs", help=text, description=text[0].upper() + text[1:] + ".")
    add_sets(parser)
    model = parser.add_argument_group("pairs", "the recipe's where not given")
    model.add_argument("--model", help="the base model: a checkpoint PREFIX,EPOCH or an .onnx file")
    model.add_argument("--max-pairs", type=int, metavar="N", help="of one identity and set (100)")
    model.add_argument("--seed", type=int, metavar="S", help="of the candidates and the degradations (0)")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PAIRS.npz",
        help="a .json with the report and a .png with the figure are written beside it",
    )  # fmt: skip
    parser.add_argument(
        "--embeddings", type=Path, metavar="DIR",
        help="keep the images' embeddings there, and use those that are there: for other rules, limits and seeds",
    )  # fmt: skip
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--shard", metavar="I/N", help="do part I (from 0) of N, on one of N machines")
    share.add_argument("--merge", action="store_true", help="join the parts into PAIRS.npz")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    with uninterrupted():
        from ddl_plugin.data.pairs import merge_pairs

    if options.output.suffix != ".npz":
        raise UserError(f"--output: expected a file named .npz, got {options.output}")
    if options.merge:
        if any(getattr(options, name) is not None for name in _NOT_MERGED):
            raise UserError(
                "--merge: expected --output alone, got what the parts are made from too; leave it out"
            )
        pairs, about = merge_pairs(options.output)
        _report(options.output, pairs, about["distributions"])
    else:
        _build(options)


def _build(options: argparse.Namespace) -> None:
    with uninterrupted():
        from ddl_plugin.data.pairs import open_pairs
        from ddl_plugin.data.shards import parse_shard, shard_path

    share = None if options.shard is None else parse_shard(options.shard)
    target = options.output if share is None else shard_path(options.output, *share)
    sets = open_sets(options)
    most = _setting(options.max_pairs, sets, "max_pairs_per_identity", 100, "--max-pairs", 1)
    seed = _setting(options.seed, sets, "seed", 0, "--seed", 0)
    model = _model(options, sets)
    _require_own_files(target, sets, model)
    embed, known_by = _open_model(model, sets)
    counted = _Counted(embed)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        print(text, flush=True)

    try:
        pairs = open_pairs(
            options.output, sets.records, sets.partition, counted, model=known_by, max_pairs_per_identity=most,
            seed=seed, b=sets.b, max_damaged=sets.max_damaged, say=say, progress=True,
            embeddings=options.embeddings, share=share,
        )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            "the embeddings made are kept; the same command goes on from there"
        ) from interrupt
    if not said:
        print(f"{target}: nothing to do, its pairs were made from the same")
    elif counted.images:
        print(counted)
    print()
    if share is None:
        _report(target, pairs, sets.partition.summary())
    else:
        _report_share(options.output, target, share, pairs, sets)


def _require_own_files(target: Path, sets: Sets, model: str) -> None:
    """`UserError` where what is written would replace what is read."""
    from ddl_plugin.cli import require_outputs
    from ddl_plugin.export.graph import model_files

    outputs = {
        "--output": target,
        "the report": target.with_suffix(".json"),
        "the figure": target.with_suffix(".png"),
    }
    require_outputs(outputs, [*sets.inputs, *model_files(model)])
    if _holds_else(target):
        raise UserError(
            f"--output: expected pairs or nothing at {target}, got other arrays; name another file"
        )


def _holds_else(target: Path) -> bool:
    """Is the file there a .npz of something else than pairs? A damaged one is built again."""
    import numpy as np

    try:
        with np.load(target, allow_pickle=False) as file:
            return "made_from" not in file.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def _setting(given: int | None, sets: Sets, key: str, default: int, option: str, least: int) -> int:
    if given is None:
        return default if sets.recipe is None else getattr(sets.recipe, key)
    if given < least:
        raise UserError(f"{option}: expected a whole number >= {least}, got {given}")
    return given


# -- the base model ----------------------------------------------------------------------------------------


def _model(options: argparse.Namespace, sets: Sets) -> str:
    model = options.model or (sets.recipe.pretrained if sets.recipe is not None else "")
    if not model:
        raise UserError(
            "--model: expected the base model, a checkpoint PREFIX,EPOCH or an .onnx file, got none"
        )
    if model.endswith(".py"):
        raise UserError(
            f"--model: the recipe's base model is trained by {model}; train that first and name its folder, such as "
            f"runs/{Path(model).stem}/softmax"
        )
    return model


def _open_model(model: str, sets: Sets) -> tuple[Embed, str]:
    """The base model as a run of the recipe embeds with it, and what it is known by.

    A checkpoint is converted to ONNX first, as the trainer does: the same numbers, on a GPU where ONNX Runtime
    has one, and about twice as fast as MXNet on a CPU.
    """
    with uninterrupted():
        from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
        from ddl_plugin.files import sha256

    if model.endswith(".onnx"):
        return OnnxEmbedder(model), sha256(model)[:16]
    with uninterrupted():
        from ddl_plugin.export.convert import convert
        from ddl_plugin.training.backends import backend_of

    built = {}
    if sets.recipe is not None:
        built = {name: getattr(sets.recipe, name) for name in ("network", "emb_size", "rename")}
    backend = backend_of(model)
    backbone = backend.load_backbone(model, **built)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "model"
        backend.save_backbone(prefix, 0, backbone)
        return OnnxEmbedder(convert(f"{prefix},0", Path(folder) / "model.onnx")), backend.fingerprint(
            backbone
        )


class _Counted:
    """An embedder that knows how many images it has had, and how fast."""

    def __init__(self, embed: Embed):
        self._embed = embed
        self._began = 0.0
        self._ended = 0.0
        self.images = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self._began = self._began or time.perf_counter()
        result = self._embed(images)
        self.images += len(images)
        self._ended = time.perf_counter()
        return result

    def __str__(self) -> str:
        seconds = self._ended - self._began
        return f"{self.images} images embedded in {seconds:.0f} s, {self.images / max(seconds, 1e-9):.0f} images/s"


# -- the report --------------------------------------------------------------------------------------------


def _report_share(
    output: Path, target: Path, share: tuple[int, int], pairs: Sequence[Pairs], sets: Sets
) -> None:
    for own, distribution in zip(pairs, sets.partition.distributions, strict=True):
        kept, identities = len(own.first), own.paired + own.emptied
        print(
            f"{distribution.name}: {own.candidates} candidates of {identities} identities, {kept} kept, {own.dropped} dropped"
        )
    print(
        f"{target}: part {share[0]} of {share[1]}; when all are in one folder: prepare pairs --merge --output {output}"
    )


def _report(path: Path, pairs: Sequence[Pairs], about: Sequence[dict[str, Any]]) -> None:
    from ddl_plugin.analysis.pair_report import pair_counts
    from ddl_plugin.cli import write_json

    rows = pair_counts(pairs, about)
    print(_table(rows) + "\n")
    print(f"{path}: the pairs; in a recipe: config.positive_pairs = {str(path)!r}")
    write_json(path.with_suffix(".json"), {"distributions": rows})
    print(f"{path.with_suffix('.json')}: these counts and the histograms")
    _figure(path.with_suffix(".png"), rows)


def _figure(path: Path, rows: list[dict[str, Any]]) -> None:
    from ddl_plugin.analysis.pair_figure import pair_figure

    try:
        pair_figure({f"{row['name']}: {row['label']}": row["histogram"]["counts"] for row in rows}, path)
    except UserError as error:
        if "Matplotlib" not in str(error):
            raise
        print(f"no figure: {error}")
    else:
        print(f"{path}: similarities of kept and dropped pairs")


def _table(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    columns = {
        "set": [row["name"] for row in rows],
        "drawn from": [row["label"] for row in rows],
        **{name: [row[name] for row in rows] for name in ("images", "identities", "candidates", "kept")},
        "dropped\n(s < 0)": [row["dropped"] for row in rows],
        "not compared:\ndamaged": [row["unreadable"] for row in rows],
        "s of kept:\n5, 50, 95 %": [_spread(row["quantiles"]) for row in rows],
        "no pair:\none image": [row["identities_without_a_pair"]["one_image"] for row in rows],
        "no pair:\nall dropped": [row["identities_without_a_pair"]["all_dropped"] for row in rows],
    }
    if not any(row["unreadable"] for row in rows):
        del columns["not compared:\ndamaged"]
    align = ("left", "left", *["right"] * (len(columns) - 2))
    return tabulate(columns, headers="keys", tablefmt="simple", colalign=align, disable_numparse=True)


def _spread(quantiles: dict[str, float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.2f}" for value in quantiles.values())
