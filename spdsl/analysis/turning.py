"""Backward kernels by key of sets whose pairs queries have picked run by run: they walk whole tiles.

From the stages of a set to the plan of such a kernel.  Where runs of queries and blocks of keys hold whole tiles,
nothing is looked up for pairs: the transpose of what has been picked lists the tiles of each block of keys, for each
head, and keys and values are read once for all heads that share them.  Where blocks are smaller than tiles, it lists
what has picked any block of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from spdsl.analysis.picking import one_slot, tiles_in
from spdsl.analysis.picks import FINEST, picked
from spdsl.analysis.plans import GROUP_ROWS, KernelPlan, Kind, Problem, Tiles
from spdsl.analysis.sizing import tiles_for
from spdsl.analysis.specialising import copies_tiles, why_plain
from spdsl.analysis.stages import Staged
from spdsl.analysis.tiles import ListWalk, TileRelation, Turned
from spdsl.semantics.nodes import Extent

SMALLEST = 32
"""Keys of the smallest blocks of which a tile holds several."""


def turning(
    kind: Kind, staged: Staged, problem: Problem, target: str, relation: Callable[..., TileRelation]
) -> KernelPlan | None:
    """The kernel; None where tiles are not those of one run of queries and one block of keys.

    ``relation`` gives that of a set in ``tiles`` of some size.
    """
    chosen = picked(staged.keep, staged.tables)
    if target == "cpu" or kind not in ("dkdv", "fused") or chosen is None or problem.shape not in ("square", "origin"):
        return None
    pattern = problem.pattern
    if chosen.runs:
        return None  # runs of uneven length begin within tiles
    heads = 1 if chosen.by_head else pattern.heads // pattern.groups
    if heads > 1:
        return None  # these are packed into the rows of a tile
    plain = why_plain(kind, problem, target, turned=True)
    specialised, descriptors = plain is None, copies_tiles(problem, target)
    walk = ListWalk(reason="queries have picked blocks run by run")
    tiles = tiles_for(kind, problem, walk, target, descriptors=descriptors, specialised=specialised)
    within = (_specialised_within if specialised else _within)(tiles, chosen.rows, chosen.block)
    # Queries of heads with keys of their own are gathered where blocks are small.
    least = GROUP_ROWS if pattern.heads == pattern.groups else FINEST
    if within is None or min(within.block_q, within.block_k) < least:
        return None
    tiles = within
    rest = relation(tiles, keep=chosen.keep)
    turned = Turned(
        table=chosen.table,
        rows=chosen.rows,
        block=chosen.block,
        heads=heads,
        keep=chosen.keep,
        bounds=one_slot(rest.by_key, tiles_in(Extent(name="nq"), tiles.block_q)),
        held=max(1, tiles.block_k // chosen.block),
    )
    return KernelPlan(
        kind=kind,
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        walk=replace(walk, turned=turned),
        notes=rest.notes,
        descriptors=descriptors,
        specialised=specialised,
        plain=plain or "",
    )


def _within(tiles: Tiles, rows: int, block: int) -> Tiles:
    """The largest tiles, of at most this size, that lie in one run and one block; the less they hold, the fewer warps
    share them."""
    block_q, block_k = math.gcd(tiles.block_q, rows), math.gcd(tiles.block_k, block)
    warps = tiles.warps * block_q * block_k // (tiles.block_q * tiles.block_k)
    return replace(tiles, block_q=block_q, block_k=block_k, warps=max(4, warps))


def _specialised_within(tiles: Tiles, rows: int, block: int) -> Tiles | None:
    """The same for the fused kernel: its two groups share a tile of queries by its rows, or by the columns of wide
    heads; one group alone has all of a square tile of narrow heads, and two such programs share an SM.

    Of narrow heads a whole tile takes half as long as its parts one by one: of two blocks it pays however few have been
    picked, of four unless these are few and at random.
    """
    narrow = tiles.block_q > GROUP_ROWS
    held = narrow and tiles.block_k % block == 0 and block >= SMALLEST
    if rows % tiles.block_q == 0 and (block % tiles.block_k == 0 or held):
        return tiles
    fits = narrow and rows % GROUP_ROWS == 0 and block % GROUP_ROWS == 0
    return replace(tiles, block_q=GROUP_ROWS, block_k=GROUP_ROWS, stages=3) if fits else None
