"""Table 3: DDL and the losses it is compared with on SCface, rank-1 at the three distances.

Paper      Table 3, the rows "CASIA+R50-FT"
Data       as recipes/scface_resolution.py says; the conditions of protocol.csv are d1, d2 and d3
Command    python -m ddl_plugin.experiment table3_scface --output runs/table3_scface --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict


def paper(d1, d2, d3):
    return {f"full size, d{k}: rank-1": value for k, value in enumerate((d1, d2, d3), 1)}


study = EasyDict()
study.title = "Table 3: DDL and its rivals on SCface"
study.recipe = "scface_resolution"
study.common = {"baseline": False}
study.rows = [
    {"name": "Histogram loss", "set": {"loss": "histogram"}, "paper": paper(74.3, 95.0, 97.3)},
    {"name": "OHEM", "set": {"loss": "ohem"}, "paper": paper(82.5, 97.3, 97.5)},
    {"name": "Focal", "set": {"loss": "focal"}, "paper": paper(76.8, 95.5, 96.8)},
    {"name": "Triplet", "set": {"loss": "semihard_triplet"}, "paper": paper(84.2, 97.2, 99.2)},
    {"name": "ArcFace", "set": {"loss": "arcface"}, "paper": paper(67.3, 93.5, 98.0)},
    {"name": "DDL", "paper": paper(86.8, 98.3, 98.3)},
]
study.seeds = [0, 1, 2]
study.columns = list(paper(0, 0, 0))
