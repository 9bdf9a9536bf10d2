"""`evaluate identification`: rank-k and TAR at FAR of probes in a gallery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddl_plugin.cli import uninterrupted
from ddl_plugin.errors import UserError, did_you_mean
from ddl_plugin.evaluate.figures import add_figures, draw, figure_paths
from ddl_plugin.evaluate.models import add_models, measured, require_model_outputs
from ddl_plugin.evaluate.report import add_report, check_report, write_report
from ddl_plugin.evaluate.tables import print_lines, print_table, write_results
from ddl_plugin.evaluate.verification import add_rules

if TYPE_CHECKING:
    from ddl_plugin.data.attributes import AttributeTable
    from ddl_plugin.data.records import Records
    from ddl_plugin.evaluation.evidence import Evidence
    from ddl_plugin.evaluation.faces import Faces
    from ddl_plugin.evaluation.named_protocols import Split
    from ddl_plugin.evaluation.protocols import Protocol
    from ddl_plugin.evaluation.subsets import Subset

_NAMED = ("scface", "cox")
_SIZES = (None, 24, 14)


def add(kinds: Any) -> None:
    parser = kinds.add_parser("identification", help="rank-1 and TAR at FAR of probes in a gallery")
    parser.add_argument(
        "--rec", help=".rec file, or a folder holding train.rec; without it --protocol names image files"
    )
    parser.add_argument("--protocol", metavar="CSV|scface|cox",
                        help="columns record (or file), role (gallery or probe), and if wanted condition and group; or a "
                        "protocol by its name; without it: first image of each identity against its second")  # fmt: skip
    parser.add_argument("--size", nargs="+", type=_size, metavar="PIXELS",
                        help="resolution of the probes: full, or pixels a side (default: full 24 14; full alone for "
                        "scface and cox)")  # fmt: skip
    parser.add_argument("--both-size", nargs="+", type=_pixels, default=(), metavar="PIXELS",
                        help="also compare probes and gallery images that are both of so many pixels a side")  # fmt: skip
    files = parser.add_argument_group("what --protocol needs")
    files.add_argument("--names", metavar="FILE", help="names file of --rec, for a CSV with a column `file`")
    files.add_argument(
        "--root", metavar="DIR", help="what a CSV's files are below, without --rec; the CSV's folder"
    )
    files.add_argument("--attributes", metavar="TABLE",
                       help="what is known of the records: for scface, cox, --group, --easy and --hard")  # fmt: skip
    files.add_argument(
        "--test-subjects", metavar="FILE", help="scface, cox: names of those to test, one a line"
    )
    files.add_argument("--train-subjects", type=float, metavar="N",
                       help="scface, cox: how many are not tested, or a share below 1 (scface: 50, cox: 0.5), drawn "
                       "by --seed")  # fmt: skip
    files.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    files.add_argument("--group", metavar="COLUMN",
                       help="column of --attributes: compare each probe within its group alone, such as race")  # fmt: skip
    files.add_argument("--max-missing", type=int, default=0, metavar="N",
                       help="how many probes may be missing; they count as not found (default: 0)")  # fmt: skip
    files.add_argument("--save-protocol", type=Path, metavar="DIR",
                       help="write protocol.csv, train_subjects.txt and test_subjects.txt there")  # fmt: skip
    add_rules(parser, "probes")
    add_figures(parser)
    add_report(parser)
    add_models(parser)
    parser.set_defaults(command=_identification)


def _size(text: str) -> int | None:
    return None if text == "full" else _pixels(text, "--size", "'full' or ")


def _pixels(text: str, option: str = "--both-size", other: str = "") -> int:
    if text.isascii() and text.isdigit() and 4 <= int(text) <= 112:
        return int(text)
    raise UserError(f"{option}: expected {other}a whole number of pixels within 4..112, got {text!r}")


@dataclass(frozen=True)
class _Task:
    """What is asked for: the faces, who is searched for in whom, and where files of it go."""

    faces: Faces
    protocol: Protocol
    subsets: list[Subset]
    split: Split | None
    records: Records | None


def _identification(options: Any) -> None:
    with uninterrupted():
        from ddl_plugin.evaluation.identification import examine, lines_of, title_of

    _check(options)
    task = _task(options)
    lines_of(task.protocol, task.faces.labels, task.subsets)  # a mistake shows before the models are opened
    sizes = options.size or ((None,) if options.protocol in _NAMED else _SIZES)
    figures = figure_paths(options.figures, [task.faces.name])
    saved = _saved(options, task)
    report = check_report(options.report)
    outputs = {
        "--json": options.json,
        "--report": report,
        **{f"--figures ({path.name})": path for path in figures},
    }
    outputs |= {f"--save-protocol ({path.name})": path for path in saved}
    require_model_outputs(outputs, options.model, _inputs(options, task))
    for path, text in saved.items():
        _write(path, text, task)
    found = measured(
        options.model,
        lambda embed, progress: examine(
            embed,
            task.faces,
            task.protocol,
            sizes,
            both_sizes=options.both_size,
            subsets=task.subsets,
            progress=progress,
        ),
    )
    results = {name: result for name, (result, _) in found.items()}
    _print(results, title_of, task.split)
    evidence: dict[str, list[Evidence]] = {name: lines for name, (_, lines) in found.items()}
    if figures:
        draw(figures[0], evidence)
    write_results(options, "identification", results)
    write_report(report, "identification", options.model, results, evidence)


def _check(options: Any) -> None:
    named = options.protocol in _NAMED
    if options.rec is None and (named or options.protocol is None):
        raise UserError("--rec: expected a .rec file, or --protocol CSV with a column `file`, got neither")
    if options.protocol is not None and not named and not Path(options.protocol).suffix:
        raise UserError(
            f"--protocol: expected a .csv file, scface or cox, got {options.protocol!r}"
            f"{did_you_mean(options.protocol, _NAMED)}"
        )
    if named and options.attributes is None:
        raise UserError(
            f"--protocol {options.protocol}: expected --attributes TABLE from 'prepare attributes {options.protocol}', "
            "got none"
        )
    for name in ("test_subjects", "train_subjects", "save_protocol"):
        if getattr(options, name) is not None and not named:
            raise UserError(
                f"--{name.replace('_', '-')}: expected --protocol scface or cox with it, got none"
            )
    if options.test_subjects is not None and options.train_subjects is not None:
        raise UserError("--test-subjects, --train-subjects: expected one of the two, got both; leave one out")
    if options.train_subjects is not None:
        train = options.train_subjects
        if not (0 <= train < 1 or (train >= 1 and train == int(train))):
            raise UserError(
                f"--train-subjects: expected a number of subjects, or a share below 1, got {train:g}"
            )
    if options.seed < 0:
        raise UserError(f"--seed: expected a whole number >= 0, got {options.seed}")
    if options.max_missing < 0:
        raise UserError(f"--max-missing: expected a whole number >= 0, got {options.max_missing}")
    for name, wanted in (("attributes", "--rec"), ("names", "--rec")):
        if getattr(options, name) is not None and options.rec is None:
            raise UserError(f"--{name}: expected {wanted} with it, got none")
    if options.root is not None and options.rec is not None:
        raise UserError("--root: expected image files of a CSV, without --rec, got both; leave one out")
    if options.group is not None and options.attributes is None:
        raise UserError(f"--group: expected --attributes TABLE with the column {options.group!r}, got none")


def _task(options: Any) -> _Task:
    from ddl_plugin.evaluation.protocols import load_file_protocol

    if options.rec is None:
        faces, protocol = load_file_protocol(options.protocol, options.root, options.max_missing)
        if options.easy or options.hard:
            raise UserError("--easy, --hard: expected --rec and --attributes with them, got none")
        return _Task(faces, protocol, [], None, None)
    return _of_records(options)


def _of_records(options: Any) -> _Task:
    from ddl_plugin.data.attributes import AttributeTable, require_of
    from ddl_plugin.data.records import Records
    from ddl_plugin.evaluation.faces import RecordFaces
    from ddl_plugin.evaluation.subsets import image_subsets, rules_of

    # No image may be left out unseen: the numbers would be of other images than they say.
    records = Records(options.rec, max_damaged=0.0)
    table = AttributeTable.load(options.attributes) if options.attributes else None
    if table is not None:
        require_of(table, records.fingerprint())
    protocol, split = _protocol(options, records, table)
    # A table may be there for the protocol alone.
    rules = rules_of(options.easy, options.hard, table if options.easy or options.hard else None)
    subsets = [] if rules is None else image_subsets(rules, table, records.keys[protocol.probes])
    return _Task(RecordFaces(records), protocol, subsets, split, records)


def _protocol(options: Any, records: Records, table: AttributeTable | None) -> tuple[Protocol, Split | None]:
    from ddl_plugin.annotation.names import Names
    from ddl_plugin.evaluation.named_protocols import Subjects, cox, group_texts, scface
    from ddl_plugin.evaluation.protocols import first_others, load_protocol

    subjects = Subjects(options.test_subjects, options.train_subjects, options.seed)
    if options.protocol == "cox":
        return cox(records, table, subjects, options.group)
    split = None
    if options.protocol == "scface":
        protocol, split = scface(records, table, subjects, options.max_missing)
    elif options.protocol is None:
        protocol = first_others(records)
    else:
        names = Names.load(options.names) if options.names else None
        protocol = load_protocol(options.protocol, records, names, options.max_missing)
    if options.group is not None:
        if protocol.groups is not None or protocol.missing:
            raise UserError(
                f"--group: expected a protocol without groups and missing probes, got {options.protocol}; give the "
                "groups in its column `group`"
            )
        keys = records.keys[protocol.gallery], records.keys[protocol.probes]
        protocol = replace(protocol, groups=tuple(group_texts(table, options.group, k) for k in keys))
    return protocol, split


def _inputs(options: Any, task: _Task) -> list[str | Path]:
    inputs = [options.attributes, options.names, options.test_subjects]
    if options.protocol not in (*_NAMED, None):
        inputs.append(options.protocol)
    if task.records is not None:
        path = task.records.path
        inputs += [path, path.with_suffix(".idx"), path.with_name("property")]
    return [path for path in inputs if path is not None]


def _saved(options: Any, task: _Task) -> dict[Path, str | None]:
    """Files of --save-protocol and their texts; None for the protocol itself."""
    if options.save_protocol is None or task.split is None:
        return {}
    if task.protocol.missing:
        raise UserError(
            f"--save-protocol: expected a protocol without missing probes, got {len(task.protocol.missing)}"
        )
    return {
        options.save_protocol / "protocol.csv": None,
        options.save_protocol / "train_subjects.txt": "".join(f"{name}\n" for name in task.split.train),
        options.save_protocol / "test_subjects.txt": "".join(f"{name}\n" for name in task.split.test),
    }


def _write(path: Path, text: str | None, task: _Task) -> None:
    from ddl_plugin.evaluation.protocols import write_protocol
    from ddl_plugin.files import write_text

    if text is None:
        write_protocol(path, task.protocol, task.records)
    else:
        write_text(path, text)
    print(f"written: {path}")


def _print(results: dict[str, dict[str, Any]], title_of: Any, split: Split | None) -> None:
    some = next(iter(results.values()))
    print(f"{some['set']}: {some['gallery']} gallery images of {some['gallery_identities']} identities")
    if split is not None:
        print(f"subjects: {len(split.test)} to test, {len(split.train)} for training ({split.drawn})")
    for i, entry in enumerate(some["results"]):
        title = f"{title_of(entry)}: {entry['probes']} probes"
        if entry["missing"]:
            title += f" and {entry['missing']} missing, counted as not found"
        if entry["outside_gallery"]:
            title += f", {entry['outside_gallery']} of identities outside the gallery, not in rank-k"
        print_table(title, {name: result["results"][i] for name, result in results.items()})
    for i, average in enumerate(some.get("averages", ())):
        names = ", ".join(average["over"])
        lines = {
            f"rank-{k}": [f"{result['averages'][i][f'rank{k}']:.2%}" for result in results.values()]
            for k in (1, 5)
        }
        print_lines(f"{title_of(average)}, average of {names}", lines, list(results))
