"""One run of a trainer with our loss: what both kinds of trainer have in common."""

from __future__ import annotations

import importlib
import numbers
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.backbone.arrays import renamed, require_finite, require_match
from ddl_plugin.backbone.checkpoint import Backbone, expected_shapes, fingerprint, load_backbone
from ddl_plugin.cli import exiting
from ddl_plugin.data.faces import SHAPE
from ddl_plugin.data.records import Records
from ddl_plugin.errors import UserError
from ddl_plugin.evaluation.onnx_model import OnnxEmbedder
from ddl_plugin.export.convert import convert
from ddl_plugin.export.graph import find_checkpoint
from ddl_plugin.host.batches import EpochIterator, epochs
from ddl_plugin.host.checkout import Checkout
from ddl_plugin.host.entry import Entry
from ddl_plugin.host.notes import note
from ddl_plugin.loss.gathered import GatheredLoss
from ddl_plugin.mxnet_setup import mx
from ddl_plugin.settings import RunSettings, require
from ddl_plugin.training.classifier import initial_fc7
from ddl_plugin.training.dataset import open_dataset, summary_rows
from ddl_plugin.training.machines import Machines
from ddl_plugin.training.roles import SEVERAL_MACHINES, require_environment

#: The trainer's augmentations that our batches do not have.
_OTHER_AUGMENTATIONS = ("data_cutoff", "data_color", "data_images_filter")

_FC7_SCALE = 0.01  # the trainer's own initialisation of its classifier


