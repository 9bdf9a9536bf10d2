"""The main job: base model, data, fine-tuning, export, report. Each part can be looked at on its own in
the output folder, and an interrupted job goes on where it was.

On several machines worker 0 does all of this. The others train with it what it trains, and leave nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tabulate import tabulate

from ddl_plugin.cli import write_json
from ddl_plugin.data.records import Records, damaged_in_words
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
from ddl_plugin.export.command import export_checked
from ddl_plugin.export.convert import convert
from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.export.images import real_images
from ddl_plugin.recipe import describe, find_recipe, load_recipe
from ddl_plugin.settings import RunSettings
from ddl_plugin.training import output, report
from ddl_plugin.training.backends import Backbone, Backend, Embedder, get_backend
from ddl_plugin.training.classifier import initial_fc7
from ddl_plugin.training.dataset import (
    SYNTHETIC,
    SYNTHETIC_FOLDER,
    Dataset,
    dataset_folder,
    open_dataset,
    summary_rows,
)
from ddl_plugin.training.trainer import STATE_FILE, Trainer, Validate, devices_in_words
from ddl_plugin.training.workers import Workers

_DEEPEST = 3  # base models of base models; beyond that recipes name each other in a circle


@dataclasses.dataclass(frozen=True)
class Job:
    """A recipe being carried out in a folder."""

    settings: RunSettings
    recipe: Path  # where the recipe lies; a base recipe is looked for beside it
    output: Path
    devices: Sequence[Any]  # of settings.backend
    progress: bool = True  # progress bars, for a terminal
    lines: bool = False  # a line every few steps, for a log file
    kvstore: str | None = None  # where the devices' gradients are summed, as MXNet calls it; None: the usual
    machines: Workers | None = None  # the other workers, where there are several

    @property
    def backend(self) -> Backend:
        return get_backend(self.settings.backend)

    @property
    def workers(self) -> int:
        return 1 if self.machines is None else self.machines.workers

    def say(self, text: str) -> None:
        print(text, flush=True)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What all runs of a job start from."""

    backbone: Backbone
    base_onnx: Path | None  # None when training from scratch
    dataset: Dataset
    fc7: np.ndarray


def carry_out(job: Job, *, resume: bool = False) -> dict[str, Any]:
    """Train, export, check, report; returns what result.json holds.

    Raises `UserError` where the folder holds other or unfinished work that would be lost, and
    KeyboardInterrupt, with what is to be done next, at Ctrl-C. A worker other than 0 trains, and returns {}.
    """
    if job.machines is not None and job.machines.rank > 0:
        return _train_along(job)
    with output.locked(job.output, create=not resume):
        return _carry_out(job, resume)


def _carry_out(job: Job, resume: bool) -> dict[str, Any]:
    (output.go_on if resume else output.begin)(job.output, job.settings)
    try:
        prepared = prepare(job, _backbone(job), job.output)
        measured = {}
        if prepared.base_onnx:
            # Before the training, so that what is wrong with the evaluation's data is said before it.
            measured["base"] = _measure(job, prepared, "base", prepared.base_onnx)
        speeds = {}
        for settings in _runs(job.settings):
            folder = job.output / settings.loss
            speeds[settings.loss] = _train(job, settings, prepared, folder, resume)
            measured[settings.loss] = _measure(job, prepared, settings.loss, _export(job, prepared, folder))
        _announce(job, None)
        return _report(job, prepared, measured, speeds)
    except KeyboardInterrupt as interrupt:
        if str(interrupt) or not output.begun(job.output):
            raise
        raise KeyboardInterrupt(
            f"what is done is kept in {job.output}; continue with --resume"
        ) from interrupt


