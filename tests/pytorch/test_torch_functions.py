"""MXNet's operators over torch: against NumPy and plain loops, against mx.nd, gradients, refusals."""

import math

import numpy as np
import pytest

from ddl_plugin.pytorch.array import Array
from ddl_plugin.pytorch.functions import Functions, operators
from ddl_plugin.pytorch.torch_setup import torch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4))
Y = RNG.normal(size=(3, 4))
POSITIVE = np.abs(X) + 0.1
UNIT = X / (np.abs(X).max() + 0.1)
CUBE = RNG.normal(size=(2, 3, 4))
ROW, COLUMN = RNG.normal(size=(1, 4)), RNG.normal(size=(3, 1))
VECTOR = RNG.normal(size=5)
EQUAL = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
INDEX, COLUMNS = np.array([2.0, 0.0, 7.0]), np.array([1.0, 0.0, 2.0, 9.0])  # the last one lies outside


def logaddexp(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def one_hot_loops(index, depth, on=1.0, off=0.0):
    found = np.full((len(index), depth), float(off))
    for i, place in enumerate(index):
        if place < depth:
            found[i, int(place)] = on
    return found


def pick_loops(x, index, axis):
    if axis == 1:
        return np.array([x[i, min(int(j), x.shape[1] - 1)] for i, j in enumerate(index)])
    return np.array([x[min(int(j), x.shape[0] - 1), i] for i, j in enumerate(index)])


def by_name(name):
    """F.name(*arrays)."""
    return lambda F, *arrays: getattr(F, name)(*arrays)


def as_numbers(compare):
    return lambda x, y: compare(x, y).astype(float)


#: name -> (call(F, *arrays), oracle(*arrays), arrays); several of a name: name, name/what.
CASES = {
    # elementwise
    **{
        name: (by_name(name), getattr(np, name), [X])
        for name in (
            "abs", "ceil", "cos", "exp", "expm1", "floor", "negative", "reciprocal", "sign", "sin", "square", "tanh",
        )
    },
    **{
        name: (by_name(name), getattr(np, name), [POSITIVE])
        for name in ("log", "log1p", "sqrt")
    },
    **{
        name: (by_name(name), getattr(np, name), [UNIT])
        for name in ("arccos", "arcsin", "arctan")
    },
    "rsqrt": (lambda F, x: F.rsqrt(x), lambda x: 1 / np.sqrt(x), [POSITIVE]),
    "erf": (lambda F, x: F.erf(x), np.vectorize(math.erf), [X]),
    "relu": (lambda F, x: F.relu(x), lambda x: np.where(x > 0, x, 0), [X]),
    "sigmoid": (lambda F, x: F.sigmoid(x), lambda x: 1 / (1 + np.exp(-x)), [X]),
    "Activation": (lambda F, x: F.Activation(x, act_type="softrelu"), logaddexp, [X * 3]),
    "Activation/tanh": (lambda F, x: F.Activation(x, act_type="tanh"), np.tanh, [X]),
    "softmax": (lambda F, x: F.softmax(x), softmax, [X]),
    "softmax/axis": (lambda F, x: F.softmax(x, axis=0), lambda x: softmax(x, 0), [X]),
    "log_softmax": (lambda F, x: F.log_softmax(x, axis=-1), lambda x: np.log(softmax(x)), [X]),
    "clip": (lambda F, x: F.clip(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5), [X]),
    "clip/ends": (lambda F, x: F.clip(x, 2, 3), lambda x: np.clip(x, 2, 3), [EQUAL]),
    "identity": (lambda F, x: F.identity(x), lambda x: x, [X]),
    "BlockGrad": (lambda F, x: F.BlockGrad(x) * x, lambda x: x * x, [X]),
    "stop_gradient": (lambda F, x: F.stop_gradient(x) * x, lambda x: x * x, [X]),
    "Cast": (lambda F, x: F.Cast(x, dtype="float32"), lambda x: x, [X]),
    "Cast/int": (lambda F, x: F.Cast(F.Cast(x, dtype="int32"), dtype="float32"), np.trunc, [X * 3]),
    "cast": (lambda F, x: F.cast(x, dtype="float32"), lambda x: x, [X]),
    # two arrays
    "broadcast_add": (lambda F, x, y: F.broadcast_add(x, y), lambda x, y: x + y, [X, ROW]),
    "broadcast_add/both": (lambda F, x, y: F.broadcast_add(x, y), lambda x, y: x + y, [ROW, COLUMN]),
    "broadcast_sub": (lambda F, x, y: F.broadcast_sub(x, y), lambda x, y: x - y, [X, COLUMN]),
    "broadcast_mul": (lambda F, x, y: F.broadcast_mul(x, y), lambda x, y: x * y, [X, COLUMN]),
    "broadcast_div": (lambda F, x, y: F.broadcast_div(x, y), lambda x, y: x / y, [X, COLUMN]),
    "broadcast_power": (lambda F, x, y: F.broadcast_power(x, y), lambda x, y: x**y, [POSITIVE, COLUMN]),
    "broadcast_mod": (lambda F, x, y: F.broadcast_mod(x, y), np.mod, [X * 5, np.abs(COLUMN) + 1]),
    "power": (lambda F, x: F.power(x, 3), lambda x: x**3, [X]),
    "elemwise_add": (lambda F, x, y: F.elemwise_add(x, y), lambda x, y: x + y, [X, Y]),
    "elemwise_sub": (lambda F, x, y: F.elemwise_sub(x, y), lambda x, y: x - y, [X, Y]),
    "elemwise_mul": (lambda F, x, y: F.elemwise_mul(x, y), lambda x, y: x * y, [X, Y]),
    "elemwise_div": (lambda F, x, y: F.elemwise_div(x, y), lambda x, y: x / y, [X, Y]),
    "add_n": (lambda F, x, y: F.add_n(x, y, x), lambda x, y: 2 * x + y, [X, Y]),
    "broadcast_maximum": (lambda F, x, y: F.broadcast_maximum(x, y), np.maximum, [X, ROW]),
    "broadcast_maximum/equal": (lambda F, x, y: F.broadcast_maximum(x, y), np.maximum, [EQUAL, EQUAL[:1]]),
    "broadcast_minimum": (lambda F, x, y: F.broadcast_minimum(x, y), np.minimum, [X, COLUMN]),
    "broadcast_minimum/equal": (lambda F, x, y: F.broadcast_minimum(x, y), np.minimum, [EQUAL, EQUAL[:1]]),
    "maximum": (lambda F, x: F.maximum(x, 2), lambda x: np.maximum(x, 2), [EQUAL]),
    "maximum/arrays": (lambda F, x, y: F.maximum(x, y), np.maximum, [X, Y]),
    "maximum/number first": (lambda F, x: F.maximum(2, x), lambda x: np.maximum(x, 2), [EQUAL]),
    "minimum": (lambda F, x: F.minimum(x, 2), lambda x: np.minimum(x, 2), [EQUAL]),
    **{
        f"broadcast_{name}": (
            by_name(f"broadcast_{name}"),
            as_numbers(getattr(np, of)),
            [EQUAL, EQUAL[:, 1:2]],
        )
        for name, of in {
            "equal": "equal", "not_equal": "not_equal", "greater": "greater", "greater_equal": "greater_equal",
            "lesser": "less", "lesser_equal": "less_equal",
        }.items()
    },
    "where": (lambda F, x, y: F.where(x > 0, x, y), lambda x, y: np.where(x > 0, x, y), [X, Y]),
    # sums
    "sum": (lambda F, x: F.sum(x), lambda x: x.sum().reshape(1), [CUBE]),
    "sum/axis": (lambda F, x: F.sum(x, axis=-1, keepdims=True), lambda x: x.sum(axis=-1, keepdims=True), [CUBE]),
    "sum/axes": (lambda F, x: F.sum(x, axis=(0, 2)), lambda x: x.sum(axis=(0, 2)), [CUBE]),
    "sum/exclude": (lambda F, x: F.sum(x, axis=1, exclude=True), lambda x: x.sum(axis=(0, 2)), [CUBE]),
    "sum/vector": (lambda F, x: F.sum(x, axis=0), lambda x: x.sum().reshape(1), [VECTOR]),
    "mean": (lambda F, x: F.mean(x), lambda x: x.mean().reshape(1), [CUBE]),
    "mean/axis": (lambda F, x: F.mean(x, axis=1), lambda x: x.mean(axis=1), [CUBE]),
    "max": (lambda F, x: F.max(x, axis=1), lambda x: x.max(axis=1), [EQUAL]),
    "max/all": (lambda F, x: F.max(x), lambda x: x.max().reshape(1), [EQUAL]),
    "max/axes": (lambda F, x: F.max(x, axis=(0, 2), keepdims=True), lambda x: x.max((0, 2), keepdims=True), [CUBE]),
    "max/vector": (lambda F, x: F.max(x, axis=0), lambda x: x.max().reshape(1), [VECTOR]),
    "min": (lambda F, x: F.min(x, axis=0), lambda x: x.min(axis=0), [EQUAL]),
    "min/all": (lambda F, x: F.min(x), lambda x: x.min().reshape(1), [EQUAL]),
    "norm": (lambda F, x: F.norm(x), lambda x: np.sqrt((x**2).sum()).reshape(1), [CUBE]),
    "norm/1": (lambda F, x: F.norm(x, ord=1, axis=1), lambda x: np.abs(x).sum(axis=1), [X]),
    "cumsum": (lambda F, x: F.cumsum(x, axis=1), lambda x: np.cumsum(x, axis=1), [CUBE]),
    "cumsum/all": (lambda F, x: F.cumsum(x), np.cumsum, [X]),
    # products
    "dot": (lambda F, x, y: F.dot(x, y), lambda x, y: x @ y, [X, Y.T]),
    "dot/transposed": (lambda F, x, y: F.dot(x, y, transpose_b=True), lambda x, y: x @ y.T, [X, Y]),
    "dot/transposed a": (lambda F, x, y: F.dot(x, y, transpose_a=True), lambda x, y: x.T @ y, [X, Y]),
    "dot/vectors": (lambda F, x: F.dot(x, x), lambda x: (x @ x).reshape(1), [VECTOR]),
    "batch_dot": (
        lambda F, x: F.batch_dot(x, x, transpose_b=True), lambda x: np.einsum("bij,bkj->bik", x, x), [CUBE],
    ),
    "batch_dot/a": (
        lambda F, x: F.batch_dot(x, x, transpose_a=True), lambda x: np.einsum("bji,bjk->bik", x, x), [CUBE],
    ),
    "FullyConnected": (
        lambda F, x, w, b: F.FullyConnected(x, w, b, num_hidden=3), lambda x, w, b: x @ w.T + b, [X, Y, VECTOR[:3]],
    ),
    "FullyConnected/no bias": (
        lambda F, x, w: F.FullyConnected(x, w, num_hidden=2, no_bias=True, flatten=True),
        lambda x, w: x.reshape(2, 12) @ w.reshape(2, 12).T,
        [CUBE, CUBE.reshape(2, 12)[::-1].copy()],
    ),
    "L2Normalization": (
        lambda F, x: F.L2Normalization(x, mode="instance"),
        lambda x: x / np.sqrt((x**2).sum(axis=1, keepdims=True) + 1e-10),
        [X],
    ),
    "L2Normalization/eps": (
        lambda F, x: F.L2Normalization(x, eps=0.5), lambda x: x / np.sqrt((x**2).sum((1, 2), keepdims=True) + 0.5),
        [CUBE],
    ),
    # shapes
    "reshape": (lambda F, x: F.reshape(x, shape=(-1,)), lambda x: x.reshape(-1), [CUBE]),
    "reshape/keep": (lambda F, x: F.reshape(x, shape=(0, 2, -1)), lambda x: x.reshape(2, 2, 6), [CUBE]),
    "reshape/rest": (lambda F, x: F.reshape(x, shape=(1, -2)), lambda x: x.reshape(1, 3, 4), [CUBE[:1]]),
    "reshape/join": (lambda F, x: F.reshape(x, shape=(-3, 0)), lambda x: x.reshape(6, 4), [CUBE]),
    "reshape/join later": (lambda F, x: F.reshape(x, shape=(0, -3)), lambda x: x.reshape(2, 12), [CUBE]),
    "reshape/split": (lambda F, x: F.reshape(x, shape=(0, 0, -4, -1, 2)), lambda x: x.reshape(2, 3, 2, 2), [CUBE]),
    "reshape/split first": (
        lambda F, x: F.reshape(x, shape=(-4, 3, 2, -2)), lambda x: x.reshape(3, 2, 2), [CUBE.reshape(6, 4)[:, :2]],
    ),
    "flatten": (lambda F, x: F.flatten(x), lambda x: x.reshape(2, 12), [CUBE]),
    "expand_dims": (lambda F, x: F.expand_dims(x, axis=1), lambda x: x[:, None], [X]),
    "squeeze": (lambda F, x: F.squeeze(x, axis=1), lambda x: x[:, 0], [COLUMN]),
    "squeeze/all": (lambda F, x: F.squeeze(x), lambda x: x[0], [ROW]),
    "transpose": (lambda F, x: F.transpose(x, axes=(1, 2, 0)), lambda x: x.transpose(1, 2, 0), [CUBE]),
    "transpose/all": (lambda F, x: F.transpose(x), lambda x: x.transpose(), [CUBE]),
    "swapaxes": (lambda F, x: F.swapaxes(x, dim1=0, dim2=2), lambda x: x.swapaxes(0, 2), [CUBE]),
    "concat": (lambda F, x, y: F.concat(x, y, dim=0), lambda x, y: np.concatenate([x, y]), [X, Y[:2]]),
    "concat/1": (lambda F, x, y: F.concat(x, y), lambda x, y: np.concatenate([x, y], axis=1), [X, COLUMN]),
    "stack": (lambda F, x, y: F.stack(x, y, axis=1), lambda x, y: np.stack([x, y], axis=1), [X, Y]),
    "split": (
        lambda F, x: F.split(x, num_outputs=2)[1], lambda x: x[:, 2:], [X],
    ),
    "split/squeeze": (
        lambda F, x: F.split(x, num_outputs=3, axis=0, squeeze_axis=True)[2], lambda x: x[2], [X],
    ),
    "slice_axis": (lambda F, x: F.slice_axis(x, axis=1, begin=1, end=3), lambda x: x[:, 1:3], [X]),
    "slice_axis/ends": (lambda F, x: F.slice_axis(x, axis=-1, begin=-3, end=-1), lambda x: x[:, -3:-1], [X]),
    "slice_axis/rest": (lambda F, x: F.slice_axis(x, axis=0, begin=1, end=None), lambda x: x[1:], [X]),
    "flip": (lambda F, x: F.flip(x, axis=1), lambda x: x[:, ::-1], [X]),
    "tile": (lambda F, x: F.tile(x, reps=(2, 3)), lambda x: np.tile(x, (2, 3)), [X]),
    "repeat": (lambda F, x: F.repeat(x, repeats=2, axis=0), lambda x: x.repeat(2, axis=0), [X]),
    "repeat/all": (lambda F, x: F.repeat(x, repeats=2), lambda x: x.repeat(2), [X]),
    "broadcast_to": (lambda F, x: F.broadcast_to(x, shape=(3, 0)), lambda x: np.repeat(x, 3, 0), [ROW]),
    "broadcast_like": (lambda F, x, y: F.broadcast_like(x, y), lambda x, y: np.repeat(x, 3, 0), [ROW, X]),
    # choosing
    "take": (
        lambda F, x, i: F.take(x, i), lambda x, i: np.stack([x[min(int(j), 2)] for j in i]), [X, INDEX],
    ),
    "take/axis": (
        lambda F, x, i: F.take(x, i, axis=1), lambda x, i: np.stack([x[:, min(int(j), 3)] for j in i], 1), [X, INDEX],
    ),
    "pick": (lambda F, x, i: F.pick(x, i), lambda x, i: pick_loops(x, i, 1), [X, INDEX]),
    "pick/axis": (
        lambda F, x, i: F.pick(x, i, axis=0), lambda x, i: pick_loops(x, i, 0), [X, COLUMNS],
    ),
    "pick/keepdims": (
        lambda F, x, i: F.pick(x, i, axis=1, keepdims=True), lambda x, i: pick_loops(x, i, 1)[:, None], [X, INDEX],
    ),
    "one_hot": (lambda F, i: F.one_hot(i, depth=4), lambda i: one_hot_loops(i, 4), [INDEX]),
    "one_hot/values": (
        lambda F, i: F.one_hot(i, depth=4, on_value=0.35, off_value=-2), lambda i: one_hot_loops(i, 4, 0.35, -2),
        [INDEX],
    ),
    "argmax": (lambda F, x: F.argmax(x, axis=1), lambda x: x.argmax(axis=1).astype(float), [EQUAL]),
    "argmax/vector": (lambda F, x: F.argmax(x, axis=0), lambda x: x.argmax().reshape(1).astype(float), [VECTOR]),
    "argmax/keepdims": (
        lambda F, x: F.argmax(x, axis=0, keepdims=True), lambda x: x.argmax(axis=0)[None].astype(float), [X],
    ),
    "argmin": (lambda F, x: F.argmin(x, axis=1), lambda x: x.argmin(axis=1).astype(float), [EQUAL]),
    "topk": (
        lambda F, x: F.topk(x, axis=1, k=2, ret_typ="value"), lambda x: -np.sort(-x, axis=1)[:, :2], [X],
    ),
    "topk/indices": (
        lambda F, x: F.topk(x, axis=0, k=2), lambda x: np.argsort(-x, axis=0)[:2].astype(float), [X],
    ),
    "topk/both": (lambda F, x: F.topk(x, k=3, ret_typ="both")[0], lambda x: -np.sort(-x, axis=1)[:, :3], [X]),
    "topk/smallest": (
        lambda F, x: F.topk(x, k=2, ret_typ="value", is_ascend=True), lambda x: np.sort(x, axis=1)[:, :2], [X],
    ),
    "sort": (lambda F, x: F.sort(x, axis=0), lambda x: np.sort(x, axis=0), [X]),
    "sort/down": (lambda F, x: F.sort(x, axis=1, is_ascend=False), lambda x: -np.sort(-x, axis=1), [X]),
    "argsort": (lambda F, x: F.argsort(x, axis=1), lambda x: np.argsort(x, axis=1).astype(float), [X]),
    "argsort/down": (
        lambda F, x: F.argsort(x, axis=1, is_ascend=False), lambda x: np.argsort(-x, axis=1).astype(float), [X],
    ),
    # from nothing
    "arange": (lambda F, x: x * F.arange(4), lambda x: x * np.arange(4), [ROW]),
    "arange/steps": (
        lambda F, x: F.broadcast_add(x, F.reshape(F.arange(-3, 4, 2), shape=(1, 4))),
        lambda x: x + np.arange(-3, 4, 2), [X],
    ),
    "zeros": (lambda F, x: x + F.zeros((3, 4)), lambda x: x, [X]),
    "ones": (lambda F, x: x + F.ones(5), lambda x: x + 1, [VECTOR]),
    "eye": (lambda F, x: F.dot(F.eye(3), x), lambda x: x, [X]),
    "zeros_like": (lambda F, x: x + F.zeros_like(x), lambda x: x, [X]),
    "ones_like": (lambda F, x: x + F.ones_like(x), lambda x: x + 1, [X]),
    "contrib.arange_like": (lambda F, x: x * F.contrib.arange_like(x), lambda x: x * np.arange(5), [VECTOR]),
    "contrib.arange_like/axis": (
        lambda F, x: F.contrib.arange_like(x, start=1, step=2, axis=1), lambda x: np.array([1.0, 3, 5, 7]), [X],
    ),
    # Python's operators and methods
    "+": (lambda F, x, y: 1 + x + y + 2, lambda x, y: x + y + 3, [X, Y]),
    "-": (lambda F, x, y: 1 - x - y - 2, lambda x, y: -1 - x - y, [X, Y]),
    "*": (lambda F, x, y: 2 * x * y * 3, lambda x, y: 6 * x * y, [X, Y]),
    "/": (lambda F, x, y: 1 / x / y / 3, lambda x, y: 1 / (3 * x * y), [X, Y]),
    "**": (lambda F, x: x**2 + 2**x, lambda x: x**2 + 2**x, [X]),
    "%": (lambda F, x: x % 0.7, lambda x: np.mod(x, 0.7), [X]),
    "neg": (lambda F, x: -x, lambda x: -x, [X]),
    "abs()": (lambda F, x: abs(x), abs, [X]),
    "of NumPy numbers": (lambda F, x: x * np.float64(2) + np.float64(0.5) * x, lambda x: x * 2.5, [X]),
    "<": (lambda F, x: 1 - (x < 2), lambda x: 1.0 - (x < 2), [EQUAL]),
    "<=": (lambda F, x: 1 - (x <= 2), lambda x: 1.0 - (x <= 2), [EQUAL]),
    ">": (lambda F, x: (x > 2) * x, lambda x: (x > 2) * x, [EQUAL]),
    ">=": (lambda F, x: (x >= 2) * x, lambda x: (x >= 2) * x, [EQUAL]),
    "==": (lambda F, x: (x == 2) * x, lambda x: (x == 2) * x, [EQUAL]),
    "!=": (lambda F, x, y: (x != y) * x, lambda x, y: (x != y) * x, [EQUAL, EQUAL[::-1].copy()]),
    "methods": (
        lambda F, x: x.reshape((4, 3)).sum(axis=1, keepdims=True).square().expand_dims(axis=0).astype("float32"),
        lambda x: (x.reshape(4, 3).sum(axis=1, keepdims=True) ** 2)[None], [X],
    ),
    "reshape of numbers": (lambda F, x: x.reshape(4, -1), lambda x: x.reshape(4, 3), [X]),
}  # fmt: skip

#: Where a finite difference says nothing: kinks and ties on purpose, blocked gradients, whole numbers.
SMOOTH = [
    case
    for case, (_, _, arrays) in CASES.items()
    if not any(array is EQUAL for array in arrays) and case not in ("BlockGrad", "stop_gradient", "Cast/int")
]


def in_torch(call, arrays, dtype=torch.float64):
    """(value, gradients of a weighted sum of it, None where there is none)."""
    tensors = [torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays]
    F = Functions.like(tensors[0])
    found = call(F, *(F.array(tensor) for tensor in tensors))
    assert isinstance(found, Array)
    assert found.tensor.dtype == dtype
    if found.tensor.requires_grad:
        (found.tensor * weights(found.tensor.shape, dtype)).sum().backward()
    return found.tensor.detach().numpy(), [None if t.grad is None else t.grad.numpy() for t in tensors]


def weights(shape, dtype):
    return torch.tensor(np.cos(np.arange(1, 1 + math.prod(shape))).reshape(shape), dtype=dtype)


@pytest.mark.parametrize("case", CASES)
def test_values_are_numpys(case):
    call, oracle, arrays = CASES[case]
    expected = np.asarray(oracle(*arrays), np.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        found = in_torch(call, arrays, dtype)[0]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", SMOOTH)
def test_gradients_are_those_of_finite_differences(case):
    call, oracle, arrays = CASES[case]
    _, gradients = in_torch(call, arrays)
    step = 1e-6
    for which, gradient in enumerate(gradients):
        if arrays[which] is INDEX or arrays[which] is COLUMNS:
            assert gradient is None
            continue
        for place in np.ndindex(arrays[which].shape):
            ends = []
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[which][place] += sign * step
                value = np.asarray(oracle(*moved), np.float64)
                ends.append((value * weights(value.shape, torch.float64).numpy()).sum())
            found = 0.0 if gradient is None else gradient[place]
            assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-6), (
                which,
                place,
            )


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_mxnets(mx, case):
    call, _, arrays = CASES[case]
    given = [mx.nd.array(array) for array in arrays]
    for array in given:
        array.attach_grad()
    with mx.autograd.record():
        expected = call(mx.nd, *given)
        total = (expected * mx.nd.array(weights(expected.shape, torch.float32).numpy())).sum()
    found, gradients = in_torch(call, arrays, torch.float32)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected.asnumpy(), rtol=1e-5, atol=1e-5)
    total.backward()
    for array, gradient in zip(given, gradients, strict=True):
        gradient = np.zeros(array.shape) if gradient is None else gradient
        np.testing.assert_allclose(gradient, array.grad.asnumpy(), rtol=1e-4, atol=1e-5)


