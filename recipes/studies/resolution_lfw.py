"""Tables 2 and 3 on public data: LFW shrunk to 24 and 14 pixels, rank-1 of unseen identities.

Paper      the setting of Tables 2 and 3 (SCface) on another data set: no number of the paper
Data       any InsightFace folder with a val.rec, as recipes/resolution_degraded.py says; ours is LFW
Model      y1 (MobileFaceNet) of InsightFace's model zoo
Expected   docs/RESULTS.md
Command    python -m ddl_plugin.experiment resolution_lfw --output runs/resolution_lfw
"""

from easydict import EasyDict

study = EasyDict()
study.title = "Parts of DDL and its rivals, LFW at 24 and 14 pixels"
study.recipe = "resolution_degraded"
study.common = {"baseline": False}
study.rows = [
    {"name": "ArcFace fine-tuning", "set": {"loss": "arcface"}},
    {"name": "softmax fine-tuning", "set": {"loss": "softmax"}},
    {"name": "DDL", "set": {"loss": "ddl"}},
    {"name": "DDL with softmax", "set": {"ddl.identity": "softmax"}},
    {"name": "EMD and order", "set": {"ddl.distance": "emd"}},
    {"name": "JS and order", "set": {"ddl.distance": "js"}},
    {"name": "KL alone", "set": {"ddl.lambda_order": 0.0}},
    {"name": "order alone", "set": {"ddl.lambda_pos": 0.0, "ddl.lambda_neg": 0.0}},
    {"name": "random negatives", "set": {"ddl.neg_mining": "random"}},
    {"name": "mixture", "set": {"ddl.mixture": True}},
    {"name": "Histogram loss", "set": {"loss": "histogram"}},
    {"name": "Triplet", "set": {"loss": "semihard_triplet"}},
    {"name": "OHEM", "set": {"loss": "ohem"}},
    {"name": "Focal", "set": {"loss": "focal"}},
]
study.columns = [
    "full size: rank-1",
    "24 px: rank-1",
    "14 px: rank-1",
    "14 px: margin",
    "14 px: intersection",
    "14 px, gallery too: rank-1",
    "14 px, gallery too: EER",
    "lfw_val: accuracy",
    "images/s",
]
