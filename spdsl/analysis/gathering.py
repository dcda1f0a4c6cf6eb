"""Kernels of sets whose rows of one side are marked, in a table or by their remainder: they gather these, and meet all
rows of the other side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from spdsl.analysis.few import FEW, few_tiles, heads_together
from spdsl.analysis.picking import tiles_in
from spdsl.analysis.plans import KernelPlan, Kind, Problem
from spdsl.analysis.sizing import tiles_for
from spdsl.analysis.specialising import why_plain
from spdsl.analysis.stages import Staged
from spdsl.analysis.tiles import COUNT, Interval, Marked, Slot, SlotWalk
from spdsl.analysis.unions import is_mark
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Side
from spdsl.semantics.rewrite import conjuncts, free_indices


def gathering(kind: Kind, staged: Staged, problem: Problem, target: str, side: Side) -> KernelPlan:
    """The kernel of a set whose rows of one side are marked: it gathers these, and meets all rows of the other."""
    clauses = conjuncts(staged.keep)
    where = [clause for clause in clauses if free_indices(clause) == {side} or is_mark(clause, side)]
    read = frozenset[str]().union(*map(free_indices, where))
    shares = problem.pattern.heads > problem.pattern.groups
    # What one head of a group has marked is gathered for all of them, and tested for each.
    rest = [clause for clause in clauses if clause not in where or (shares and "h" in free_indices(clause))]
    few = kind == "forward" and problem.few > 0
    together = heads_together(problem.pattern.heads, problem.pattern.groups) if few else 1
    tiles = tiles_for(kind, problem, None, target, descriptors=False, specialised=False)
    tiles = few_tiles(problem, together, target) if few else tiles
    own: Side = "k" if kind == "dkdv" else "q"
    lengths: dict[Side, Expr] = {"q": Extent(name="nq"), "k": Extent(name="n"), side: COUNT}
    blocks: dict[Side, int] = {"q": tiles.block_q, "k": tiles.block_k}
    other: Side = "q" if own == "k" else "k"
    every = Interval(lo=Const(value=0), hi=tiles_in(lengths[other], blocks[other]))
    # Where programs own the few marked rows, each walks all rows of the other side.
    long = Interval(lo=Const(value=0), hi=tiles_in(COUNT, blocks[own])) if own == side else None
    grouped = problem.pattern.heads > problem.pattern.groups
    return KernelPlan(
        kind=kind,
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        walk=SlotWalk(slots=(Slot(touched=every),), long=long),
        plain=FEW if few else why_plain(kind, problem, target, marked=True) or "",
        marked=Marked(side=side, where=_conjunction(where), keep=_conjunction(rest), by_group=bool(read & {"h", "g"})),
        splits=few or (long is not None and not (kind == "dkdv" and grouped and bool(problem.gradients))),
        packed=together,
        few=few,
    )


def _conjunction(clauses: Sequence[Expr]) -> Expr:
    if not clauses:
        return Const(value=True)
    return reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool", span=a.span), clauses)
