"""Masks on a grid, axis by axis: from a predicate over coordinates to `BoxRelation`.

Clauses about one axis are a mask of one dimension, whose tiles `tile_relation` finds; the boxes that a box touches are
the product of the intervals of its axes.  Other clauses are left to be tested pair by pair.  None where tiles of
consecutive rows compute about as little, or where an axis has no closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import TypeAlias

from spdsl.analysis.affine import NotAffineError, abstract
from spdsl.analysis.box_sizes import (
    EXAMPLE,
    MOST,
    Reach,
    best_sizes,
    consecutive,
    is_open,
    reach_of,
    value,
    with_examples,
)
from spdsl.analysis.box_tiles import BoxAxis, Boxes, BoxRelation
from spdsl.analysis.relation import tile_relation
from spdsl.analysis.residues import residues_of
from spdsl.analysis.tiles import FAR, BoxWalk, Interval, Residues, Slot, SlotWalk, TileRelation, Walk
from spdsl.semantics import build
from spdsl.semantics.bounds import Facts
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Const, Expr, Extent, Index, Side, Table
from spdsl.semantics.rewrite import conjuncts, free_indices, substitute, walk

GAIN = 0.9
"""Boxes are taken where they compute less than this part of what tiles of consecutive rows do."""

TRUE = Const(value=True)


def boxes_of(
    keep: Expr,
    *,
    extents: tuple[int, ...],
    block_q: int,
    block_k: int,
    heads: int,
    groups: int,
    tables: Sequence[Table] = (),
    tail: bool = False,
    sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
) -> BoxRelation | None:
    """How to walk the boxes of ``keep``, a predicate over ``q0``, ``k0``, … (and ``q``, ``k``) on the grid ``extents``.

    Every box with a kept pair is walked exactly once, in range; in a full box every pair is kept.  ``sizes`` are the
    boxes of queries and of keys; without them the best are taken, if boxes are worth it.  With ``tail`` the positions
    need not end where the grid does; there are boxes only where all pairs are kept that do not lie inside.
    """
    if tail:
        inside = _inside(keep, prod(extents))
        if inside is None:
            return None
        keep = inside
    work = _Axes(extents=extents, heads=heads, groups=groups, tables=tuple(tables))
    along, rest = work.parted(keep)
    # Rows after the grid meet all classes of places.
    residues: list[Residues | None] = [None if tail else work.residues(clause) for clause in along]
    doubts: tuple[str, ...] = ()
    if sizes is None:
        chosen = _chosen(work, along, residues, block_q, block_k)
        if chosen is None:
            return None
        residues, sizes, doubts = chosen
    boxes = Boxes(
        axes=tuple(
            work.axis(axis, clause, left, box_q, box_k)
            for axis, (clause, left, box_q, box_k) in enumerate(zip(along, residues, *sizes, strict=True))
        ),
        rest=rest,
        tail=tail,
    )
    relations = [
        work.relation(clause, axis, box_q, box_k, left)
        for axis, (clause, left, box_q, box_k) in enumerate(zip(along, residues, *sizes, strict=True))
    ]
    by_query = _product([each.by_query for each in relations], boxes, walked="k")
    by_key = _product([each.by_key for each in relations], boxes, walked="q")
    if by_query is None or by_key is None:
        return None
    return BoxRelation(boxes=boxes, by_query=by_query, by_key=by_key, notes=(*_notes(relations, boxes), *doubts))


def _inside(keep: Expr, places: int) -> Expr | None:
    """What a predicate asks of pairs on the grid, the first ``places`` positions, if it asks nothing of others."""
    on, after = (0, places - 1), (places, None)
    for q, k in ((on, after), (after, on), (after, after)):
        if fold(keep, facts=Facts(indices={"q": q, "k": k})) != TRUE:
            return None
    found = fold(keep, facts=Facts(indices={"q": on, "k": on}))
    return None if any(isinstance(node, Extent) for node in walk(found)) else found


_Sizes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def _chosen(
    work: _Axes, along: Sequence[Expr], residues: Sequence[Residues | None], block_q: int, block_k: int
) -> tuple[list[Residues | None], _Sizes, tuple[str, ...]] | None:
    """The residues by which the axes are parted, the sizes of boxes, and doubts about these; None where boxes are not
    worth it."""
    whole: list[Residues | None] = [None] * len(along)
    reaches = work.reaches(along, whole)
    if reaches is None:
        return None
    limit = GAIN * consecutive(reaches, block_q, block_k)
    best_q, best_k, computed = best_sizes(reaches, block_q, block_k)
    found: tuple[list[Residues | None], _Sizes] = (whole, (best_q, best_k))
    parted = work.reaches(along, residues) if any(residues) else None
    if parted is not None:
        best_q, best_k, less = best_sizes(parted, block_q, block_k)
        less *= prod(1 if each is None else each.modulus for each in residues)
        if less < computed:
            found, computed = (list(residues), (best_q, best_k)), less
    doubts = tuple(
        f"axis {axis}: sizes of boxes are chosen as if inputs and parameters of the call were {EXAMPLE}"
        for axis, clause in enumerate(along)
        if with_examples(clause) != clause
    )
    return (*found, doubts) if computed < limit else None


def _notes(relations: Sequence[TileRelation], boxes: Boxes) -> tuple[str, ...]:
    found = [f"axis {axis}, {note}" for axis, each in enumerate(relations) for note in each.notes]
    for by in ("query", "key"):
        walks = [each.by_query if by == "query" else each.by_key for each in relations]
        found += [
            f"axis {axis}, by {by}: some boxes between those that are touched are masked too"
            for axis, each in enumerate(walks)
            if isinstance(each, SlotWalk) and not _is_interval(each)
        ]
    if boxes.rest != TRUE:
        found.append("what is not about one axis of the grid alone is tested pair by pair: no box counts as full")
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """The grid, and what every question about one of its axes needs."""

    extents: tuple[int, ...]
    heads: int
    groups: int
    tables: tuple[Table, ...]

    def parted(self, keep: Expr) -> tuple[list[Expr], Expr]:
        """For each axis the clauses about it, over ``q`` and ``k`` as its coordinates; and all others."""
        length = Const(value=prod(self.extents))
        lengths: dict[Expr, Expr] = {Extent(name="n"): length, Extent(name="nq"): length}
        keep = fold(substitute(keep, {**lengths, Extent(name="q_start"): Const(value=0)}))
        along: list[list[Expr]] = [[] for _ in self.extents]
        rest: list[Expr] = []
        for clause in conjuncts(keep):
            axis = _axis_of(clause)
            alone = None if axis is None else _renamed(clause, axis)
            if axis is None or alone is None or not self._is_affine(alone):
                rest.append(clause)
            else:
                along[axis].append(alone)
        return [_all(clauses) for clauses in along], _all(rest)

    def named(self, clause: Expr, axis: int) -> Expr:
        """A clause of `parted` over the coordinates' own names."""
        return substitute(clause, {Index(name=side): Index(name=f"{side}{axis}") for side in "qk"})

    def _is_affine(self, clause: Expr) -> bool:
        try:
            abstract([clause], shape="square", heads=self.heads, groups=self.groups, tables=self.tables)
        except NotAffineError:
            return False
        return True

    def axis(self, axis: int, clause: Expr, residues: Residues | None, box_q: int, box_k: int) -> BoxAxis:
        """An axis with boxes of these sizes."""
        return BoxAxis(
            extent=self.extents[axis],
            box_q=box_q,
            box_k=box_k,
            step=1 if residues is None else residues.modulus,
            keep=self.named(clause, axis),
            test=self.named(clause if residues is None else residues.keep, axis),
        )

    def residues(self, clause: Expr) -> Residues | None:
        """By which step the places of an axis are parted, if kept pairs always lie a multiple of it apart."""
        if clause == TRUE:
            return None
        found = residues_of(clause, shape="square", heads=self.heads, groups=self.groups, tables=self.tables)
        return found if found is not None and found.shift == 0 else None

    def relation(
        self, clause: Expr, axis: int, block_q: int, block_k: int, residues: Residues | None = None
    ) -> TileRelation:
        """The tiles of one axis, or of one class of its places."""
        return tile_relation(
            clause,
            block_q=block_q,
            block_k=block_k,
            shape="square",
            heads=self.heads,
            groups=self.groups,
            tables=self.tables,
            length=self.extents[axis],
            residues=residues,
        )

    def reaches(self, along: Sequence[Expr], residues: Sequence[Residues | None]) -> list[Reach] | None:
        """Which keys every query touches along each axis, or in its first class, for the choice of sizes."""
        found: list[Reach] = []
        for axis, (clause, left) in enumerate(zip(along, residues, strict=True)):
            example = with_examples(clause)
            if left is not None:
                left = replace(left, keep=with_examples(left.keep))
            walk = self.relation(example, axis, 1, 1, left).by_query
            if not isinstance(walk, SlotWalk):
                return None
            first: dict[Expr, Expr] = {Index(name=f"class{axis}"): Const(value=0)}
            hull = _hull(walk, self.extents[axis], axis)
            hull = Interval(lo=fold(substitute(hull.lo, first)), hi=fold(substitute(hull.hi, first)))
            places = -(-self.extents[axis] // (1 if left is None else left.modulus))
            found.append(reach_of(hull, places, f"i{axis}"))
        return found


def _all(clauses: Sequence[Expr]) -> Expr:
    return reduce(lambda a, b: build.apply("and", a, b), clauses) if clauses else TRUE


def _axis_of(clause: Expr) -> int | None:
    """The one axis that a clause is about; 0 for clauses about none."""
    names = [name for name in free_indices(clause) if name[0] in "qk"]
    axes = {name[1:] for name in names}
    return None if "" in axes or len(axes) > 1 else int(axes.pop()) if axes else 0


def _renamed(clause: Expr, axis: int) -> Expr:
    return substitute(clause, {Index(name=f"{side}{axis}"): Index(name=side) for side in "qk"})


# ---------------------------------------------------------------- products of intervals


def _product(walks: Sequence[Walk], boxes: Boxes, *, walked: Side) -> BoxWalk | None:
    touched: list[Interval] = []
    full: list[Interval | None] = []
    for axis, each in enumerate(walks):
        if not isinstance(each, SlotWalk):
            return None
        own = boxes.axes[axis]
        touched.append(_hull(each, own.extent, axis))
        full.append(None if boxes.rest != TRUE else _full(each, own.extent, own.box(walked) * own.step, axis))
    side: Side = "q" if walked == "k" else "k"
    counts = boxes.counts(side)
    found = [each for each in full if each is not None]
    names = [f"{'i' if side == 'q' else 'j'}{axis}" for axis in range(len(counts))]
    some = len(found) == len(counts) and all(map(_may_have, touched, found, names, counts))
    return BoxWalk(touched=tuple(touched), full=tuple(found) if some else None)


def _is_interval(walk: SlotWalk) -> bool:
    return len(walk.slots) <= 1 and all(slot.step == 1 and slot.filter is None for slot in walk.slots)


def _hull(walk: SlotWalk, extent: int, axis: int) -> Interval:
    """The least interval that holds all slots."""
    if not walk.slots:
        return Interval(lo=Const(value=0), hi=Const(value=0))
    first, *others = (_placed(slot.touched, extent, axis) for slot in walk.slots)
    lo, hi = first.lo, first.hi
    if others:
        lo, hi = Const(value=FAR), Const(value=0)
        for each in (first, *others):
            some = build.apply("lt", each.lo, each.hi)
            lo = build.apply("min", lo, build.apply("where", some, each.lo, Const(value=FAR)))
            hi = build.apply("max", hi, build.apply("where", some, each.hi, Const(value=0)))
    return Interval(lo=fold(lo), hi=fold(hi))


def _full(walk: SlotWalk, extent: int, span: int, axis: int) -> Interval | None:
    """An interval of full boxes without places past the end: that of the first slot that has one."""
    slot = next((slot for slot in walk.slots if slot.full is not None and _is_plain(slot)), None)
    if slot is None or slot.full is None:
        return None
    lo, hi = slot.full.lo, slot.full.hi
    if len(walk.slots) > 1:
        # The bounds of full tiles may rely on those of their own slot, and the hull is larger.
        lo, hi = build.apply("max", lo, slot.touched.lo), build.apply("min", hi, slot.touched.hi)
    if extent % span:
        hi = build.apply("min", hi, Const(value=extent // span))
    return _placed(Interval(lo=lo, hi=hi), extent, axis)


def _is_plain(slot: Slot) -> bool:
    return slot.step == 1 and slot.filter is None


def _placed(interval: Interval, extent: int, axis: int) -> Interval:
    """An interval of one axis by the names that it has among all axes."""
    length = Const(value=extent)
    names: dict[Expr, Expr] = {Extent(name="n"): length, Extent(name="nq"): length}
    names |= {Index(name=side): Index(name=f"{side}{axis}") for side in "ij"}
    names |= {Index(name=f"{side}_class"): Index(name=f"class{axis}") for side in "qk"}
    return Interval(lo=fold(substitute(interval.lo, names)), hi=fold(substitute(interval.hi, names)))


def _may_have(touched: Interval, full: Interval, own: str, count: int) -> bool:
    """Whether some box has full ones along an axis, or this depends on the call; ``own`` is its name in the bounds."""
    ends = (touched.lo, touched.hi, full.lo, full.hi)
    if count > MOST or any(is_open(end, own) for end in ends):
        return True
    for box in range(count):
        lo, hi, full_lo, full_hi = (value(end, {own: box}) for end in ends)
        if max(lo, full_lo) < min(hi, full_hi):
            return True
    return False
