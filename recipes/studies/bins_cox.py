"""The supplement's Fig. 2, right: the number of bins R, on COX.

Paper      supplement, section 3: stable at b = 32 (a curve, no printed number)
Data       as recipes/cox_race.py says
Command    python -m ddl_plugin.experiment bins_cox --output runs/bins_cox --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict

study = EasyDict()
study.title = "Bins of a histogram"
study.recipe = "cox_race"
study.common = {"baseline": False}
study.rows = [{"name": f"R = {bins}", "set": {"ddl.bins": bins}} for bins in (50, 100, 150, 200)]
study.axis = "ddl.bins"
study.columns = ["caucasian: accuracy", "mongolian: accuracy"]
