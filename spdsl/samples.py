"""Tensors made up from what a pattern declares, for pictures and measurements where no others are at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import assert_never

from spdsl.pipeline import Value
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.lines import Lines
from spdsl.semantics.bind import bind
from spdsl.semantics.nodes import BoundPattern, CheckedPattern, Const, Extent, Table, TableAxis


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a call."""

    batch: int
    heads: int
    groups: int
    nq: int
    n: int
    head_dim: int = 64


def sample_inputs(
    pattern: CheckedPattern,
    parameters: Mapping[str, Value],
    sizes: Sizes,
    *,
    layer: int | None = None,
    seed: int = 0,
    known: Mapping[str, Tensor] | None = None,
    most: int | None = None,
) -> dict[str, Tensor]:
    """All declared inputs by name, in order: those that are ``known``, and others at random within their ranges.

    Ids rise every 64 tokens or so where a table is sorted, one bool in ten is true, numbers are small.  In inputs of
    more than ``most`` floats one stands for all.

    Raises:
        SpatError: parameters that do not fit.
    """
    heads, groups, head_dim = sizes.heads, sizes.groups, sizes.head_dim
    bound = bind(pattern, dict(parameters), layer=layer, heads=heads, groups=groups, head_dim=head_dim)
    generator = torch.Generator().manual_seed(seed)
    given = known or {}
    tables: dict[str, Tensor] = {}
    for table in sorted(bound.tables, key=lambda each: not each.sorted):
        # Sorted tables come first: axes by them have as many members as their last value says.
        own = given.get(table.name)
        tables[table.name] = _random(table, bound, tables, sizes, generator, most) if own is None else own
    return {table.name: tables[table.name] for table in pattern.tables}


def shaped(sizes: Sizes, value_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors q, k and v of which only shapes and types matter: one element stands for all."""

    def like(count: int, length: int, dim: int) -> Tensor:
        return torch.zeros((), dtype=dtype).expand(sizes.batch, count, length, dim)

    q, k = like(sizes.heads, sizes.nq, sizes.head_dim), like(sizes.groups, sizes.n, sizes.head_dim)
    return q, k, like(sizes.groups, sizes.n, value_dim)


def drawn(sizes: Sizes, value_dim: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random tensors q, k and v, for patterns that select by them."""
    generator = torch.Generator().manual_seed(seed)

    def like(count: int, length: int, dim: int) -> Tensor:
        return torch.randn(sizes.batch, count, length, dim, generator=generator).to(dtype)

    q, k = like(sizes.heads, sizes.nq, sizes.head_dim), like(sizes.groups, sizes.n, sizes.head_dim)
    return q, k, like(sizes.groups, sizes.n, value_dim)


def _random(
    table: Table,
    bound: BoundPattern,
    known: Mapping[str, Tensor],
    sizes: Sizes,
    generator: torch.Generator,
    most: int | None,
) -> Tensor:
    shape = [_extent(axis, bound, known, sizes) for axis in table.axes]
    low, high = (table.bounds.low, table.bounds.high) if table.bounds else (None, None)
    if table.dtype == "bool":
        return torch.rand(shape, generator=generator) < 0.1
    if table.dtype == "float":
        if most is not None and math.prod(shape) > most:
            return torch.full((), 0.0 if low is None else float(low)).expand(shape)
        drawn = torch.rand(shape, generator=generator)
        start = float(low) if low is not None else 0.0
        stop = float(high) if high is not None else start + 1.0
        return start + drawn * (stop - start)
    start = int(low) if low is not None else 0
    if table.sorted and shape:
        ids = start + (torch.rand(shape, generator=generator) < 1 / 64).long().cumsum(-1)
        return ids.clamp(max=int(high)) if high is not None else ids
    stop = int(high) if high is not None else max(start, sizes.n // 4)
    return torch.randint(start, stop + 1, shape, generator=generator)


def _extent(axis: TableAxis, bound: BoundPattern, known: Mapping[str, Tensor], sizes: Sizes) -> int:
    match axis.kind:
        case "token":
            return sizes.n
        case "q":
            return sizes.nq
        case "h":
            return sizes.heads
        case "g":
            return sizes.groups
        case "b":
            return sizes.batch
        case "axis":
            return _lines(bound, known, sizes).size(axis.label)
        case "free":
            return _free(axis.label, bound, known, sizes)
        case "own":
            size = axis.size
        case _:
            assert_never(axis.kind)
    match size:
        case Const(value=value):
            return int(value)
        case Extent(name="nq"):
            return sizes.nq
        case _:
            return sizes.n


def _lines(bound: BoundPattern, known: Mapping[str, Tensor], sizes: Sizes) -> Lines:
    return Lines(
        pattern=bound,
        tables={table.name: with_batch(table, known[table.name]) for table in bound.tables if table.name in known},
        batch=sizes.batch,
        nq=sizes.nq,
        n=sizes.n,
        q_start=sizes.n - sizes.nq,
        device=torch.device("cpu"),
    )


def _free(label: str, bound: BoundPattern, known: Mapping[str, Tensor], sizes: Sizes) -> int:
    """The size of a free axis: of a tensor that is there, as declared, or like the features of heads."""
    places = [(table, place) for table in bound.tables for place, axis in enumerate(table.axes) if axis.label == label]
    for table, place in places:
        if table.name in known:
            return known[table.name].shape[place - len(table.axes)]
    for table, place in places:
        match table.axes[place].size:
            case Const(value=value):
                return int(value)
            case _:
                pass
    return sizes.head_dim
