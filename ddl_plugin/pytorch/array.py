"""A torch tensor that behaves in Python's operators as an array of MXNet does.

A loss is written once over `F`: it says `1 - (x < 0)`, which is 0 and 1 in MXNet and an error of bool tensors in
PyTorch. The tensor stands in `.tensor`; nothing here copies it to the host, or asks for its values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ddl_plugin.pytorch.torch_setup import torch


class Array:
    """`tensor`, with the operators and, as methods, the functions of `functions` (a `Functions`).

    Comparisons give 0 and 1 in the dtype of what is computed, without gradient. Both sides are broadcast.
    """

    __array_ufunc__ = None  # a NumPy number on the left leaves the operator to this class
    __hash__ = None  # == compares elements

    def __init__(self, functions: Any, tensor: torch.Tensor):
        self.functions = functions
        self.tensor = tensor

    def __repr__(self) -> str:
        return f"Array({self.tensor!r})"

    def __bool__(self) -> bool:
        raise TypeError(
            "a loss may not branch on the values of an array: its graph is the same at every step"
        )

    def __getattr__(self, name: str) -> Callable[..., Array]:
        """x.sum(axis=1) is F.sum(x, axis=1), as MXNet's arrays have it."""
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(getattr(self.functions, name), self)

    def astype(self, dtype: Any) -> Array:
        return self.functions.Cast(self, dtype=dtype)

    def __neg__(self) -> Array:
        return Array(self.functions, -self.tensor)

    def __abs__(self) -> Array:
        return Array(self.functions, self.tensor.abs())


def plain(value: Any) -> Any:
    """The tensor of an `Array`; a number as it is."""
    return value.tensor if isinstance(value, Array) else value


def _arithmetic(operator: Callable[[Any, Any], Any]) -> Callable[[Array, Any], Array]:
    def method(self: Array, other: Any) -> Array:
        return Array(self.functions, operator(self.tensor, plain(other)))

    return method


def _reversed(operator: Callable[[Any, Any], Any]) -> Callable[[Array, Any], Array]:
    def method(self: Array, other: Any) -> Array:
        return Array(self.functions, operator(plain(other), self.tensor))

    return method


def _comparison(operator: Callable[[Any, Any], Any]) -> Callable[[Array, Any], Array]:
    def method(self: Array, other: Any) -> Array:
        return Array(self.functions, operator(self.tensor, plain(other)).to(self.functions.dtype))

    return method


for _name, _operator in {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "mod": lambda a, b: a % b,
}.items():
    setattr(Array, f"__{_name}__", _arithmetic(_operator))
    setattr(Array, f"__r{_name}__", _reversed(_operator))
for _name, _operator in {
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
}.items():
    setattr(Array, f"__{_name}__", _comparison(_operator))
