"""Former names of the checks, which now stand in `parity`, `sameness`, `images` and `mxnet_network`."""

from ddl_plugin.export.images import real_images
from ddl_plugin.export.mxnet_network import MXNetNetwork as _MXNetNetwork
from ddl_plugin.export.parity import TOLERANCE, compare_runtimes
from ddl_plugin.export.sameness import check_same_graph, same_graph

__all__ = ["TOLERANCE", "_MXNetNetwork", "check_same_graph", "compare_runtimes", "real_images", "same_graph"]
