"""Kernels by key of sets in which every key keeps an interval of queries, wherever its neighbours keep theirs.

From the stages of a set to the plan of dK and dV: keys whose intervals are alike are gathered into a tile, whichever
they are, and it walks the queries between the first and the last that any of them keeps, in full tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

from spdsl.analysis.cuts import NoCutError, clamped, cuts_of
from spdsl.analysis.picking import tiles_in
from spdsl.analysis.picks import conjunction
from spdsl.analysis.plans import KernelPlan, Problem, Tiles
from spdsl.analysis.sizing import tiles_for
from spdsl.analysis.specialising import copies_tiles
from spdsl.analysis.stages import Staged
from spdsl.analysis.tiles import Cuts, Interval, Marked, Slot, SlotWalk
from spdsl.semantics.nodes import Const, Expr, Extent, Load, Table
from spdsl.semantics.rewrite import conjuncts, free_indices

_EVERY = Const(value=True)

_NARROW = Tiles(block_q=32, block_k=64, warps=4, stages=3)
"""What was fastest on an H200: with 64 queries registers of tiles of 128 columns spill."""


def spanning(staged: Staged, problem: Problem, target: str) -> KernelPlan | None:
    """The kernel of dK and dV, where lists of the set say no more than its other clauses, which keep intervals; else
    None."""
    implied = {table.name for table in staged.tables if table.implied}
    clauses = conjuncts(staged.keep)
    rest = [clause for clause in clauses if not (isinstance(clause, Load) and clause.table in implied)]
    if len(rest) == len(clauses) or problem.shape == "batched":
        return None
    copied = copies_tiles(problem, target)
    # Only keys are gathered, once for a program: the copy engine takes queries.
    tiles = tiles_for("dkdv", problem, SlotWalk(slots=()), target, descriptors=copied, specialised=False)
    given = dict(problem.tiles).get("dkdv")
    if given is None and target == "sm_90" and copied and 64 < max(problem.pattern.head_dim, problem.value_dim) <= 128:
        tiles = _NARROW
    cuts = _cuts(rest, tiles.block_k, staged.tables)
    # Heads of a group meet the same keys of a tile.
    if cuts is None or (cuts.heads == "h" and problem.pattern.heads > problem.pattern.groups):
        return None
    every = Interval(lo=Const(value=0), hi=tiles_in(Extent(name="nq"), tiles.block_q))
    slot = clamped(Slot(touched=every, full=every), cuts, block=tiles.block_q, residues=None)
    return KernelPlan(
        kind="dkdv",
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        walk=SlotWalk(slots=(slot,), cuts=cuts),
        marked=Marked(side="k", where=_EVERY, keep=conjunction(rest), by_group=cuts.heads is not None, alike=True),
        descriptors=copied,
    )


def _cuts(clauses: Sequence[Expr], block: int, tables: Sequence[Table]) -> Cuts | None:
    """The intervals of tiles of keys; None where the clauses keep none, or heads and groups have each their own."""
    try:
        found = cuts_of(clauses, by="key", block=block, tables=tables)
    except NoCutError:
        return None
    used = frozenset[str]().union(*(free_indices(end) for cut in found.cuts for end in (cut.value, cut.mark)))
    return None if {"h", "g"} <= used else found
