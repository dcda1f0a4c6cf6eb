"""Tiles of keys in which tables say nothing, so that their masks read none.

From the predicate of the forward with specialised warps to one without what it reads of every key, and to where that
says something.  ``is_global[k]`` beside an ``or`` says nothing where it is false, ``valid[k]`` beside an
``and`` where it is true.  Tables of tokens are mostly silent: few tokens are global, and few are padding.  The copying
warp, which waits most of the time, looks at those of a tile ahead of the warps that compute, and tells them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

from spdsl.analysis.tiles import PickWalk
from spdsl.codegen.arith import choose, compare, either, index, mul, number
from spdsl.codegen.blocks import Block, Define, If, Mask, Speaks
from spdsl.codegen.frame import Frame
from spdsl.codegen.programs import positions
from spdsl.codegen.selected import GROUP
from spdsl.codegen.walks import MASKED, Mode
from spdsl.semantics.nodes import Apply, Const, Expr, Load, Param
from spdsl.semantics.rewrite import children, free_indices, transform, walk

KIND = Param(name="kind", dtype="int")
"""Of a tile: 0 where it is full, 1 where it is masked and tables are silent, else 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A predicate where its loads of walked positions say nothing, and where they ``speak``."""

    keep: Expr
    speaks: Expr


def silence(frame: Frame, keep: Expr) -> Silence | None:
    """What ``keep`` is in tiles whose tables say nothing; None where it reads no such tables."""
    if frame.kernel.boxes is not None:
        return None
    listed = {table.name for table in frame.plan.tables if table.listed}
    found: dict[Load, bool] = {}
    for load, neutral in _clauses(keep):
        free = free_indices(load)
        # What a group of warps looks up for its own rows is nothing that the copying warp could ask.
        shared = "q" not in free and GROUP not in walk(load)
        if "k" in free and shared and load.table not in listed:
            found[load] = neutral
    others = [node for node in walk(keep) if isinstance(node, Load) and node not in found]
    if not found or any("k" in free_indices(load) for load in others):
        return None
    quiet = transform(keep, lambda node: _without(node, found))
    spoken: list[Expr] = [
        Apply(op="not", args=(load,), dtype="bool") if neutral else load for load, neutral in found.items()
    ]
    return Silence(keep=quiet, speaks=reduce(either, spoken))


def _clauses(keep: Expr, neutral: bool | None = None) -> Iterator[tuple[Load, bool]]:
    """The loads that are clauses of unions or intersections, and the value by which each says nothing there."""
    match keep:
        case Load(dtype="bool") if neutral is not None:
            yield keep, neutral
        case Apply(op="not", args=(part,)):
            yield from _clauses(part, None if neutral is None else not neutral)
        case Apply(op="and" | "or" as op):
            for part in children(keep):
                yield from _clauses(part, op == "and")


def _without(node: Expr, loads: Mapping[Load, bool]) -> Expr | None:
    """A node whose parts are done, without clauses that say nothing."""
    match node:
        case Load() if node in loads:
            return Const(value=loads[node])
        case Apply(op="not", args=(Const(value=value),)):
            return Const(value=not value)
        case Apply(op="and" | "or" as op, args=args):
            neutral, decisive = Const(value=op == "and"), Const(value=op != "and")
            if decisive in args:
                return decisive
            rest = [arg for arg in args if arg != neutral]
            return reduce(lambda a, b: Apply(op=op, args=(a, b), dtype="bool"), rest) if rest else neutral
        case _:
            return None


def kinds(frame: Frame, mode: Mode, speaks: Expr) -> tuple[Block, ...]:
    """The kind of the tile that comes next, for the copying warp."""
    none: Block = Define(name=KIND.name, value=mul(index("j"), number(0)))
    if mode == "full":
        return (none,)
    gathers, placed = frame.place_tile(speaks)
    look: tuple[Block, ...] = (
        positions(frame, "k" if frame.by == "query" else "q", "walked"),
        *gathers,
        Speaks(name=KIND.name, value=placed),
    )
    if isinstance(frame.kernel.walk, PickWalk) and frame.kernel.walk.speaks:
        # Full tiles are those of the set without these tables.
        counts = either(MASKED, compare("gt", KIND, number(1)))
        return (*look, Define(name=KIND.name, value=choose(counts, KIND, number(0))))
    return look if mode == "masked" else (If(condition=MASKED, body=look, otherwise=(none,)),)


def quiet_mask(
    mode: Mode, quiet: tuple[tuple[Block, ...], Mask], spoken: tuple[tuple[Block, ...], Mask]
) -> tuple[Block, ...]:
    """The masks of a tile by its kind, each with what it needs."""
    (blocks, mask), (more, full) = quiet, spoken
    rest = () if mask.keep == Const(value=True) else (mask,)
    by_kind = (*blocks, If(condition=compare("gt", KIND, number(1)), body=(*more, full), otherwise=rest))
    return by_kind if mode == "masked" else (If(condition=MASKED, body=by_kind),)
