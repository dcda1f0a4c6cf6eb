"""Kernels that walk what queries have picked: heads packed into the rows of a tile, and the loops over lists.

By query a program owns a tile of a few queries with all heads that share a list, and walks the blocks of keys that any
of them has picked.  By key it owns a tile of keys and gathers the queries that have picked its block; a block that many
have picked is cut into parts, which a second kernel adds up in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import Picks, Shape
from spdsl.codegen.arith import add, both, ceildiv, choose, compare, either, floordiv, index, mul, number, sub
from spdsl.codegen.blocks import (
    Block,
    By,
    Define,
    GatheredItem,
    GatheredRows,
    GatheredTurns,
    Loop,
    PackedProgram,
    PackedRows,
    Part,
    PickedBounds,
    PickedItem,
    PickedKeys,
    PickedQueries,
    PickedTile,
)
from spdsl.codegen.expressions import truncated
from spdsl.semantics.nodes import Apply, BoundPattern, Const, Expr, Param

if TYPE_CHECKING:
    from spdsl.codegen.walks import Walker

TOUCHED = compare("lt", Param(name="lo", dtype="int"), Param(name="hi", dtype="int"))
"""Whether the rest of the set keeps anything of the program's tile: `n <= dense` may say that it does not."""

_LISTED = compare("lt", Param(name="begin", dtype="int"), Param(name="end", dtype="int"))

MEETS_TILES = Apply(op="and", args=(TOUCHED, _LISTED), dtype="bool")
"""Whether the queries of the program's tile have picked anything that the rest of the set keeps something of."""

PICKED = Param(name="picked", dtype="bool")
"""Whether the query of a row has picked the walked block."""


def packed_program(kernel: KernelPlan, pattern: BoundPattern, *, reverse: bool, shape: Shape) -> tuple[Block, ...]:
    """What a program works on, and how the rows of a tile of queries are laid out."""
    picks, ratio = kernel.picks, pattern.heads // pattern.groups
    assert picks is not None
    owners = pattern.heads // picks.heads
    begin: Block = PackedProgram(heads=picks.heads, ratio=ratio, reverse=reverse, shape=shape)
    if kernel.by == "key":
        begin = PickedItem(heads=picks.heads, ratio=ratio, owners=owners, parts=tiles_of_block(kernel), shape=shape)
    elif picks.order == "gathered":
        begin = GatheredItem(heads=picks.heads, ratio=ratio, owners=owners, shape=shape)
    part: Part = "own" if kernel.by == "query" else "walked"
    rows = PackedRows(part=part, heads=picks.heads, lanes=picks.lanes, positions=picks.positions)
    if kernel.by == "key" or picks.order != "gathered":
        return begin, rows
    listed = GatheredRows(positions=picks.positions, heads=picks.heads, padded=picks.lanes != picks.heads)
    return begin, rows, listed


