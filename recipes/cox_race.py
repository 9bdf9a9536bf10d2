"""Race: COX, Caucasian faces teach Mongolian ones.

Paper      Fig. 5 and section 4.1 (labels of race by the authors' own hand: 572 Caucasians, 428 Mongolians)
Expected   a curve (Fig. 5), no printed number
Data       COX (on request), half of the subjects of both races aligned to 112x112 in train.rec; an attribute
           table with `record` and `race` (caucasian, mongolian); caucasian.bin, mongolian.bin of the other half
Model      a ResNet50 trained on CASIA-WebFace with ArcFace
Hardware   8 GPUs in the paper (Tesla P40): --devices gpu:0,1,2,3,4,5,6,7
Command    python -m ddl_plugin.train recipes/cox_race.py pretrained=models/r50-casia/model,0
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "datasets/cox_112x112"
config.attributes = "attributes.npz"
config.pretrained = "models/r50-casia/model,0"

config.ddl = EasyDict()
config.ddl.b = 32
config.ddl.easy = "race == 'caucasian'"
config.ddl.hard = ["race == 'mongolian'"]

config.max_steps = 2000
config.verbose = 0
config.baseline = True
config.val_targets = ["caucasian", "mongolian"]
