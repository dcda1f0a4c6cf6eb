"""From a problem to a plan: expressions expanded, stages cut out, tiles and walks chosen for every kernel.

Nothing is measured and no text is written here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache, partial

from spdsl.analysis.boxed import boxed
from spdsl.analysis.distances import with_distances
from spdsl.analysis.dividing import divided
from spdsl.analysis.few import FEW, few_tiles, heads_together
from spdsl.analysis.gathering import gathering
from spdsl.analysis.gradients import table_gradients
from spdsl.analysis.pairing import find_pairs
from spdsl.analysis.picking import picking, why_unpicked
from spdsl.analysis.plans import GROUP_ROWS, KernelPlan, Kind, Plan, Problem, TableGradient, Tiles
from spdsl.analysis.room import refuse_large_numbers
from spdsl.analysis.sizing import tiles_for
from spdsl.analysis.spanning import spanning
from spdsl.analysis.specialising import copies_tiles, looks_up, may_persist, why_plain
from spdsl.analysis.stages import Staged, covering_grid, extents_of, leading_grid, stage
from spdsl.analysis.tiles import (
    BoxWalk,
    DistanceWalk,
    ListWalk,
    PickWalk,
    Residues,
    SlotWalk,
    TileRelation,
    Walk,
    depends_on_head,
)
from spdsl.analysis.turning import turning
from spdsl.analysis.unions import disjoint_sets
from spdsl.analysis.worker import derive, find_residues
from spdsl.diagnostics import error
from spdsl.semantics.differentiate import derivative
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import BoundPattern, Const, Expr, Extent, Load, Side
from spdsl.semantics.rewrite import substitute
from spdsl.semantics.rewrite import walk as nodes_of


@lru_cache(maxsize=512)
def plan(problem: Problem, target: str) -> Plan:
    """Decide everything about ``problem`` for ``target`` (``cpu``, ``sm_80``, ``sm_90``, ``sm_100``, ``gfx942``).

    Raises:
        SpatError: the pattern needs something that cannot be planned (SP4xx).
    """
    problem = _placed(problem)
    sets = _disjoint(problem, target)
    (first, _), *others = divided(sets, _staged_of, _relation) or sets or ((problem, None),)
    begin = int(problem.later)
    more = tuple(_plan(other, target, place, side) for place, (other, side) in enumerate(others, begin + 1))
    if not all(_pays(part) for part in more):
        return _plan(problem, target, begin)
    together = _plan(problem, target, begin) if any(part.forward.marked for part in more) else None
    return replace(_plan(first, target, begin), more=more, together=together, union=problem if more else None)


def _placed(problem: Problem) -> Problem:
    """With the position of the first query where the shape says it: a kernel of square calls is not told."""
    if problem.shape != "square":
        return problem
    attend = problem.pattern.attend

    def placed(expr: Expr | None) -> Expr | None:
        if expr is None or _FIRST not in nodes_of(expr):
            return expr
        return fold(substitute(expr, {_FIRST: Const(value=0)}))

    keep, bias, sink = (placed(each) for each in (attend.keep, attend.bias, attend.sink_logit))
    if keep is attend.keep and bias is attend.bias and sink is attend.sink_logit:
        return problem
    assert keep is not None
    made = replace(attend, keep=keep, bias=bias, sink_logit=sink)
    return replace(problem, pattern=replace(problem.pattern, attend=made))


_FIRST = Extent(name="q_start")


def _pays(part: Plan) -> bool:
    """Whether a part of a union is walked in a way of its own."""
    return part.forward.picks is not None or all(kernel.residues or kernel.marked for kernel in part.kernels)


def _disjoint(problem: Problem, target: str) -> tuple[tuple[Problem, Side | None], ...]:
    """The problem as several without common pairs, where that pays, each with the side whose rows are marked, if one
    is; the sink belongs to the first."""
    pattern = problem.pattern
    # The CPU back end computes on runs of consecutive rows, and boxes follow their grid.
    if target == "cpu" or leading_grid(pattern) is not None:
        return ()

    def with_set(keep: Expr, *, sink: Expr | None) -> Problem:
        return replace(problem, pattern=replace(pattern, attend=replace(attend, keep=keep, sink_logit=sink)))

    def residues(keep: Expr) -> Residues | None:
        part = with_set(keep, sink=None)
        return _residues(_staged(part.pattern), part)

    def picks(keep: Expr) -> bool:
        part = with_set(keep, sink=None)
        return why_unpicked("forward", _staged(part.pattern), part, ()) is None

    attend = pattern.attend
    sets = disjoint_sets(attend.keep, residues, picks=picks, gathers=problem.shape != "batched")
    return tuple(
        (with_set(each.keep, sink=attend.sink_logit if place == 0 else None), each.side)
        for place, each in enumerate(sets)
    )


def _plan(problem: Problem, target: str, place: int = 0, side: Side | None = None) -> Plan:
    """The plan of one set; ``place`` is where it stands in a union, ``side`` has marked rows."""
    staged = _staged_of(problem)
    _refuse_hidden(staged, frozenset(problem.gradients))
    pattern = problem.pattern
    attend = pattern.attend
    # The CPU back end computes on runs of consecutive rows.
    residues = None if target == "cpu" or side is not None else _residues(staged, problem)
    gradients = _gradients(staged, problem)

    def kernel(kind: Kind) -> KernelPlan:
        if side is not None:
            return gathering(kind, staged, problem, target, side, partial(_relation, staged, problem))
        spans = spanning(staged, problem, target) if kind == "dkdv" and target != "cpu" else None
        if spans is not None:
            return spans
        turned = turning(kind, staged, problem, target, partial(_relation, staged, problem))
        if turned is not None:
            return replace(turned, splits=_splits(kind, turned.walk, problem, gradients))
        unpicked = "" if target == "cpu" else why_unpicked(kind, staged, problem, gradients)
        if unpicked is None:
            found = picking(kind, staged, problem, target, partial(_relation, staged, problem))
            return replace(found, persistent=may_persist(found, problem))
        if problem.few and kind == "forward":
            return _few(staged, problem, target, residues)
        found = _kernel(kind, staged, problem, target, residues)
        found = replace(found, notes=(*found.notes, f"picks are looked up: {unpicked}")) if unpicked else found
        splits = target != "cpu" and _splits(kind, found.walk, problem, gradients)
        return replace(found, splits=splits, persistent=may_persist(found, problem))

    is_turned = turning("fused", staged, problem, target, partial(_relation, staged, problem)) is not None
    dkdv = kernel("dkdv")
    found = Plan(
        problem=problem,
        keep=staged.keep,
        bias=staged.bias,
        scale=_scale(pattern),
        softcap=None if attend.softcap is None else _constant(attend.softcap, "softcap", 0.0),
        sink_logit=staged.sink_logit,
        tables=staged.tables,
        stages=staged.stages,
        gradients=gradients,
        forward=kernel("forward"),
        dq=kernel("dq"),
        dkdv=dkdv,
        # Of later parts, those whose tensors have as many rows as dK and dV.
        fused=_fused(_paired(kernel("fused"), staged, problem), dkdv)
        if (place == 0 or is_turned) and _fuses(staged, problem, target, is_turned=is_turned)
        else None,
        place=place,
    )
    if target != "cpu":
        refuse_large_numbers(found)
    return found


def _fuses(staged: Staged, problem: Problem, target: str, *, is_turned: bool) -> bool:
    """Whether there is a fused backward kernel: on Hopper, for plain logits that are not looked up in lists one by one,
    where dK and dV fit the registers; ``is_turned``: lists of tiles say all of that."""
    width = max(problem.pattern.head_dim, problem.value_dim)
    plain = staged.bias is None and problem.pattern.attend.softcap is None
    plain = plain and (is_turned or not looks_up(problem.pattern))
    plain = plain and _scale(problem.pattern) != 0.0
    return target == "sm_90" and width <= 128 and plain and copies_tiles(problem, target)


def _fused(kernel: KernelPlan, separate: KernelPlan) -> KernelPlan | None:
    """The fused kernel, where it has boxes if others do: those that the copy engine loads."""
    return kernel if kernel.specialised and (kernel.boxes is None) == (separate.boxes is None) else None


def _paired(kernel: KernelPlan, staged: Staged, problem: Problem) -> KernelPlan:
    """The fused kernel by pairs of tiles, where a lattice of tiles is longer than those beside."""
    plain = kernel.boxes is None and kernel.residues is None and not kernel.splits
    if not plain or kernel.block_k != 2 * GROUP_ROWS:
        return kernel
    relation = _relation(staged, problem, replace(kernel.tiles, block_k=GROUP_ROWS), None)
    pairs = find_pairs(relation.by_key)
    if pairs is None:
        return kernel
    return replace(kernel, block_k=GROUP_ROWS, walk=relation.by_key, notes=relation.notes, pairs=pairs)


def _refuse_hidden(staged: Staged, wanted: frozenset[str]) -> None:
    """Refuse gradients of tables that a bias or sink reads through a stage."""
    values = {each.name: each.value for each in staged.stages if each.value.dtype == "float"}
    for clause in (staged.bias, staged.sink_logit):
        if clause is None or not wanted:
            continue
        for load in nodes_of(clause):
            if not isinstance(load, Load) or load.table not in values:
                continue
            through = any(isinstance(node, Load) and node.table in wanted for node in nodes_of(values[load.table]))
            if through and derivative(clause, load) != Const(value=0.0):
                raise error(
                    "SP290",
                    "the gradient of a reduction with respect to a table is not supported yet",
                    values[load.table].span,
                    help="reduce the table before the call, or detach it",
                )


def _staged_of(problem: Problem) -> Staged:
    """The stages of a problem, and all tables that its kernels may read."""
    found = _staged(problem.pattern, of_keys=not problem.few)
    made = () if problem.divided is None else problem.divided.tables
    return replace(found, tables=(*found.tables, *made)) if made else found


@lru_cache(maxsize=512)
def _staged(pattern: BoundPattern, *, of_keys: bool = True) -> Staged:
    return stage(pattern, of_keys=of_keys)


def _residues(staged: Staged, problem: Problem) -> Residues | None:
    pattern = problem.pattern
    return find_residues(
        staged.keep, shape=problem.shape, heads=pattern.heads, groups=pattern.groups, tables=staged.tables
    )


def _kernel(kind: Kind, staged: Staged, problem: Problem, target: str, residues: Residues | None) -> KernelPlan:
    # The CPU back end computes on runs of consecutive rows.
    by_boxes = None if target == "cpu" else boxed(kind, staged, problem, target)
    if by_boxes is not None:
        return by_boxes
    plain = why_plain(kind, problem, target)
    specialised = plain is None
    descriptors = specialised or (residues is None and copies_tiles(problem, target))
    tiles = tiles_for(kind, problem, None, target, descriptors=descriptors, specialised=specialised)
    relation = _relation(staged, problem, tiles, residues)
    walk = _walk(kind, relation)
    better = tiles_for(kind, problem, walk, target, descriptors=descriptors, specialised=specialised)
    if (better.block_q, better.block_k) != (tiles.block_q, tiles.block_k):
        relation = _relation(staged, problem, better, residues)
        walk = _walk(kind, relation)
    if residues is not None and not isinstance(walk, SlotWalk):
        return _kernel(kind, staged, problem, target, None)  # lists are made of tiles of consecutive rows
    return KernelPlan(
        kind=kind,
        block_q=better.block_q,
        block_k=better.block_k,
        warps=better.warps,
        stages=better.stages,
        walk=walk,
        notes=relation.notes,
        residues=residues,
        descriptors=descriptors,
        specialised=specialised,
        plain=plain or "",
    )


def _few(
    staged: Staged, problem: Problem, target: str, residues: Residues | None, together: int | None = None
) -> KernelPlan:
    """The forward kernel for few queries: the heads of a group in one tile where their walks are the same, and all rows
    of tiles in parts."""
    pattern = problem.pattern
    rows = heads_together(pattern.heads, pattern.groups) if together is None else together
    tiles = few_tiles(problem, rows, target)
    relation = _relation(staged, problem, tiles, residues)
    walk = relation.by_query
    if residues is not None and not isinstance(walk, SlotWalk):
        return _few(staged, problem, target, None)  # lists are made of tiles of consecutive rows
    if rows > 1 and depends_on_head(walk):
        return _few(staged, problem, target, residues, together=1)
    return KernelPlan(
        kind="forward",
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        walk=walk,
        notes=relation.notes,
        residues=residues,
        splits=True,
        packed=rows,
        few=True,
        plain=FEW,
    )


def _gradients(staged: Staged, problem: Problem) -> tuple[TableGradient, ...]:
    return table_gradients((("bias", staged.bias), ("sink_logit", staged.sink_logit)), frozenset(problem.gradients))


def _splits(kind: Kind, walk: Walk, problem: Problem, gradients: tuple[TableGradient, ...]) -> bool:
    """Whether rows may be much longer than a program's share, and the kernel can cut them."""
    pattern = problem.pattern
    if kind == "dkdv" and pattern.heads > pattern.groups and any(each.by == "key" for each in gradients):
        return False  # these sums belong to one head of a group, and a part to all of them
    match walk:
        case ListWalk():
            return True
        case SlotWalk(long=long):
            return long is not None or (kind in ("dkdv", "fused") and problem.few_keys)
        case BoxWalk() | DistanceWalk() | PickWalk():
            return False


