"""Kernels of sets whose rows of one side are marked, in a table or by their remainder: they gather these, and meet all
rows of the other side.

Keys that heads have marked each for itself are listed for each head where programs own queries: such a kernel walks
what all queries of a head have picked, no further than the rest of the set reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from spdsl.analysis.few import FEW, few_tiles, heads_together
from spdsl.analysis.picking import one_slot, tiles_in
from spdsl.analysis.picks import conjunction
from spdsl.analysis.plans import KernelPlan, Kind, Problem
from spdsl.analysis.sizing import tiles_for
from spdsl.analysis.specialising import copies_tiles, why_plain
from spdsl.analysis.stages import Staged
from spdsl.analysis.tiles import COUNT, Interval, Marked, Picks, PickWalk, Slot, SlotWalk, TileRelation
from spdsl.analysis.tiling import picked_tiles, positions_of
from spdsl.analysis.unions import is_mark
from spdsl.semantics.nodes import Const, Expr, Extent, Side
from spdsl.semantics.rewrite import conjuncts, free_indices


def gathering(
    kind: Kind, staged: Staged, problem: Problem, target: str, side: Side, relation: Callable[..., TileRelation]
) -> KernelPlan:
    """The kernel of a set whose rows of one side are marked: it gathers these, and meets all rows of the other.

    ``relation`` gives that of a set in tiles of some size.
    """
    clauses = conjuncts(staged.keep)
    where = [clause for clause in clauses if free_indices(clause) == {side} or is_mark(clause, side)]
    read = frozenset[str]().union(*map(free_indices, where))
    if read & {"h", "g"} and kind in ("forward", "dq") and not problem.few:
        return _by_head(kind, where, [clause for clause in clauses if clause not in where], problem, target, relation)
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
        marked=Marked(side=side, where=conjunction(where), keep=conjunction(rest), by_group=bool(read & {"h", "g"})),
        splits=few or (long is not None and not (kind == "dkdv" and grouped and bool(problem.gradients))),
        packed=together,
        few=few,
    )


def _by_head(
    kind: Kind,
    where: Sequence[Expr],
    rest: Sequence[Expr],
    problem: Problem,
    target: str,
    relation: Callable[..., TileRelation],
) -> KernelPlan:
    """The kernel by query of keys that each head has marked: ``where`` says which, ``rest`` what is left to test."""
    pattern, positions = problem.pattern, positions_of(problem.dtype, 1)
    tiles = picked_tiles(
        kind,
        dtype=problem.dtype,
        head_dim=pattern.head_dim,
        value_dim=problem.value_dim,
        positions=positions,
        heads=1,
        block=1,
        run=positions,
        fine=True,
        gathered=False,
        target=target,
    )
    given = dict(problem.tiles).get(kind)
    tiles = tiles if given is None or given.specialised else given
    keep = conjunction(rest)
    found = relation(replace(tiles, block_k=1), keep=keep)
    return KernelPlan(
        kind=kind,
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        walk=PickWalk(bounds=one_slot(found.by_query, tiles_in(Extent(name="n"), 1))),
        notes=found.notes,
        plain=why_plain(kind, problem, target, marked=True) or "",
        picks=Picks(
            table="",
            rows=0,
            block=1,
            heads=1,
            positions=tiles.block_q,
            order="alike",
            keep=keep,
            fine=True,
            where=conjunction(where),
        ),
        descriptors=copies_tiles(problem, target),
    )
