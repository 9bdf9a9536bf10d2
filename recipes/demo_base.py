"""The demo's base model: a small network trained from scratch on the frontal faces of the drawn data set.

Paper      plays the part of the pretrained ArcFace model: good on easy samples, poor on hard ones
Data       the embedded data set, drawn when it is not there yet
Command    run by recipes/demo.py; alone: python -m ddl_plugin.train recipes/demo_base.py
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "nsoftmax"
config.loss_s = 16.0
config.sampler = "images"
config.per_batch_size = 64
config.images = EasyDict(rule="abs(yaw) < 20")

config.dataset_path = "synthetic"
config.attributes = "attributes.npz"

config.network = "tiny"
config.fc7_init = "random"

config.max_steps = 400
config.lr = 0.1
config.lr_steps = [250, 350]
config.val_targets = ["easy", "hard"]
