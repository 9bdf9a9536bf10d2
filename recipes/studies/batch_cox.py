"""The supplement's Fig. 2, left: the number of pairs b, on COX.

Paper      supplement, section 3: stable from b = 16 to 48 at 100 bins (a curve, no printed number)
Data       as recipes/cox_race.py says
Command    python -m ddl_plugin.experiment batch_cox --output runs/batch_cox --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict

study = EasyDict()
study.title = "Pairs of a batch"
study.recipe = "cox_race"
study.common = {"baseline": False}
study.rows = [{"name": f"b = {b}", "set": {"ddl.b": b}} for b in (16, 24, 32, 40, 48)]
study.axis = "ddl.b"
study.columns = ["caucasian: accuracy", "mongolian: accuracy"]
