"""Pose on a small training set: CASIA-WebFace with a ResNet50.

Paper      supplement, Table 1, "Offline DDL", and Fig. 3. The number of steps is not given; 20,000 is VGGFace2's
Expected   CFP-FP 96.98 (ArcFace 95.58)
Data       InsightFace's faces_webface_112x112 and an attribute table with `record` and `yaw` (degrees)
Model      a ResNet50 trained on CASIA-WebFace with ArcFace
Hardware   8 GPUs in the paper (Tesla P40): --devices gpu:0,1,2,3,4,5,6,7
Command    python -m ddl_plugin.train recipes/casia_pose.py pretrained=models/r50-casia/model,0
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "datasets/faces_webface_112x112"
config.attributes = "attributes.npz"
config.pretrained = "models/r50-casia/model,0"

config.ddl = EasyDict()
config.ddl.b = 32
config.ddl.easy = "abs(yaw) < 10"
config.ddl.hard = ["abs(yaw) > 45"]

config.max_steps = 20000
config.verbose = 2000
config.baseline = False
config.val_targets = ["lfw", "cfp_fp"]
