"""Walks of many rows at once, in numpy: the tiles of all rows as flat arrays, without a loop over rows or tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_never

from spdsl.analysis.tiles import Interval, Slot, SlotWalk
from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, FreeParam, Index, Load, Noise, Param, Reduce, Top
from spdsl.semantics.ops import bitlen, is_pow2, isqrt
from tests.analysis.evaluate import ROW_AND_TILE, By, Tables

Ints: TypeAlias = NDArray[np.int64]

_vector_bitlen = np.vectorize(bitlen, otypes=[np.int64])
_vector_isqrt = np.vectorize(isqrt, otypes=[np.int64])
_vector_is_pow2 = np.vectorize(is_pow2, otypes=[np.bool_])

NUMPY_OPS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "pow": np.power,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "isqrt": _vector_isqrt,
    "is_pow2": _vector_is_pow2,
    "bitlen": _vector_bitlen,
    "floor": lambda x: np.floor(x).astype(np.int64),
    "ceil": lambda x: np.ceil(x).astype(np.int64),
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "float": lambda x: np.asarray(x, np.float64),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}
"""The meaning of `spdsl.semantics.ops.OPS` on arrays."""


def evaluate_many(expr: Expr, env: Mapping[str, Any], tables: Tables | None = None) -> Any:
    """As `evaluate`, with arrays that broadcast in ``env``; both branches of a condition are computed."""
    match expr:
        case Const(value=value):
            return value
        case Index(name=name) | Extent(name=name):
            return env[name]
        case FreeParam(variable=name):
            return env[name]
        case Load(table=table, indices=indices):
            array = np.asarray((tables or {})[table])
            return array[tuple(evaluate_many(i, env, tables) for i in indices)] if indices else array[()]
        case Apply(op=op, args=args):
            return NUMPY_OPS[op](*(evaluate_many(a, env, tables) for a in args))
        case Param() | Coord() | Reduce() | Noise() | Top():
            raise TypeError(f"{type(expr).__name__} has no value by itself; expand the pattern first")
        case _:
            assert_never(expr)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTiles:
    """Tiles of many rows: of row r, ``tiles[begin[r]:middle[r]]`` are full and ``tiles[middle[r]:end[r]]`` masked."""

    begin: Ints
    middle: Ints
    end: Ints
    tiles: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stretch:
    """Tiles of one slot and kind: ``tiles`` sorted by row, ``count`` of each row."""

    tiles: Ints
    count: Ints


def tiles_of_rows(
    walk: SlotWalk, rows: int | Ints, env: Mapping[str, int], tables: Tables | None = None, *, by: By = "query"
) -> RowTiles:
    """The tiles of many rows at once: of rows 0 to ``rows - 1``, or of the given rows."""
    row_name, tile_name = ROW_AND_TILE[by]
    row = np.arange(rows) if isinstance(rows, int) else np.asarray(rows, np.int64)
    here: dict[str, Any] = {**env, row_name: row}
    full: list[_Stretch] = []
    masked: list[_Stretch] = []
    for slot in walk.slots:
        lo, hi = _many(slot.touched, here, tables, row.size)
        hi = np.maximum(lo, hi)
        if slot.full is None:
            masked.append(_stretch(slot, lo, hi, here, tables, tile_name))
            continue
        full_lo, full_hi = _many(slot.full, here, tables, row.size)
        full_lo = np.clip(full_lo, lo, hi)
        full_hi = np.clip(full_hi, full_lo, hi)
        masked.append(_stretch(slot, lo, full_lo, here, tables, tile_name))
        full.append(_stretch(slot, full_lo, full_hi, here, tables, tile_name))
        masked.append(_stretch(slot, full_hi, hi, here, tables, tile_name))
    return _gather(full, masked, row.size)


def _many(interval: Interval, env: Mapping[str, Any], tables: Tables | None, rows: int) -> tuple[Ints, Ints]:
    lo, hi = (np.broadcast_to(evaluate_many(e, env, tables), rows).astype(np.int64) for e in (interval.lo, interval.hi))
    return lo, hi


def _stretch(slot: Slot, lo: Ints, hi: Ints, env: Mapping[str, Any], tables: Tables | None, tile_name: str) -> _Stretch:
    """The tiles from lo to hi of each row that lie on the lattice and pass the filter."""
    phase = np.zeros(lo.size, np.int64)
    if slot.phase is not None:
        phase += evaluate_many(slot.phase, env, tables)
    # whole periods from the one that holds lo; in each of them the first `run` tiles
    first = phase + (lo - phase) // slot.step * slot.step
    count = np.where(hi > lo, -(-(hi - first) // slot.step) * slot.run, 0)
    position = np.repeat(np.arange(lo.size), count)
    rank = np.arange(position.size) - np.repeat(np.cumsum(count) - count, count)
    tiles = first[position] + rank // slot.run * slot.step + rank % slot.run
    if slot.step == 1 and slot.filter is None:
        return _Stretch(tiles=tiles, count=count)
    kept = (tiles >= lo[position]) & (tiles < hi[position])
    if slot.filter is not None:
        spread = {name: (value[position] if np.ndim(value) else value) for name, value in env.items()}
        kept &= evaluate_many(slot.filter, {**spread, tile_name: tiles}, tables)
    return _Stretch(tiles=tiles[kept], count=np.bincount(position[kept], minlength=lo.size))


def _gather(full: list[_Stretch], masked: list[_Stretch], rows: int) -> RowTiles:
    """Lay the stretches of each row one after the other."""
    none = np.zeros(rows, np.int64)
    full_count = sum((s.count for s in full), none)
    total = sum((s.count for s in masked), full_count)
    end = np.cumsum(total)
    begin = end - total
    tiles = np.empty(int(end[-1]) if rows else 0, np.int64)
    at = begin.copy()
    for stretch in (*full, *masked):
        first = np.cumsum(stretch.count) - stretch.count
        tiles[np.arange(stretch.tiles.size) + np.repeat(at - first, stretch.count)] = stretch.tiles
        at = at + stretch.count
    return RowTiles(begin=begin, middle=begin + full_count, end=end, tiles=tiles)
