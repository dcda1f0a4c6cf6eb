"""What each operation of `OPS` does to tensors: ints in int64, floats in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spdsl.semantics.nodes import Dtype

DTYPES: dict[Dtype, torch.dtype] = {"bool": torch.bool, "int": torch.int64, "float": torch.float64}


def _isqrt(x: Tensor) -> Tensor:
    x = x.clamp(min=0)
    root = x.double().sqrt().long()
    # The float root of a large int may be off by one either way.
    root = torch.where(root * root > x, root - 1, root)
    return torch.where((root + 1) * (root + 1) <= x, root + 1, root)


def _is_pow2(x: Tensor) -> Tensor:
    return (x > 0) & ((x & (x - 1)) == 0)


def _bitlen(x: Tensor) -> Tensor:
    rest, bits = x.abs(), torch.zeros_like(x)
    for shift in (32, 16, 8, 4, 2, 1):
        more = rest >> shift > 0
        bits = torch.where(more, bits + shift, bits)
        rest = torch.where(more, rest >> shift, rest)
    return bits + rest


def _floordiv(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, torch.where(y == 0, 1, y), rounding_mode="floor")


def _mod(x: Tensor, y: Tensor) -> Tensor:
    return torch.remainder(x, torch.where(y == 0, 1, y))


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": _floordiv,
    "mod": _mod,
    "pow": torch.pow,
    "neg": torch.neg,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
    "isqrt": _isqrt,
    "is_pow2": _is_pow2,
    "bitlen": _bitlen,
    "floor": lambda x: torch.floor(x).long() if x.is_floating_point() else x,
    "ceil": lambda x: torch.ceil(x).long() if x.is_floating_point() else x,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "float": lambda x: x.double(),
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "where": torch.where,
}
"""A function for each name of `OPS`.  An int divided by zero gives some int: whoever asked reports it."""


def operate(op: str, args: list[Tensor], dtype: Dtype) -> Tensor:
    """An operation on tensors that broadcast; where ints meet floats they become floats."""
    if any(arg.is_floating_point() for arg in args) or (dtype == "float" and op != "where"):
        args = [arg if arg.dtype == torch.bool and op == "where" else arg.double() for arg in args]
    return OPERATIONS[op](*args).to(DTYPES[dtype])
