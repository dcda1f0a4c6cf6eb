"""From a bound pattern to expanded expressions and stages.

Reductions and selections cannot be evaluated inside a kernel that sees one tile at a time.  They are cut out, become
tables that the run time fills before the kernels start, and are replaced by loads of these tables.  So are those parts
of a bias that take many instructions and depend on the key alone.  Nothing is evaluated here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from spdsl.analysis.plans import Stage, StageAxis
from spdsl.diagnostics import error
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import (
    Apply,
    BoundPattern,
    Const,
    Coord,
    Expr,
    Extent,
    FreeParam,
    Grid,
    Index,
    Load,
    Noise,
    Param,
    Reduce,
    Table,
    TableAxis,
    Top,
)
from spdsl.semantics.rewrite import walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A bound pattern whose clauses are expanded, with the stages they load from.

    ``on_grid`` is ``keep`` over the coordinates of `leading_grid` (``q0``, ``k0``, …), where the pattern has one.
    """

    keep: Expr
    bias: Expr | None
    sink_logit: Expr | None
    stages: tuple[Stage, ...]
    tables: tuple[Table, ...]
    on_grid: Expr | None


def stage(pattern: BoundPattern, *, of_keys: bool = True) -> Staged:
    """Cut the stages out of all clauses of ``pattern`` and expand what is left.

    ``of_keys``: what a bias has of each key alone is worth a table, because there are many queries.
    """
    cutter = _Cutter(pattern)
    attend = pattern.attend

    def clause(expr: Expr | None, cut: Callable[[Expr], Expr]) -> Expr | None:
        return None if expr is None else expand(pattern, cut(expr))

    cut = cutter.cut(attend.keep)
    keep, grid = expand(pattern, cut), leading_grid(pattern)
    bias = clause(attend.bias, cutter.cut_of_keys if of_keys else cutter.cut)
    sink = clause(attend.sink_logit, cutter.cut)
    stages = tuple(cutter.stages.values())
    return Staged(
        keep=keep,
        bias=bias,
        sink_logit=sink,
        stages=stages,
        tables=pattern.tables + tuple(_declare(pattern, each) for each in stages),
        on_grid=None if grid is None else expand(pattern, cut, on=grid),
    )


def covering_grid(pattern: BoundPattern) -> Grid | None:
    """The unnamed grid of known extents that the positions themselves fill, if there is one."""
    for grid in pattern.grids:
        known = all(isinstance(size, Const) for _, size in grid.coordinates)
        if grid.name is None and grid.of == Index(name="k") and known:
            return grid
    return None


def leading_grid(pattern: BoundPattern) -> Grid | None:
    """`covering_grid`, or else a named grid of known extents that begins with the positions."""
    return covering_grid(pattern) or next(
        (
            grid
            for grid in pattern.grids
            if grid.of == Index(name="k") and all(isinstance(size, Const) for _, size in grid.coordinates)
        ),
        None,
    )


def extents_of(grid: Grid) -> tuple[int, ...]:
    """The known extents of a grid."""
    return tuple(int(size.value) for _, size in grid.coordinates if isinstance(size, Const))


def axes_of(expr: Expr) -> frozenset[StageAxis]:
    """The axes that the value of an unexpanded expression has; positions are axes with ``axis`` None."""
    match expr:
        case Index(name=("q" | "k") as side):
            return frozenset({StageAxis(name=side, side=side)})
        case Index(name=name):
            return frozenset({StageAxis(name=name)})
        case Coord(side=side, axis=axis):
            return frozenset({StageAxis(name=f"{side}.{axis}", side=side, axis=axis)})
        case Load(indices=parts) | Apply(args=parts) | Noise(per=parts):
            return frozenset[StageAxis]().union(*(axes_of(part) for part in parts))
        case Reduce(side=side, axis=axis, body=body):
            kept = frozenset(each for each in axes_of(body) if each.side != side)
            return kept if axis is None else kept | {StageAxis(name=f"{side}.{axis}", side=side, axis=axis)}
        case Top(value=value, only=only, count=count):
            return axes_of(value) | axes_of(only) | axes_of(count)
        case Const() | Extent() | Param() | FreeParam():
            return frozenset()


COSTLY = frozenset({"exp", "log", "sqrt"})
"""Operations that take many instructions.  The threads of a tile share its keys, so that each computes anew what a key
has by itself, in every tile of queries: as often as the weights themselves, or half as often."""


