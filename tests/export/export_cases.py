"""Every operator that the export takes, in small uses, and its output in MXNet and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from export_networks import random_params

from ddl_plugin.export.convert import to_model
from ddl_plugin.export.graph import parse_symbol
from ddl_plugin.mxnet_setup import mx, symbol_from_json

SIZE = 12
S = mx.sym


def as_numpy(arrays):
    return {name: array.asnumpy() for name, array in arrays.items()}


def in_mxnet(symbol, arg, aux, batch):
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=batch.shape)
    executor.copy_params_from(arg, aux, allow_extra_params=True)
    return executor.forward(is_train=False, data=mx.nd.array(batch))[0].asnumpy()


def in_onnx(model, batch):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"data": batch})[0]


def both(body, *, batch=3, image_size=SIZE, seed=0):
    """(MXNet's output, ONNX Runtime's, the model) of `body` of the data, flattened to an embedding."""
    return both_of(embedded(body).tojson(), batch=batch, image_size=image_size, seed=seed)


def embedded(body):
    """The symbol of `body` of the data, flattened to an embedding."""
    return S.Flatten(body(S.Variable("data")), name="fc1")


def both_of(text, *, batch=3, image_size=SIZE, seed=0):
    """The same of a symbol's JSON, which MXNet and the export each read by themselves."""
    symbol = symbol_from_json(text)
    arg, aux = random_params(symbol, image_size, seed)
    graph = parse_symbol(text, "test-symbol.json")
    model = to_model(graph, as_numpy(arg), as_numpy(aux), image_size=image_size)
    images = np.random.default_rng(seed).normal(0, 1, (batch, 3, image_size, image_size)).astype(np.float32)
    return in_mxnet(symbol, arg, aux, images), in_onnx(model, images), model


def conv(**options):
    return lambda x: S.Convolution(x, name="c", **{"kernel": (3, 3), "num_filter": 6, **options})


def pool(**options):
    return lambda x: S.Pooling(x, name="p", **{"kernel": (3, 3), "stride": (2, 2), **options})


def norm(**options):
    return lambda x: S.BatchNorm(x, name="b", **options)


def attention(x):
    """Squeeze and excitation."""
    y = S.Pooling(x, global_pool=True, pool_type="avg")
    y = S.Activation(S.Convolution(y, kernel=(1, 1), num_filter=2, name="s1"), act_type="relu")
    y = S.Activation(S.Convolution(y, kernel=(1, 1), num_filter=3, name="s2"), act_type="sigmoid")
    return S.broadcast_mul(x, y)


def norm_aware(x):
    """The norm-aware pooling head of InsightFace's GNAP: its mean runs over the batch as well."""
    norm = S.sqrt(S.sum(x * x, axis=1, keepdims=True))
    return x * S.tile(S.broadcast_div(S.mean(norm), norm), reps=(1, 3, 1, 1))