def tiles_of_block(kernel: KernelPlan) -> int:
    """The tiles of keys of a block that queries pick."""
    assert kernel.picks is not None
    return max(1, kernel.picks.block // kernel.block_k)


def packed_keep(picks: Picks, by: By) -> Expr | None:
    """What is to be tested of a pair."""
    return both(PICKED if has_bits(picks, by) else None, truncated(picks.keep))


def has_bits(picks: Picks, by: By) -> bool:
    """Whether a bit says of each pair whether it is one: of queries with different lists, and by key of the keys of a
    tile that has several blocks."""
    return picks.order == "union" if by == "query" else picks.fine


def lower_picks(
    picks: Picks, bounds: tuple[Block, ...], full: tuple[Expr, Expr] | None, walker: Walker
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The definitions of the bounds, and the loop; ``full`` are the ends of the tiles that need no mask for the rest of
    the set, by key of queries."""
    if walker.by == "query" and picks.fine:
        return _fine(picks, bounds, full, walker)
    if walker.by == "query":
        return _by_query(picks, bounds, full, walker)
    return _by_key(picks, bounds, full, walker)


def _by_query(
    picks: Picks, bounds: tuple[Block, ...], full: tuple[Expr, Expr] | None, walker: Walker
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    count = picks.block // walker.spans[1]
    tests: list[Expr] = []
    if full is not None:
        tests += [compare("lt", index("j"), full[0]), compare("ge", index("j"), full[1])]
    if picks.order == "union":
        everyone = (1 << picks.positions) - 1 if picks.positions < 32 else -1
        tests.append(compare("ne", Param(name="bits", dtype="int"), number(everyone)))
    masked: Expr = Const(value=True)
    if full is not None:
        masked = tests[0]
        for test in tests[1:]:
            masked = either(masked, test)
    low, high = (mul(Param(name=name, dtype="int"), number(count)) for name in ("begin", "end"))
    high = choose(TOUCHED, high, low)
    body = (
        PickedTile(parts=count, many=picks.order == "union"),
        Define(name="masked", value=masked),
        *walker.body("either"),
    )
    setup = (*bounds, PickedBounds(runs=None if picks.order == "union" else picks.rows // picks.positions))
    note = (
        "blocks that any of the queries has picked" if picks.order == "union" else "blocks that the queries have picked"
    )
    return setup, (Loop(variable="t", low=low, high=high, body=body, note=note),)


def _fine(
    picks: Picks, bounds: tuple[Block, ...], full: tuple[Expr, Expr] | None, walker: Walker
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """Several blocks to a tile of keys; ``full`` are the ends of keys that need no mask."""
    union, columns = picks.order == "union", walker.spans[1]
    masked: Expr = Const(value=True)
    if full is not None and not union:
        nearest, farthest, last = (Param(name=name, dtype="int") for name in ("nearest", "farthest", "last_turn"))
        masked = either(compare("lt", nearest, full[0]), compare("ge", farthest, full[1]))
        # The last tile may not be filled.
        masked = either(masked, compare("ge", index("t"), last))
    begin, end, turns = (Param(name=name, dtype="int") for name in ("begin", "end", "turns"))
    keys = mul(sub(end, begin), number(picks.block))
    whole = Define(name="last_turn", value=truncated(floordiv(keys, number(columns))))
    setup = (
        *bounds,
        PickedBounds(runs=None if union else picks.rows // picks.positions, within=picks.where is not None),
        Define(name="turns", value=choose(TOUCHED, truncated(ceildiv(keys, columns)), number(0))),
        *(() if masked == Const(value=True) else (whole,)),
    )
    body = (
        PickedKeys(block=picks.block, columns=columns, many=union, ends=masked != Const(value=True)),
        Define(name="masked", value=masked),
        *walker.body("either"),
    )
    return setup, (Loop(variable="t", low=number(0), high=turns, body=body, note="keys that the queries have picked"),)


def lower_gathered(
    picks: Picks, bounds: tuple[Block, ...], full: tuple[Expr, Expr] | None, walker: Walker
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The loop over the tiles of a block by queries that have picked it; ``bounds`` of each tile define ``full``, the
    ends of the queries for which it needs no mask."""
    count = number(picks.block // walker.spans[1])
    masked: Expr = Const(value=True)
    if full is not None:
        nearest, farthest = (Param(name=name, dtype="int") for name in ("nearest", "farthest"))
        masked = either(compare("lt", nearest, full[0]), compare("ge", farthest, full[1]))
        masked = either(masked, compare("ge", index("j"), walker.whole))
    tile = Define(name="j", value=add(mul(Param(name="block", dtype="int"), count), index("t")))
    inner = () if full is None else bounds
    body = (tile, *inner, Define(name="masked", value=masked), *walker.body("either"))
    turns = Param(name="turns", dtype="int")
    return (GatheredTurns(parts=picks.block // walker.spans[1]),), (
        Loop(variable="t", low=number(0), high=turns, body=body, note="the block that these queries have picked"),
    )


def _by_key(
    picks: Picks, bounds: tuple[Block, ...], full: tuple[Expr, Expr] | None, walker: Walker
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    masked: Expr = Const(value=True)
    full = None if picks.fine or picks.runs else full
    if full is not None:
        nearest, farthest = (Param(name=name, dtype="int") for name in ("nearest", "farthest"))
        masked = either(compare("lt", nearest, full[0]), compare("ge", farthest, full[1]))
    queries = PickedQueries(
        rows=picks.rows,
        positions=picks.positions,
        shape=walker.shape,
        ends=full is not None,
        padded=picks.lanes != picks.heads,
        heads=picks.heads,
        bits=picks.fine,
        pieces=bool(picks.runs),
    )
    body = (queries, Define(name="masked", value=masked), *walker.body("either"))
    first, last, turns = (Param(name=name, dtype="int") for name in ("first", "last", "turns"))
    count = truncated(ceildiv(mul(sub(last, first), number(picks.rows)), picks.positions))
    setup = (*bounds, Define(name="turns", value=choose(TOUCHED, count, number(0))))
    return setup, (Loop(variable="t", low=number(0), high=turns, body=body, note="queries that have picked the block"),)
