"""Reductions as stages: keys, queries, heads and free axes, some rows at a time.

From: a stage and rows of queries.  To: its array.  Sums over all queries are in `sums`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.codegen.chains.rows import belongs_to_rows
from spdsl.runtime.diagonals import distances_of, seen_from_blocks
from spdsl.runtime.memo import Memo
from spdsl.runtime.sums import over_rows
from spdsl.semantics.build import TRUE
from spdsl.semantics.graph import DISTANCE, TENSORS, Pool, Stage, loads, side_of
from spdsl.semantics.nodes import Const, Index, Load

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


STRIDED = ("cuda",)
"""Devices on which torch reads numbers that lie apart as fast as others; on a CPU it adds them up one by one."""


def pooled(arrays: Arrays, stage: Pool, rows: Tensor | None, memo: Memo) -> Tensor:
    """The array of a reduction for some rows, by default for all."""
    if stage.over == DISTANCE or (side_of(stage.over) == "q" and stage.per is None):
        return over_rows(arrays, stage)
    source = distances_of(dict(arrays.stages), stage)
    if source is not None and rows is not None:
        found = seen_from_blocks(arrays, stage, source, rows)
        if found is not None:
            return found
    strided = _strided(arrays, stage)
    if strided is not None:
        return strided
    inner = _inner(stage)
    dim = 1 + inner.index(stage.over)
    if side_of(stage.over) == "q":
        assert stage.per is not None
        assert rows is not None
        return _pool_rows(arrays, stage, inner, dim, rows, memo)
    value = arrays.full(stage.value, inner, rows, memo)
    only = arrays.filter(stage.only, inner, rows, memo)
    if stage.per == "g":
        each = (arrays.lines.groups, -1)
        value = value.unflatten(dim, each)
        only = only.unflatten(dim, each) if only.shape[dim] > 1 else only.unsqueeze(dim)
        return reduced(stage.kind, value, only, None, dim + 1)
    if side_of(stage.over) is None:
        if stage.kind == "sum" and stage.only == TRUE:
            return value.sum(dim)
        return reduced(stage.kind, value, only, None, dim)
    shares = arrays.lines.shares(stage.over, stage.per, stage.windows)
    if stage.per is None:
        weights = shares.weights[0].view(-1, *[1] * (value.dim() - 1 - dim))
        plain = stage.over == "k"
        return reduced(stage.kind, value, only, None if plain else weights, dim)
    size = tuple(shares.weights.shape)
    if shares.blocks:
        value = _in_blocks(value, shares.blocks, size[0], dim)
        only = _in_blocks(only, shares.blocks, size[0], dim)
    else:
        value = value.index_select(dim, shares.entries.flatten()).unflatten(dim, size)
        if only.shape[dim] > 1:
            only = only.index_select(dim, shares.entries.flatten()).unflatten(dim, size)
        else:
            only = only.unsqueeze(dim)
    weights = shares.weights.view(*size, *[1] * (value.dim() - 2 - dim))
    return reduced(stage.kind, value, only, weights, dim + 1)


def _strided(arrays: Arrays, stage: Pool) -> Tensor | None:
    """Keys as they are over windows or blocks of one size, on a GPU: read where they lie, none copied."""
    name = (stage.per or "").partition(".")[2]
    axis = next((each for each in arrays.lines.pattern.axes if each.name == name), None)
    plain = isinstance(stage.value, Load) and stage.value.table in TENSORS and arrays.reads_whole(stage.value)
    if axis is None or stage.over != "k" or stage.kind in ("any", "all") or stage.only != TRUE or not plain:
        return None
    match axis.size, axis.step, axis.of:
        case (Const(value=size),), None | Const() as step, (Index(name="k"),):
            size, stride = int(size), int(size if step is None else step.value)
        case _:
            return None
    assert isinstance(stage.value, Load)
    x, count = arrays.tensors[stage.value.table], arrays.lines.size(f"k.{name}")
    if x.requires_grad or x.device.type not in STRIDED or x.shape[2] < size:
        return None
    # The last ones lie partly, or all, past the end.
    complete = (x.shape[2] - size) // stride + 1
    found = [_along(stage.kind, x.unfold(2, size, stride))]
    found += [_along(stage.kind, x[:, :, None, each * stride :].transpose(3, 4)) for each in range(complete, count)]
    return torch.cat(found, 2) if len(found) > 1 else found[0]


def _along(kind: str, x: Tensor) -> Tensor:
    """A reduction along the last dimension, in fp32; of nothing, 0."""
    if kind in ("sum", "mean"):
        total = x.sum(-1, dtype=torch.float32)
        return total / max(1, x.shape[-1]) if kind == "mean" else total
    if not x.shape[-1]:
        return x.sum(-1, dtype=torch.float32)
    # A NaN is absent.
    absent = x.isnan()
    there = torch.where(absent, -torch.inf if kind == "max" else torch.inf, x)
    largest = there.amax(-1) if kind == "max" else there.amin(-1)
    return torch.where(absent.all(-1), 0.0, largest).float()


def _pool_rows(arrays: Arrays, stage: Pool, inner: tuple[str, ...], dim: int, rows: Tensor, memo: Memo) -> Tensor:
    """Queries into blocks: for each block that is asked for, the rows of its queries."""
    shares = arrays.lines.shares(stage.over, stage.per, stage.windows)
    key = f"{stage.over} of {stage.per} {stage.windows}", id(rows)
    if key not in memo.rows:
        memo.rows[key] = shares.entries[rows].flatten(), rows
    entries = memo.rows[key][0]
    size = (len(rows), shares.entries.shape[1])
    value = arrays.full(stage.value, inner, entries, memo).unflatten(dim, size)
    only = arrays.filter(stage.only, inner, entries, memo)
    only = only.unflatten(dim, size) if only.shape[dim] > 1 else only.unsqueeze(dim)
    weights = shares.weights[rows].view(*size, *[1] * (value.dim() - 2 - dim))
    return reduced(stage.kind, value, only, weights, dim + 1)


def rows_in_blocks(arrays: Arrays, stage: Stage) -> Tensor | None:
    """The whole array of a reduction of one value for each query, by blocks of one size that begin at position 0.

    None where it is something else.  Nothing is looked up: queries lie in rows of blocks.
    """
    lines = arrays.lines
    match stage:
        case Pool(over="q", per=str() as per, windows=None) if belongs_to_rows(stage):
            name = per.partition(".")[2]
        case _:
            return None
    axis = next((each for each in lines.pattern.axes if each.name == name), None)
    if axis is None or not lines.is_even(name) or lines.q_start != 0 or not lines.nq:
        return None
    (size,) = axis.size or (None,)
    if not isinstance(size, Const):
        return None
    for read in (loads(stage.value) | loads(stage.only)) & set(arrays.stages):
        arrays.keep_rows(read)
        if read not in arrays.known:
            return None  # a chunk of rows at a time
    inner = _inner(stage)
    dim, count = 1 + inner.index("q"), -(-lines.nq // int(size.value))
    value = arrays.full(stage.value, inner, None, Memo())
    only = arrays.filter(stage.only, inner, None, Memo())
    only = only.expand(*only.shape[:dim], value.shape[dim], *only.shape[dim + 1 :])
    value, only = (_in_blocks(each, int(size.value), count, dim) for each in (value, only))
    # Rows past the end are there for none.
    return reduced(stage.kind, value, only, None, dim + 1)


def _inner(stage: Pool) -> tuple[str, ...]:
    """The axes of what is reduced: `over` in the place of `per`, or in front of features."""
    if stage.per is not None:
        return tuple(stage.over if axis == stage.per else axis for axis in stage.axes)
    return (*stage.axes, stage.over)


def _in_blocks(value: Tensor, block: int, count: int, dim: int) -> Tensor:
    """Consecutive entries as ``[…, count, block, …]``, zeros past the end."""
    if value.shape[dim] == 1:
        return value.unsqueeze(dim)
    short = count * block - value.shape[dim]
    if short:
        pads = [0, 0] * (value.dim() - 1 - dim) + [0, short]
        value = torch.nn.functional.pad(value, pads)
    found: Tensor = value.unflatten(dim, (count, block))
    return found


def reduced(kind: str, value: Tensor, only: Tensor, weights: Tensor | None, dim: int) -> Tensor:
    """A reduction of what is present along one dimension; entries of weight 0 do not exist."""
    there = only if weights is None else only & (weights > 0)
    shape = torch.broadcast_shapes(value.shape, there.shape)
    value = value.expand(shape)
    match kind:
        case "any":
            return (value & there).any(dim)
        case "all":
            return (value | ~there).all(dim)
        case "sum" | "mean":
            weighted = value if weights is None else value * weights.to(value.dtype)
            total = torch.where(there, weighted, torch.zeros((), dtype=weighted.dtype, device=value.device)).sum(dim)
            if kind == "sum":
                return total
            counts = torch.where(there, 1 if weights is None else weights, 0).expand(shape)
            return total / counts.sum(dim).clamp(min=1)
        case _:
            sign = 1 if kind == "max" else -1
            if value.is_floating_point():
                there = there & ~value.isnan()
            far = -torch.inf if value.is_floating_point() else torch.iinfo(value.dtype).min
            if not shape[dim]:
                return value.sum(dim)
            largest = torch.where(there, sign * value, far).amax(dim)
            return torch.where(there.expand(shape).any(dim), sign * largest, 0)
