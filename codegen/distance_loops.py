"""From a walk by distances to loops over the distances listed for a class of rows.

The lists ascend, so that the tiles that exist are a part of each list, found by search.  By query full tiles have a
loop of their own, and those at an edge of the tensors join the masked ones; by key there is one loop with a flag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdsl.analysis.tiles import DistanceWalk
from spdsl.codegen.arith import (
    add,
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
from spdsl.codegen.blocks import Block, Define, ListBounds, ListedTile, Loop, Search, Searches
from spdsl.codegen.expressions import truncated
from spdsl.semantics.nodes import Apply, Expr, Extent, Param

if TYPE_CHECKING:
    from spdsl.codegen.walks import Walker

_FIRST, _BEGIN, _MIDDLE, _END, _FULL_LO, _INSIDE, _FULL_HI, _EDGES, _LO, _HI, _COUNT = (
    Param(name=name, dtype="int")
    for name in ("first", "begin", "middle", "end", "full_lo", "inside", "full_hi", "edges", "lo", "hi", "count")
)
_PAST, _FAR, _REACH = (Param(name=name, dtype="int") for name in ("tiles", "far", "list_reach"))
_TURN = index("t")


def lower_distances(walk: DistanceWalk, walker: Walker) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The definitions of the bounds, and the loops."""
    first, row = _place(walk, walker)
    kind: tuple[Block, ...] = ()
    if walk.classes > 1:
        kind = (Define(name="row", value=row, note=f"which of the {walk.classes} kinds of rows"),)
    least, most = Apply(op="neg", args=(_FIRST,), dtype="int"), sub(_PAST, _FIRST)
    searches: tuple[Search, ...] = (
        Search(name="full_lo", low=_BEGIN, high=_MIDDLE, least=least, note="full tiles that exist"),
        Search(name="full_hi", low=_BEGIN, high=_MIDDLE, least=most),
        Search(name="lo", low=_MIDDLE, high=_END, least=least, note="masked tiles that exist"),
        Search(name="hi", low=_MIDDLE, high=_END, least=most),
    )
    if walker.by == "query":
        whole = sub(walker.whole, _FIRST)
        note = "full tiles without keys past the end"
        searches += (Search(name="inside", low=_BEGIN, high=_MIDDLE, least=whole, note=note),)
    setup: tuple[Block, ...] = (
        Define(name="first", value=first, note="tile from which distances count"),
        *kind,
        ListBounds(row="row" if kind else "", by_head=walk.by_head),
        Define(name="tiles", value=_tiles(walker), note=f"of {'keys' if walker.by == 'query' else 'queries'}"),
        Searches(searches=searches),
    )
    if walker.by == "query":
        more, loops = _by_query(walker)
        return (*setup, *more), loops
    return (*setup, Define(name="count", value=sub(_FULL_HI, _FULL_LO), note="full tiles")), (_by_key(walker),)


def _place(walk: DistanceWalk, walker: Walker) -> tuple[Expr, Expr]:
    """The tile from which the distances of the program's row count, and the class of the row."""
    own, walked = walker.spans if walker.by == "query" else reversed(walker.spans)
    tile, tiles = index("i" if walker.by == "query" else "j"), number(walk.span // walked)
    if walker.shape == "square" and walk.span % own == 0:
        rows = number(walk.span // own)
        return truncated(mul(floordiv(tile, rows), tiles)), truncated(mod(tile, rows))
    at = mul(tile, number(own))
    if walker.shape != "square":
        start = Extent(name="q_start")
        at = add(start, at) if walker.by == "query" else sub(at, start)
    span, grain = number(walk.span), number(walk.grain)
    return truncated(mul(floordiv(at, span), tiles)), truncated(floordiv(mod(at, span), grain))


def _tiles(walker: Walker) -> Expr:
    """How many walked tiles there are."""
    length, size = (Extent(name="n"), 1) if walker.by == "query" else (Extent(name="nq"), 0)
    return truncated(ceildiv(length, walker.spans[size]))


def _by_query(walker: Walker) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    setup: list[Block] = [Define(name="inside", value=maximum(_INSIDE, _FULL_LO))]
    if walker.shape != "square":
        positive = compare("ge", _start(walker), number(0))
        setup.append(Define(name="inside", value=choose(positive, _INSIDE, _FULL_LO)))
    setup.append(Define(name="edges", value=sub(_LO, sub(_FULL_HI, _INSIDE)), note="other full tiles come first"))
    edge = choose(compare("lt", _TURN, _LO), add(sub(_TURN, _LO), _FULL_HI), _TURN)
    begin: Expr = _EDGES
    tile: tuple[Block, ...] = (ListedTile(variable="j", at=edge, first="first"),)
    if walker.shape == "batched":
        # The run time does not know how far from its keys a sequence's queries stand.
        far = minimum(maximum(sub(_FIRST, _REACH), number(0)), _PAST)
        setup.append(Define(name="far", value=far, note="tiles further back than the lists reach, before the others"))
        begin, inside = sub(_EDGES, _FAR), compare("ge", _TURN, _EDGES)
        before = add(sub(_TURN, _EDGES), _FAR)
        tile = (
            ListedTile(variable="j", at=edge, first="first", where=inside),
            Define(name="j", value=choose(inside, index("j"), before)),
        )
    full = Loop(
        variable="t",
        low=_FULL_LO,
        high=_INSIDE,
        body=(ListedTile(variable="j", at=_TURN, first="first"), *walker.body("full")),
        note="every pair of these tiles counts",
    )
    masked = Loop(
        variable="t",
        low=begin,
        high=_HI,
        body=(*tile, *walker.body("masked")),
        note="tiles on an edge",
    )
    return tuple(setup), (full, masked)


def _by_key(walker: Walker) -> Loop:
    full, edge = add(_FULL_LO, _TURN), add(_LO, sub(_TURN, _COUNT))
    if walker.down:
        full, edge = sub(sub(_FULL_HI, number(1)), _TURN), sub(sub(_HI, number(1)), sub(_TURN, _COUNT))
    at = choose(compare("lt", _TURN, _COUNT), full, edge)
    # A full tile may hold rows past the last query, which a kernel that copies whole tiles must not count.
    masked = either(compare("ge", _TURN, _COUNT), compare("ge", index("i"), walker.whole))
    if walker.shape != "square":
        masked = either(masked, compare("lt", _start(walker), number(0)))
    if walker.ragged is not None:
        masked = either(masked, walker.ragged)
    body = (
        ListedTile(variable="i", at=at, first="first"),
        Define(name="masked", value=masked),
        *walker.body("either"),
    )
    turns = add(_COUNT, sub(_HI, _LO))
    return Loop(variable="t", low=number(0), high=turns, body=body, note="full tiles, then masked ones")


def _start(walker: Walker) -> Expr:
    """The position of the first row of the query tile."""
    return add(Extent(name="q_start"), mul(index("i"), number(walker.spans[0])))
