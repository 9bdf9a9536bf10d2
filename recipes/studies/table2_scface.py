"""Table 2: every part of the loss on SCface, rank-1 at the three distances.

Paper      Table 2; CASIA-WebFace, ResNet50, b = 16, 1,000 steps
Data       as recipes/scface_resolution.py says; the conditions of protocol.csv are d1, d2 and d3
Command    python -m ddl_plugin.experiment table2_scface --output runs/table2_scface --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict


def paper(d1, d2, d3):
    return {f"full size, d{k}: rank-1": value for k, value in enumerate((d1, d2, d3), 1)}


study = EasyDict()
study.title = "Table 2: parts of DDL on SCface"
study.recipe = "scface_resolution"
study.common = {"baseline": False}
study.rows = [
    {"name": "EMD and order", "set": {"ddl.distance": "emd"}, "paper": paper(78.0, 97.8, 96.8)},
    {"name": "JS and order", "set": {"ddl.distance": "js"}, "paper": paper(83.0, 98.3, 99.0)},
    {"name": "KL alone", "set": {"ddl.lambda_order": 0.0}, "paper": paper(76.0, 94.3, 98.5)},
    {
        "name": "order alone",
        "set": {"ddl.lambda_pos": 0.0, "ddl.lambda_neg": 0.0},
        "paper": paper(80.8, 97.5, 99.0),
    },
    {"name": "random negatives", "set": {"ddl.neg_mining": "random"}, "paper": paper(80.3, 96.3, 95.3)},
    {"name": "mixture", "set": {"ddl.mixture": True}, "paper": paper(81.5, 97.0, 97.8)},
    {"name": "softmax fine-tuning", "set": {"loss": "softmax"}, "paper": paper(77.3, 97.5, 97.8)},
    {"name": "ArcFace fine-tuning", "set": {"loss": "arcface"}, "paper": paper(67.3, 93.5, 98.0)},
    {"name": "DDL with softmax", "set": {"ddl.identity": "softmax"}, "paper": paper(90.0, 98.0, 97.5)},
    {"name": "DDL with ArcFace", "paper": paper(86.8, 98.3, 98.3)},
]
study.seeds = [0, 1, 2]
study.columns = list(paper(0, 0, 0))
