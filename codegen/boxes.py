"""Kernels whose tiles are boxes of a grid: which box a program owns, and the one loop over those that it walks.

From `Boxes` and a `BoxWalk` to blocks.  Tensors stay as they are: a box is a set of rows, and its rows lie at fixed
distances from its first.
"""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import TYPE_CHECKING

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import BoxWalk, Interval
from spdsl.codegen.arith import add, ceildiv, choose, compare, either, index, maximum, mul, number, sub
from spdsl.codegen.blocks import Block, BoxLanes, By, Define, Loop, Part
from spdsl.codegen.expressions import truncated
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Param, Side

if TYPE_CHECKING:
    from spdsl.codegen.walks import Walker

SIDES: dict[By, tuple[Side, Side]] = {"query": ("q", "k"), "key": ("k", "q")}
"""The sides that a program owns and walks."""


def tile_of(side: Side) -> str:
    """The index of a tile of this side."""
    return "i" if side == "q" else "j"


def flag_of(part: Part) -> str:
    """The name of the flag that a tile holds rows after the grid."""
    return "tail" if part == "own" else "after"


def own_box(boxes: Boxes, kernel: KernelPlan, by: By) -> tuple[Block, ...]:
    """From the number of the program's tile to its box, and what both sides need once."""
    own, walked = SIDES[by]
    tile = tile_of(own)
    counts = boxes.counts(own)
    note = f"box of {_times(boxes.box(own))} of the grid {_times(boxes.extents)}"
    placed: list[Block] = []
    for at, (axis, turn) in enumerate(zip(boxes.axes, _spread(index(tile), [number(c) for c in counts]), strict=True)):
        box = turn if axis.step == 1 else _divide("quotient", turn, number(axis.step))
        placed.append(Define(name=f"{tile}{at}", value=box, note="" if at else note))
        if axis.step > 1:
            rest = _divide("remainder", turn, number(axis.step))
            placed.append(Define(name=f"class{at}", value=rest, note=f"of places {axis.step} apart along axis {at}"))
    spans = tuple(step * stride for step, stride in zip(boxes.steps, boxes.strides, strict=True))
    if boxes.tail:
        rows = kernel.block_q if own == "q" else kernel.block_k
        begin = Define(name="tail", value=compare("ge", index(tile), number(prod(counts))), note="rows after the grid")
        first = _first(boxes, own, Param(name="tail", dtype="bool"), sub(index(tile), number(prod(counts))), rows)
        placed = [begin, *placed]
    else:
        first = _first(boxes, own)
    return (
        *placed,
        first,
        BoxLanes(side=own, sizes=boxes.box(own), strides=spans),
        BoxLanes(side=walked, sizes=boxes.box(walked), strides=spans),
    )


def number_of(boxes: Boxes, side: Side) -> Define:
    """The number of a box from its places along the axes."""
    tile = tile_of(side)
    found: Expr = number(0)
    for axis, count in enumerate(boxes.counts(side)):
        found = add(mul(found, number(count)) if found != number(0) else found, index(f"{tile}{axis}"))
    return Define(name=tile, value=found)


def box_of(boxes: Boxes, side: Side) -> tuple[Block, ...]:
    """The places of a box along the axes from its number, and its first row."""
    tile = tile_of(side)
    counts: list[Expr] = [number(count) for count in boxes.counts(side)]
    places = (Define(name=f"{tile}{axis}", value=place) for axis, place in enumerate(_spread(index(tile), counts)))
    return (*places, _first(boxes, side))


