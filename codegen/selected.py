"""Sets that are given as lists: where a whole tile asks for one number, it is asked for once.

A search has as many steps as a list has bits in its length, for every row; where blocks of keys are tiles or hold some,
all keys of a tile have the same block.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load
from spdsl.semantics.rewrite import transform


def by_tiles(plan: Plan, kernel: KernelPlan) -> Expr:
    """The predicate with one number for a whole tile wherever an index of a list is the same all along it."""
    listed = {table.name for table in plan.tables if table.listed}
    tiles = {"k": ("j", kernel.block_k)}
    if plan.problem.shape == "square":
        tiles["q"] = ("i", kernel.block_q)

    def index(node: Expr) -> Expr:
        match node:
            case Apply(op="floordiv", args=(Index(name=side), Const(value=int() as size))) if side in tiles:
                tile, rows = tiles[side]
                if size % rows == 0:
                    return Apply(op="floordiv", args=(Index(name=tile), Const(value=size // rows)), dtype="int")
                return node
            case _:
                return node

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Load(table=name, indices=indices) if name in listed:
                return replace(node, indices=tuple(index(each) for each in indices))
            case _:
                return None

    return fold(transform(plan.keep, rewrite)) if listed else plan.keep
