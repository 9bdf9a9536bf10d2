"""`prepare synthetic`: the embedded data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from ddl_plugin.cli import require_outputs, write_json
from ddl_plugin.prepare.words import images_of_identities


def add(commands: argparse._SubParsersAction) -> None:
    text = "write the embedded data set: drawn faces with known yaw and resolution"
    parser = commands.add_parser("synthetic", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "--output", type=Path, default=Path("data/synthetic"), metavar="DIR", help="%(default)s"
    )
    parser.add_argument("--identities", type=int, metavar="N", help="training identities, 240")
    parser.add_argument("--images", type=int, metavar="M", help="images per identity, 16")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="%(default)s")
    parser.add_argument("--force", action="store_true", help="replace a data set made with other settings")
    parser.add_argument(
        "--sheet", action="store_true", help="also write sheet.png, one identity a row, by yaw"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was made as JSON")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> None:
    import cv2

    from ddl_plugin.data import synthetic

    require_outputs({"--json": arguments.json}, [])
    made = synthetic.generate(
        arguments.output,
        identities=synthetic.IDENTITIES if arguments.identities is None else arguments.identities,
        images=synthetic.IMAGES if arguments.images is None else arguments.images,
        seed=arguments.seed,
        force=arguments.force,
    )
    print(
        f"{arguments.output}: {images_of_identities(made['train_images'], made['identities'])} for training, "
        f"{made['validation_images']} of {made['validation_identities']} others for validation, "
        f"{made['easy_pairs']} easy and {made['hard_pairs']} hard pairs, seed {made['seed']}"
    )
    if arguments.sheet:
        sheet = arguments.output / "sheet.png"
        cv2.imwrite(str(sheet), synthetic.contact_sheet(arguments.output)[..., ::-1])
        print(f"{sheet}: one identity a row, by rising yaw")
    if arguments.json:
        write_json(arguments.json, made)
