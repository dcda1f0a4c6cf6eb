"""From a walk over tiles to loops: which are unrolled side by side, and which are one loop with a test.

One or two loops stand side by side: the compiler pipelines each, and full tiles pay nothing for the mask.  Three or
more cost too many registers; they become one flat loop whose tiles are masked where a flag says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.tiles import BoxWalk, DistanceWalk, ListWalk, Picks, PickWalk, Shape, Slot, SlotWalk, Turned, Walk
from spdsl.codegen.arith import (
    add,
    both,
    ceildiv,
    choose,
    compare,
    either,
    floordiv,
    index,
    maximum,
    minimum,
    mod,
    mul,
    number,
    sub,
)
from spdsl.codegen.blocks import Block, By, Define, If, ListBounds, ListedTile, Loop
from spdsl.codegen.boxes import lower_boxes
from spdsl.codegen.distance_loops import lower_distances
from spdsl.codegen.expressions import truncated
from spdsl.codegen.picks import lower_gathered, lower_picks
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Param
from spdsl.semantics.rewrite import transform, walk

Mode: TypeAlias = Literal["full", "masked", "either"]
_LONG = 6
"""Operations of a bound that stand in one line with its clamps."""

MASKED = Param(name="masked", dtype="bool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Walker:
    """What the loops of one kernel need: its tile sizes, and where its expressions and tiles come from.

    ``spans`` are the rows from tile to tile of queries and of keys, as in `KernelPlan.spans`.
    ``place`` names the loads of a bound, ``place_tile`` those of a condition inside the loop (it returns the
    definitions too).  ``body`` gives the blocks of one tile.  ``separate`` is the largest number of loops that stand
    side by side.  Where ``ragged`` holds, the program's own tile has rows past the end that must not count, so that no
    tile goes without its mask.  With ``down`` lists are gone through in the order of turns, and distances from the
    largest to the least; what are loops over tiles are turned by `downwards`.
    """

    by: By
    shape: Shape
    spans: tuple[int, int]
    separate: int
    place: Callable[[Expr], Expr]
    place_tile: Callable[[Expr], tuple[tuple[Block, ...], Expr]]
    body: Callable[[Mode], tuple[Block, ...]]
    boxes: Boxes | None = None
    picks: Picks | None = None
    ragged: Expr | None = None
    down: bool = False

    @property
    def tile(self) -> str:
        """The index of the walked tile."""
        return "j" if self.by == "query" else "i"

    @property
    def whole(self) -> Expr:
        """How many walked tiles lie entirely inside the tensors."""
        length, size = (Extent(name="n"), self.spans[1]) if self.by == "query" else (Extent(name="nq"), self.spans[0])
        return truncated(floordiv(length, number(size)))


def lower_walk(walk: Walk, walker: Walker) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The definitions of the bounds, and the loops."""
    match walk:
        case ListWalk(turned=turned):
            return _lists(walker) if turned is None else _turned(turned, walker)
        case BoxWalk():
            assert walker.boxes is not None
            return lower_boxes(walk, walker.boxes, walker)
        case DistanceWalk():
            return lower_distances(walk, walker)
        case PickWalk(bounds=slot):
            assert walker.picks is not None
            gathered = walker.by == "query" and walker.picks.order == "gathered"
            # Bounds of tiles of a block are those of queries, one by one; nothing in them has to be named before.
            by_key = replace(walker, by="key", spans=(1, walker.spans[1]), place=lambda bound: bound)
            # Where single keys are picked, bounds are those of keys.
            by_tile = (
                replace(walker, spans=(walker.spans[0], 1)) if walker.picks.fine and walker.by == "query" else walker
            )
            part = _bounds(slot, 0, 1, by_key if gathered else by_tile)
            full = None if slot.full is None else (part.full_low, part.full_high)
            return (lower_gathered if gathered else lower_picks)(walker.picks, part.setup, full, walker)
        case SlotWalk(slots=slots):
            parts = [_bounds(slot, number, len(slots), walker) for number, slot in enumerate(slots)]
            setup: tuple[Block, ...] = tuple(block for part in parts for block in part.setup)
            plain = all(part.slot.step == 1 and part.slot.filter is None for part in parts)
            if plain and sum(len(part.loops) for part in parts) <= walker.separate:
                loops: tuple[Block, ...] = tuple(loop for part in parts for loop in _side_by_side(part, walker))
            elif len(parts) == 1 and parts[0].slot.step == 1:
                loops = _flat_slot(parts[0], walker)
            else:
                more, loops = _flat(parts, walker)
                setup += more
            return setup, loops


