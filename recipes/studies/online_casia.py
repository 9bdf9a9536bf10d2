"""The supplement's Table 1 on the small training set: online and offline DDL, CFP-FP.

Paper      supplement, Table 1, CASIA-WebFace: ArcFace 95.58, online 96.82, offline 96.98
Data       as recipes/casia_pose.py says; identities with fewer than 8 images repeat them
Command    python -m ddl_plugin.experiment online_casia --output runs/online_casia --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict

WHOLE_IDENTITIES = {
    "sampler": "identities",
    "ddl": {"online": {"identities": 64, "images": 8, "repeat": True}},
}

study = EasyDict()
study.title = "Online and offline DDL"
study.recipe = "casia_pose"
study.common = {"verbose": 0}
study.rows = [
    {"name": "ArcFace", "set": {"loss": "arcface"}, "paper": {"cfp_fp: accuracy": 95.58}},
    {
        "name": "Online DDL",
        "set": {"loss": "online_ddl", **WHOLE_IDENTITIES},
        "paper": {"cfp_fp: accuracy": 96.82},
    },
    {"name": "Offline DDL", "paper": {"cfp_fp: accuracy": 96.98}},
]
study.columns = ["lfw: accuracy", "cfp_fp: accuracy"]
