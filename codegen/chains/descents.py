"""Selections by searches inside of blocks: every candidate is a block of keys that is halved until one key is left.

From: a selection of the best of such searches, by the largest of the values of some queries.  To: the lines of its
kernel.  A program owns one row of blocks of queries: its tile has these queries as rows and candidates as columns, and
what it reads of keys is one vector for each candidate and half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.places import Place, UncoveredError
from spdsl.codegen.chains.program import NOTHING, Known
from spdsl.codegen.chains.touched import condition, intervals
from spdsl.semantics import build
from spdsl.semantics.graph import Descend, Pool, Select, Stage, index_of
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load
from spdsl.semantics.rewrite import conjuncts

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

MOST = 128
"""The most queries of a row."""


NONE = "-3.4028234663852886e38"
"""The least number, in the place of what is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """A selection by a search: the values are the largest of ``pool``, ``outer`` has chosen the candidates' parents."""

    search: Descend
    pool: Pool
    outer: str | None


def descent_of(stages: Mapping[str, Stage], stage: Stage) -> Descent | None:
    """What a selection searches, where it is of this kind and chooses by nothing else."""
    match stage:
        case Select(
            by="count", value=Load(table=name) as value, only=only, forced=Const(value=False), also=(), rank=None
        ):
            search = stages.get(name)
        case _:
            return None
    there = Apply(op="eq", args=(value, value), dtype="bool")
    if not isinstance(search, Descend) or value.indices != tuple(map(index_of, search.axes)):
        return None
    if any(each not in (there, build.TRUE) for each in conjuncts(only)):
        return None
    pool = stages.get(search.value.table) if isinstance(search.value, Load) else None
    if not isinstance(pool, Pool) or (pool.kind, pool.over, pool.windows) != ("max", "q", None):
        return None
    outer: str | None = None
    for each in conjuncts(search.only):
        inner = stages.get(each.table) if isinstance(each, Load) else None
        match inner:
            case Pool(kind="any", over="q", value=same, only=Const(value=True)) if same == pool.only:
                pass  # where it does not hold, nothing is met
            case Select() if outer is None:
                outer = inner.name
            case _:
                return None
    return Descent(search=search, pool=pool, outer=outer)


def write_descent(values: Values, found: Descent, heads: str | None, row: str, key: str) -> int:
    """Write the lines that leave ``best``, ``[1, BLOCK_C]``, for ``columns`` of the row ``row_first``.

    To: how many queries a tile holds.
    """
    program, pool = values.program, found.pool
    members = values.places.members("q", row, Index(name="row_first"), None)
    step, offset = _sampled(pool.only)
    step, offset = (step, offset) if members.most % step == 0 else (1, 0)
    if members.last is not None or members.most // step > MOST:
        raise UncoveredError("searches for blocks of queries that are large or uneven")
    first = build.add(build.mul(Index(name="row_first"), members.most), offset)
    if tidy(members.first) != tidy(build.mul(Index(name="row_first"), members.most)):
        raise UncoveredError("searches for blocks of queries that do not lie side by side")
    count = members.most // step
    program.declare("members", Known(row=True))
    program.declare("middle", Known(depth=1, column=True))
    program.line(f"members = {program.text(first)} + tl.arange(0, BLOCK_R)[:, None] * {step}")
    program.line(f"exist = (tl.arange(0, BLOCK_R)[:, None] < {count}) & (members >= tl.maximum(q_start, 0))")
    program.line("exist = exist & (members < q_start + nq)")
    blocks = values.places.members("k", key, Index(name="columns"), None)
    if blocks.last is not None or tidy(blocks.first) != tidy(build.mul(Index(name="columns"), blocks.most)):
        raise UncoveredError("searches inside of uneven blocks")
    program.line(f"first = columns * {blocks.most}")
    program.line(f"size = tl.minimum(n - first, {blocks.most})")
    at = {"q": Index(name="members"), "k": Index(name="middle")} | (
        {} if heads is None else {heads: Index(name="head")}
    )
    place = Place(at=at)
    _skip(values, pool, place, first, build.add(first, (count - 1) * step))
    program.line("best = tl.full([1, BLOCK_C], float('-inf'), tl.float32)")
    program.line(f"levels = {max(1, (blocks.most - 1).bit_length())} * tl.max(tl.max(there.to(tl.int32), 1), 0)")
    with program.loop("for level in range(levels):", 0, "level"):
        program.line("half = (size + 1) // 2")
        for number, (start, length) in enumerate((("first", "half"), ("(first + half)", "(size - half)"))):
            # Lines of one half are not taken for those of the other.
            name = f"middle_{number}"
            program.declare(name, Known(depth=1, column=True))
            program.line(f"{name} = tl.minimum((2 * {start} + {length}) // 2, n - 1)")
            here = Place(at={**at, "k": Index(name=name)})
            value, only = values.at(pool.value, here), values.at(pool.only, here)
            there = "exist" if only == build.TRUE else f"exist & ({program.text(only)})"
            text = program.atom(value, "value")
            alone = f"({length} > 0) & " + ("there" if number == 0 else "there & (size > 1)")
            # Where all that is there are NaNs, the largest of nothing is 0; what is not there is beyond all numbers.
            program.line(f"met = tl.where({text} == {text}, {text}, {NONE})")
            program.line(f"met = tl.max(tl.where({there}, met, float('-inf')), 0)[None, :]")
            program.line(f"met = tl.where(met == {NONE}, 0.0, met)")
            program.line(f"seen_{number} = tl.where({alone}, met, float('-inf'))")
        program.line("best = tl.maximum(best, tl.maximum(seen_0, seen_1))")
        program.line("better = seen_1 > seen_0")
        program.line("first = tl.where(better, first + half, first)")
        program.line("size = tl.where(better, size - half, half)")
    return count


def _skip(values: Values, pool: Pool, place: Place, low: Expr, high: Expr) -> None:
    """Leave nothing where the condition can hold for none of the tile's queries and keys."""
    program = values.program
    program.declare("key_first", NOTHING)
    program.declare("key_last", NOTHING)
    ends = {"members": (low, high), "middle": (Index(name="key_first"), Index(name="key_last"))}
    may = tidy(intervals(values, ends).may(condition(values, pool.only, place)))
    program.line("key_first = tl.min(tl.where(there, first, 2147483647), 1)")
    program.line("key_last = tl.max(tl.where(there, first + size - 1, -1), 1)")
    program.line("key_first, key_last = tl.min(key_first, 0), tl.max(key_last, 0)")
    if may != build.TRUE:
        program.line("# Nothing of the tile can be met.")
        program.line(f"there = there & ({program.text(may)})")
        program.line("size = tl.where(there, size, 0)")


def _sampled(only: Expr) -> tuple[int, int]:
    """The step and the remainder of the queries that a condition leaves, whatever the key; 1 and 0 without such."""
    for each in conjuncts(only):
        match each:
            case Apply(
                op="eq",
                args=(Apply(op="mod", args=(Index(name="q"), Const(value=int() as step))), Const(value=int() as rest)),
            ) if step > 0 and 0 <= rest < step:
                return step, rest
            case _:
                pass
    return 1, 0
