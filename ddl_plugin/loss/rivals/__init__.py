"""The losses that the paper compares with (Table 3), each from its own paper, on the same batches.

Conventional fine-tuning is the identity loss alone: `loss = 'arcface'`.
"""
