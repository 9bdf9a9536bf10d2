"""The Distribution Distillation Loss, its NumPy reference, the identity losses and MXNet's training symbol.

Only `symbol`, `shapes` and `gathered` import MXNet; the others take a framework as their argument `F` (`mx.nd`,
`mx.sym`, or `ddl_plugin.pytorch.functions.Functions`), or do without.
"""
