"""What kernels visit, for people: the walk in words, its tiles counted, and its tiles one by one.

Each question is one function with one case for each kind of walk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from typing_extensions import assert_never

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.cuts import tables_of
from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import (
    FAR,
    BoxWalk,
    Cuts,
    DistanceWalk,
    Interval,
    ListWalk,
    Marked,
    Picks,
    PickWalk,
    Residues,
    Slot,
    SlotWalk,
    Turned,
)
from spdsl.analysis.wording import describe as word
from spdsl.runtime.box_visits import box_visits
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.distance_lists import distance_lists
from spdsl.runtime.lists import listed
from spdsl.runtime.marks import marked_tiles
from spdsl.runtime.picked_visits import picked_visits
from spdsl.runtime.spans import spanned_keys, spanned_tiles
from spdsl.runtime.tile_grid import TileGrid
from spdsl.runtime.turned_lists import turned_visits
from spdsl.runtime.visits import Visits, list_visits, slot_visits
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load
from spdsl.semantics.rewrite import transform
from spdsl.semantics.show import print_expr

_SHOWN = 40
"""Distances that are shown one by one."""

_CULPRIT = 160
"""Characters of the part of a set that has no closed form."""


def _few(kernel: KernelPlan) -> str:
    heads = "the query heads of a group share a tile, and " if kernel.packed > 1 else ""
    return f"{heads}several programs walk each row of tiles"


def describe(kernel: KernelPlan, plan: Plan, call: Call | None = None) -> tuple[str, ...]:
    """The walk of a kernel in lines: how its tiles are found, in closed form where there is one.

    With a ``call`` also what is known of its lengths alone.
    """
    match kernel.walk:
        case SlotWalk(slots=slots, cuts=cuts, long=long):
            lines = tuple(_slot(slot, kernel) for slot in slots) or ("no tile is touched",)
            lines += () if cuts is None else _cuts(cuts, gathered=kernel.marked is not None)
            lines += _long(long, kernel) if kernel.splits and not kernel.few else ()
            lines += (_few(kernel),) if kernel.few or (kernel.splits and long is None) else ()
            if kernel.marked is not None and kernel.marked.alike:
                return (_ALIKE, *lines)
            if kernel.marked is not None:
                return (_marked(kernel.marked, plan), *lines)
            return lines if kernel.residues is None else (_residues(kernel.residues), *lines)
        case BoxWalk() as walk:
            assert kernel.boxes is not None
            return (*_grid(kernel.boxes), *(_axis(walk, axis, kernel) for axis in range(len(walk.touched))))
        case DistanceWalk() as walk:
            known = "" if call is None else _distances(distance_lists(call, kernel), kernel)
            return (_repeats(walk, kernel) + known, f"no short closed form: {_reason(walk, plan)}")
        case ListWalk(turned=Turned() as turned):
            cut = ("rows much longer than the others are cut into parts",) if kernel.splits else ()
            return (*_turned(turned), *cut)
        case ListWalk() as walk:
            lines = (f"tiles are listed at run time: {_reason(walk, plan)}",)
            return (*lines, "rows much longer than the others are cut into parts") if kernel.splits else lines
        case PickWalk(bounds=slot):
            assert kernel.picks is not None
            picks = kernel.picks
            who = _picks(picks) if picks.where is None else _shared(picks.where, plan)
            return (*who, _picked(slot, kernel))
        case _:
            assert_never(kernel.walk)


def visits(call: Call, kernel: KernelPlan) -> Visits:
    """How many tiles a kernel visits in a call."""
    match kernel.walk:
        case SlotWalk() if kernel.marked is not None and kernel.marked.alike:
            first, whole, edge, last = spanned_tiles(call, kernel).unbind(-1)
            times = call.q.shape[0] * call.q.shape[1] // (first.shape[0] * first.shape[1])
            return Visits(
                touched=int((last - first).sum()) * times,
                full=int((edge - whole).sum()) * times,
                longest=int((last - first).max()) if first.numel() else 0,
                metadata=spanned_keys(call, kernel).nbytes,
            )
        case SlotWalk() if kernel.marked is not None:
            assert call.marks is not None
            own, walked = marked_tiles(call, kernel)
            heads = call.q.shape[0] * call.q.shape[1]
            return Visits(touched=own * walked * heads, full=0, longest=walked, metadata=call.marks.rows.nbytes)
        case SlotWalk() as walk:
            return slot_visits(call, walk, TileGrid.of(kernel))
        case BoxWalk() as walk:
            return box_visits(call, walk, kernel)
        case DistanceWalk():
            metadata = distance_lists(call, kernel).nbytes
            return replace(list_visits(listed(call, kernel), call.q.shape[0], call.q.shape[1]), metadata=metadata)
        case ListWalk(turned=Turned()):
            return turned_visits(call, kernel)
        case ListWalk():
            return list_visits(listed(call, kernel), call.q.shape[0], call.q.shape[1])
        case PickWalk():
            found = picked_visits(call, kernel)
            return Visits(touched=found.touched, full=0, longest=found.longest, metadata=found.metadata)
        case _:
            assert_never(kernel.walk)


# ---------------------------------------------------------------- words


def _slot(slot: Slot, kernel: KernelPlan) -> str:
    own, walked = ("key", "query") if kernel.by == "key" else ("query", "key")
    text = f"{own} tile {own_name(kernel)} walks {walked} tiles {_interval(slot.touched)}"
    if slot.phase is not None:
        text += f" with {_past(slot.phase)} % {slot.step} {'== 0' if slot.run == 1 else f'< {slot.run}'}"
    if slot.filter is not None:
        text += f" where {_text(slot.filter)}"
    return f"{text}, full in {_interval(slot.full)}" if slot.full is not None else f"{text}, all masked"


def _long(rows: Interval | None, kernel: KernelPlan) -> tuple[str, ...]:
    if rows is None:
        return ()
    side = "key" if kernel.by == "key" else "query"
    return (f"{side} tiles {_interval(rows)} walk many more tiles than the others and are cut into parts",)


def _grid(boxes: Boxes) -> tuple[str, ...]:
    extents, queries, keys = (" × ".join(map(str, sizes)) for sizes in (boxes.extents, boxes.box("q"), boxes.box("k")))
    text = f"tiles are boxes of {queries} queries and {keys} keys of the grid {extents}"
    if boxes.tail:
        text += ", and tiles of the rows after it, which meet all others"
    apart = tuple(
        f"along axis {axis} the places of a box are {step} apart; only boxes with the same place % {step} meet"
        for axis, step in enumerate(boxes.steps)
        if step > 1
    )
    return (text, *apart)


def _axis(walk: BoxWalk, axis: int, kernel: KernelPlan) -> str:
    text = f"along axis {axis} box {own_name(kernel)}{axis} walks {_interval(walk.touched[axis])}"
    return text if walk.full is None else f"{text}, full in {_interval(walk.full[axis])}"


def _past(phase: Expr) -> str:
    """How far a tile t lies behind the phase of a lattice."""
    match phase:
        case Const(value=0):
            return "t"
        case Apply(op="neg", args=(before,)):
            return f"({print_expr(Apply(op='add', args=(Index(name='t'), before), dtype='int'))})"
        case _:
            return f"({print_expr(Apply(op='sub', args=(Index(name='t'), phase), dtype='int'))})"


def own_name(kernel: KernelPlan) -> str:
    """The name of the tile that a program of the kernel owns: ``i`` of queries, ``j`` of keys."""
    return "j" if kernel.by == "key" else "i"


def _interval(interval: Interval) -> str:
    return f"[{_text(interval.lo)}, {_text(interval.hi)})"


def _text(expr: Expr) -> str:
    return print_expr(transform(expr, _plainer))


def _plainer(node: Expr) -> Expr | None:
    """One extreme of many for extremes of extremes; infinity for what stands for no bound."""
    match node:
        case Const(value=int() as value) if abs(value) == FAR:
            return Index(name="∞" if value > 0 else "-∞")
        case Apply(op="min" | "max" as op, args=args):
            parts = (part.args if isinstance(part, Apply) and part.op == op else (part,) for part in args)
            among = tuple(dict.fromkeys(part for each in parts for part in each))
            return among[0] if len(among) == 1 else replace(node, args=among)
        case _:
            return None


def _cuts(cuts: Cuts, *, gathered: bool) -> tuple[str, str]:
    """What the ints are that bounds of slots load."""
    own, walked = ("query", "key") if cuts.by == "query" else ("key", "query")
    first, second, third, last = cuts.names
    made_of = ", ".join(f"`{name}`" for name in tables_of(cuts)) or "positions"
    found = "they come with the order of the keys" if gathered else "a kernel finds them"
    return (
        f"intervals of {made_of} clamp the tiles; {found}, 4 ints for every tile of {cuts.block}:",
        f"some {own} of the tile keeps {walked} rows from {first} to {last}, all keep those from {second} to {third}",
    )


_ALIKE = "keys that keep nearly the same interval of queries are gathered into tiles, in an order made at run time"


def _marked(marked: Marked, plan: Plan) -> str:
    side = "keys" if marked.side == "k" else "queries"
    stages: Mapping[str, Expr] = {each.name: each.value for each in plan.stages}
    where = word(marked.where, _CULPRIT, stages)
    return f"the {side} with `{where}` are listed at run time and gathered into tiles; these meet all others"


def _shared(where: Expr, plan: Plan) -> tuple[str, ...]:
    stages: Mapping[str, Expr] = {each.name: each.value for each in plan.stages}
    return (f"each head's keys with `{word(where, _CULPRIT, stages)}` are listed at run time and gathered into tiles",)


def _picks(picks: Picks) -> tuple[str, ...]:
    heads = "each head" if picks.heads == 1 else f"{picks.heads} heads together"
    who = "every query" if picks.rows == 1 else f"every {picks.rows} queries"
    who = f"every run of `{picks.runs}`" if picks.runs else who
    many, one = ("single keys", "key") if picks.block == 1 else (f"blocks of {picks.block} keys", "block")
    picked = f"for {heads} {who} picked {many}"
    rows = f"a tile holds {picks.positions} {'query' if picks.positions == 1 else 'queries'} with these heads"
    if picks.order == "gathered":
        return (f"{picked}; {rows}, gathered from those that have picked a {one}",)
    if picks.order == "alike":
        return (f"{picked}; {rows}, which have picked the same {one}s",)
    return (f"{picked}; {rows}, and walks what any of them has picked",)


def _turned(turned: Turned) -> tuple[str, ...]:
    who = f"of those {turned.rows} queries that have picked them, head by head"
    full = turned.bounds.full
    tested = "all of them are" if full is None else f"query tiles not in {_interval(full)} are"
    if turned.held == 1:
        return f"key tile j, of a block of {turned.block} keys, walks the tiles {who}", f"{tested} tested pair by pair"
    some = "" if full is None else ", and so are those that have picked only some of its blocks"
    own = f"key tile j, {turned.held} blocks of {turned.block} keys, walks the tiles {who}"
    return own, f"{tested} tested pair by pair{some}"


def _picked(slot: Slot, kernel: KernelPlan) -> str:
    """Where a pick alone decides, and where the rest of the set is tested."""
    assert kernel.picks is not None
    if slot.full is None:
        return "whatever was picked is tested by the rest of the set, pair by pair"
    where = _interval(slot.full)
    if kernel.picks.order == "gathered":
        return f"queries in {where} keep all that they picked of key tile j; those of others are tested pair by pair"
    walked = "keys" if kernel.picks.fine else "key tiles"
    return f"query tile i keeps all that it picked in {walked} {where}; in others it is tested pair by pair"


def _residues(residues: Residues) -> str:
    apart = f"(q - k) % {residues.modulus} == {residues.shift}: the rows of a tile are {residues.modulus} apart"
    return f"{apart}, and i and j count the tiles of one class of rows (row % {residues.modulus})"


def _repeats(walk: DistanceWalk, kernel: KernelPlan) -> str:
    own, walked = ("key", "query") if kernel.by == "key" else ("query", "key")
    rows = f"every {own} tile" if walk.classes == 1 else f"{own} tiles that begin {walk.span:,} positions apart"
    return f"{rows} walk{'s' if walk.classes == 1 else ''} {walked} tiles at the same distances"


def _distances(lists: TileList, kernel: KernelPlan) -> str:
    """The distances themselves where they are few, else how many they are."""
    size = kernel.block_q if kernel.by == "key" else kernel.block_k
    counts = lists.end - lists.begin
    least, most = (int(counts.min()), int(counts.max()))
    number = f"{most}" if least == most else f"{least} to {most}"
    if counts.numel() > 1 or most > _SHOWN:
        return f", {number} of them"
    return f", in tiles of {size}: {', '.join(map(str, sorted(lists.tiles.tolist())))}"


def _reason(walk: ListWalk | DistanceWalk, plan: Plan) -> str:
    stages: Mapping[str, Expr] = {each.name: each.value for each in plan.stages}
    match walk.culprit:
        case None:
            return walk.reason
        case Load(table=table) as load if table in stages:
            return f"`{word(load, _CULPRIT, stages)}` is computed before the kernels start"
        case culprit:
            return f"`{word(culprit, _CULPRIT, stages)}` {walk.reason}"
