"""Tiles of a kernel: those that were given for a problem, else those to begin with.

From a problem, and the walk where it is known.  Nothing is measured here.
"""

from __future__ import annotations

from spdsl.analysis.plans import Kind, Problem, Tiles
from spdsl.analysis.specialising import is_of_runs
from spdsl.analysis.tiles import Walk
from spdsl.analysis.tiling import default_tiles
from spdsl.semantics.nodes import BoundPattern, Load
from spdsl.semantics.rewrite import walk as nodes_of


def tiles_for(
    kind: Kind, problem: Problem, walk: Walk | None, target: str, *, descriptors: bool, specialised: bool
) -> Tiles:
    """The tiles of a kernel; ``descriptors`` says that the copy engine loads them, ``specialised`` that a warp of its
    own sees to that."""
    given = dict(problem.tiles).get(kind)
    if given is not None and given.specialised == specialised:
        return given
    return default_tiles(
        kind,
        dtype=problem.dtype,
        head_dim=problem.pattern.head_dim,
        value_dim=problem.value_dim,
        walk=walk,
        crowded=_crowded(problem.pattern),
        descriptors=descriptors,
        specialised=specialised,
        target=target,
        capped=problem.pattern.attend.softcap is not None,
        coarse=is_of_runs(problem.pattern),
    )


def _crowded(pattern: BoundPattern) -> bool:
    """Whether the logits or the set need registers of their own: a softcap, or inputs that are read for every pair."""
    clauses = (pattern.attend.keep, pattern.attend.bias)
    loads = (node for clause in clauses if clause is not None for node in nodes_of(clause) if isinstance(node, Load))
    return pattern.attend.softcap is not None or any(loads)
