"""Which two tiles of keys a program owns, where those of a lattice are longer than their neighbours.

From `Pairs` to the definitions of both tiles, and from a walk for one tile to one for both.
"""

from __future__ import annotations

from spdsl.analysis.plans import GROUP_ROWS
from spdsl.analysis.tiles import Interval, Pairs, Slot, SlotWalk, Walk
from spdsl.codegen.arith import add, ceildiv, choose, compare, floordiv, index, maximum, minimum, mod, mul, number, sub
from spdsl.codegen.blocks import Block, Define
from spdsl.codegen.expressions import truncated
from spdsl.codegen.hoist import Hoist
from spdsl.semantics.nodes import Expr, Extent, Param
from spdsl.semantics.rewrite import transform

FIRST, SECOND = Param(name="j_first", dtype="int"), Param(name="j_second", dtype="int")
_LONG, _PAIR, _RESIDUE, _BEGIN = (Param(name=name, dtype="int") for name in ("long", "pair", "residue", "begin"))


def own_pair(pairs: Pairs, hoist: Hoist, own: Expr | None = None) -> tuple[Block, ...]:
    """From the number of the program to its tiles: ``j_first`` and ``j_second``, or for a group the one that is its
    ``own`` (0 or 1) as ``j``.

    Two periods have as many pairs as a period has tiles, of which one is long.  The long ones of all come first, so
    that none is left when the others are done, nor others wait for them where sums have an order.
    """
    for name in (_LONG, _PAIR, _RESIDUE, _BEGIN, FIRST, SECOND):
        hoist.known(name.name, 0)
    two, others = number(2 * pairs.period), number(pairs.period - 1)
    after = sub(index("j"), _LONG)
    is_long = compare("lt", index("j"), _LONG)
    pair = choose(is_long, number(0), add(mod(after, others), number(1)))
    run = choose(is_long, index("j"), floordiv(after, others))
    begin: tuple[Block, ...] = (
        Define(
            name=_LONG.name,
            value=truncated(ceildiv(Extent(name="n"), 2 * pairs.period * GROUP_ROWS)),
            note="pairs of long tiles",
        ),
        Define(name=_PAIR.name, value=truncated(pair), note="of the long tiles, or of others"),
        Define(name=_RESIDUE.name, value=truncated(pairs.residue), note="of the long tiles"),
        Define(name=_BEGIN.name, value=truncated(mul(run, two))),
    )
    if own is not None:
        return (*begin, Define(name="j", value=_tile(pairs, own), note="tile of keys"))
    first, second = (_tile(pairs, number(half)) for half in (0, 1))
    return (
        *begin,
        Define(name=FIRST.name, value=first, note="tile of keys"),
        Define(name=SECOND.name, value=second),
    )


def _tile(pairs: Pairs, half: Expr) -> Expr:
    """The first or the second tile of a pair."""
    long = add(_RESIDUE, mul(half, number(pairs.period)))
    turn = add(mul(sub(_PAIR, number(1)), number(2)), half)
    after_one = _counted(turn, _RESIDUE)
    other = _counted(after_one, add(_RESIDUE, number(pairs.period)))
    return add(_BEGIN, choose(compare("eq", _PAIR, number(0)), long, other))


def _counted(turn: Expr, long: Expr) -> Expr:
    """A turn among all tiles, from one among all but the ``long`` one."""
    return add(turn, choose(compare("ge", turn, long), number(1), number(0)))


def for_both(walk: Walk) -> SlotWalk:
    """The walk of all that either tile touches."""
    assert isinstance(walk, SlotWalk)
    (slot,) = walk.slots
    lows, highs = _of_both(slot.touched.lo), _of_both(slot.touched.hi)
    touched = Interval(lo=minimum(*lows), hi=maximum(*highs))
    if slot.full is None:
        return SlotWalk(slots=(Slot(touched=touched),))
    lows, highs = _of_both(slot.full.lo), _of_both(slot.full.hi)
    return SlotWalk(slots=(Slot(touched=touched, full=Interval(lo=maximum(*lows), hi=minimum(*highs))),))


def _of_both(bound: Expr) -> tuple[Expr, Expr]:
    return _with_tile(bound, FIRST), _with_tile(bound, SECOND)


def _with_tile(bound: Expr, tile: Param) -> Expr:
    return transform(bound, lambda node: tile if node == index("j") else None)
