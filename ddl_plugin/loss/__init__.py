"""The Distribution Distillation Loss, its NumPy reference, the identity losses and the training symbol.

Only `symbol` imports MXNet; the others take it as their argument `F`, or do without.
"""