def prepare(job: Job, backbone: Backbone, models: Path, cache: Path | None = None) -> Prepared:
    """Base model, its ONNX file, records, partition, pairs, and the classifier's first rows.

    The base model is written into the folder `models`; pairs into `cache`, default pairs.npz there.
    """
    settings = job.settings
    if settings.dataset_path == SYNTHETIC and not SYNTHETIC_FOLDER.exists():
        job.say(f"drawing the embedded data set into {SYNTHETIC_FOLDER}")
    folder = dataset_folder(settings)
    # Opened here so that what is mistyped is said before anything is written.
    report.open_bins(settings, folder)
    report.open_protocol(settings, folder)
    base_hash = job.backend.fingerprint(backbone)
    output.require_same_origin(
        models,
        {
            "the base model": base_hash,
            "the records": Records(folder, max_damaged=settings.max_damaged).fingerprint(),
            "the number of devices": devices_in_words(len(job.devices), job.machines),
        },
    )
    _require_same_network(job, backbone)
    base_onnx, embed = None, None
    if settings.pretrained:
        # Saved as it trains, with `rename` applied, so that everything later reads one kind of file.
        job.backend.save_backbone(models / "base" / "model", 0, backbone)
        base_onnx = convert(f"{models / 'base' / 'model'},0", models / "base.onnx")
        embed = OnnxEmbedder(base_onnx)
    dataset = open_dataset(
        settings, embed, base_hash, cache or models / "pairs.npz", job.say, job.progress, job.machines
    )
    _require_labels(dataset)
    rows = summary_rows(dataset)
    if rows:
        job.say(tabulate(rows, headers="keys", tablefmt="simple") + "\n")
    fc7 = initial_fc7(settings, backbone, dataset.records, embed, job.progress)
    return Prepared(backbone, base_onnx, dataset, fc7)