class _Cutter:
    """Replaces stages by loads, top down, each distinct stage once."""

    def __init__(self, pattern: BoundPattern) -> None:
        self.pattern = pattern
        self.floats = {table.name for table in pattern.tables if table.dtype == "float"}
        self.stages: dict[Expr, Stage] = {}
        self.seen: dict[int, tuple[Expr, bool]] = {}
        self.done: dict[int, tuple[Expr, Expr]] = {}

    def cut(self, expr: Expr) -> Expr:
        if not self._dynamic(expr):
            return expr
        known = self.done.get(id(expr))
        if known is None:
            known = self.done[id(expr)] = (expr, self._cut(expr))
        return known[1]

    def cut_of_keys(self, expr: Expr) -> Expr:
        """As `cut`, and what is costly and depends on the key alone is cut out, too."""
        match expr:
            case Apply(op=op) if op in COSTLY and self._of_keys(expr):
                return self._load(expr)
            case Apply(args=args):
                return replace(expr, args=tuple(self.cut_of_keys(arg) for arg in args))
            case _:
                return self.cut(expr)

    def _of_keys(self, expr: Expr) -> bool:
        """Whether one axis of keys is all that the value has, and no numbers that may want gradients."""
        axes = axes_of(expr)
        plain = not self._dynamic(expr) and self.floats.isdisjoint(_tables_of(expr))
        return plain and len(axes) == 1 and all(axis.side == "k" for axis in axes)

    def _cut(self, expr: Expr) -> Expr:
        match expr:
            case Reduce() | Top() | Noise():
                return self._load(expr)
            case Apply(args=args) if expr.dtype == "bool" and all(arg.dtype != "bool" for arg in args) and _fits(expr):
                return self._load(expr)
            case Apply(args=args):
                return replace(expr, args=tuple(self.cut(arg) for arg in args))
            case Load(indices=indices):
                return replace(expr, indices=tuple(self.cut(index) for index in indices))
            case _:
                return expr

    def _dynamic(self, expr: Expr) -> bool:
        known = self.seen.get(id(expr))
        if known is None:
            known = self.seen[id(expr)] = (expr, self._contains(expr, self._dynamic))
        return known[1]

    @staticmethod
    def _contains(expr: Expr, test: Callable[[Expr], bool]) -> bool:
        match expr:
            case Reduce() | Top() | Noise():
                return True
            case Apply(args=parts) | Load(indices=parts):
                return any(test(part) for part in parts)
            case _:
                return False

    def _load(self, expr: Expr) -> Expr:
        if not _coarse(expr):
            raise error(
                "SP403",
                "a selection or reduction over single tokens would need a table of all pairs",
                expr.span,
                help="divide the tokens with `axis blk = token by 64` and select among `q.blk` and `k.blk`",
            )
        found = self.stages.get(expr)
        if found is None:
            axes = tuple(sorted(axes_of(expr), key=_order))
            found = self.stages[expr] = Stage(name=self._free_name(), value=expr, axes=axes)
        indices = tuple(_index(axis) for axis in found.axes)
        return Load(table=found.name, dtype=expr.dtype, indices=indices, span=expr.span)

    def _free_name(self) -> str:
        """A name that no input of the pattern has."""
        taken = {table.name for table in self.pattern.tables}
        name = f"stage{len(self.stages)}"
        while name in taken:
            name += "_"
        return name


def _tables_of(expr: Expr) -> frozenset[str]:
    return frozenset(node.table for node in walk(expr) if isinstance(node, Load))


def _coarse(expr: Expr) -> bool:
    """Whether a table of the values stays far smaller than a table of all pairs."""
    positions = {axis.side for axis in axes_of(expr) if axis.side is not None and axis.axis is None}
    sides = {axis.side for axis in axes_of(expr) if axis.side is not None}
    return not positions or len(sides) == 1


def _fits(expr: Expr) -> bool:
    """Whether one table holds the values: `k == min(k, per = k.blk)` needs positions beside a table of blocks."""
    sides = [axis.side for axis in axes_of(expr) if axis.side is not None]
    return _coarse(expr) and len(set(sides)) == len(sides)


def _order(axis: StageAxis) -> tuple[int, str]:
    return ("b", "h", "g", "q", "k").index(axis.name[0]), axis.name


def _index(axis: StageAxis) -> Expr:
    if axis.side is not None and axis.axis is not None:
        return Coord(side=axis.side, axis=axis.axis)
    return Index(name=axis.name)


def _declare(pattern: BoundPattern, made: Stage) -> Table:
    return Table(
        name=made.name,
        dtype=made.value.dtype,
        axes=tuple(_table_axis(pattern, axis) for axis in made.axes),
        bounds=None,
        sorted=False,
    )


def _table_axis(pattern: BoundPattern, axis: StageAxis) -> TableAxis:
    match axis.name:
        case "b":
            return TableAxis(kind="b", size=Const(value=1), label="b")
        case "h":
            return TableAxis(kind="h", size=Const(value=pattern.heads), label="h")
        case "g":
            return TableAxis(kind="g", size=Const(value=pattern.groups), label="g")
        case _ if axis.axis is None:
            return TableAxis(kind="token", size=Extent(name="n"), label=axis.name)
        case _:
            return TableAxis(kind="axis", size=coordinate_count(pattern, axis.axis), label=axis.name)


def coordinate_count(pattern: BoundPattern, name: str) -> Expr:
    """How many values the coordinate ``name`` has: an axis's count or a grid's extent."""
    for axis in pattern.axes:
        if axis.name == name:
            return _product(axis.extents)
    for grid in pattern.grids:
        for coordinate, extent in grid.coordinates:
            if coordinate == name:
                return extent
    raise KeyError(name)


def _product(extents: tuple[Expr, ...]) -> Expr:
    result = extents[0]
    for extent in extents[1:]:
        result = Apply(op="mul", args=(result, extent), dtype="int")
    return result
