"""Tiles that are much longer than their neighbours, on a lattice: whom a program should own together.

From a walk by key to `Pairs`.  Two groups of warps of one program walk the same tiles of the other side, so that a long
tile beside a short one would make the second group compute in vain.
"""

from __future__ import annotations

from collections.abc import Iterator

from spdsl.analysis.tiles import Pairs, Slot, SlotWalk, Walk
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load
from spdsl.semantics.rewrite import free_indices
from spdsl.semantics.rewrite import walk as nodes_of

TILE = "j"


def find_pairs(walk: Walk) -> Pairs | None:
    """The lattice of long tiles, where one condition ``(t + shift) % period == rest`` decides how long a tile is."""
    match walk:
        case SlotWalk(slots=(slot,), cuts=None, long=None) if slot.step == 1 and slot.filter is None:
            found = set(_lattices(slot))
            return found.pop() if len(found) == 1 else None
        case _:
            return None


def _lattices(slot: Slot) -> Iterator[Pairs | None]:
    """Every condition on the tile that a bound depends on; None for those that are no lattice."""
    for bound in (slot.touched.lo, slot.touched.hi):
        for node in nodes_of(bound):
            if isinstance(node, Load):
                yield None
            if isinstance(node, Apply) and node.op == "where" and TILE in free_indices(node.args[0]):
                yield _lattice(node.args[0])


def _lattice(condition: Expr) -> Pairs | None:
    match condition:
        case Apply(
            op="eq", args=(Apply(op="mod", args=(place, Const(value=int() as period))), Const(value=int() as rest))
        ):
            shift = _without_tile(place)
            if shift is None or not free_indices(shift) <= {"g", "b"}:
                return None
            turned = Apply(op="sub", args=(Const(value=rest), shift), dtype="int")
            residue = Apply(op="mod", args=(turned, Const(value=period)), dtype="int")
            return Pairs(period=period, residue=fold(residue))
        case _:
            return None


def _without_tile(place: Expr) -> Expr | None:
    """What stands beside the tile in a sum; None if it is no such sum."""
    match place:
        case Index(name="j"):
            return Const(value=0)
        case Apply(op="add", args=(left, right)) if TILE not in free_indices(left):
            rest = _without_tile(right)
            return None if rest is None else Apply(op="add", args=(left, rest), dtype="int")
        case Apply(op="add", args=(left, right)) if TILE not in free_indices(right):
            rest = _without_tile(left)
            return None if rest is None else Apply(op="add", args=(rest, right), dtype="int")
        case _:
            return None