def dry_run(job: Job) -> None:
    """Print the resolved recipe, the distributions, the batch layout, memory, and one step's terms.

    Trains nothing, and leaves nothing but the positive pairs, which a run will need too.
    """
    job.say(json.dumps(describe(job.settings), indent=2))
    with tempfile.TemporaryDirectory() as scratch:
        backbone, real = _backbone_or_stand_in(job)
        cache = job.output / "pairs.npz" if real else None
        prepared = prepare(job, backbone, Path(scratch), cache)
    trainer = _trainer(job, job.settings, prepared, job.output / job.settings.loss, None)
    job.say(_batch_layout(job) + "\n")
    terms = trainer.first_terms()
    job.say(tabulate(terms.items(), headers=["term", "step 0"], floatfmt=".4f") + "\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    reached = f"this process has reached {peak:.0f} MB with one forward and backward pass"
    job.say(f"memory: {'; '.join(filter(None, (trainer.memory(), reached)))}")


def _batch_layout(job: Job) -> str:
    settings = job.settings
    devices = len(job.devices)
    total = f"{settings.batch_rows} images a device, {settings.batch_rows * devices} a step on {devices} device(s)"
    if settings.sampler != "pairs":
        return f"batch: {total}"
    b = settings.ddl.b
    rows = [
        (name, label, f"{3 * b * k}-{3 * b * k + b - 1}", f"{3 * b * k + b}-{3 * b * k + 2 * b - 1}",
         f"{3 * b * k + 2 * b}-{3 * b * (k + 1) - 1}")
        for k, (name, label) in enumerate(
            zip(settings.ddl.names, settings.ddl.labels, strict=True)
        )
    ]  # fmt: skip
    headers = ["distribution", "drawn from", "first images", "second images", "singles"]
    return f"batch: {total}\n" + tabulate(rows, headers=headers, tablefmt="simple")


def _runs(settings: RunSettings) -> list[RunSettings]:
    """The baseline first, so that the table reads from base to the recipe's loss."""
    if settings.baseline and settings.loss != settings.identity:
        return [settings.without_distributions_loss(), settings]
    return [settings]


# -- the base model ----------------------------------------------------------------------------------


def _backbone(job: Job) -> Backbone:
    settings = job.settings
    if not settings.pretrained:
        return job.backend.new_backbone(settings.network, settings.emb_size, settings.seed)
    if settings.pretrained.endswith(".py"):
        return _load(job, str(_trained_by_recipe(_base_job(job))))
    return _load(job, settings.pretrained)


def _load(job: Job, checkpoint: str) -> Backbone:
    settings = job.settings
    try:
        job.backend.require_checkpoint(checkpoint)
    except UserError as error:
        raise UserError(
            f"pretrained: {error}; pretrained=PREFIX,EPOCH on the command line sets another"
        ) from error
    return job.backend.load_backbone(
        checkpoint, network=settings.network, emb_size=settings.emb_size, rename=settings.rename
    )


def _backbone_or_stand_in(job: Job) -> tuple[Backbone, bool]:
    """The base model, and True; for one that a recipe has still to train its network untrained, and False."""
    if not job.settings.pretrained.endswith(".py"):
        return _backbone(job), True
    base = _base_job(job)
    if output.is_done(base.output / base.settings.loss, base.settings):
        return _backbone(job), True
    job.say(
        f"base model: {base.recipe.name} has not trained it yet; here its network stands in with random weights, "
        f"so pairs and terms are not those of the run"
    )
    return _backbone_or_stand_in(base)[0], False


def _base_job(job: Job) -> Job:
    """The job of the recipe that `pretrained` names: a file beside the job's own recipe, or a shipped one."""
    name = job.settings.pretrained
    beside = job.recipe.parent / name
    recipe = beside if beside.is_file() else find_recipe(name)
    if recipe.resolve() == job.recipe.resolve() or job.output.parts.count(output.PRETRAINING) >= _DEEPEST:
        raise UserError(
            f"{job.recipe}: pretrained: expected another recipe that trains the base model, got {name!r}"
        )
    own = job.settings
    settings = dataclasses.replace(load_recipe(str(recipe)), seed=own.seed, backend=own.backend, amp=own.amp)
    return dataclasses.replace(job, settings=settings, recipe=recipe, output=job.output / output.PRETRAINING)


def _trained_by_recipe(base: Job) -> Path:
    """The folder of the model that the job trains; trained now unless it is there already."""
    base.say(f"base model: by {base.recipe.name}")
    folder = base.output / base.settings.loss
    _train(base, base.settings, prepare(base, _backbone(base), base.output), folder, resume=True)
    return folder


# -- one run -----------------------------------------------------------------------------------------


def _train(
    job: Job, settings: RunSettings, prepared: Prepared, folder: Path, resume: bool
) -> dict[str, float]:
    """Train into `folder`, or do nothing where that is done; returns time and speed."""
    if resume and output.is_done(folder, settings):
        job.say(f"{settings.loss}: already trained in {folder}")
        return output.speed_of(folder)
    began = time.perf_counter()
    _announce(job, settings)
    trainer = _trainer(job, settings, prepared, folder, _validation(job, settings, prepared))
    trainer.run(resume=resume and (folder / STATE_FILE).is_file())
    if trainer.damaged:
        said = damaged_in_words(trainer.damaged, len(prepared.dataset.records))
        job.say(f"{settings.loss}: {said}, skipped")
    seconds = time.perf_counter() - began
    speed = {"seconds": round(seconds, 1), "images_per_second": round(trainer.median_rate(), 1)}
    output.mark_done(folder, settings, speed)
    return speed


def _trainer(
    job: Job, settings: RunSettings, prepared: Prepared, folder: Path, validate: Validate | None
) -> Trainer:
    return Trainer(
        settings, prepared.backbone, prepared.fc7, prepared.dataset, job.devices, folder, validate, job.progress,
        job.lines, kvstore=job.kvstore, machines=job.machines,
    )  # fmt: skip


def _validation(job: Job, settings: RunSettings, prepared: Prepared) -> Validate | None:
    """Mean 10-fold accuracy over val_targets, by the network as it is at that step."""
    if not settings.verbose or not settings.val_targets:
        return None
    from ddl_plugin.evaluation.verification import verify

    bins = report.open_bins(settings, prepared.dataset.folder)
    embedder: list[Embedder] = []  # bound at the first validation

    def validate(backbone: Backbone) -> tuple[float, dict[str, float]]:
        if not embedder:
            embedder.append(job.backend.embedder(backbone, job.devices[0]))
        embedder[0].set_parameters(backbone.arg, backbone.aux)
        accuracy = {bin_set.name: verify(embedder[0], bin_set)["accuracy"] for bin_set in bins}
        values = {f"accuracy_{name}": value for name, value in accuracy.items()}
        return float(np.mean(list(accuracy.values()))), values

    return validate


def _export(job: Job, prepared: Prepared, folder: Path) -> Path:
    """The run's ONNX file beside its folder, compared with the host and with the base model's graph."""
    path, base_onnx = job.output / f"{folder.name}.onnx", prepared.base_onnx
    base = None if base_onnx is None else onnx.load(str(base_onnx))
    images = real_images(prepared.dataset.records.path)
    checked = export_checked(
        find_checkpoint(folder), path, base, str(base_onnx), images, open_network=job.backend.open_network
    )
    text = f"{path}: {job.backend.TITLE} and ONNX Runtime agree to {checked['parity']['max_difference']:.1e} on unit embeddings"
    if base is not None:
        text += ", graph identical to the base model's"
    job.say(text)
    return path


# -- several machines --------------------------------------------------------------------------------


def _train_along(job: Job) -> dict[str, Any]:
    """The part of a worker other than 0: it trains what worker 0 announces, from worker 0's parameters."""
    backbone = _backbone(job)
    _require_same_network(job, backbone)
    dataset = open_dataset(job.settings, None, "", job.output, job.say, False, job.machines)
    _require_labels(dataset)
    fc7 = np.zeros((dataset.records.num_classes, backbone.emb_size), np.float32)
    prepared = Prepared(backbone, None, dataset, fc7)
    quiet = dataclasses.replace(job, progress=False, lines=False)
    by_loss = {settings.loss: settings for settings in _runs(job.settings)}
    trained = []
    while (loss := job.machines.publish(None)) is not None:
        _trainer(quiet, by_loss[loss], prepared, job.output, None).run()
        trained.append(loss)
    job.say(f"worker {job.machines.rank} of {job.workers} has trained {', '.join(trained) or 'nothing'}")
    return {}


def _announce(job: Job, settings: RunSettings | None) -> None:
    """Tell the other workers which run is next; None: that was the last."""
    if job.machines is not None:
        job.machines.publish(None if settings is None else settings.loss)


def _require_same_network(job: Job, backbone: Backbone) -> None:
    if job.machines is None:
        return
    graph = hashlib.sha256(job.backend.graph_of(backbone).encode()).hexdigest()[:16]
    job.machines.require_same({"the network's graph": graph, "--devices": len(job.devices)})


# -- the end -----------------------------------------------------------------------------------------


def _measure(job: Job, prepared: Prepared, name: str, path: Path) -> tuple[dict, dict]:
    return report.measure(job.settings, prepared.dataset.folder, name, path, job.progress)


def _report(
    job: Job, prepared: Prepared, measured: dict[str, tuple[dict, dict]], speeds: dict[str, Any]
) -> dict[str, Any]:
    """`measured`: by model, its results and its similarities."""
    settings = job.settings
    results = {name: result for name, (result, _) in measured.items()}
    similarities = {name: values for name, (_, values) in measured.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    notes = [
        f"{settings.max_steps} steps of {settings.batch_rows * len(job.devices) * job.workers} images on "
        f"{', '.join(str(c) for c in job.devices)}"
        f"{'' if job.workers == 1 else f' of each of {job.workers} workers'}, seed {settings.seed}",
        *(f"{name}: {s['seconds']:.0f} s, {s['images_per_second']:.0f} images/s" for name, s in speeds.items()),
        f"peak memory of the process {peak:.0f} MB",
        f"command: {' '.join(['python -m ddl_plugin.train', *sys.argv[1:]])}",
    ]  # fmt: skip
    outcome = {
        "settings": describe(settings), "distributions": summary_rows(prepared.dataset), "models": results,
        "runs": speeds, "peak_megabytes": round(peak),
    }  # fmt: skip
    write_json(job.output / "result.json", outcome)
    if any(result["verification"] or "identification" in result for result in results.values()):
        report.write_markdown(job.output / "report.md", str(job.recipe), results, notes)
        job.say("\n" + report.table(results) + "\n")
    for path in _figures(job, similarities):
        job.say(f"figure: {path}")
    for note in notes[:-1]:
        job.say(note)
    job.say(f"results: {job.output}")
    return outcome


def _figures(job: Job, similarities: dict) -> list[Path]:
    try:
        return report.write_figure(
            similarities, [job.output / f"distributions.{kind}" for kind in ("png", "pdf")]
        )
    except UserError as error:  # no Matplotlib: the run's results must not be lost for a picture
        job.say(f"no figure: {error}")
        return []


def _require_labels(dataset: Dataset) -> None:
    records = dataset.records
    low, high = int(records.labels.min()), int(records.labels.max())
    if low < 0 or high >= records.num_classes:
        raise UserError(
            f"{records.path}: expected labels 0 to {records.num_classes - 1} (the number of identities in "
            f"'property'), got {low} to {high}; make the records anew, or mend the property file"
        )
