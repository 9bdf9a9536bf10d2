"""Tables 2 and 3 in small, on the embedded data set: every part of the loss, and the losses it is compared with.

Paper      Table 2 (SCface) and the rivals of Table 3; here the hard samples are profiles, drawn faces
Data       the embedded data set, drawn when it is not there yet
Model      trained by recipes/demo_base.py first, once for all rows
Expected   minutes on two cores; 60 steps of 48 images separate the losses no further than their spread shows
Command    python -m ddl_plugin.experiment ablation_demo --output runs/ablation_demo
"""

from easydict import EasyDict

study = EasyDict()
study.title = "The parts of DDL and its rivals, embedded data set"
study.recipe = "demo"
study.common = {"ddl.b": 8, "max_steps": 60, "baseline": False}
study.rows = [
    {"name": "ArcFace fine-tuning", "set": {"loss": "arcface"}},
    {"name": "DDL: KL and order", "set": {"loss": "ddl"}},
    {"name": "DDL: KL alone", "set": {"loss": "ddl", "ddl.lambda_order": 0.0}},
    {"name": "DDL: order alone", "set": {"loss": "ddl", "ddl.lambda_pos": 0.0, "ddl.lambda_neg": 0.0}},
    {"name": "DDL: JS", "set": {"loss": "ddl", "ddl.distance": "js"}},
    {"name": "DDL: EMD", "set": {"loss": "ddl", "ddl.distance": "emd"}},
    {"name": "DDL: random negatives", "set": {"loss": "ddl", "ddl.neg_mining": "random"}},
    {"name": "DDL: softmax", "set": {"loss": "ddl", "ddl.identity": "softmax"}},
    {"name": "Histogram loss", "set": {"loss": "histogram"}},
    {"name": "Triplet", "set": {"loss": "semihard_triplet"}},
    {"name": "OHEM", "set": {"loss": "ohem"}},
    {"name": "Focal", "set": {"loss": "focal"}},
]
study.columns = ["hard: TAR@FAR=0.1", "hard: accuracy", "easy: accuracy", "full size: rank-1", "hard: margin"]
