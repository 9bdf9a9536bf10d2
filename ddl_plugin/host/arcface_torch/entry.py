"""Our keys in the trainer's config: `config.loss = 'ddl'` and what may stand beside it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddl_plugin.errors import UserError
from ddl_plugin.host.batch_size import fitted
from ddl_plugin.recipe import load_recipe, resolve
from ddl_plugin.recipe_styles.keys import HOSTS_KEYS
from ddl_plugin.recipe_styles.translation import identity_of
from ddl_plugin.registry import LOSSES, get_loss
from ddl_plugin.settings import DDLSettings, RunSettings, field_names, require

#: Settings of a run that are ours under this trainer too. All others are the trainer's.
_OF_A_RUN = (
    "attributes", "pretrained", "positive_pairs", "max_pairs_per_identity", "max_damaged", "fc7_init", "data_rand_mirror",
)  # fmt: skip
#: What the trainer itself reads.
_ITS_OWN = (
    "rec", "seed", "batch_size", "embedding_size", "num_classes", "num_image", "num_epoch", "num_workers", "network", "margin_list",
    "frequent", "output",
)  # fmt: skip
#: The students where the config says nothing of them: every image at full size teaches itself at 24 and 14 pixels.
_USUAL_HARD = ({"size": (22, 26)}, {"size": (12, 16)})


@dataclass(frozen=True)
class Entry:
    """The checked settings of a run that our loss joins.

    settings: as our own parts know the run; `pretrained` '' where the trainer starts at random.
    notes: what the user has to know of how the config was read.
    """

    settings: RunSettings
    notes: tuple[str, ...]


def joins(config: Mapping[str, Any]) -> bool:
    """Whether `config.loss` names a loss that joins the trainer's own; `UserError` for a name that nobody has."""
    name = config.get("loss")
    if name is None:
        return False
    require(isinstance(name, str), "config.loss", name, "a name such as 'ddl'")
    try:
        return get_loss(name).build is not None
    except UserError as error:
        raise UserError(f"config.{error}") from error


def parse(config: Mapping[str, Any]) -> Entry:
    """The settings that the trainer's config (its own over base.py's) means.

    Raises `UserError` for keys that are missing or mistyped, values that cannot be, and a batch size that is not 3b(K+1).
    """
    name = config["loss"]
    _require_whole(config)
    _require_spelled(config, name)
    if "losses" in get_loss(name).needs:
        raise UserError(
            f"config.loss: expected a loss of embeddings and labels, got {name!r}, which needs the identity loss of each "
            f"row, and this trainer gives their mean; train it with python -m ddl_plugin.train"
        )
    notes = []
    ddl = config.get("ddl")
    if ddl is None:
        ddl = {"hard": _USUAL_HARD}
        notes.append(
            f"no config.ddl: hard = {list(_USUAL_HARD)!r}, the images themselves at 24 and 14 pixels"
        )
    require(isinstance(ddl, Mapping), "config.ddl", ddl, "a dict such as edict(hard=[{'size': (12, 16)}])")
    try:
        settings = resolve(_run(config, name, dict(ddl)))
    except UserError as error:
        raise UserError(f"{'' if str(error).startswith('config') else 'config.'}{error}") from error
    _require_identity(config, ddl)
    if settings.ddl.identity_rows != "all":
        raise UserError(
            f"config.ddl.identity_rows: expected 'all', got {settings.ddl.identity_rows!r}: the trainer's loss is that of "
            f"all rows"
        )
    fit = fitted(
        settings.ddl,
        config["batch_size"],
        b_written="b" in ddl,
        size_name="config.batch_size",
        b_name="config.ddl.b",
    )
    if "b" not in ddl:
        notes.append(f"config.batch_size {config['batch_size']}: b = {fit.b}")
    return Entry(replace(settings, ddl=fit), (*notes, *_left_out(config)))


