"""From an MXNet checkpoint to an ONNX file, by reading both formats directly.

`params` and `graph` read the checkpoint, `ops` and `convert` write the ONNX graph, `parity` and `sameness` prove it right:

    from ddl_plugin.export.convert import convert
    from ddl_plugin.export.parity import compare_runtimes
    from ddl_plugin.export.sameness import same_graph

This package itself exposes what needs NumPy alone; neither onnx nor MXNet is imported with it.
"""

from ddl_plugin.export.graph import Checkpoint, Graph, cut, find_checkpoint, load_symbol
from ddl_plugin.export.params import load_params, save_params

__all__ = ["Checkpoint", "Graph", "cut", "find_checkpoint", "load_params", "load_symbol", "save_params"]
