"""The whole job in minutes on two cores: base model, ArcFace fine-tuning, DDL, export, report.

Paper      the setting of Table 4 (pose) in small: easy |yaw| < 10, hard |yaw| > 45
Data       the embedded data set, drawn when it is not there yet (240 training identities x 16 images)
Model      trained by recipes/demo_base.py first
Expected   hard TAR above ArcFace fine-tuning's, easy accuracy within 0.5 points of the base model's
Hardware   2 CPU cores
Command    python -m ddl_plugin.train recipes/demo.py
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "synthetic"
config.attributes = "attributes.npz"
config.pretrained = "demo_base.py"

config.ddl = EasyDict()
config.ddl.b = 16
config.ddl.easy = "abs(yaw) < 10"
config.ddl.hard = ["abs(yaw) > 45"]

config.max_steps = 150
config.lr = 0.01
config.loss_s = 16.0
config.baseline = True

config.val_targets = ["easy", "hard"]
config.identification = EasyDict(rec="val.rec", protocol="identification.csv")
