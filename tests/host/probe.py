"""Run the host's command and write what its module held before the first update: `probe.py OUT.npz ARGUMENTS`.

Of every device: the embeddings, the input of the last layer, the parameters and their gradients.
"""

import sys

import numpy as np

from ddl_plugin.host.__main__ import main
from ddl_plugin.mxnet_setup import mx

out, arguments = sys.argv[1], sys.argv[2:]
own_update = mx.mod.Module.update


def update(module):
    if "pre_fc1_weight" not in module._exec_group.param_names:  # the classifier of train_parall.py
        own_update(module)
        return
    found = {"rescale_grad": np.float64(module._optimizer.rescale_grad)}
    for device, executor in enumerate(module._exec_group.execs):
        found[f"{device}.embedding"] = executor.outputs[0].asnumpy()
        found |= {f"{device}.{name}": executor.arg_dict[name].asnumpy() for name in executor.arg_dict}
        gradients = {n: g for n, g in executor.grad_dict.items() if g is not None}
        found |= {f"{device}.grad.{name}": g.asnumpy() for name, g in gradients.items()}
        inner = module.symbol.get_internals()["conv_1_relu_output"]
        shapes = {"data": executor.arg_dict["data"].shape}
        network = inner.simple_bind(mx.cpu(), grad_req="null", **shapes)
        network.copy_params_from(
            {n: executor.arg_dict[n] for n in inner.list_arguments() if n != "data"},
            {n: executor.aux_dict[n] for n in inner.list_auxiliary_states()},
        )
        features = network.forward(is_train=True, data=executor.arg_dict["data"])[0]
        found[f"{device}.features"] = features.asnumpy().reshape(len(features), -1)
    np.savez(out, **found)
    raise SystemExit(0)


mx.mod.Module.update = update
sys.exit(main(arguments))
