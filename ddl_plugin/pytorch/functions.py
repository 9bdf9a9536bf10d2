"""MXNet's operators over torch tensors: the `F` with which the losses of `ddl_plugin.loss` run in PyTorch.

One source of the maths serves both hosts. Names, arguments, shapes and gradients are MXNet's: there is no array
without an axis (a full sum is (1,)), a comparison gives 0 and 1, and of equal maxima each gets the whole gradient.
No operator waits for the device.
"""

# ruff: noqa: N802 (the names are MXNet's)

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from ddl_plugin.pytorch.array import Array, plain
from ddl_plugin.pytorch.precision import without_autocast
from ddl_plugin.pytorch.torch_setup import torch

Axis = int | Sequence[int] | None


class _Extreme(torch.autograd.Function):
    """max or min over axes, kept with length 1; each of several equal extremes gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axes: tuple[int, ...], largest: bool) -> torch.Tensor:
        found = torch.amax(x, axes, keepdim=True) if largest else torch.amin(x, axes, keepdim=True)
        ctx.save_for_backward(x, found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, found = ctx.saved_tensors
        return gradient * (x == found), None, None


class _Product(torch.autograd.Function):
    """a b of matrices, or of as many of both, without autocast in either direction.

    A compiler traces the gradient under the caller's autocast, which would round it to bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        with without_autocast(a):
            return torch.matmul(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = ctx.saved_tensors
        with without_autocast(a):
            return torch.matmul(gradient, b.transpose(-2, -1)), torch.matmul(a.transpose(-2, -1), gradient)


def _axes(x: torch.Tensor, axis: Axis, exclude: bool = False) -> tuple[int, ...]:
    """The axes that are meant, from 0 on."""
    if axis is None or axis == ():
        return tuple(range(x.dim()))
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    for one in given:
        if not -x.dim() <= one < x.dim():
            raise ValueError(f"axis {one} of an array with {x.dim()} axes")
    given = tuple(one % x.dim() for one in given)
    return tuple(one for one in range(x.dim()) if one not in given) if exclude else given


def _with_an_axis(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(1) if x.dim() == 0 else x


def _dropped(x: torch.Tensor, axes: tuple[int, ...], keepdims: bool) -> torch.Tensor:
    """`x`, whose `axes` have length 1, without them."""
    if keepdims:
        return x
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes] or [1])


def _resolved_shape(old: Sequence[int], codes: Sequence[int]) -> list[int]:
    """The shape that MXNet's codes ask for; at most one -1 is left in it.

    0 keeps an axis, -1 is what is left over, -2 keeps all further axes, -3 joins two, -4 splits one into the next two.
    """
    new, at, codes = [], 0, list(codes)
    while codes:
        code = codes.pop(0)
        if code == -2:
            new += old[at:]
            at = len(old)
        elif code == -3:
            new.append(old[at] * old[at + 1])
            at += 2
        elif code == -4:
            parts = [codes.pop(0), codes.pop(0)]
            if -1 in parts:
                known = parts[1 - parts.index(-1)]
                parts[parts.index(-1)] = old[at] // known
            if parts[0] * parts[1] != old[at]:
                raise ValueError(f"an axis of {old[at]} cannot be split into {parts[0]} x {parts[1]}")
            new += parts
            at += 1
        else:
            new.append(old[at] if code == 0 else code)
            at += 1
    return new


class _Contrib:
    """F.contrib."""

    def __init__(self, functions: Functions):
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, f"contrib.{name}")  # which has none of that name, and says so

    def arange_like(
        self, data: Array, start: float = 0.0, step: float = 1.0, axis: int | None = None
    ) -> Array:
        """start, start + step, ... in the shape of `data`, or (length of `axis`,)."""
        F, x = self._functions, data.tensor
        count = x.numel() if axis is None else x.shape[axis]
        values = start + step * torch.arange(count, dtype=F.dtype, device=F.device)
        return Array(F, values.reshape(x.shape) if axis is None else values)