def test_every_operator_has_a_case():
    assert set(operators()) <= {case.split("/")[0] for case in CASES}
    assert "topk" in operators()
    assert "array" not in operators()


@pytest.mark.parametrize("largest", [True, False])
def test_each_of_several_extremes_gets_the_whole_gradient(largest):
    x = torch.tensor([[1.0, 3.0, 3.0, 1.0]], requires_grad=True)
    F = Functions.like(x)
    (F.max if largest else F.min)(F.array(x), axis=1).tensor.sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 0] if largest else [1, 0, 0, 1]]


def test_nan_goes_on():
    x = torch.tensor([[1.0, math.nan, 3.0], [2.0, 0.0, 1.0]])
    F = Functions.like(x)
    a = F.array(x)
    for found in (
        F.max(a, axis=1), F.min(a, axis=1), F.sum(a, axis=1), F.pick(a, F.argmax(a, axis=1), axis=1),
        F.slice_axis(F.topk(a, k=1, ret_typ="value"), axis=1, begin=0, end=1),
    ):  # fmt: skip
        values = found.tensor.reshape(-1)
        assert math.isnan(values[0])
        assert not math.isnan(values[1])
    for found in (F.maximum(a, 2), F.minimum(a, 2), F.broadcast_maximum(F.ones_like(a), a)):
        assert found.tensor.isnan().tolist() == x.isnan().tolist()
    assert (a < 2).tensor.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_the_dtype_is_float32_at_least_and_that_of_a_double():
    for dtype, expected in (
        (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32),
        (torch.float64, torch.float64), (torch.int64, torch.float32),
    ):  # fmt: skip
        F = Functions.like(torch.ones(2, dtype=dtype))
        x = F.array(torch.ones(2, dtype=dtype))
        for found in (
            x,
            F.Cast(x, dtype="float32"),
            x.astype("float16"),
            x.astype(np.float32),
            F.arange(3),
            x > 0,
            F.one_hot(x, depth=2),
        ):
            assert found.tensor.dtype == expected
        for name in ("int32", np.int32, np.dtype("int32"), torch.int32):
            assert F.Cast(x, dtype=name).tensor.dtype == torch.int32


