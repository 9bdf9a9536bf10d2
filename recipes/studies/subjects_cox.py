"""Fig. 5: the number of training subjects, DDL, on COX. With loss='arcface' in `common`: its other curve.

Paper      Fig. 5: comparable results with half of the subjects (a curve, no printed number)
Data       as recipes/cox_race.py says
Command    python -m ddl_plugin.experiment subjects_cox --output runs/subjects_cox --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict

study = EasyDict()
study.title = "Training subjects"
study.recipe = "cox_race"
study.common = {"baseline": False}
study.rows = [
    {"name": f"{round(100 * part)} %", "set": {"train_identities": part}}
    for part in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
]
study.seeds = [0, 1, 2]
study.axis = "train_identities"
study.columns = ["caucasian: accuracy", "mongolian: accuracy"]
