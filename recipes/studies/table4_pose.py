"""Table 4: pose, fine-tuned on VGGFace2, verification on LFW, CFP-FP and CPLFW.

Paper      Table 4, "ArcFace (VGG+R100)" and "Ours (VGG+R100)"
Data       as recipes/vgg2_pose.py says, with lfw.bin, cfp_fp.bin and cplfw.bin (python -m ddl_plugin.prepare bin)
Command    python -m ddl_plugin.experiment table4_pose --output runs/table4_pose --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict


def paper(lfw, cfp_fp, cplfw):
    return {"lfw: accuracy": lfw, "cfp_fp: accuracy": cfp_fp, "cplfw: accuracy": cplfw}


study = EasyDict()
study.title = "Table 4: pose"
study.recipe = "vgg2_pose"
study.common = {"baseline": False, "val_targets": ["lfw", "cfp_fp", "cplfw"]}
study.rows = [
    # The paper's ArcFace row is the model that is fine-tuned: here the row "base model".
    {"name": "ArcFace fine-tuning", "set": {"loss": "arcface"}, "paper": paper(99.62, 98.30, 93.13)},
    {"name": "DDL", "paper": paper(99.68, 98.53, 93.43)},
]
study.columns = list(paper(0, 0, 0))
