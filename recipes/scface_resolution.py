"""Resolution: SCface, near faces teach those at the two larger distances (K = 2).

Paper      Table 3, rows "Ours"; Table 2 is its ablation
Expected   rank-1 at d1, d2, d3: CASIA+R50 86.8, 98.3, 98.3; MS1M+R100 93.2, 99.2, 98.5
Data       SCface (scface.org, on request), aligned to 112x112 in RecordIO: the 50 training subjects in
           train.rec, the 80 test subjects in val.rec; an attribute table with `record` and `distance` (1 is d1,
           4.2 m; 2 is d2, 2.6 m; 3 is d3, 1.0 m); protocol.csv: frontal gallery, probes with
           their distance as condition (d1, d2, d3)
Model      a ResNet50 of CASIA-WebFace or a ResNet100 of MS1M, both ArcFace
Hardware   8 GPUs in the paper (Tesla P40): --devices gpu:0,1,2,3,4,5,6,7
Command    python -m ddl_plugin.train recipes/scface_resolution.py pretrained=models/r50-casia/model,0
"""

from easydict import EasyDict

config = EasyDict()
config.loss = "ddl"
config.dataset_path = "datasets/scface_112x112"
config.attributes = "attributes.npz"
config.pretrained = "models/r50-casia/model,0"

config.ddl = EasyDict()
config.ddl.b = 16
config.ddl.easy = "distance == 3"
config.ddl.hard = ["distance == 1", "distance == 2"]

config.max_steps = 1000
config.verbose = 0
config.baseline = True
config.identification = EasyDict(rec="val.rec", protocol="protocol.csv")
