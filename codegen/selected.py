"""What is one number for a whole tile is asked for once: blocks of positions that are tiles, or hold some.

A comparison of blocks is then one for the tile instead of one for every pair, and so is what tables say of a block.
"""

from __future__ import annotations

from spdsl.analysis.plans import GROUP_ROWS, KernelPlan
from spdsl.analysis.tiles import Shape
from spdsl.codegen.arith import add, index, mul, number
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Param, Side
from spdsl.semantics.rewrite import transform

GROUP = Param(name="group", dtype="int")
"""Which of a program's groups of four warps computes, where warps are specialised."""


def by_tiles(kernel: KernelPlan, keep: Expr, shape: Shape) -> Expr:
    """The predicate ``keep`` with one number for a whole tile wherever a block of positions is one all along it."""
    tiles = {"k": tile_of(kernel, "k")}
    if shape == "square":
        tiles["q"] = tile_of(kernel, "q")

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Apply(op="floordiv", args=(Index(name=side), Const(value=int() as size))) if side in tiles:
                tile, rows = tiles[side]
                if size % rows == 0:
                    return Apply(op="floordiv", args=(tile, Const(value=size // rows)), dtype="int", span=node.span)
                return None
            case _:
                return None

    return fold(transform(keep, rewrite))


def tile_of(kernel: KernelPlan, side: Side) -> tuple[Expr, int]:
    """The number of the tile whose rows a group of warps has of a side, in tiles of so many rows."""
    rows, tile = (kernel.block_q, index("i")) if side == "q" else (kernel.block_k, index("j"))
    shared = (side == "q") == (kernel.by == "query") and kernel.pairs is None
    if not kernel.specialised or not shared or kernel.groups == 1:
        return tile, rows
    return add(mul(tile, number(kernel.groups)), GROUP), GROUP_ROWS
