"""How large the tiles of the kernels of selections are, and how they are compiled."""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.codegen.chains.lower import ChainKernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """The tile of a kernel of scores, and how it is compiled."""

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None


_LARGE = Tiling(rows=128, columns=128, warps=8, stages=2)
_OF_SUMS = Tiling(rows=128, columns=64, warps=8, stages=2, registers=128)
_OF_LOOP = Tiling(rows=64, columns=128, warps=4, stages=3)
_FOLDED = Tiling(rows=64, columns=128, warps=4, stages=2)
_DEEP = Tiling(rows=128, columns=64, warps=4, stages=2)
_DEEP_ROWS = Tiling(rows=128, columns=64, warps=8, stages=2, registers=128)
_PAIRED = Tiling(rows=128, columns=128, warps=8, stages=3)
_PAIRED_SHORT = Tiling(rows=64, columns=128, warps=4, stages=2)
_SMALL = Tiling(rows=64, columns=64, warps=4, stages=2)
_OF_FEW = Tiling(rows=32, columns=64, warps=4, stages=2)
_SUMS_OF_TERMS = Tiling(rows=128, columns=64, warps=8, stages=2)
_OF_TERMS = Tiling(rows=64, columns=128, warps=8, stages=2)
SWEPT = Tiling(rows=256, columns=64, warps=4, stages=2)
"""Of a sweep: two programs share a multiprocessor of Hopper, so that one multiplies while the other compares."""

LEAST = Tiling(rows=32, columns=32, warps=4, stages=1)
_OF_COLUMNS = Tiling(rows=64, columns=128, warps=4, stages=2)
_OF_FEW_COLUMNS = Tiling(rows=32, columns=64, warps=4, stages=1)
_LEAST_OF_COLUMNS = Tiling(rows=16, columns=32, warps=4, stages=1)
SMALLER = {
    _OF_COLUMNS: _OF_FEW_COLUMNS,
    _OF_FEW_COLUMNS: _LEAST_OF_COLUMNS,
    _LARGE: _SMALL,
    _PAIRED: _PAIRED_SHORT,
    _PAIRED_SHORT: _SMALL,
    _OF_SUMS: _SMALL,
    _OF_LOOP: _SMALL,
    _FOLDED: _SMALL,
    _DEEP: _SMALL,
    _DEEP_ROWS: _SMALL,
    _SUMS_OF_TERMS: _SMALL,
    _OF_TERMS: _SMALL,
    _SMALL: LEAST,
    _OF_FEW: LEAST,
}
"""The tile to take where one does not fit the device."""


def tiling_of(kernel: ChainKernel, *, long: bool, few: bool) -> Tiling:
    """The tile of a kernel of scores, by what was fastest on Hopper.

    A kernel of sums has many rows, so that each tile of keys meets as many as it can, and leaves room for a second
    program; reductions keep one more tile in registers for each loop.  Where queries are sums of terms, too, a program
    fills the memory of a multiprocessor.  Products of 32 bits (``long``), which no matrix unit makes, take the least,
    and where there are ``few`` rows, tiles are small enough for all multiprocessors, the more so where a program goes
    through all columns of what loops add up.  Scores that are sums of products keep nothing but these, and what is read
    for each is used by as many rows and columns as there can be.  Distances need twice as many columns as rows.
    """
    if kernel.role in ("columns", "distances"):
        return _OF_FEW_COLUMNS if long else _OF_COLUMNS
    if long:
        return LEAST
    if kernel.paired:
        return _PAIRED
    if kernel.deep is not None:
        return _DEEP if kernel.role == "keys" else _DEEP_ROWS
    if kernel.role == "values" and kernel.loops > 1:
        return _OF_FEW if few else _SMALL
    if few or not kernel.arguments.vectors:
        return _SMALL
    if any(each.terms > 1 for each in kernel.arguments.vectors if each.name.endswith("_q")):
        return _SUMS_OF_TERMS if kernel.sums else _OF_TERMS
    if kernel.sums:
        return _OF_SUMS
    if kernel.fold is not None:
        return _FOLDED
    return (_LARGE, _OF_LOOP)[kernel.loops] if kernel.loops < 2 else _SMALL


def columns_of(kernel: ChainKernel, tiling: Tiling) -> int:
    """The columns of a tile: those of the matrix products, or fewer if several are made into one."""
    return tiling.columns if kernel.fold is None else max(2, tiling.columns // kernel.fold.size)


def rows_of(kernel: ChainKernel, tiling: Tiling) -> int:
    """The rows of a tile: those of the matrix products, or fewer if several are folded into one."""
    return tiling.rows if kernel.deep is None else max(1, tiling.rows // kernel.deep)
