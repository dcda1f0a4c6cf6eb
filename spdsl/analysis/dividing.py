"""Keys that heads have marked, beside blocks that queries pick: met in the tiles of their blocks, or gathered.

From the two sets of such a union, the picked blocks without marked keys and the marked keys, to three.  A marked key
costs its queries more than a key of a tile does, and nothing where the tile is walked anyway.  So the marked keys of a
block are gathered where they are few, and of the others all tiles are walked: those that are picked as they are, and
the rest as a set of its own, of which the marked keys are kept.  Which blocks these are the run time decides from
numbers (`spdsl.runtime.divided`): whatever they are, the three sets are disjoint, and all pairs belong to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spdsl.analysis.picking import is_alike, one_slot, tiles_in
from spdsl.analysis.picks import Picked, conjunction, picked
from spdsl.analysis.plans import Divided, Problem, Tiles
from spdsl.analysis.stages import Staged
from spdsl.analysis.tiles import TileRelation
from spdsl.analysis.unions import is_mark
from spdsl.semantics.expand import expand
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, BoundPattern, Const, Expr, Extent, Index, Load, Side, Table, TableAxis
from spdsl.semantics.rewrite import conjuncts, free_indices

Sets = tuple[tuple[Problem, Side | None], ...]
"""Problems without common pairs, each with the side whose rows are marked, if one is."""

HEADS = frozenset({"h", "g"})


def divided(sets: Sets, staged: Callable[[Problem], Staged], relation: Callable[..., TileRelation]) -> Sets:
    """The sets with marked keys divided: blocks, the tiles that are walked for marked keys alone, and gathered keys.

    Empty where the sets are not such, or tiles are not those of one run of queries and one block of keys.
    ``relation`` gives that of a set in tiles of some size.
    """
    if len(sets) != 2 or sets[0][1] is not None or sets[1][1] != "k":
        return ()
    (blocks, _), (keys, _) = sets
    found = _marks(blocks, keys)
    chosen = picked(staged(blocks).keep, staged(blocks).tables)
    if found is None or chosen is None or blocks.few or staged(keys).stages or not is_alike(chosen, blocks):
        return ()
    common, lists, marks = found
    pattern = blocks.pattern
    where = expand(pattern, marks)
    if not is_mark(where, "k") or not free_indices(where) & HEADS:
        return ()
    if not (chosen.by_head or pattern.heads == pattern.groups):
        return ()
    grain = Tiles(block_q=chosen.rows, block_k=chosen.block, warps=4, stages=1)
    rest = relation(staged(keys), keys, grain, None, expand(pattern, conjunction(common)))
    made = Divided(
        lists=lists.table,
        where=where,
        rows=chosen.rows,
        block=chosen.block,
        touched=one_slot(rest.by_query, tiles_in(Extent(name="n"), chosen.block)).touched,
        tables=_tables(pattern, lists, chosen),
    )
    gathered, met, more = (_read(table, lists) for table in made.tables)
    without = Apply(op="not", args=(gathered,), dtype="bool", span=marks.span)
    return (
        (_with(blocks, made, (*common, lists, without)), None),
        (_with(keys, made, (*common, more, met)), None),
        (_with(keys, made, (*common, gathered)), "k"),
    )


def _marks(blocks: Problem, keys: Problem) -> tuple[tuple[Expr, ...], Load, Expr] | None:
    """What both sets ask for, the lists of the first and the marks of the second, which the first leaves out."""
    first, second = (conjuncts(each.pattern.attend.keep) for each in (blocks, keys))
    common = tuple(each for each in second if each in first)
    match [each for each in first if each not in common], [each for each in second if each not in common]:
        case [Load() as lists, Apply(op="not", args=(left_out,))], [marks] if left_out == marks:
            return common, lists, marks
        case _:
            return None


def _tables(pattern: BoundPattern, lists: Load, chosen: Picked) -> tuple[Table, Table, Table]:
    """The tables that are made: keys that are gathered, keys that are met, and lists for the latter."""
    (declared,) = (each for each in pattern.tables if each.name == chosen.table)
    heads = TableAxis(kind="h", size=Const(value=pattern.heads), label="h")
    token = TableAxis(kind="token", size=Extent(name="n"), label="k")
    names = [_free_name(pattern, f"{lists.table}_{word}") for word in ("gathered", "met", "more")]
    by_key = (
        Table(name=name, dtype="bool", axes=(heads, token), bounds=None, sorted=False, made=True) for name in names[:2]
    )
    axes = (heads, *declared.axes[-2:])
    more = Table(name=names[2], dtype="bool", axes=axes, bounds=None, sorted=False, made=True, listed=True)
    gathered, met = by_key
    return gathered, met, more


def _free_name(pattern: BoundPattern, name: str) -> str:
    """A name that no table of the pattern has."""
    taken = {table.name for table in pattern.tables}
    while name in taken:
        name += "_"
    return name


def _read(table: Table, lists: Load) -> Load:
    """A table at the indices of a pair."""
    last = lists.indices[-2:] if table.listed else (Index(name="k"),)
    return Load(table=table.name, dtype="bool", indices=(Index(name="h"), *last), span=lists.span)


def _with(problem: Problem, made: Divided, clauses: tuple[Expr, ...]) -> Problem:
    """A problem of these clauses, which read tables that are made."""
    attend = replace(problem.pattern.attend, keep=fold(conjunction(clauses)))
    types = tuple((table.name, "int32" if table.listed else "bool") for table in made.tables)
    pattern = replace(problem.pattern, attend=attend)
    return replace(problem, pattern=pattern, tables=(*problem.tables, *types), divided=made)
