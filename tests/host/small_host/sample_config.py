"""Tables and defaults of the small trainer, in the shape that InsightFace's sample_config.py has."""

import os

from easydict import EasyDict

config = EasyDict(
    emb_size=16, ckpt_embedding=True, val_targets=[], ce_loss=True, fc7_lr_mult=1.0, fc7_wd_mult=1.0,
    fc7_no_bias=False, max_steps=0, data_rand_mirror=True, data_cutoff=0, data_color=0, data_images_filter=0,
    is_shuffled_rec=False,
)  # fmt: skip

network = EasyDict(small={"net_name": "small", "emb_size": 16})

dataset = EasyDict(
    nothing={
        "dataset": "nothing",
        "dataset_path": "../nothing",
        "num_classes": 1,
        "image_shape": (112, 112, 3),
    }
)

loss = EasyDict(
    softmax={"loss_name": "softmax"},
    arcface={"loss_name": "margin_softmax", "loss_s": 16.0, "loss_m1": 1.0, "loss_m2": 0.5, "loss_m3": 0.0},
)

default = EasyDict(
    network="small", pretrained="", pretrained_epoch=1, dataset="nothing", loss="arcface", frequent=1,
    verbose=2000, kvstore="device", lr=0.01, wd=0.0005, mom=0.9, per_batch_size=18, ckpt=2,
    lr_steps="1000", models_root="./models",
)  # fmt: skip


def generate_config(_network, _dataset, _loss):
    """The loss's entry, then the network's, then the data set's, over `config`."""
    for entry in (loss[_loss], network[_network], dataset[_dataset]):
        for key, value in entry.items():
            config[key] = value
            if key in default:
                default[key] = value
    config.loss, config.network, config.dataset = _loss, _network, _dataset
    config.num_workers = int(os.environ.get("DMLC_NUM_WORKER", "1"))
