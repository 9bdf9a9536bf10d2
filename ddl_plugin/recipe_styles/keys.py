"""The keys of the hosts' config files, and those without a meaning here that would have changed the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Telling:
    """A key that is left out: where `tells(value)`, the user has to know what is done instead."""

    tells: Callable[[Any], bool]
    instead: str


def _set(value: Any) -> bool:
    return True


def _on(value: Any) -> bool:
    return bool(value)


def _above_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _below_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and value < 1


def _above_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 1


def _distributed(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("dist")


# -- arcface_mxnet -----------------------------------------------------------------------------------

#: Keys of `default` that its trainers take for their command line, with our names.
MXNET_ARGUMENTS = ("lr", "lr_steps", "wd", "mom", "per_batch_size", "verbose")
MXNET_CHOICES = ("network", "dataset", "loss", "pretrained", "pretrained_epoch")

#: Keys that describe the graph.
MXNET_GRAPH = (
    "net_name", "num_layers", "net_se", "net_act", "net_unit", "net_input", "net_blocks", "net_output",
    "net_multiplier", "densenet_dropout", "bn_mom", "workspace", "memonger",
)  # fmt: skip

#: Keys that are looked at: the images' size, and which loss an entry is.
MXNET_CHECKED = ("image_shape", "loss_name")

_MXNET_LEFT_OUT = (
    "num_classes", "ckpt_embedding", "ce_loss", "fc7_wd_mult", "fc7_no_bias", "data_cutoff", "data_color",
    "data_images_filter", "is_shuffled_rec", "count_flops", "fp16", "fp16_scale", "num_workers", "batch_size",
    "images_per_identity", "triplet_alpha", "triplet_bag_size", "triplet_max_ap",
    "frequent", "kvstore", "end_epoch", "ckpt", "models_root",
)  # fmt: skip

MXNET_TELLING = {
    "num_classes": Telling(_set, "the identities are counted in the records"),
    "fc7_wd_mult": Telling(lambda value: value != 1, "the classifier has the weight decay of all, wd"),
    "fc7_no_bias": Telling(_on, "the classifier of plain softmax has a bias"),
    "data_cutoff": Telling(_on, "images are not cut; ddl.hard=[{'occlude': (0.2, 0.4)}] makes hard ones so"),
    "data_color": Telling(_on, "colours are not changed"),
    "data_images_filter": Telling(_on, "no identity is left out; ddl.easy and ddl.hard choose images"),
    "fp16": Telling(_on, "training is in float32"),
    "kvstore": Telling(_distributed, "--kvstore on the command line joins several machines"),
}

# -- arcface_torch -----------------------------------------------------------------------------------

#: Its names for keys of ours.
TORCH_NAMES = {
    "rec": "dataset_path",
    "embedding_size": "emb_size",
    "batch_size": "per_batch_size",
    "momentum": "mom",
    "weight_decay": "wd",
    "num_workers": "num_threads",
}

_TORCH_LEFT_OUT = (
    "num_classes", "num_image", "warmup_epoch", "sample_rate", "interclass_filtering_threshold", "fp16", "optimizer", "dali",
    "dali_aug", "gradient_acc", "frequent", "output", "resume", "save_all_states", "notes", "using_wandb",
    "wandb_key", "suffix_run_name", "wandb_entity", "wandb_project", "wandb_log_all", "wandb_resume",
    "save_artifacts", "total_batch_size", "warmup_step", "total_step",
)  # fmt: skip

TORCH_TELLING = {
    "num_classes": MXNET_TELLING["num_classes"],
    "warmup_epoch": Telling(_above_zero, "lr starts at its full value"),
    "sample_rate": Telling(_below_one, "every class takes part in every step"),
    "interclass_filtering_threshold": Telling(_above_zero, "no class is filtered out"),
    "fp16": MXNET_TELLING["fp16"],
    "optimizer": Telling(
        lambda value: value != "sgd", "trained by SGD with momentum; set lr= and wd= as they are for SGD"
    ),
    "dali_aug": Telling(_on, "images are mirrored and nothing else; ddl.hard degrades on purpose"),
    "gradient_acc": Telling(_above_one, "every step updates the weights"),
    "resume": Telling(_on, "--resume on the command line goes on with a run"),
}

#: Every key that a file of either host may hold without being a mistake.
HOSTS_KEYS = (
    *MXNET_ARGUMENTS, *MXNET_CHOICES, *MXNET_GRAPH, *MXNET_CHECKED, *_MXNET_LEFT_OUT,
    *TORCH_NAMES, *_TORCH_LEFT_OUT, "margin_list", "num_epoch",
)  # fmt: skip
