"""Pose: a model of MS1M, easy and hard samples of VGGFace2.

Paper      section 4.3, "the model pre-trained on MS1M, and finetuning it with easy/hard samples from VGGFace2"
Expected   R100: CFP-FP 99.06, CPLFW 94.20
Data       as recipes/vgg2_pose.py
Model      InsightFace's LResNet100E-IR (R100, MS1M, ArcFace)
Hardware   8 GPUs in the paper (Tesla P40): --devices gpu:0,1,2,3,4,5,6,7
Command    python -m ddl_plugin.train recipes/ms1m_vgg2_pose.py pretrained=models/r100-ms1m/model,0
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "datasets/faces_vgg2_112x112"
config.attributes = "attributes.npz"
config.pretrained = "models/r100-ms1m/model,0"

config.ddl = EasyDict()
config.ddl.b = 32
config.ddl.easy = "abs(yaw) < 10"
config.ddl.hard = ["abs(yaw) > 45"]

config.max_steps = 20000
config.verbose = 2000
config.baseline = False
config.val_targets = ["lfw", "cfp_fp", "cplfw"]
