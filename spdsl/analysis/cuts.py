"""Cuts: the clauses of a set that keep an interval of the walked positions, found in its predicate.

From clauses of a set to `Cut`s for one direction, and from slots of its other clauses to slots whose bounds are clamped
by the intervals of the cuts.  For ``doc[q] == doc[k]`` with a sorted table the keys of a query are an interval,
wherever the documents lie: its ends are found by searching the table.  By query a clause is a cut if what it compares
with is monotone in the key, by key if it is monotone in the query.  Nothing is evaluated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from spdsl.analysis.tiles import Cut, Cuts, Interval, Reach, Residues, Slot
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load, Side, Table
from spdsl.semantics.rewrite import free_indices, walk

By: TypeAlias = Literal["query", "key"]

COLUMNS = ("touched_from", "full_from", "full_to", "touched_to")
"""What the four ints of a tile are called where no input has such a name."""

_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq"}
_EDGES: dict[str, tuple[Reach | None, Reach | None]] = {
    "eq": ("ge", "gt"),
    "le": ("ge", None),
    "lt": ("gt", None),
    "ge": (None, "gt"),
    "gt": (None, "ge"),
}
"""Start and end of ``value op mark``."""


class NoCutError(Exception):
    """A clause is not known to keep an interval of the walked positions for every own one."""


# ---------------------------------------------------------------- clauses


@dataclass(frozen=True, slots=True, kw_only=True)
class _Direction:
    """Which positions are a tile's own and which are searched, and which tables never fall along ``token``."""

    own: Side
    walked: Side
    rising: frozenset[str]


def cuts_of(clauses: Sequence[Expr], *, by: By, block: int, tables: Sequence[Table]) -> Cuts:
    """Cuts that together keep what all clauses keep; tiles hold ``block`` rows of the own side.

    Raises:
        NoCutError: a clause is none in this direction.
    """
    own: Side = "q" if by == "query" else "k"
    walked: Side = "k" if by == "query" else "q"
    rising = frozenset(table.name for table in tables if table.sorted)
    direction = _Direction(own=own, walked=walked, rising=rising)
    cuts = tuple(cut for clause in clauses for cut in _cuts(clause, direction))
    used = frozenset[str]().union(*(free_indices(expr) for cut in cuts for expr in (cut.value, cut.mark)))
    taken = {table.name for table in tables}
    first, second, third, last = (_free(name, taken) for name in COLUMNS)
    return Cuts(
        by=by,
        block=block,
        names=(first, second, third, last),
        heads="h" if "h" in used else "g" if "g" in used else None,
        cuts=cuts,
    )


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _cuts(clause: Expr, direction: _Direction) -> tuple[Cut, ...]:
    match clause:
        case Apply(op="and", args=args):
            return tuple(cut for arg in args for cut in _cuts(arg, direction))
        case Apply(op="or", args=(left, right)):
            return (_union(_cuts(left, direction), _cuts(right, direction)),)
        case Apply(op="le" | "lt" as op, args=(Apply(op="abs", args=(inner,)), most)) if inner.dtype == "int":
            sides = (inner, Apply(op="neg", args=(inner,), dtype="int"))
            return tuple(_comparison(op, side, most, direction) for side in sides)
        case Apply(op="ge" | "gt" as op, args=(most, Apply(op="abs") as inner)):
            return _cuts(replace(clause, op=_MIRRORED[op], args=(inner, most)), direction)
        case Apply(op=op, args=(left, right)) if op in _EDGES and left.dtype == right.dtype == "int":
            return (_comparison(op, left, right, direction),)
        case _:
            raise NoCutError


def _comparison(op: str, left: Expr, right: Expr, direction: _Direction) -> Cut:
    """``left op right`` with the own side on the left and what rises with the walked positions on the right."""
    a, b = _parted(left, direction), _parted(right, direction)
    if a is None or b is None:
        raise NoCutError
    value, mark = _minus(a[0], b[0]), _minus(b[1], a[1])
    slope = _slope(mark, direction)
    if slope is None:
        raise NoCutError
    if slope < 0:
        op, value, mark = _MIRRORED[op], _minus(_ZERO, value), _minus(_ZERO, mark)
    start, end = _EDGES[op]
    return Cut(value=value, mark=mark, start=start, end=end)


