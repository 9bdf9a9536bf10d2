"""Pose: VGGFace2, frontal faces teach faces turned beyond 45 degrees.

Paper      Table 4, row "Ours (VGG+R100)"; with a ResNet50 Tables 5 and 6 (IJB-B, IJB-C)
Expected   R100: LFW 99.68, CFP-FP 98.53, CPLFW 93.43; R50: IJB-B 90.7 and IJB-C 93.1 TAR at FAR 1e-4
Data       InsightFace's faces_vgg2 (train.rec, lfw.bin, cfp_fp.bin, cplfw.bin) and an attribute table with a
           `record` and a `yaw` column (degrees) from a head-pose estimator; the paper used Hopenet (Ruiz et al. 2018)
Model      a ResNet100 (or 50) trained on VGGFace2 with ArcFace, from InsightFace's MXNet model zoo
Hardware   8 GPUs in the paper (Tesla P40): --devices gpu:0,1,2,3,4,5,6,7
Command    python -m ddl_plugin.train recipes/vgg2_pose.py pretrained=models/r100-vgg2/model,0
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "datasets/faces_vgg2_112x112"
config.attributes = "attributes.npz"
config.pretrained = "models/r100-vgg2/model,0"

config.ddl = EasyDict()
config.ddl.b = 32
config.ddl.easy = "abs(yaw) < 10"
config.ddl.hard = ["abs(yaw) > 45"]

config.max_steps = 20000
config.verbose = 2000
config.baseline = False
config.val_targets = ["lfw", "cfp_fp", "cplfw"]