def test_arrays_from_nothing_are_on_the_device_of_the_rest():
    F = Functions.like(torch.empty(2, device="meta"))
    x = F.array(torch.empty(2, 2, device="meta"))
    for found in (
        F.arange(3),
        F.zeros((2,)),
        F.ones(2),
        F.eye(2),
        F.one_hot(x, depth=3),
        F.contrib.arange_like(x),
    ):
        assert found.tensor.device.type == "meta"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda F, x: F.reshape(x, shape=(-4, 2, 2, -2)), "an axis of 3 cannot be split into 2 x 2"),
        (lambda F, x: F.reshape(x, shape=(-4, 2, -1, -2)), "an axis of 3 cannot be split into 2 x 1"),
        (lambda F, x: F.slice_axis(x, axis=0, begin=1, end=4), "rows 1 to 4 of an axis of 3"),
        (lambda F, x: F.dot(x, x), r"dot: shapes \(3, 4\) and \(3, 4\)"),
        (lambda F, x: F.split(x, num_outputs=2, axis=0), "an axis of 3 cannot be split into 2 equal parts"),
        (lambda F, x: F.sum(x, axis=2), "axis 2 of an array with 2 axes"),
        (lambda F, x: F.squeeze(x, axis=0), r"axis 0 of \(3, 4\) is not of length 1"),
        (
            lambda F, x: F.topk(x, ret_typ="mask"),
            "ret_typ: expected 'value', 'indices' or 'both', got 'mask'",
        ),
        (lambda F, x: F.Activation(x, act_type="gelu"), "act_type: expected one of relu, .* got 'gelu'"),
        (lambda F, x: F.L2Normalization(x, mode="channel"), "mode: expected 'instance', got 'channel'"),
        (lambda F, x: F.Cast(x, dtype="float31"), "expected a dtype such as 'float32', got 'float31'"),
        (
            lambda F, x: F.FullyConnected(x, x, num_hidden=5, no_bias=True),
            "expected a weight of 5 rows, got 3",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    x = torch.tensor(X)
    F = Functions.like(x)
    with pytest.raises(ValueError, match=message):
        call(F, F.array(x))


def test_an_operator_that_is_missing_is_named():
    x = torch.tensor(X)
    F = Functions.like(x)
    with pytest.raises(
        AttributeError, match=r"F\.broadcast_divide is not among .*did you mean F\.broadcast_div\?"
    ):
        F.broadcast_divide(F.array(x), F.array(x))
    with pytest.raises(AttributeError, match=r"F\.Convolution is not among .*; write it with those"):
        F.Convolution(F.array(x))
    with pytest.raises(AttributeError, match=r"F\.smooth_l1 is not among"):
        F.array(x).smooth_l1()
    with pytest.raises(
        AttributeError, match=r"F\.contrib\.arrange_like is .*did you mean F\.contrib\.arange_like\?"
    ):
        F.contrib.arrange_like(F.array(x))
    assert not hasattr(F, "Convolution")


def test_a_loss_may_not_look_at_values():
    x = torch.tensor(X)
    a = Functions.like(x).array(x)
    with pytest.raises(TypeError, match="may not branch on the values"):
        bool(a > 0)
    with pytest.raises(TypeError):
        hash(a)
    assert "tensor" in repr(a)
