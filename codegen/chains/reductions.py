"""Reductions over the entries of an axis that belong to a coarser one, as loops around a tile.

From: a reduction and a place.  To: lines with a loop that adds tiles to a tile; where conditions count modulo
something, members of positions are written out, so that those which never count are left out.  The largest share among
neighbours is found in a tile of all of them, which is folded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import sum_of, tidy
from spdsl.codegen.chains.heads import over_heads
from spdsl.codegen.chains.parts import Fold, Tile
from spdsl.codegen.chains.places import Members, Place, UncoveredError
from spdsl.codegen.chains.program import NOTHING, Known
from spdsl.codegen.chains.totals import Total, is_share
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, side_of
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load, Param
from spdsl.semantics.rewrite import walk

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

UNROLLED = 16
"""The most members of a loop that is written out, so that conditions on their numbers are decided beforehand."""

DEEPEST = 128
"""The most queries of a block whose values are one tile, which is folded into a row."""


def pooled(values: Values, stage: Pool, place: Place) -> Expr:
    """The value of a reduction at a place."""
    if side_of(stage.over) is None and stage.over != "q-k":
        return over_heads(values, stage, place)
    if stage.per is None or side_of(stage.per) is None:
        raise UncoveredError("reductions over all queries or keys, and per distance")
    return _over_members(values, stage, place)


def _over_members(values: Values, stage: Pool, place: Place) -> Expr:
    """A reduction over the entries of an axis of queries or keys that belong to a coarser entry."""
    program, over = values.program, stage.over
    assert stage.per is not None
    members = values.places.members(over, stage.per, place.at[stage.per], stage.windows)
    fold = _fold_of(values, stage, place, members)
    if fold is not None:
        return _folded(values, stage, place, fold)
    apart = members.most == 1 or (members.most <= UNROLLED and _counts_modulo(values, stage))
    if not apart and _is_deep(values, stage, place, members):
        return _folded_rows(values, stage, place, members)
    total = Total(stage=stage, values=values, what=values.known(place))
    total.begin()
    depth = values.known(place).depth
    if apart:
        with program.inside(depth):
            for number in range(members.most):
                _add_member(values, stage, place, members, Const(value=number), total)
    else:
        member = program.fresh("member")
        with program.loop(f"for {member} in range({members.most}):", depth, member):
            _add_member(values, stage, place, members, Index(name=member), total)
    return total.end()


def _fold_of(values: Values, stage: Pool, place: Place, members: Members) -> tuple[Fold, int] | None:
    """How the largest share of members is found by a tile of consecutive members, and the first of them for column 0.

    Each member is then computed once, where neighbouring columns have some in common.
    """
    program, columns = values.program, Index(name="columns")
    assert stage.per is not None
    whole = sum_of(members.first)
    own = program.known.get(columns.name)
    if (
        own is None
        or own.depth > 0
        or "column_first" not in program.known
        or place.at[stage.per] != columns
        or stage.kind not in ("max", "sum")
    ):
        return None
    if members.last is not None or len(whole.terms) != 1 or not is_share(values, stage.value):
        return None
    ((term, size),) = whole.terms
    more = members.most - size
    if term != columns or size < 2 or size & (size - 1) or not 0 <= more <= size:
        return None
    if stage.kind == "max" and members.weighed:
        return None
    if stage.kind == "sum" and (more or whole.constant or stage.windows is not None or size > DEEPEST):
        return None  # what belongs to one column alone is added up
    fold = Fold(size=size, more=more)
    return (fold, whole.constant) if values.fold in (None, fold) else None


def _folded(values: Values, stage: Pool, place: Place, given: tuple[Fold, int]) -> Expr:
    program, (fold, first) = values.program, given
    assert stage.per is not None
    if values.fold is None:
        values.fold = fold
        offset = f" + {first}" if first else ""
        program.line(f"fine = column_first * {fold.size}{offset} + tl.arange(0, BLOCK_F)[None, :]")
        program.known["fine"] = Known(column=True, fine=True)
        begin = build.add(build.mul(Index(name="column_first"), fold.size), first)
        values.tiles["fine"] = Tile(first=begin, size="BLOCK_F")
    fine = Index(name="fine") if first >= 0 else Param(name="fine", dtype="int")
    at, there, weight = _inside(values, stage, place, fine)
    value = values.at(stage.value, at)
    only = tidy(build.conj(values.at(stage.only, at), there))
    value = value if weight is None else program.name("value", build.mul(value, weight))
    text = f"tl.where({program.text(only)}, {program.atom(value)}, 0.0)"
    more = f", {fold.more}" if stage.kind == "max" else ""
    text = f"fold_{stage.kind}({text}, BLOCK_R, BLOCK_C, {fold.size}{more})"
    return program.let("folded", text, Known(depth=program.of(value).depth, row=True, column=True), "float")


def _inside(values: Values, stage: Pool, place: Place, entry: Expr) -> tuple[Place, Expr, Expr | None]:
    """The place of a member of a larger tile, which lies inside its entry; whether it exists, and how often it
    counts, if more than once."""
    at = Place(at={**{axis: each for axis, each in place.at.items() if axis != stage.per}, stage.over: entry})
    there = _exists(values, stage.over, entry)
    if stage.kind not in ("sum", "mean") or stage.windows is not None or stage.over in ("q", "k"):
        return at, there, None
    weight, some = values.places.shared(stage.over, entry, stage.over, entry, *positions(stage.over))
    return at, tidy(build.conj(there, some)), weight


def _is_deep(values: Values, stage: Pool, place: Place, members: Members) -> bool:
    """Whether the members of the rows of a tile are the rows of a larger one: the queries of blocks, one after the
    other."""
    rows = Index(name="rows")
    if side_of(stage.over) != "q" or stage.per is None or place.at[stage.per] != rows or members.last is not None:
        return False
    whole, size = sum_of(members.first), members.most
    if stage.over != "q" and (stage.kind != "sum" or stage.windows is not None):
        return False
    even = whole.terms == ((rows, size),) and whole.constant == 0 and size & (size - 1) == 0
    return even and 1 < size <= DEEPEST and stage.dtype in ("float", "bool") and values.deep in (None, size)


def _folded_rows(values: Values, stage: Pool, place: Place, members: Members) -> Expr:
    program, size = values.program, members.most
    assert stage.per is not None
    deep = Index(name="deep")
    if values.deep is None:
        values.deep = size
        with program.inside(0):
            program.declare("deep", Known(row=True, deep=True))
            program.line(f"deep = row_first * {size} + tl.arange(0, BLOCK_Q)[:, None]")
            values.tiles["deep"] = Tile(first=build.mul(Index(name="row_first"), size), size="BLOCK_Q")
    at, there, weight = _inside(values, stage, place, deep)
    value, only = values.at(stage.value, at), program.name("only", tidy(build.conj(values.at(stage.only, at), there)))
    value = value if weight is None else build.mul(value, weight)
    what = program.of(value) | program.of(only)
    rows, columns = Known(row=True, column=what.column, fine=what.fine).sizes
    text = f"{program.atom(value)}, {program.atom(only)}, {rows}, {columns}, {size}"
    inner = Known(depth=what.depth, row=True, column=what.column, fine=what.fine)
    return program.let("folded", f"deep_{stage.kind}({text})", inner, stage.dtype)


def _add_member(values: Values, stage: Pool, place: Place, members: Members, number: Expr, total: Total) -> None:
    at, there, weight = member(values, stage, place, members, number)
    only = build.conj(values.at(stage.only, at), there)
    if tidy(only) == build.FALSE:
        return
    value = values.at(stage.value, at)
    if value != build.FALSE or stage.kind != "any":
        total.add(value, only, weight)


def member(
    values: Values, stage: Pool, place: Place, members: Members, number: Expr
) -> tuple[Place, Expr, Expr | None]:
    """The place of a member, whether it exists, and how often it counts."""
    assert stage.per is not None
    over, per = stage.over, stage.per
    entry = tidy(build.add(members.first, number))
    at = Place(at={**{axis: each for axis, each in place.at.items() if axis != per}, over: entry})
    there = _exists(values, over, entry)
    if members.last is not None:
        there = build.conj(there, build.apply("le", entry, members.last))
    if not members.weighed:
        return at, tidy(there), None
    weight, shares = values.places.shared(over, entry, per, place.at[per], *positions(over))
    return at, tidy(build.conj(there, shares)), weight


def _exists(values: Values, axis: str, entry: Expr) -> Expr:
    """Whether an axis has an entry: positions count from the first that there is, entries of coarser axes from 0."""
    begin, last = positions(axis) if axis in ("q", "k") else (build.lift(0), build.sub(count(values, axis), 1))
    return build.conj(build.apply("ge", entry, begin), build.apply("le", entry, last))


def positions(axis: str) -> tuple[Expr, Expr]:
    """The first and the last position that exist on the side of an axis."""
    if side_of(axis) == "k":
        return Const(value=0), build.sub(Extent(name="n"), 1)
    start = Extent(name="q_start")
    return build.apply("max", start, 0), build.sub(build.add(start, Extent(name="nq")), 1)


def count(values: Values, axis: str) -> Expr:
    """How many entries an axis has."""
    if side_of(axis) == "k":
        return values.places.count(axis)
    name = f"count_{axis.partition('.')[2]}" if "." in axis else "nq"
    if name != "nq":
        values.sizes[name] = axis
    return values.program.declare(name, NOTHING) if name != "nq" else Extent(name="nq")


def _counts_modulo(values: Values, stage: Pool) -> bool:
    """Whether a condition below a reduction of positions counts modulo something."""
    if stage.over not in ("q", "k"):
        return False
    seen, stack = set[str](), [stage.only, stage.value]
    while stack:
        for node in walk(stack.pop()):
            if isinstance(node, Apply) and node.op == "mod":
                return True
            if isinstance(node, Load) and node.table in values.stages and node.table not in seen:
                seen.add(node.table)
                inner = values.stages[node.table]
                if isinstance(inner, Pool):
                    stack += [inner.only, inner.value]
    return False