CASES = {
    "conv": conv(),
    "conv no bias": conv(no_bias=True),
    "conv stride pad": conv(stride=(2, 1), pad=(1, 2), kernel=(5, 3)),
    "conv dilate": conv(dilate=(2, 3), pad=(2, 1)),
    "conv group": conv(num_group=3),
    "conv depthwise": conv(num_group=3, num_filter=3, pad=(1, 1), no_bias=True),
    "batch norm defaults": norm(),
    "batch norm free gamma": norm(fix_gamma=False, eps=2e-5),
    "batch norm fixed gamma": norm(fix_gamma=True, eps=2e-5),
    "batch norm global": norm(fix_gamma=False, use_global_stats=True),
    "batch norm of vectors": lambda x: norm(fix_gamma=False)(S.FullyConnected(x, num_hidden=7, name="f")),
    "batch norm last axis": lambda x: norm(axis=-1)(S.FullyConnected(x, num_hidden=7, name="f")),
    "prelu": lambda x: S.LeakyReLU(x, act_type="prelu", name="a"),
    "prelu shared": lambda x: S.LeakyReLU(x, S.Variable("a", shape=(1,)), act_type="prelu"),
    "prelu of vectors": lambda x: S.LeakyReLU(
        S.FullyConnected(x, num_hidden=7, name="f"), act_type="prelu", name="a"
    ),
    "leaky": lambda x: S.LeakyReLU(x, act_type="leaky", slope=0.1),
    "leaky defaults": lambda x: S.LeakyReLU(x),
    "elu": lambda x: S.LeakyReLU(x, act_type="elu", slope=0.7),
    **{
        f"activation {kind}": (lambda x, kind=kind: S.Activation(x, act_type=kind))
        for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")
    },
    **{
        name: (lambda x, name=name: getattr(S, name)(x))
        for name in (
            "relu",
            "sigmoid",
            "tanh",
            "softsign",
            "hard_sigmoid",
            "exp",
            "abs",
            "negative",
            "square",
        )
    },
    "sqrt": lambda x: S.sqrt(S.square(x)),
    "fully connected": lambda x: S.FullyConnected(x, num_hidden=7, name="f"),
    "fully connected no bias": lambda x: S.FullyConnected(x, num_hidden=7, no_bias=True, name="f"),
    "fully connected twice": lambda x: S.FullyConnected(
        S.FullyConnected(x, num_hidden=7, name="f"), num_hidden=4, flatten=False, name="g"
    ),
    "flatten": lambda x: S.FullyConnected(S.Flatten(x), num_hidden=7, name="f"),
    "pool max": pool(pool_type="max"),
    "pool max pad": pool(pool_type="max", pad=(1, 1)),
    "pool max full": pool(pool_type="max", pooling_convention="full"),
    "pool max full pad": pool(pool_type="max", pooling_convention="full", pad=(1, 0)),
    "pool avg": pool(pool_type="avg", stride=(1, 2)),
    "pool avg pad": pool(pool_type="avg", pad=(1, 1)),
    "pool avg pad not counted": pool(pool_type="avg", pad=(1, 1), count_include_pad=False),
    "pool avg full": pool(pool_type="avg", pooling_convention="full"),
    "pool avg full pad": pool(pool_type="avg", pooling_convention="full", pad=(1, 1), stride=(3, 3)),
    "pool avg full pad not counted": pool(
        pool_type="avg", pooling_convention="full", pad=(1, 1), count_include_pad=False
    ),
    "pool global avg": pool(pool_type="avg", global_pool=True),
    "pool global max": pool(pool_type="max", global_pool=True),
    "add": lambda x: x + S.tanh(x),
    "sub": lambda x: x - S.tanh(x),
    "mul": lambda x: x * x,
    "div": lambda x: x / (S.square(x) + 1),
    "add_n": lambda x: S.add_n(x, S.tanh(x), x),
    "broadcast add": lambda x: S.broadcast_add(x, S.Variable("v", shape=(1, 3, 1, 1))),
    "broadcast sub": lambda x: S.broadcast_sub(x, S.Variable("v", shape=(1, 3, 1, 1))),
    "broadcast div": lambda x: S.broadcast_div(x, S.sum(S.square(x), axis=(1, 2), keepdims=True) + 1),
    "scalars": lambda x: (1.5 - (x - 0.5) * 0.25 + 3) / 7 + 2 / (S.square(x) + 1) + x**2,
    "clip": lambda x: S.clip(x, -0.5, 0.7),
    "concat": lambda x: S.Concat(x, S.tanh(x), x, dim=1),
    "concat last": lambda x: S.Concat(x, S.tanh(x), dim=-1),
    "reshape": lambda x: S.Reshape(x, shape=(0, -1, 4)),
    "reshape infer batch": lambda x: S.Reshape(x, shape=(-1, 3, 2, 72)),
    "transpose": lambda x: S.transpose(x, axes=(0, 2, 3, 1)),
    "tile": lambda x: S.tile(x, reps=(2, 1, 3)),
    "pad": lambda x: S.Pad(x, mode="constant", pad_width=(0, 0, 0, 0, 1, 2, 3, 0), constant_value=0.3),
    "pad edge": lambda x: S.Pad(x, mode="edge", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)),
    "pad reflect": lambda x: S.Pad(x, mode="reflect", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)),
    "sum": lambda x: S.sum(x, axis=(2, 3)),
    "mean": lambda x: S.mean(x, axis=-1, keepdims=True),
    "max": lambda x: S.max(x, axis=1),
    "min": lambda x: S.min(x, axis=(1, 3), keepdims=True),
    "l2 instance": lambda x: S.L2Normalization(x),
    "l2 channel": lambda x: S.L2Normalization(x, mode="channel", eps=0.01),
    "l2 spatial": lambda x: S.L2Normalization(x, mode="spatial"),
    "dropped": lambda x: S.BlockGrad(S.identity(S.Dropout(x, p=0.5))) + 1,
    "cast": lambda x: S.Cast(S.Cast(x, dtype="float64"), dtype="float32") * 2,
    "flatten of vectors": lambda x: S.Flatten(S.FullyConnected(x, num_hidden=7, name="f")) * 2,
    "pool global kernel": pool(pool_type="avg", global_pool=True, kernel=(7, 7), stride=(1, 1)),
    "swish": lambda x: x * S.sigmoid(x),
    "hard swish": lambda x: x * S.clip(x + 3, 0, 6) / 6,
    "attention": attention,
    "norm-aware head": norm_aware,
}
