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
config.ddl.b = 16
config.ddl.hard = [{"size": (22, 26)}, {"size": (12, 16)}]

config.max_steps = 1000
config.baseline = True

config.val_targets = ["lfw_val"]
config.identification = EasyDict(rec="val.rec", sizes=["full", 24, 14])
