"""Kernels by boxes of a grid: from a problem whose positions fill one to a plan of such a kernel, or None where runs of
rows compute less."""

from __future__ import annotations

from spdsl.analysis.box_tiles import BoxRelation
from spdsl.analysis.plans import KernelPlan, Kind, Problem, Tiles
from spdsl.analysis.sizing import tiles_for
from spdsl.analysis.specialising import copies_tiles, why_plain
from spdsl.analysis.stages import Staged, extents_of, leading_grid
from spdsl.analysis.worker import find_boxes


def boxed(kind: Kind, staged: Staged, problem: Problem, target: str, *, copied: bool = True) -> KernelPlan | None:
    """The kernel by boxes of a grid, where the positions fill one and boxes compute less than runs of rows.

    With ``copied`` the copy engine may load the boxes, whose places must then be neighbours.
    """
    grid = leading_grid(problem.pattern)
    # Batch and heads, a box of three axes and a row are what the copy engine can address.
    copied = copied and grid is not None and grid.name is None and len(grid.coordinates) <= 3
    descriptors = copied and copies_tiles(problem, target)
    plain = why_plain(kind, problem, target, boxes_copied=copied)
    specialised = plain is None
    tiles = tiles_for(kind, problem, None, target, descriptors=descriptors, specialised=specialised)
    found = _boxes(staged, problem, tiles)
    if found is None:
        return None
    walk = found.by_key if kind in ("dkdv", "fused") else found.by_query
    better = tiles_for(kind, problem, walk, target, descriptors=descriptors, specialised=specialised)
    if (better.block_q, better.block_k) != (tiles.block_q, tiles.block_k):
        found = _boxes(staged, problem, better)
        if found is None:
            return None
    if descriptors and any(step > 1 for step in found.boxes.steps):
        return boxed(kind, staged, problem, target, copied=False)
    return KernelPlan(
        kind=kind,
        block_q=better.block_q,
        block_k=better.block_k,
        warps=better.warps,
        stages=better.stages,
        walk=found.by_key if kind in ("dkdv", "fused") else found.by_query,
        notes=found.notes,
        boxes=found.boxes,
        descriptors=descriptors,
        specialised=specialised,
        plain=plain or "",
    )


def _boxes(staged: Staged, problem: Problem, tiles: Tiles) -> BoxRelation | None:
    pattern = problem.pattern
    grid = leading_grid(pattern)
    if problem.shape != "square" or staged.on_grid is None or grid is None:
        return None
    return find_boxes(
        staged.on_grid,
        extents=extents_of(grid),
        tail=grid.name is not None,
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        heads=pattern.heads,
        groups=pattern.groups,
        tables=staged.tables,
    )