def downwards(loops: tuple[Block, ...]) -> tuple[Block, ...]:
    """The loops from their last turn to the first."""
    turned: list[Block] = []
    for block in reversed(loops):
        match block:
            case Loop(low=low, high=high):
                turned.append(replace(block, low=sub(high, number(1)), high=sub(low, number(1)), step=-1))
            case _:
                turned.insert(0, block)
    return tuple(turned)


FLAGS: dict[Mode, Expr] = {"full": Const(value=0), "masked": Const(value=1), "either": MASKED}
"""Whether a tile is masked, as a number."""


def mode_of(walk: Walk, walker: Walker) -> Mode:
    """Whether all tiles of a walk are masked, all full, or either; what ``walker`` places does not count."""
    modes: set[Mode] = set()

    def body(mode: Mode) -> tuple[Block, ...]:
        modes.add(mode)
        return ()

    lower_walk(walk, replace(walker, body=body))
    return modes.pop() if len(modes) == 1 else "either"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """A slot with the names of its bounds; ``loops`` are (mode, low, high)."""

    slot: Slot
    setup: tuple[Define, ...]
    low: Expr
    high: Expr
    full_low: Expr
    full_high: Expr
    loops: tuple[tuple[Mode, Expr, Expr], ...]


def _bounds(slot: Slot, position: int, count: int, walker: Walker) -> _Bounds:
    suffix = f"_{position}" if count > 1 else ""
    low, high = _named("lo" + suffix), _named("hi" + suffix)
    setup = [
        Define(name=low.name, value=_bound(slot.touched.lo, walker), note="touched tiles"),
        Define(name=high.name, value=_bound(slot.touched.hi, walker)),
    ]
    if slot.full is None:
        return _Bounds(
            slot=slot,
            setup=tuple(setup),
            low=low,
            high=high,
            full_low=high,
            full_high=high,
            loops=(("masked", low, high),),
        )
    full_low, full_high = _named("full_lo" + suffix), _named("full_hi" + suffix)
    headless = slot.full.lo == slot.touched.lo and walker.shape == "square"
    if headless:
        full_low = low
    else:
        start = _short(full_low, _bound(slot.full.lo, walker), setup)
        if walker.by == "key" and walker.shape != "square":
            # Query tiles with a row at a negative position are never full.
            start = maximum(
                start, truncated(ceildiv(maximum(sub(number(0), Extent(name="q_start")), number(0)), walker.spans[0]))
            )
        setup.append(Define(name=full_low.name, value=minimum(maximum(start, low), high), note="full tiles"))
    end = minimum(minimum(_short(full_high, _bound(slot.full.hi, walker), setup), high), walker.whole)
    if walker.by == "query" and walker.shape != "square":
        first = add(Extent(name="q_start"), mul(index("i"), number(walker.spans[0])))
        end = choose(compare("ge", first, number(0)), end, full_low)
    if walker.ragged is not None:
        end = choose(walker.ragged, full_low, end)
    setup.append(Define(name=full_high.name, value=maximum(end, full_low), note="full tiles" if headless else ""))
    head: tuple[tuple[Mode, Expr, Expr], ...] = () if headless else (("masked", low, full_low),)
    loops = (*head, ("full", full_low, full_high), ("masked", full_high, high))
    return _Bounds(
        slot=slot, setup=tuple(setup), low=low, high=high, full_low=full_low, full_high=full_high, loops=loops
    )


def _short(name: Param, bound: Expr, setup: list[Define]) -> Expr:
    """The bound, or where it is long its name, under which it is then defined before it is clamped."""
    if sum(isinstance(node, Apply) for node in walk(bound)) <= _LONG:
        return bound
    setup.append(Define(name=name.name, value=bound))
    return name


def _bound(expr: Expr, walker: Walker) -> Expr:
    return walker.place(truncated(expr))


