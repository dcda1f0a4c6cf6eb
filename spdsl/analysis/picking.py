"""Kernels that walk what queries have picked: when there is one, and its plan.

From the stages of a set whose pairs all belong to a selection.  Tiles are packed with the heads that share a list, so
that what is read of keys and values, which bounds such kernels, serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from spdsl.analysis.picks import picked
from spdsl.analysis.plans import KernelPlan, Kind, Problem, TableGradient, Tiles
from spdsl.analysis.specialising import copies_tiles, why_plain
from spdsl.analysis.stages import Staged
from spdsl.analysis.tiles import Interval, Picks, PickWalk, Slot, SlotWalk, TileRelation, Walk, lanes_of
from spdsl.analysis.tiling import BITS, picked_tiles, positions_of
from spdsl.semantics.nodes import Apply, Const, Expr, Extent


def why_unpicked(kind: Kind, staged: Staged, problem: Problem, gradients: Sequence[TableGradient]) -> str | None:
    """Why a kernel does not walk what queries have picked; None where it does, and empty where nothing is picked."""
    pattern = problem.pattern
    chosen = picked(staged.keep, staged.tables)
    if chosen is None or problem.shape == "batched" or kind == "fused":
        return ""
    heads = 1 if chosen.by_head else pattern.heads // pattern.groups
    if kind == "dkdv":
        if heads < pattern.heads // pattern.groups:
            return "heads that share keys have picked each for itself"
        if pattern.heads > pattern.groups and any(each.by == "key" for each in gradients):
            return "a gradient is summed by key for each head"
        return None
    positions = positions_of(problem.dtype, heads)
    if positions > BITS and chosen.rows % positions:
        return f"tiles of {positions} queries of a head, each with blocks of its own, meet most blocks anyway"
    return None


def picking(
    kind: Kind, staged: Staged, problem: Problem, target: str, relation: Callable[..., TileRelation]
) -> KernelPlan:
    """The kernel of a set whose pairs queries have picked: its tiles hold all heads that share a list.

    ``relation`` gives that of a set in ``tiles`` of some size.
    """
    pattern = problem.pattern
    chosen = picked(staged.keep, staged.tables)
    assert chosen is not None
    heads = 1 if chosen.by_head else pattern.heads // pattern.groups
    tiles = picked_tiles(
        kind,
        dtype=problem.dtype,
        head_dim=pattern.head_dim,
        value_dim=problem.value_dim,
        heads=heads,
        block=chosen.block,
        target=target,
    )
    given = dict(problem.tiles).get(kind)
    if given is not None and not given.specialised:
        packs = given.block_q % lanes_of(heads) == 0 and given.block_q // lanes_of(heads) <= BITS
        tiles = given if packs and chosen.block % given.block_k == 0 else tiles
    positions = tiles.block_q // lanes_of(heads)
    rest = relation(replace(tiles, block_q=1 if kind == "dkdv" else positions), keep=chosen.keep)
    return KernelPlan(
        kind=kind,
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        walk=PickWalk(bounds=_one_slot(rest.by_key if kind == "dkdv" else rest.by_query, kind, tiles)),
        notes=rest.notes,
        plain=why_plain(kind, problem, target) or "",
        picks=Picks(
            table=chosen.table,
            rows=chosen.rows,
            block=chosen.block,
            heads=heads,
            positions=positions,
            many=kind != "dkdv" and (problem.shape != "square" or chosen.rows % positions > 0),
            keep=chosen.keep,
        ),
        # What is gathered has no neighbours that the copy engine could take.
        descriptors=kind != "dkdv" and copies_tiles(problem, target),
    )


def _one_slot(walk: Walk, kind: Kind, tiles: Tiles) -> Slot:
    """The one run of neighbouring tiles of a walk; all tiles, none of them full, where it has no such form."""
    match walk:
        case SlotWalk(slots=(Slot(step=1, filter=None) as slot,), cuts=None):
            return slot
        case _:
            length = Extent(name="nq") if kind == "dkdv" else tiles_in(Extent(name="n"), tiles.block_k)
            return Slot(touched=Interval(lo=Const(value=0), hi=length))


def tiles_in(length: Expr, block: int) -> Expr:
    """How many tiles of ``block`` rows there are among ``length``."""
    more = Apply(op="add", args=(length, Const(value=block - 1)), dtype="int")
    return Apply(op="floordiv", args=(more, Const(value=block)), dtype="int")