def _walk(kind: Kind, relation: TileRelation) -> Walk:
    return relation.by_key if kind in ("dkdv", "fused") else relation.by_query


def _relation(
    staged: Staged, problem: Problem, tiles: Tiles, residues: Residues | None = None, keep: Expr | None = None
) -> TileRelation:
    """The tile relation of a set, by default the whole one."""
    keep = staged.keep if keep is None else keep
    found = derive(
        keep,
        block_q=tiles.block_q,
        block_k=tiles.block_k,
        shape=problem.shape,
        heads=problem.pattern.heads,
        groups=problem.pattern.groups,
        tables=staged.tables,
        length=None if problem.shape == "batched" else grid_length(problem.pattern),
        residues=residues,
    )
    return with_distances(found, keep)


def grid_length(pattern: BoundPattern) -> int | None:
    """The length that an unnamed grid of the positions themselves demands of ``n``, if there is one."""
    grid = covering_grid(pattern)
    return None if grid is None else math.prod(extents_of(grid))


def _scale(pattern: BoundPattern) -> float:
    return _constant(pattern.attend.scale, "scale", 1.0 / math.sqrt(pattern.head_dim))


def _constant(expr: Expr | None, word: str, default: float) -> float:
    if expr is None:
        return default
    if not isinstance(expr, Const):
        raise error(
            "SP404",
            f"`{word}` must be a number once the parameters are known",
            expr.span,
            help=f"write `{word}` in terms of parameters, `d` and constants; use `bias` for what varies",
        )
    value = float(expr.value)
    if not math.isfinite(value):
        raise error("SP305", f"`{word}` is {value}, but must be finite", expr.span, help="check the parameters")
    return value