def _side_by_side(part: _Bounds, walker: Walker) -> tuple[Loop, ...]:
    notes = {"full": "every pair of these tiles counts", "masked": "tiles on an edge", "either": ""}
    return tuple(
        Loop(variable=walker.tile, low=low, high=high, body=walker.body(mode), note=notes[mode])
        for mode, low, high in part.loops
    )


def _flat_slot(part: _Bounds, walker: Walker) -> tuple[Loop, ...]:
    tile = index(walker.tile)
    inside, test = _filter(part.slot, walker)
    body = inside + _when(test, _flagged(part.slot.full is not None, tile, part.full_low, part.full_high, walker))
    return (
        Loop(variable=walker.tile, low=part.low, high=part.high, body=body, note="masked where the tile is not full"),
    )


def _flagged(
    flag: bool, tile: Expr, full_low: Expr, full_high: Expr, walker: Walker, test: Expr | None = None
) -> tuple[Block, ...]:
    """The blocks of a tile, which is masked outside of what is full, or where a ``test`` says so."""
    if not flag:
        return walker.body("masked")
    masked = either(compare("lt", tile, full_low), compare("ge", tile, full_high))
    masked = masked if test is None else either(test, masked)
    return (Define(name="masked", value=masked), *walker.body("either"))


def _flat(parts: list[_Bounds], walker: Walker) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """All slots one after the other: ``t`` counts, and the tile follows from it."""
    step = index("t")
    setup: list[Block] = []
    ends: list[Expr] = []
    tiles: list[Expr] = []
    tests: list[Expr | None] = []
    inner: list[Block] = []
    for position, part in enumerate(parts):
        start = ends[-1] if ends else number(0)
        count, tile, test = _lattice(part, position, sub(step, start), setup, walker)
        end = _named(f"end_{position}")
        setup.append(Define(name=end.name, value=add(start, maximum(count, number(0)))))
        found, condition = _filter(part.slot, walker)
        inner += found
        ends.append(end)
        tiles.append(tile)
        tests.append(both(test, condition))
    blocks: list[Block] = [Define(name=walker.tile, value=_select(step, ends, tiles))]
    flag = any(part.slot.full is not None for part in parts)
    low = _select(step, ends, [part.full_low for part in parts])
    high = _select(step, ends, [part.full_high for part in parts])
    body = _flagged(flag, index(walker.tile), low, high, walker)
    test = None
    if any(each is not None for each in tests):
        test = _select_test(step, ends, tests)
    blocks += [*inner, *_when(test, body)]
    loop = Loop(
        variable="t", low=number(0), high=ends[-1], body=tuple(blocks), note="all runs of tiles, one after the other"
    )
    return tuple(setup), (loop,)


def _lattice(
    part: _Bounds, position: int, at: Expr, setup: list[Block], walker: Walker
) -> tuple[Expr, Expr, Expr | None]:
    """How many turns a slot takes, the tile of turn ``at``, and whether it counts."""
    slot = part.slot
    if slot.step == 1:
        return sub(part.high, part.low), add(part.low, at), None
    phase = number(0) if slot.phase is None else _bound(slot.phase, walker)
    step, run = number(slot.step), number(slot.run)
    first, last = _named(f"period_{position}"), _named(f"last_period_{position}")
    setup += [
        Define(
            name=first.name, value=floordiv(sub(part.low, phase), step), note=f"every {slot.step} tiles, {slot.run}"
        ),
        Define(name=last.name, value=floordiv(sub(sub(part.high, number(1)), phase), step)),
    ]
    count = mul(add(sub(last, first), number(1)), run)
    turn = Const(value=0) if slot.run == 1 else mod(at, run)
    period = add(first, floordiv(at, run))
    # `at` is negative only for turns of earlier slots, whose tile is not taken from here.
    tile = _truncated_turns(add(add(phase, mul(period, step)), turn))
    test = both(compare("ge", index(walker.tile), part.low), compare("lt", index(walker.tile), part.high))
    return count, tile, test


def _truncated_turns(expr: Expr) -> Expr:
    """Divisions by the run length with Triton's own operators: turns count from 0."""
    names = {"floordiv": "quotient", "mod": "remainder"}

    def rewrite(node: Expr) -> Expr | None:
        return replace(node, op=names[node.op]) if isinstance(node, Apply) and node.op in names else None

    return transform(expr, rewrite)


