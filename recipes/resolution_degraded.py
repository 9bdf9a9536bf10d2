"""Low resolution without extra data: the training images themselves, shrunk to 24 and 14 pixels.

Paper      the setting of Tables 2 and 3 (SCface: one teacher, two students by distance), on any data set
Data       any InsightFace folder (train.rec, train.idx, property); a val.rec with two images of each
           identity for rank-1, and lfw.bin or another verification set
Model      any InsightFace MXNet checkpoint, e.g. y1 (MobileFaceNet) of its model zoo
Expected   no number of the paper: docs/RESULTS.md has ours on LFW
Command    python -m ddl_plugin.train recipes/resolution_degraded.py dataset_path=DIR pretrained=PREFIX,0
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "datasets/lfw112"
config.pretrained = "models/y1/model,0"

config.ddl = EasyDict()
config.ddl.b = 8
config.ddl.hard = [{"size": (22, 26)}, {"size": (12, 16)}]

# What was searched for on LFW with MobileFaceNet, and what it gains where: docs/RESULTS.md.
config.lr = 4e-3
config.max_steps = 150
config.baseline = True

config.val_targets = ["lfw_val"]
config.identification = EasyDict(rec="val.rec", probes=5, sizes=["full", 24, 14], both_sizes=[24, 14])