def keys_of_recipe(path: str, note: Callable[[str], None]) -> dict[str, Any]:
    """The keys of `config` that one of our recipes means: its loss, samples and their attributes, and nothing else."""
    settings = load_recipe(path, note=note)
    if get_loss(settings.loss).build is None or settings.ddl is None:
        raise UserError(f"--recipe: expected one with loss = 'ddl', got {settings.loss!r} in {path}")
    ddl = {key: getattr(settings.ddl, key) for key in field_names(DDLSettings) if key != "identity"}
    keys = {"loss": settings.loss, "ddl": ddl}
    keys |= {key: getattr(settings, key) for key in ("attributes", "max_pairs_per_identity", "max_damaged")}
    if settings.loss_options:
        keys[settings.loss] = dict(settings.loss_options)
    note(f"{path}: its loss, samples and attributes are taken; the rest is the trainer's config")
    return keys


def _run(config: Mapping[str, Any], name: str, ddl: dict[str, Any]) -> dict[str, Any]:
    own = {key: config[key] for key in _OF_A_RUN if config.get(key) is not None}
    run = {
        "loss": name, "dataset_path": config["rec"], "seed": config["seed"], "network": config["network"],
        "emb_size": config["embedding_size"], "num_threads": max(1, config["num_workers"]), "ddl": ddl, **own,
    }  # fmt: skip
    if not own.get("pretrained"):
        run.setdefault("fc7_init", "random")
    if LOSSES[name].defaults and name in config:
        run[name] = config[name]
    return run


def _require_whole(config: Mapping[str, Any]) -> None:
    for key in _ITS_OWN:
        if key not in config:
            raise UserError(
                f"config.{key}: expected what the trainer reads, got none in the config and its base.py"
            )
    require(
        isinstance(config["rec"], str), "config.rec", config["rec"], "the folder of train.rec and train.idx"
    )
    require(
        config.get("fc7_init", "mean") in ("mean", "random"), "config.fc7_init", config.get("fc7_init"),
        "'mean', from the mean embedding of each identity, or 'random', as the trainer starts it",
    )  # fmt: skip
    for key, low in (
        ("batch_size", 1), ("embedding_size", 1), ("num_classes", 1), ("num_image", 1), ("num_epoch", 1), ("num_workers", 0), ("frequent", 1),
    ):  # fmt: skip
        value = config[key]
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        require(good, f"config.{key}", value, f"a whole number >= {low}")


def _require_spelled(config: Mapping[str, Any], name: str) -> None:
    """A key that nobody knows and that is nearly one of ours is a mistake; others may be a newer trainer's."""
    ours = ("loss", "ddl", *_OF_A_RUN, name)
    for key in config:
        if key in (*ours, *HOSTS_KEYS, *field_names(RunSettings), *LOSSES):
            continue
        near = [one for one in ours if _alike(str(key).lower(), one)]
        if near:
            raise UserError(f"config: unknown key {key!r}; did you mean {near[0]!r}?")


def _alike(key: str, own: str) -> bool:
    """Whether one was meant where the other stands; of few letters one that differs is a large part."""
    return difflib.SequenceMatcher(None, key, own).ratio() >= (0.65 if len(own) < 4 else 0.75)


def _require_identity(config: Mapping[str, Any], ddl: Mapping[str, Any]) -> None:
    margins = config["margin_list"]
    good = isinstance(margins, (list, tuple)) and all(isinstance(one, (int, float)) for one in margins)
    require(good and len(margins) == 3, "config.margin_list", margins, "three margins (m1, m2, m3)")
    its = identity_of(*margins)
    if ddl.get("identity", its) != its:
        raise UserError(
            f"config.ddl.identity: expected {its!r}, which config.margin_list {tuple(margins)} is, got "
            f"{ddl['identity']!r}; the loss beside ddl is the trainer's own: leave identity out and set margin_list"
        )


def _left_out(config: Mapping[str, Any]) -> list[str]:
    """Settings of ours that this trainer has no use for, and what of its own does not apply."""
    known = (*_OF_A_RUN, *_ITS_OWN, *HOSTS_KEYS, "val_targets", "loss", "ddl")
    unused = [key for key in config if key in field_names(RunSettings) and key not in known]
    notes = [f"left to the trainer, not applied: config.{', config.'.join(unused)}"] if unused else []
    if config.get("dali_aug"):
        notes.append("config.dali_aug: not applied; what is to be done to images stands in config.ddl.hard")
    return notes