class Run:
    """Our parts in the trainer's places. `install` puts them there, before the trainer parses its arguments;
    the trainer then calls them in its own order: checkpoint, graph, module, batches.
    """

    def __init__(self, checkout: Checkout, entry: Entry, config: Any, trainer: dict[str, Any]):
        self.entry = entry
        self.config = config  # the trainer's EasyDict
        self.trainer = trainer  # the globals of its module
        self.settings: RunSettings | None = None
        self.args: Any = None  # the trainer's: its command line, and what it derived from it
        self.machines: Machines | None = None
        self.batches: EpochIterator | None = None
        self.arg: dict[str, mx.nd.NDArray] = {}  # of --pretrained: the very dicts the trainer goes on with
        self.aux: dict[str, mx.nd.NDArray] = {}
        self._checkout = checkout
        self._checkpoint = ""
        self._embedding: mx.sym.Symbol | None = None

    def install(self) -> None:
        self._check_config()
        self._keep_checkpoint()
        self._replace_batches()
        self.trainer["train_net"] = exiting(self._with_ending(self.trainer["train_net"]))

    def _check_config(self) -> None:
        shape = self.config.get("image_shape")
        good = isinstance(shape, (tuple, list)) and tuple(shape) == SHAPE
        require(good, "config.py: image_shape", shape, f"{SHAPE} with loss {self.entry.name!r}")
        for key in ("num_classes", "emb_size"):
            value = self.config.get(key)
            good = isinstance(value, numbers.Integral) and value > 0
            require(good, f"config.py: {key}", value, "a whole number >= 1")
        others = [name for name in _OTHER_AUGMENTATIONS if self.config.get(name)]
        if others:
            note(
                f"{', '.join(others)}: not applied with loss {self.entry.name!r}; what is to be done to images "
                f"stands in loss.{self.entry.name}.hard"
            )

    def _keep_checkpoint(self) -> None:
        """Have what the trainer loads: it passes these very dicts on to its module."""
        own = mx.model.load_checkpoint

        def load_checkpoint(prefix: str, epoch: int) -> tuple:
            try:
                files = find_checkpoint(f"{prefix},{epoch}")
            except UserError as error:
                raise UserError(f"--pretrained, --pretrained-epoch: {error}") from error
            try:
                symbol, self.arg, self.aux = own(prefix, epoch)
            except (mx.base.MXNetError, ValueError) as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"--pretrained: {files.params} or {files.symbol} cannot be read by MXNet ({reason})"
                ) from error
            self._checkpoint = f"{prefix},{epoch}"
            return symbol, self.arg, self.aux

        mx.model.load_checkpoint = load_checkpoint

    def _replace_batches(self) -> None:
        images = importlib.import_module("image_iter")
        own = getattr(images, self._checkout.iterator)
        for module in (vars(images), self.trainer):
            for name, value in list(module.items()):
                if value is own:
                    module[name] = self._batches
        # Versions with FaceImageIter put this around it: our batches come from threads as they are, and in its
        # threads an error would end nothing but the thread.
        prefetching = mx.io.PrefetchingIter
        mx.io.PrefetchingIter = lambda batches, *arguments, **options: (
            batches if isinstance(batches, EpochIterator) else prefetching(batches, *arguments, **options)
        )

    def _with_ending(self, train_net: Callable[..., Any]) -> Callable[..., Any]:
        """`train_net`, whose end, of whatever, the other machines are told."""

        def wrapped(*arguments: Any) -> Any:
            error = None
            try:
                return train_net(*arguments)
            except BaseException as ended:  # also the SystemExit with which the trainer ends well
                error = ended
                raise
            finally:
                if self.batches is not None:
                    self.batches.close()
                if self.machines is not None:
                    self.machines.close(error)

        return wrapped

    # -- once the trainer has parsed its arguments -------------------------------------------------

    def begin(self, args: Any) -> None:
        """Settle what depends on the trainer's arguments."""
        self.args = args
        if not args.pretrained:
            raise UserError(
                f"--pretrained: expected a checkpoint's prefix with --loss {self.entry.name}, got none: positive "
                f"pairs are built with it; train from scratch with --loss {self.entry.settings.ddl.identity} first"
            )
        ddl = self.entry.settings_for(args.per_batch_size)
        self.settings = self.entry.run_settings(self.config, self._checkpoint, ddl)
        path = self.settings.dataset_path
        if not Path(path, "train.rec").is_file():
            raise UserError(
                f"config.py: dataset_path: expected a folder with train.rec, found none in {path!r}"
            )
        require_environment(args.kvstore)
        if args.kvstore in SEVERAL_MACHINES:
            self.machines = Machines.join(args.kvstore)
            if self.machines.rank > 0:
                mx.model.save_checkpoint = lambda *_, **__: None  # rank 0 writes

    @property
    def folder(self) -> Path:
        """Where the trainer saves this run's models."""
        args = self.args
        # train_parall.py alone has the last one.
        parts = (args.network, args.loss, args.dataset, getattr(args, "extra_model_name", ""))
        return Path(args.models_root) / "-".join(filter(None, parts))

    @property
    def context(self) -> mx.Context:
        """The trainer's first device, as it chooses them."""
        return mx.gpu(0) if os.environ["CUDA_VISIBLE_DEVICES"].strip() else mx.cpu()

    def gathered_loss(self, devices: int, context: mx.Context) -> GatheredLoss:
        return GatheredLoss(
            self.entry.name, self.settings.ddl, self.settings.loss_options,
            devices=devices, emb_size=int(self.config.emb_size), context=context,
        )  # fmt: skip

    # -- the base model ----------------------------------------------------------------------------

    def take_base(self, embedding: mx.sym.Symbol, rename: dict[str, str]) -> None:
        """The checkpoint's arrays are those of `embedding`, the graph that will train, or else `UserError`.

        The trainer alone would leave an array without a counterpart at random (`allow_missing`).
        """
        for arrays in (self.arg, self.aux):
            changed = renamed(
                arrays, {old: new for old, new in rename.items() if old in arrays}, self._checkpoint
            )
            arrays.clear()
            arrays.update(changed)
        lost = [new for new in rename.values() if new not in {**self.arg, **self.aux}]
        if lost:
            raise UserError(f"rename: {self._checkpoint} has no array that would become {lost[0]!r}")
        wanted_arg, wanted_aux, size = expected_shapes(embedding, self._checkout.trainer)
        if size != self.config.emb_size:
            raise UserError(
                f"config.py: emb_size: expected {size}, the length of this network's embedding, "
                f"got {self.config.emb_size}"
            )
        base = self._base(embedding)
        require_match(wanted_arg, base.arg, self._checkpoint)
        require_match(wanted_aux, base.aux, self._checkpoint)
        require_finite({**base.arg, **base.aux}, self._checkpoint)
        self._embedding = embedding

    def _base(self, embedding: mx.sym.Symbol) -> Backbone:
        arg = {name: array.asnumpy() for name, array in self.arg.items()}
        fc7 = arg.get("fc7_weight")
        arg = {name: array for name, array in arg.items() if not name.startswith("fc7")}
        aux = {name: array.asnumpy() for name, array in self.aux.items()}
        return Backbone(embedding, arg, aux, int(self.config.emb_size), self._checkpoint, fc7)

    # -- batches -----------------------------------------------------------------------------------

    def _batches(self, *_: Any, **__: Any) -> EpochIterator:
        """In place of the trainer's own batches, with whatever it asks for them."""
        settings, base = self.settings, self._base(self._embedding)
        bars = sys.stderr.isatty()
        embed = OnnxEmbedder(convert(self._checkpoint, self.folder / "base.onnx"))
        # Known by its own files, as `prepare pairs` knows it: the trainer's graph may have other names.
        made_by = fingerprint(load_backbone(self._checkpoint))
        dataset = open_dataset(settings, embed, made_by, self.folder / "pairs.npz", note, bars, self.machines)
        for row in summary_rows(dataset):
            note(", ".join(f"{key} {value}" for key, value in row.items()))
        found = dataset.records.num_classes
        if found > self.config.num_classes:
            raise UserError(
                f"config.py: num_classes: expected {found} at least, the identities in {settings.dataset_path}, "
                f"got {self.config.num_classes}"
            )
        self._start_fc7(base, dataset.records, embed, bars)
        rank, workers = (self.machines.rank, self.machines.workers) if self.machines else (0, 1)
        self.batches = epochs(settings, dataset, self.args.ctx_num, rank, workers)
        return self.batches

    # -- the classifier ----------------------------------------------------------------------------

    def _start_fc7(self, base: Backbone, records: Records, embed: OnnxEmbedder, bars: bool) -> None:
        """Have `arg` hold the classifier's first rows; none where `fc7_init` leaves them to the trainer."""
        if self.settings.fc7_init == "checkpoint":
            note("classifier starts from the checkpoint's")
            self._require_fc7(base)
            return
        for name in [name for name in self.arg if name.startswith("fc7")]:
            del self.arg[name]
        if self.settings.fc7_init == "mean":
            note("classifier starts from the mean embedding of each identity")
            rows = initial_fc7(self.settings, base, records, embed, bars)
            # The trainer may count more classes than have images.
            missing = (self.config.num_classes - len(rows), rows.shape[1])
            drawn = np.random.default_rng(self.settings.seed).normal(0, _FC7_SCALE, missing)
            self.arg["fc7_weight"] = mx.nd.array(np.concatenate([rows, drawn.astype(np.float32)]))

    def _require_fc7(self, base: Backbone) -> None:
        shape = (self.config.num_classes, self.config.emb_size)
        if base.fc7 is None or base.fc7.shape != shape:
            found = "none" if base.fc7 is None else base.fc7.shape
            raise UserError(
                f"fc7_init 'checkpoint': expected fc7_weight of shape {shape} (num_classes, emb_size) in "
                f"{self._checkpoint}, got {found}; use fc7_init = 'mean'"
            )
        require_finite({"fc7_weight": base.fc7}, self._checkpoint)