def lower_boxes(walk: BoxWalk, boxes: Boxes, walker: Walker) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The definitions of the bounds, and one loop over the product of the intervals."""
    _, walked = SIDES[walker.by]
    tile = tile_of(walked)
    setup: list[Block] = []

    def named(name: str, value: Expr, note: str = "") -> Expr:
        if isinstance(value, Const):
            return value
        setup.append(Define(name=name, value=value, note=note))
        return Param(name=name, dtype="int")

    def ends(interval: Interval, axis: int, prefix: str, note: str) -> tuple[Expr, Expr]:
        low, high = (walker.place(truncated(end)) for end in (interval.lo, interval.hi))
        return named(f"{prefix}lo{axis}", low, note), named(f"{prefix}hi{axis}", high)

    tail, after = Param(name="tail", dtype="bool"), Param(name="after", dtype="bool")
    lows, counts = [], []
    for axis, interval in enumerate(walk.touched):
        low, high = ends(interval, axis, "", f"touched boxes along axis {axis}")
        if boxes.tail:
            low = named(f"from{axis}", choose(tail, number(0), low), "all of them for rows after the grid")
            high = named(f"to{axis}", choose(tail, number(boxes.counts(walked)[axis]), high))
        lows.append(low)
        counts.append(named(f"boxes{axis}", maximum(sub(high, low), number(0))))
    full = [ends(each, axis, "full_", f"full boxes along axis {axis}") for axis, each in enumerate(walk.full or ())]
    turns = reduce(mul, counts)
    divisors = counts
    if boxes.tail:
        rows = walker.spans[1] if walked == "k" else walker.spans[0]
        turns = named("boxes", turns)
        behind = maximum(sub(Extent(name="n" if walked == "k" else "nq"), number(boxes.places)), number(0))
        tiles = named("tiles", truncated(ceildiv(behind, rows)), "of rows after the grid")
        divisors = [maximum(count, number(1)) for count in counts]  # there may be turns without any box
    places = _spread(index("t"), divisors)
    blocks: list[Block] = [
        Define(name=f"{tile}{axis}", value=add(low, place))
        for axis, (low, place) in enumerate(zip(lows, places, strict=True))
    ]
    if boxes.tail:
        blocks.insert(0, Define(name="after", value=compare("ge", index("t"), turns)))
        blocks.append(_first(boxes, walked, after, sub(index("t"), turns), rows))
    else:
        blocks.append(_first(boxes, walked))
    if full:
        edges = [
            either(compare("lt", index(f"{tile}{axis}"), low), compare("ge", index(f"{tile}{axis}"), high))
            for axis, (low, high) in enumerate(full)
        ]
        if walker.ragged is not None:
            edges.append(walker.ragged)
        if boxes.tail:
            edges += [tail, after, compare("lt", Extent(name="n"), number(boxes.places))]
        blocks.append(Define(name="masked", value=reduce(either, edges)))
    loop = Loop(
        variable="t",
        low=number(0),
        high=add(turns, tiles) if boxes.tail else turns,
        body=(*blocks, *walker.body("either" if full else "masked")),
        note="boxes that are touched, row by row" + (", masked where one is not full" if full else ""),
    )
    return tuple(setup), (loop,)


def _spread(turn: Expr, counts: list[Expr]) -> list[Expr]:
    """The digits of ``turn``, which is not negative, the last changing fastest."""
    found: list[Expr] = []
    for axis, count in enumerate(counts):
        faster: Expr = number(1)
        for each in counts[axis + 1 :]:
            faster = mul(faster, each)
        digit = turn if faster == number(1) else _divide("quotient", turn, faster)
        if axis > 0:
            digit = number(0) if count == number(1) else _divide("remainder", digit, count)
        found.append(digit)
    return found


def _divide(op: str, left: Expr, right: Expr) -> Expr:
    return Apply(op=op, args=(left, right), dtype="int")


def _first(boxes: Boxes, side: Side, flag: Expr | None = None, tile_after: Expr | None = None, rows: int = 0) -> Define:
    """The first row of a box; where ``flag`` holds, that of a tile of ``rows`` rows after the grid."""
    tile = tile_of(side)
    parts: list[Expr] = []
    for at, (axis, stride) in enumerate(zip(boxes.axes, boxes.strides, strict=True)):
        parts.append(mul(index(f"{tile}{at}"), number(axis.box(side) * axis.step * stride)))
        if axis.step > 1:
            parts.append(mul(index(f"class{at}"), number(stride)))
    row = reduce(add, parts)
    if flag is not None and tile_after is not None:
        row = choose(flag, add(number(boxes.places), mul(tile_after, number(rows))), row)
    return Define(name=f"{side}_first", value=row, note="its first row")


def _times(sizes: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in sizes)


def programs(boxes: Boxes, by: By) -> int:
    """How many programs there are: one for each box."""
    return prod(boxes.counts(SIDES[by][0]))
