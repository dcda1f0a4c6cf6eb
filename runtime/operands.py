"""The tensors that the kernels of a selection read, with strides by the names of axes.

From: vectors as expressions, and the arrays of a call.  To: tensors as they are, or as sums of numbers of 16 bits, so
that their products, which matrix units make, are as exact as those of 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spdsl.codegen.chains.parts import LONG, Terms, Vectors
from spdsl.codegen.chains.products import wrapped
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.memo import Memo
from spdsl.runtime.points import TENSOR_AXES
from spdsl.runtime.term_kernels import split
from spdsl.semantics.graph import TENSORS, Pool, Score, on_side
from spdsl.semantics.nodes import Expr, Load
from spdsl.semantics.rewrite import free_axes

_SHORT = (torch.bfloat16, torch.float16)

TERMS = torch.bfloat16
"""The type of the terms of queries of 32 bits: of the same range, so that sums of them are no larger."""


APART = 1 << 17
"""Numbers between rows, or features, from which on 32 bits do not hold their places in a tile of cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A tensor with a leading batch axis of size 1 or batch, and the names of its other axes.

    With ``terms`` it has one axis more in front, along which its numbers are added up.
    """

    tensor: Tensor
    axes: tuple[str, ...]
    terms: int = 1

    def stride(self, axis: str) -> int:
        """The stride of an axis, 0 where it is not needed."""
        at = self.tensor.dim() - len(self.axes) + self.axes.index(axis)
        return self.tensor.stride(at) if self.tensor.shape[at] > 1 else 0

    def size(self, axis: str) -> int:
        """The size of an axis."""
        return self.tensor.shape[self.tensor.dim() - len(self.axes) + self.axes.index(axis)]

    def near(self, rows: str, feature: str) -> Operand:
        """The same with rows that lie near each other."""
        apart = max(self.stride(rows), self.stride(feature)) >= APART
        return replace(self, tensor=self.tensor.contiguous()) if apart else self

    @property
    def is_short(self) -> bool:
        """Whether its numbers have 16 bits, which matrix units multiply."""
        return self.tensor.dtype in _SHORT

    @property
    def batch(self) -> int:
        """The number of sequences, or 1."""
        return self.tensor.shape[self.tensor.dim() - len(self.axes) - 1]

    @property
    def batch_stride(self) -> int:
        """The stride of sequences; 0 where all have the same."""
        return self.tensor.stride(self.tensor.dim() - len(self.axes) - 1) if self.batch > 1 else 0


def terms_of(arrays: Arrays, stage: Score, *, shares: bool) -> Terms:
    """Of how many numbers of 16 bits those of queries and keys are sums in a score.

    What is compared as it is takes three, which hold all bits of a float; ``shares`` of a softmax, whose relative error
    is the absolute one of an exponent, take two of keys where queries have 16 bits as they are.
    """
    query, key = (stage.left, stage.right) if on_side(free_axes(stage.left), "q") else (stage.right, stage.left)
    of_query, of_key = _plain_type(arrays, wrapped(query)[0]), _plain_type(arrays, key)
    if of_query not in _SHORT:
        return _ALL if _is_made(arrays, query) else LONG
    if of_key is not None:
        return _keys(1) if of_key == of_query else _keys(3) if of_query == torch.bfloat16 else LONG
    exact = _pooled_type(arrays, key) == of_query
    match arrays.stages.get(key.table) if isinstance(key, Load) else None:
        case Pool(kind="max" | "min") if exact:
            return _keys(1)
        case Pool(kind="mean") if exact and of_query == torch.float16:
            return _keys(2)
        case _ if of_query == torch.float16:
            return LONG  # sums may be beyond its range
        case _:
            return _keys(2 if shares else 3)


_ALL = Terms(queries=3, keys=3)
"""Numbers of 32 bits on both sides."""


def _keys(count: int) -> Terms:
    return Terms(queries=1, keys=count)


def _is_made(arrays: Arrays, query: Expr) -> bool:
    """Whether queries are numbers of 32 bits of a stage or an input, or computed, and not those of the call, of which
    terms would be half as much again; Triton's interpreter multiplies the bits of bf16 as ints."""
    multiplied = arrays.lines.device.type != "cpu" or torch.bfloat16 != TERMS
    match query:
        case Load(table=name):
            return multiplied and name not in TENSORS and _type(arrays, query) == torch.float32
        case _:
            return multiplied and wrapped(query)[0] == query


def _type(arrays: Arrays, expr: Load) -> torch.dtype:
    """The type of the numbers of an array; stages make floats."""
    return torch.float32 if expr.table in arrays.stages else arrays.tensors[expr.table].dtype


def _plain_type(arrays: Arrays, expr: Expr) -> torch.dtype | None:
    """The type of a tensor that is read as it is."""
    if isinstance(expr, Load) and expr.table not in arrays.stages and arrays.reads_whole(expr):
        return arrays.tensors[expr.table].dtype
    return None


def _pooled_type(arrays: Arrays, expr: Expr) -> torch.dtype | None:
    """The type of the tensor of which an array is a reduction."""
    stage = arrays.stages.get(expr.table) if isinstance(expr, Load) else None
    return _plain_type(arrays, stage.value) if isinstance(stage, Pool) else None


def operand(arrays: Arrays, vectors: Vectors, dtype: torch.dtype | None) -> Operand:
    """The tensor of vectors; in ``dtype``, as so many terms as they say, where it is given."""
    found = _made(arrays, vectors)
    if dtype is None or (found.tensor.dtype == dtype and vectors.terms == 1):
        return found
    return Operand(tensor=_terms(found.tensor.float(), dtype, vectors.terms), axes=found.axes, terms=vectors.terms)


def _made(arrays: Arrays, vectors: Vectors) -> Operand:
    axes = (*vectors.axes, vectors.rows, vectors.feature)
    match vectors.expr:
        case Load(table=name) if name in TENSORS and arrays.reads_whole(vectors.expr):
            return Operand(tensor=arrays.tensors[name], axes=TENSOR_AXES[name])
        case Load(table=name) if name in arrays.stages:
            stage = arrays.stages[name]
            if set(stage.axes) == set(axes):
                return Operand(tensor=arrays.whole(name), axes=stage.axes)
        case Load(table=name) if arrays.reads_whole(vectors.expr):
            labels = tuple(vectors.rows if each == "token" else each for each in arrays.lines.labels(name))
            if set(labels) == set(axes):
                return Operand(tensor=arrays.tensors[name], axes=labels)
        case _:
            pass
    return Operand(tensor=arrays.full(vectors.expr, axes, None, Memo()), axes=axes)


def _terms(values: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    """``[count, …]`` of 16 bits, the larger ones first, whose sum is the values; what is not finite is in the first."""
    found = torch.empty((count, *values.shape), dtype=dtype, device=values.device)
    if values.is_cuda and values.numel():
        split(values.contiguous(), found)
        return found
    for place in range(count):
        found[place] = values
        if place + 1 < count:
            first = found[place].float()
            values = torch.where(torch.isfinite(first), values - first, 0.0)
    return found
