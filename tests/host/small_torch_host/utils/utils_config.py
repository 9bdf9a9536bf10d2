import importlib
from pathlib import Path


def get_config(config_file):
    assert config_file.startswith("configs/"), "must start with configs/"
    name = Path(config_file).stem
    cfg = importlib.import_module("configs.base").config
    cfg.update(importlib.import_module(f"configs.{name}").config)
    if cfg.output is None:
        cfg.output = f"work_dirs/{name}"
    return cfg
