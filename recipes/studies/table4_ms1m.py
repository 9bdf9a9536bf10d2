"""Section 4.3: a model of MS1M fine-tuned with the easy and hard samples of VGGFace2.

Paper      section 4.3, in the text: 99.06 on CFP-FP, 94.20 on CPLFW; the base model is "ArcFace (MS1M+R100)" of Table 4
Data       as recipes/ms1m_vgg2_pose.py says, with lfw.bin, cfp_fp.bin and cplfw.bin (python -m ddl_plugin.prepare bin)
Command    python -m ddl_plugin.experiment table4_ms1m --output runs/table4_ms1m --devices gpu:0,1,2,3,4,5,6,7
"""

from easydict import EasyDict

study = EasyDict()
study.title = "Section 4.3: an MS1M model, VGGFace2's hard samples"
study.recipe = "ms1m_vgg2_pose"
study.common = {"baseline": False, "verbose": 0, "val_targets": ["lfw", "cfp_fp", "cplfw"]}
study.rows = [
    {"name": "ArcFace fine-tuning", "set": {"loss": "arcface"}},
    {"name": "DDL", "paper": {"cfp_fp: accuracy": 99.06, "cplfw: accuracy": 94.20}},
]
study.columns = ["lfw: accuracy", "cfp_fp: accuracy", "cplfw: accuracy"]