class Functions:
    """The operators on one device, in one floating dtype: float32, or float64 where that is what came in.

    Arrays in and out are `Array`. An operator that is not here raises `AttributeError` with its name, which
    `loss.registered.build_checked` turns into a `UserError` with the loss.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype = dtype
        self.device = device
        self.contrib = _Contrib(self)

    @classmethod
    def like(cls, tensor: torch.Tensor) -> Functions:
        """On the device of `tensor`, at its precision but float32 at least."""
        return cls(torch.float64 if tensor.dtype == torch.float64 else torch.float32, tensor.device)

    def array(self, tensor: torch.Tensor) -> Array:
        """`tensor` as an argument of these operators: in their dtype, as MXNet's labels are floats too."""
        return Array(self, _with_an_axis(tensor.to(self.dtype)))

    def __getattr__(self, name: str) -> Any:
        near = difflib.get_close_matches(name, operators(), n=1)
        raise AttributeError(
            f"F.{name} is not among the operators of MXNet that ddl_plugin/pytorch/functions.py has"
            + (f"; did you mean F.{near[0]}?" if near else "; write it with those")
        )

    # -- what is not arithmetic ---------------------------------------------------------------------

    def BlockGrad(self, data: Array) -> Array:
        return Array(self, data.tensor.detach())

    stop_gradient = BlockGrad

    def identity(self, data: Array) -> Array:
        return data

    def Cast(self, data: Array, dtype: Any) -> Array:
        """To a whole-number dtype, or, whichever floating one is asked for, to that of these operators."""
        name = dtype.__name__ if isinstance(dtype, type) else str(dtype).rpartition(".")[2]  # np.float32
        wanted = getattr(torch, name, None)
        if not isinstance(wanted, torch.dtype):
            raise ValueError(f"expected a dtype such as 'float32', got {dtype!r}")
        return Array(self, data.tensor.to(self.dtype if wanted.is_floating_point else wanted))

    cast = Cast

    # -- arrays from nothing ------------------------------------------------------------------------

    def arange(self, start: float, stop: float | None = None, step: float = 1.0) -> Array:
        start, stop = (0, start) if stop is None else (start, stop)
        return Array(self, torch.arange(start, stop, step, dtype=self.dtype, device=self.device))

    def zeros(self, shape: int | Sequence[int]) -> Array:
        return Array(self, torch.zeros(shape, dtype=self.dtype, device=self.device))

    def ones(self, shape: int | Sequence[int]) -> Array:
        return Array(self, torch.ones(shape, dtype=self.dtype, device=self.device))

    def eye(self, N: int) -> Array:
        return Array(self, torch.eye(N, dtype=self.dtype, device=self.device))

    def zeros_like(self, data: Array) -> Array:
        return Array(self, torch.zeros_like(data.tensor))

    def ones_like(self, data: Array) -> Array:
        return Array(self, torch.ones_like(data.tensor))

    # -- shapes -------------------------------------------------------------------------------------

    def reshape(self, data: Array, *sizes: Any, shape: Sequence[int] | None = None) -> Array:
        """With MXNet's codes: 0 keeps an axis, -1 infers, -2 keeps the rest, -3 joins two, -4 splits one in two."""
        if shape is None:
            shape = sizes if sizes and isinstance(sizes[0], int) else sizes[0]
        return Array(self, data.tensor.reshape(_resolved_shape(data.tensor.shape, shape)))

    def flatten(self, data: Array) -> Array:
        return Array(self, data.tensor.reshape(data.tensor.shape[0], -1))

    def expand_dims(self, data: Array, axis: int) -> Array:
        return Array(self, data.tensor.unsqueeze(axis))

    def squeeze(self, data: Array, axis: Axis = None) -> Array:
        x = data.tensor
        axes = [a for a in _axes(x, axis) if axis is not None or x.shape[a] == 1]
        if any(x.shape[a] != 1 for a in axes):
            raise ValueError(f"axis {axis} of {tuple(x.shape)} is not of length 1")
        return Array(self, _dropped(x, tuple(axes), False))

    def transpose(self, data: Array, axes: Sequence[int] | None = None) -> Array:
        return Array(self, data.tensor.permute(tuple(axes or reversed(range(data.tensor.dim())))))

    def swapaxes(self, data: Array, dim1: int = 0, dim2: int = 0) -> Array:
        return Array(self, data.tensor.transpose(dim1, dim2))

    def concat(self, *data: Array, dim: int = 1) -> Array:
        return Array(self, torch.cat([one.tensor for one in data], dim))

    def stack(self, *data: Array, axis: int = 0) -> Array:
        return Array(self, torch.stack([one.tensor for one in data], axis))

    def split(
        self, data: Array, num_outputs: int, axis: int = 1, squeeze_axis: bool = False
    ) -> Array | list[Array]:
        """Equal parts along `axis`; a list unless it is one."""
        if data.tensor.shape[axis] % num_outputs:
            raise ValueError(
                f"an axis of {data.tensor.shape[axis]} cannot be split into {num_outputs} equal parts"
            )
        parts = data.tensor.chunk(num_outputs, axis)
        arrays = [Array(self, part.squeeze(axis) if squeeze_axis else part) for part in parts]
        return arrays if num_outputs > 1 else arrays[0]

    def slice_axis(self, data: Array, axis: int, begin: int, end: int | None) -> Array:
        size = data.tensor.shape[axis]
        begin = begin + size if begin < 0 else begin
        end = size if end is None else end + size if end < 0 else end
        if not 0 <= begin < end <= size:
            raise ValueError(f"rows {begin} to {end} of an axis of {size}")
        return Array(self, data.tensor.narrow(axis, begin, end - begin))

    def flip(self, data: Array, axis: int | Sequence[int]) -> Array:
        return Array(self, data.tensor.flip(_axes(data.tensor, axis)))

    def tile(self, data: Array, reps: int | Sequence[int]) -> Array:
        return Array(self, data.tensor.tile((reps,) if isinstance(reps, int) else tuple(reps)))

    def repeat(self, data: Array, repeats: int, axis: int | None = None) -> Array:
        return Array(self, data.tensor.repeat_interleave(repeats, axis))

    def broadcast_to(self, data: Array, shape: Sequence[int]) -> Array:
        sizes = [old if new == 0 else new for old, new in zip(data.tensor.shape, shape, strict=True)]
        return Array(self, data.tensor.expand(sizes))

    def broadcast_like(self, lhs: Array, rhs: Array) -> Array:
        return Array(self, lhs.tensor.expand(rhs.tensor.shape))

    # -- choosing -----------------------------------------------------------------------------------

    def take(self, a: Array, indices: Array, axis: int = 0) -> Array:
        """a[indices] along `axis`; a number outside is the nearest inside."""
        x, index = a.tensor, indices.tensor.long().clamp(0, a.tensor.shape[axis] - 1)
        axis = axis % x.dim()
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        return Array(self, x.index_select(axis, index.reshape(-1)).reshape(shape))

    def pick(self, data: Array, index: Array, axis: int = -1, keepdims: bool = False) -> Array:
        """One element along `axis`; a number outside is the nearest inside."""
        x, axis = data.tensor, axis % data.tensor.dim()
        sizes = [*x.shape[:axis], 1, *x.shape[axis + 1 :]]
        place = index.tensor.long().clamp(0, x.shape[axis] - 1).reshape(sizes)
        return Array(self, _dropped(x.gather(axis, place), (axis,), keepdims))

    def one_hot(self, indices: Array, depth: int, on_value: float = 1.0, off_value: float = 0.0) -> Array:
        """`on_value` at the index, `off_value` elsewhere; only that where the index is outside."""
        places = torch.arange(depth, device=self.device)
        hit = (indices.tensor.long().unsqueeze(-1) == places).to(self.dtype)
        if (on_value, off_value) != (1.0, 0.0):
            hit = hit * (on_value - off_value) + off_value
        return Array(self, hit)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return Array(self, torch.where(condition.tensor != 0, x.tensor, y.tensor))

    def clip(self, data: Array, a_min: float, a_max: float) -> Array:
        # clamp() has a gradient at the ends in some versions of PyTorch and none in others: MXNet's has.
        x = data.tensor
        return Array(self, torch.where((x >= a_min) & (x <= a_max), x, x.detach().clamp(a_min, a_max)))

    def argmax(self, data: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        """The first of the largest, as a float. NaN is the largest."""
        return self._place(torch.argmax, data.tensor, axis, keepdims)

    def argmin(self, data: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        """The first of the smallest, as a float. NaN is the smallest."""
        return self._place(torch.argmin, data.tensor, axis, keepdims)

    def _place(
        self, find: Callable[..., torch.Tensor], x: torch.Tensor, axis: int | None, keep: bool
    ) -> Array:
        return Array(self, _with_an_axis(find(x, axis, keepdim=keep and axis is not None)).to(self.dtype))

    def topk(
        self, data: Array, axis: int = -1, k: int = 1, ret_typ: str = "indices", is_ascend: bool = False
    ) -> Array | list[Array]:
        """The k largest (`is_ascend`: smallest) along `axis` in order: 'value', 'indices' (floats) or 'both'."""
        value, index = torch.topk(data.tensor, k, axis, largest=not is_ascend, sorted=True)
        found = {"value": Array(self, value), "indices": Array(self, index.to(self.dtype))}
        if ret_typ == "both":
            return list(found.values())
        if ret_typ not in found:
            raise ValueError(f"topk: ret_typ: expected 'value', 'indices' or 'both', got {ret_typ!r}")
        return found[ret_typ]

    def sort(self, data: Array, axis: int = -1, is_ascend: bool = True) -> Array:
        return Array(self, torch.sort(data.tensor, axis, descending=not is_ascend)[0])

    def argsort(self, data: Array, axis: int = -1, is_ascend: bool = True) -> Array:
        """Indices that sort `data`, as floats; equal elements keep their order."""
        index = torch.sort(data.tensor, dim=axis, descending=not is_ascend, stable=True)[1]
        return Array(self, index.to(self.dtype))

    # -- sums ---------------------------------------------------------------------------------------

    def sum(self, data: Array, axis: Axis = None, keepdims: bool = False, exclude: bool = False) -> Array:
        found = data.tensor.sum(_axes(data.tensor, axis, exclude), keepdim=keepdims)
        return Array(self, _with_an_axis(found))

    def mean(self, data: Array, axis: Axis = None, keepdims: bool = False, exclude: bool = False) -> Array:
        found = data.tensor.mean(_axes(data.tensor, axis, exclude), keepdim=keepdims)
        return Array(self, _with_an_axis(found))

    def max(self, data: Array, axis: Axis = None, keepdims: bool = False, exclude: bool = False) -> Array:
        return self._extreme(data.tensor, _axes(data.tensor, axis, exclude), keepdims, True)

    def min(self, data: Array, axis: Axis = None, keepdims: bool = False, exclude: bool = False) -> Array:
        return self._extreme(data.tensor, _axes(data.tensor, axis, exclude), keepdims, False)

    def _extreme(self, x: torch.Tensor, axes: tuple[int, ...], keepdims: bool, largest: bool) -> Array:
        return Array(self, _dropped(_Extreme.apply(x, axes, largest), axes, keepdims))

    def norm(self, data: Array, ord: int = 2, axis: Axis = None, keepdims: bool = False) -> Array:
        """Sum of |x| (`ord` 1) or the Euclidean length (2)."""
        axes = _axes(data.tensor, axis)
        return Array(self, _with_an_axis(torch.linalg.vector_norm(data.tensor, ord, axes, keepdims)))

    def cumsum(self, a: Array, axis: int | None = None) -> Array:
        return Array(self, a.tensor.reshape(-1).cumsum(0) if axis is None else a.tensor.cumsum(axis))

    def add_n(self, *data: Array) -> Array:
        total = data[0].tensor
        for one in data[1:]:
            total = total + one.tensor
        return Array(self, total)

    # -- products -----------------------------------------------------------------------------------

    def dot(self, lhs: Array, rhs: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
        """The last axis of `lhs` with the first of `rhs`, of matrices also transposed."""
        a = lhs.tensor.t() if transpose_a else lhs.tensor
        b = rhs.tensor.t() if transpose_b else rhs.tensor
        if a.shape[-1] != b.shape[0]:
            raise ValueError(f"dot: shapes {tuple(a.shape)} and {tuple(b.shape)}")
        found = _Product.apply(a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1))
        return Array(self, found.reshape([*a.shape[:-1], *b.shape[1:]] or [1]))

    def batch_dot(
        self, lhs: Array, rhs: Array, transpose_a: bool = False, transpose_b: bool = False
    ) -> Array:
        a = lhs.tensor.transpose(-2, -1) if transpose_a else lhs.tensor
        b = rhs.tensor.transpose(-2, -1) if transpose_b else rhs.tensor
        return Array(self, _Product.apply(a, b))

    def FullyConnected(
        self,
        data: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        num_hidden: int,
        no_bias: bool = False,
        flatten: bool = True,
    ) -> Array:
        """data weight^T + bias: (n, D), (num_hidden, D), (num_hidden,) -> (n, num_hidden)."""
        if weight.tensor.shape[0] != num_hidden:
            raise ValueError(f"expected a weight of {num_hidden} rows, got {weight.tensor.shape[0]}")
        x = data.tensor.reshape(data.tensor.shape[0], -1) if flatten else data.tensor
        found = self.dot(Array(self, x), weight, transpose_b=True)
        return found if no_bias else found + bias

    def L2Normalization(self, data: Array, eps: float = 1e-10, mode: str = "instance") -> Array:
        """Each row divided by sqrt(eps + its sum of squares)."""
        if mode != "instance":
            raise ValueError(f"L2Normalization: mode: expected 'instance', got {mode!r}")
        axes = tuple(range(1, data.tensor.dim()))
        return Array(self, data.tensor / (data.tensor.square().sum(axes, keepdim=True) + eps).sqrt())

    # -- activations --------------------------------------------------------------------------------

    def Activation(self, data: Array, act_type: str) -> Array:
        if act_type == "softrelu":
            # torch's softplus is x itself above 20, off by 2e-9 there.
            return Array(self, torch.logaddexp(data.tensor, torch.zeros_like(data.tensor)))
        known = ("relu", "sigmoid", "tanh", "softrelu")
        if act_type not in known:
            raise ValueError(f"Activation: act_type: expected one of {', '.join(known)}, got {act_type!r}")
        return getattr(self, act_type)(data)

    def softmax(self, data: Array, axis: int = -1) -> Array:
        return Array(self, data.tensor.softmax(axis))

    def log_softmax(self, data: Array, axis: int = -1) -> Array:
        return Array(self, data.tensor.log_softmax(axis))

    # -- the larger and the smaller of two ----------------------------------------------------------

    def maximum(self, lhs: Any, rhs: Any) -> Array:
        """Element by element; of two equal ones the first array has the gradient. NaN goes on."""
        return self._of_two(lhs, rhs, torch.ge)

    def minimum(self, lhs: Any, rhs: Any) -> Array:
        """Element by element; of two equal ones the first array has the gradient. NaN goes on."""
        return self._of_two(lhs, rhs, torch.le)

    broadcast_maximum, broadcast_minimum = maximum, minimum

    def _of_two(self, lhs: Any, rhs: Any, compare: Callable[..., torch.Tensor]) -> Array:
        if not isinstance(lhs, Array):
            lhs, rhs = rhs, lhs
        a, b = lhs.tensor, plain(rhs)
        return Array(self, torch.where(compare(a, b) | a.isnan(), a, b))


def _elementwise(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Functions, Array], Array]:
    def operator(self: Functions, data: Array) -> Array:
        return Array(self, function(data.tensor))

    return operator


def _of_numbers(function: Callable[[Any, Any], Any]) -> Callable[[Functions, Any, Any], Array]:
    def operator(self: Functions, lhs: Any, rhs: Any) -> Array:
        return function(lhs, rhs)

    return operator


_ELEMENTWISE = {
    **{
        name: getattr(torch, name)
        for name in (
            "abs", "ceil", "cos", "erf", "exp", "expm1", "floor", "log", "log1p", "negative", "reciprocal",
            "relu", "rsqrt", "sigmoid", "sign", "sin", "sqrt", "square", "tanh",
        )
    },
    **{f"arc{name}": getattr(torch, f"a{name}") for name in ("cos", "sin", "tan")},
}  # fmt: skip

_TWO_ARRAYS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}

_BROADCAST = {
    **_TWO_ARRAYS,
    "power": lambda a, b: a**b,
    "mod": lambda a, b: a % b,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "lesser": lambda a, b: a < b,
    "lesser_equal": lambda a, b: a <= b,
}

for _name, _function in _ELEMENTWISE.items():
    setattr(Functions, _name, _elementwise(_function))
for _name, _function in _TWO_ARRAYS.items():
    setattr(Functions, f"elemwise_{_name}", _of_numbers(_function))
for _name, _function in _BROADCAST.items():
    setattr(Functions, f"broadcast_{_name}", _of_numbers(_function))
Functions.power = _of_numbers(_BROADCAST["power"])


def operators() -> list[str]:
    """Names of all operators, those of `F.contrib` too."""
    named = [name for name in vars(Functions) if not name.startswith("_") and name not in ("like", "array")]
    return sorted([*named, "contrib.arange_like"], key=str.lower)