def _union(left: tuple[Cut, ...], right: tuple[Cut, ...]) -> Cut:
    """Two cuts that are open to the same side, at the same marks or for the same value, as one that reaches further."""
    if len(left) != 1 or len(right) != 1:
        raise NoCutError
    a, b = left[0], right[0]
    match a, b:
        case Cut(start=None, end=end), Cut(start=None, end=other) if end is not None and other is not None:
            reach, value, mark = _further((a, end), (b, other), "max", "min")
            return Cut(value=value, mark=mark, start=None, end=reach)
        case Cut(start=start, end=None), Cut(start=other, end=None) if start is not None and other is not None:
            reach, value, mark = _further((a, start), (b, other), "min", "max")
            return Cut(value=value, mark=mark, start=reach, end=None)
        case _:
            raise NoCutError


def _further(
    left: tuple[Cut, Reach], right: tuple[Cut, Reach], of_values: str, of_marks: str
) -> tuple[Reach, Expr, Expr]:
    (a, one), (b, other) = left, right
    if a.mark == b.mark:
        # To be larger than x is to be at least x + 1.
        reach, values = _alike((a.value, one), (b.value, other), 1)
        return reach, Apply(op=of_values, args=values, dtype="int"), a.mark
    if a.value == b.value:
        reach, marks = _alike((a.mark, one), (b.mark, other), -1)
        return reach, a.value, Apply(op=of_marks, args=marks, dtype="int")
    raise NoCutError


def _alike(left: tuple[Expr, Reach], right: tuple[Expr, Reach], step: int) -> tuple[Reach, tuple[Expr, Expr]]:
    """Both sides for one reach: one of them a step further, unless it comes from a table.

    A table may hold the largest ints there are.
    """
    (a, one), (b, other) = left, right
    if one == other:
        return one, (a, b)
    if not _loads(a):
        return other, (_plus(a, Const(value=step if one == "gt" else -step)), b)
    if not _loads(b):
        return one, (a, _plus(b, Const(value=step if other == "gt" else -step)))
    raise NoCutError


def _loads(expr: Expr) -> bool:
    return any(isinstance(node, Load) for node in walk(expr))


# ---------------------------------------------------------------- values and marks

_ZERO = Const(value=0)
_Parts: TypeAlias = "tuple[Expr, Expr]"


def _parted(expr: Expr, direction: _Direction) -> _Parts | None:
    """``expr`` as a sum of what depends on own positions and what depends on walked ones."""
    used = free_indices(expr)
    if direction.walked not in used:
        return expr, _ZERO
    if direction.own not in used:
        return _ZERO, expr
    match expr:
        case Apply(op="add" | "sub" as op, args=(left, right)):
            a, b = _parted(left, direction), _parted(right, direction)
            join = _plus if op == "add" else _minus
            return None if a is None or b is None else (join(a[0], b[0]), join(a[1], b[1]))
        case Apply(op="neg", args=(inner,)):
            part = _parted(inner, direction)
            return None if part is None else (_minus(_ZERO, part[0]), _minus(_ZERO, part[1]))
        case _:
            return None


def _plus(a: Expr, b: Expr) -> Expr:
    if a == _ZERO or b == _ZERO:
        return b if a == _ZERO else a
    return Apply(op="add", args=(a, b), dtype="int")


def _minus(a: Expr, b: Expr) -> Expr:
    match a, b:
        case _, Const(value=0):
            return a
        case Const(value=int() as x), Const(value=int() as y):
            return Const(value=x - y)
        case Const(value=0), Apply(op="neg", args=(inner,)):
            return inner
        case Const(value=0), _:
            return Apply(op="neg", args=(b,), dtype="int")
        case _:
            return Apply(op="sub", args=(a, b), dtype="int")