def _select(step: Expr, ends: list[Expr], values: list[Expr]) -> Expr:
    result = values[-1]
    for end, value in zip(reversed(ends[:-1]), reversed(values[:-1]), strict=True):
        result = choose(compare("lt", step, end), value, result)
    return result


def _select_test(step: Expr, ends: list[Expr], tests: list[Expr | None]) -> Expr | None:
    total: Expr | None = None
    for position, test in enumerate(tests):
        if test is None:
            continue
        outside: list[Expr] = []
        if position > 0:
            outside.append(compare("lt", step, ends[position - 1]))
        if position + 1 < len(ends):
            outside.append(compare("ge", step, ends[position]))
        for each in outside:
            test = either(test, each)
        total = both(total, test)
    return total


def _filter(slot: Slot, walker: Walker) -> tuple[tuple[Block, ...], Expr | None]:
    return ((), None) if slot.filter is None else walker.place_tile(truncated(slot.filter))


def _when(test: Expr | None, body: tuple[Block, ...]) -> tuple[Block, ...]:
    return body if test is None else (If(condition=test, body=body),)


def _lists(walker: Walker) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """Full tiles of the list, then masked ones; a ragged last tile is among the masked."""
    at = index("at") if walker.down else index("t")
    tile: tuple[Block, ...] = (ListedTile(variable=walker.tile, at=at),)
    if walker.down:
        tile = (ListedTile(variable="at", at=index("t"), of="turns"), *tile)
    begin, middle, end = _named("begin"), _named("middle"), _named("end")
    bounds = (ListBounds(row="i" if walker.by == "query" else "j"),)
    if not walker.separate:
        # A full tile may hold rows past the last query, which a kernel that copies whole tiles must not count.
        masked = either(compare("ge", at, middle), compare("ge", index(walker.tile), walker.whole))
        masked = masked if walker.ragged is None else either(masked, walker.ragged)
        body = (*tile, Define(name="masked", value=masked), *walker.body("either"))
        note = "listed tiles, " + ("in the order of turns" if walker.down else "the full ones first")
        return bounds, (Loop(variable="t", low=begin, high=end, body=body, note=note),)
    full = Loop(
        variable="t", low=begin, high=middle, body=(*tile, *walker.body("full")), note="listed tiles that are full"
    )
    edges = Loop(
        variable="t", low=middle, high=end, body=(*tile, *walker.body("masked")), note="listed tiles with an edge"
    )
    return bounds, (full, edges)


def _turned(turned: Turned, walker: Walker) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The tiles of the runs of queries that have picked the block, ascending, or the other way round."""
    part, parts = _bounds(turned.bounds, 0, 1, walker), turned.rows // walker.spans[0]
    begin, end = (mul(_named(name), number(parts)) for name in ("begin", "end"))
    at = Define(name="at", value=sub(sub(add(begin, end), number(1)), index("t"))) if walker.down else None
    turn = index("t") if at is None else index("at")
    run: tuple[Block, ...] = (ListedTile(variable=walker.tile, at=turn),)
    listed = turn
    if parts > 1:
        place = Define(name="place", value=_truncated_turns(floordiv(turn, number(parts))))
        tile = add(mul(index("run"), number(parts)), _truncated_turns(mod(turn, number(parts))))
        listed = index("place")
        run = (place, ListedTile(variable="run", at=listed), Define(name=walker.tile, value=tile))
    run = run if at is None else (at, *run)
    flag = turned.bounds.full is not None
    test: Expr | None = None
    if turned.held > 1:
        run = (*run, ListedTile(variable="bits", at=listed, of="bits"))
        test = compare("ne", index("bits"), number((1 << turned.held) - 1))
    body = (*run, *_flagged(flag, index(walker.tile), part.full_low, part.full_high, walker, test))
    note = "tiles of queries that have picked the block"
    return (*part.setup, ListBounds(row="j")), (Loop(variable="t", low=begin, high=end, body=body, note=note),)


def _named(name: str) -> Param:
    return Param(name=name, dtype="int")
