"""One run of the trainer with our loss: what is put in the place of its own parts, and what they ask of each other."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddl_plugin.data.batches import BatchSource
from ddl_plugin.data.sampler import Share
from ddl_plugin.errors import UserError
from ddl_plugin.host.arcface_torch.base_model import BaseModel
from ddl_plugin.host.arcface_torch.batches import Epochs
from ddl_plugin.host.arcface_torch.classifier import start_from_means
from ddl_plugin.host.arcface_torch.data import open_data
from ddl_plugin.host.arcface_torch.entry import Entry
from ddl_plugin.host.arcface_torch.terms import Terms, with_terms
from ddl_plugin.host.metric import shown
from ddl_plugin.host.notes import note_of
from ddl_plugin.pytorch.loader import Loader
from ddl_plugin.pytorch.loss import DDLLoss
from ddl_plugin.pytorch.processes import Processes
from ddl_plugin.pytorch.torch_setup import torch
from ddl_plugin.registry import get_sampler
from ddl_plugin.training.classifier import some_of_each
from ddl_plugin.training.dataset import Dataset, summary_rows

_FC7 = 0xFC7  # keeps the draw of the classifier's images apart from others of the same seed


class Run:
    """Our parts in the trainer's places. `install` puts them there when the trainer has read its config; the
    trainer then calls them in its own order: dataloader, network, classifier, log, and the loss in every step.

    config: the trainer's. trainer: the globals of its module.
    """

    def __init__(self, entry: Entry, config: Any, trainer: dict[str, Any]):
        self._settings = entry.settings
        self._config = config
        self._trainer = trainer
        self._own_network = trainer["get_model"]
        self._loss = DDLLoss(
            entry.settings.ddl, loss=entry.settings.loss, options=entry.settings.loss_options
        )
        self._terms = Terms(self._loss.term_names)
        self._first_step = 0
        self._base: BaseModel | None = None
        self._dataset: Dataset | None = None
        self._loader: Loader | None = None

    def install(self) -> None:
        names = ("identity", *shown(self._loss.term_names))
        self._trainer |= {
            "get_dataloader": self._batches,
            "get_model": self._network,
            "PartialFC_V2": self._with_loss(self._trainer["PartialFC_V2"]),
            "CallBackLogging": with_terms(
                self._trainer["CallBackLogging"], self._terms, names, self._begin_at
            ),
        }

    def close(self) -> None:
        """End what prepares batches."""
        if self._loader is not None:
            self._loader.close()

    # -- batches -----------------------------------------------------------------------------------

    def _batches(self, root: str, local_rank: int, *_: Any, **__: Any) -> Epochs:
        """In the place of get_dataloader, DALI or not."""
        ranks, settings, config = Processes.beside_a_trainer(), self._settings, self._config
        say = note_of(ranks.rank)
        bars = ranks.rank == 0 and sys.stderr.isatty()
        device = _device(local_rank)
        if settings.pretrained:
            self._base = BaseModel(settings.pretrained, config.network, self._another_network, device)
        cache = Path(config.output) / "pairs.npz"
        self._dataset = dataset = open_data(settings, self._base, cache, say, bars, ranks)
        for row in summary_rows(dataset):
            say(", ".join(f"{key} {value}" for key, value in row.items()))
        _require_classes(dataset, config)
        steps = _epoch_steps(dataset, config, ranks.workers, say)
        return Epochs(functools.partial(self._begin, dataset, ranks), steps, device)

    def _begin(self, dataset: Dataset, ranks: Processes) -> Iterator:
        settings = self._settings
        sampler = get_sampler("pairs").build(
            dataset.records.labels, dataset.partition, dataset.pairs, settings.ddl,
            rows=settings.ddl.rows, devices=ranks.workers, seed=settings.seed, options={},
        )  # fmt: skip
        share = Share(sampler, ranks.rank, ranks.workers)
        source = BatchSource(
            dataset.records, share, dataset.records.labels,
            [distribution.degradation for distribution in dataset.partition.distributions],
            mirror=settings.data_rand_mirror, seed=settings.seed, first_row=share.first_row,
            whole_rows=sampler.rows, max_damaged=settings.max_damaged,
        )  # fmt: skip
        self._loader = Loader(
            source, self._first_step, None, workers=self._config.num_workers, pin_memory=True
        )
        return ((batch.pixels, batch.labels) for batch in self._loader)

    def _begin_at(self, step: int) -> None:
        """The trainer says where it starts after it has its dataloader, and before it asks for a batch."""
        self._first_step = step

    # -- network and classifier --------------------------------------------------------------------

    def _network(self, *arguments: Any, **options: Any) -> Any:
        """In the place of get_model: the trainer's network, with the base model's weights where there is one."""
        model = self._own_network(*arguments, **options)
        if self._base is not None:
            self._base.load_into(model)
        return model

    def _another_network(self) -> Any:
        """A network to embed with, in float32."""
        config = self._config
        return self._own_network(config.network, dropout=0.0, fp16=False, num_features=config.embedding_size)

    def _with_loss(self, classifier_class: type) -> type:
        """A subclass of the trainer's classifier whose loss is the sum of its own and ours.

        Its own gathers the embeddings of all ranks and multiplies their gradient by the number of ranks, because
        DistributedDataParallel takes the mean; ours sees the rank's own embeddings and needs no factor
        (docs/INSIGHTFACE.md). Parameters, buffers and their names stay the trainer's.
        """
        run = self

        class PartialFCWithLoss(classifier_class):
            def __init__(self, *arguments: Any, **options: Any):
                super().__init__(*arguments, **options)
                run._start_classifier(self)

            def forward(self, local_embeddings: Any, local_labels: Any, *others: Any) -> Any:
                identity = super().forward(local_embeddings, local_labels, *others)
                needs = {"label": local_labels} if "label" in run._loss.needs else {}
                loss, terms = run._loss(local_embeddings, **needs)
                run._terms.add(identity, terms)
                return identity + loss

        PartialFCWithLoss.__name__ = classifier_class.__name__
        return PartialFCWithLoss

    def _start_classifier(self, classifier: Any) -> None:
        base = self._base
        if base is None:
            return
        if self._settings.fc7_init == "mean" and not self._config.get("resume"):
            self._start_from_means(classifier, base)
        base.release()

    def _start_from_means(self, classifier: Any, base: BaseModel) -> None:
        records = self._dataset.records
        note_of(classifier.rank)("classifier starts from the mean embedding of each identity")
        chosen = some_of_each(records.labels, np.random.default_rng([self._settings.seed, _FC7]))
        start_from_means(
            classifier.weight,
            classifier.class_start,
            records,
            chosen,
            base.embed,
            classifier.rank == 0 and sys.stderr.isatty(),
        )


def _device(local_rank: int) -> torch.device:
    """Of this rank, as the trainer has set it; the CPU where there is no GPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _require_classes(dataset: Dataset, config: Any) -> None:
    found = dataset.records.num_classes
    if found > config.num_classes:
        raise UserError(
            f"config.num_classes: expected {found} at least, the identities in {dataset.folder}, got {config.num_classes}"
        )


def _epoch_steps(dataset: Dataset, config: Any, ranks: int, say: Any) -> int:
    """Steps of an epoch: as the trainer's learning rate counts them."""
    whole = config.batch_size * ranks
    steps = config.num_image // whole
    if steps == 0:
        raise UserError(
            f"config.num_image: expected {whole} at least, a batch of all ranks, got {config.num_image}; "
            f"{dataset.folder} has {len(dataset.records)} images"
        )
    if config.num_image != len(dataset.records):
        say(
            f"config.num_image is {config.num_image}, {dataset.folder} has {len(dataset.records)} images: an epoch is "
            f"{steps} steps, as the learning rate counts it"
        )
    return steps