def _slope(expr: Expr, direction: _Direction) -> int | None:
    """1 if the value never falls along the walked positions, -1 if it never rises, 0 if it stays, else None."""
    used = free_indices(expr)
    if direction.walked not in used:
        return 0
    match expr:
        case Index():
            return 1
        case Load(table=table, indices=(*others, Index(name=name))) if table in direction.rising:
            stay = all(free_indices(other).isdisjoint({"q", "k"}) for other in others)
            return 1 if stay and name == direction.walked else None
        case Apply(op="add" | "min" | "max", args=(left, right)):
            return _both(_slope(left, direction), _slope(right, direction))
        case Apply(op="sub", args=(left, right)):
            return _both(_slope(left, direction), _turned(_slope(right, direction)))
        case Apply(op="neg", args=(inner,)):
            return _turned(_slope(inner, direction))
        case Apply(op="mul", args=(Const(value=int() as factor), inner) | (inner, Const(value=int() as factor))):
            return _scaled(_slope(inner, direction), factor)
        case Apply(op="floordiv", args=(inner, Const(value=int() as divisor))) if divisor != 0:
            return _scaled(_slope(inner, direction), divisor)
        case _:
            return None


def _both(a: int | None, b: int | None) -> int | None:
    if a is None or b is None or a * b < 0:
        return None
    return a or b


def _turned(slope: int | None) -> int | None:
    return None if slope is None else -slope


def _scaled(slope: int | None, by: int) -> int | None:
    return None if slope is None else slope * ((by > 0) - (by < 0))


# ---------------------------------------------------------------- slots


def clamped(slot: Slot, cuts: Cuts, *, block: int, residues: Residues | None) -> Slot:
    """The slot within the intervals of the cuts; walked tiles hold ``block`` rows.

    Touched are the tiles with a row that some own position keeps, full those whose rows all of them keep.
    """
    starts = any(cut.start is not None for cut in cuts.cuts)
    ends = any(cut.end is not None for cut in cuts.cuts)

    def within(interval: Interval, low: Expr, high: Expr) -> Interval:
        return Interval(
            lo=_greater(interval.lo, low) if starts else interval.lo,
            hi=Apply(op="min", args=(interval.hi, high), dtype="int") if ends else interval.hi,
        )

    at = [_row(name, cuts, residues) for name in cuts.names]
    touched = within(slot.touched, _tiles(at[0], block), _tiles_up(at[3], block))
    full = None if slot.full is None else within(slot.full, _tiles_up(at[1], block), _tiles(at[2], block))
    return replace(slot, touched=touched, full=full)


def _greater(bound: Expr, low: Expr) -> Expr:
    return low if bound == _ZERO else Apply(op="max", args=(bound, low), dtype="int")  # rows count from 0


def _row(name: str, cuts: Cuts, residues: Residues | None) -> Expr:
    """An end of the interval of this program's tile, counted in rows of the walked class."""
    own, own_class, walked_class = ("i", "q_class", "k_class") if cuts.by == "query" else ("j", "k_class", "q_class")
    tile: Expr = Index(name=own)
    if residues is not None:
        tile = _plus(Apply(op="mul", args=(tile, Const(value=residues.modulus)), dtype="int"), Index(name=own_class))
    heads = () if cuts.heads is None else (Index(name=cuts.heads),)
    row: Expr = Load(table=name, dtype="int", indices=(*heads, tile))
    if residues is None:
        return row
    return _tiles_up(_minus(row, Index(name=walked_class)), residues.modulus)


def _tiles(row: Expr, block: int) -> Expr:
    """The tile that begins at or before a row."""
    return row if block == 1 else Apply(op="floordiv", args=(row, Const(value=block)), dtype="int")


def _tiles_up(row: Expr, block: int) -> Expr:
    """The tile that begins at or after a row."""
    return _tiles(_plus(row, Const(value=block - 1)) if block > 1 else row, block)


def tables_of(cuts: Cuts) -> tuple[str, ...]:
    """The tables that the intervals are made from, sorted by name."""
    return tuple(sorted(frozenset[str]().union(*(tables_in(cut) for cut in cuts.cuts))))


def tables_in(cut: Cut) -> frozenset[str]:
    """The tables that a cut reads."""
    return frozenset(node.table for expr in (cut.value, cut.mark) for node in walk(expr) if isinstance(node, Load))
