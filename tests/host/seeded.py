"""A trainer's train.py with all generators seeded: `seeded.py alone|through_us FOLDER ARGUMENTS OF THE TRAINER`."""

import random
import runpy
import sys

import mxnet
import numpy

for generator in (random, numpy.random, mxnet.random):
    generator.seed(7)
how, folder, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
if how == "alone":
    sys.path[0] = folder  # as it is for `python FOLDER/train.py`
    sys.argv = ["train.py", *arguments]
    runpy.run_path(f"{folder}/train.py", run_name="__main__")
else:
    from ddl_plugin.host.__main__ import main

    sys.exit(main([folder, "--", *arguments]))
