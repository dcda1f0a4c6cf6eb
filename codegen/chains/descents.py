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
from spdsl.codegen.chains.parts import ABSENT
from spdsl.codegen.chains.places import Place, UncoveredError
from spdsl.codegen.chains.presence import opened
from spdsl.codegen.chains.products import product, scale
from spdsl.codegen.chains.program import NOTHING, Known
from spdsl.codegen.chains.touched import intervals
from spdsl.semantics import build
from spdsl.semantics.graph import Descend, Pool, Score, Select, Stage, index_of
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load
from spdsl.semantics.rewrite import conjuncts

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

MOST = 128
"""The most queries of a row."""


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

    Values are compared as keys, of which −inf has one of its own, above that of what is absent.  To: how many queries a
    tile holds.
    """
    program, pool = values.program, found.pool
    members = values.places.members("q", row, Index(name="row_first"), None)
    step, offset = sampled(pool.only)
    step, offset = (step, offset) if members.most % step == 0 else (1, 0)
    if members.last is not None or members.most // step > MOST:
        raise UncoveredError("searches for blocks of queries that are large or uneven")
    first = build.add(build.mul(Index(name="row_first"), members.most), offset)
    if tidy(members.first) != tidy(build.mul(Index(name="row_first"), members.most)):
        raise UncoveredError("searches for blocks of queries that do not lie side by side")
    count = members.most // step
    blocks = values.places.members("k", key, Index(name="columns"), None)
    if blocks.last is not None or tidy(blocks.first) != tidy(build.mul(Index(name="columns"), blocks.most)):
        raise UncoveredError("searches inside of uneven blocks")
    program.declare("members", Known(row=True))
    # Past the last query the tile has this one again, which changes no maximum.
    entries = f"tl.minimum(tl.arange(0, BLOCK_R), {count - 1})[:, None]"
    program.line(f"members = {program.text(first)} + {entries} * {step}")
    program.line("exist = (members >= tl.maximum(q_start, 0)) & (members < q_start + nq)")
    program.line(f"first = columns * {blocks.most}")
    at = {"q": Index(name="members")} | ({} if heads is None else {heads: Index(name="head")})
    low, high = first, build.add(first, (count - 1) * step)
    may, must = _ends(values, pool, at, (low, high), blocks.most, (step, offset))
    program.line("# Nothing of the tile can be met.")
    program.line(f"may = any_there & ({program.text(may)})")
    program.line("there = there & may")
    program.line(f"size = tl.where(there, tl.minimum(n - first, {blocks.most}), 0)")
    program.line(f"best = tl.full([1, BLOCK_C], {ABSENT}, tl.int32)")
    if blocks.most > 1 and not blocks.most & (blocks.most - 1) and must != build.FALSE:
        program.line("# Everything of the tile is met: all blocks are full, and no condition is looked at.")
        exist = f"({program.text(low)} >= tl.maximum(q_start, 0)) & ({program.text(high)} < q_start + nq)"
        program.line(f"whole = all_there & {exist} & ({program.text(must)})")
        with program.loop("if whole:", 0):
            _write_whole(values, pool, at, blocks.most)
        program.line("may = may & ~whole")
    _write_careful(values, pool, at, blocks.most)
    return count


def _write_careful(values: Values, pool: Pool, at: Mapping[str, Expr], most: int) -> None:
    """A search by halves that may be uneven, of keys and queries that a condition may leave out."""
    program = values.program
    program.line(f"levels = {max(1, (most - 1).bit_length())} * may.to(tl.int32)")
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
            # Where all that is there are NaNs, the largest of nothing is 0.
            program.line(f"met = tl.where({text} == {text}, sortable({text}), {ABSENT + 1})")
            program.line(f"met = tl.max(tl.where({there}, met, {ABSENT}), 0)[None, :]")
            program.line(f"met = tl.where(met == {ABSENT + 1}, 0, met)")
            program.line(f"seen_{number} = tl.where({alone}, met, {ABSENT})")
        program.line("best = tl.maximum(best, tl.maximum(seen_0, seen_1))")
        program.line("better = seen_1 > seen_0")
        program.line("first = tl.where(better, first + half, first)")
        program.line("size = tl.where(better, size - half, half)")


def _write_whole(values: Values, pool: Pool, at: Mapping[str, Expr], most: int) -> None:
    """A search of full blocks of a power of two of keys that all queries meet: both halves are one product.

    The middle of what is left is the first key of its second half, so that of the last two keys one is known.
    """
    program, levels = values.program, most.bit_length() - 1
    program.line(f"half = tl.full([], {most // 2}, tl.int32)")
    with program.loop(f"for level in range({max(1, levels - 1)}):", 1, "level"):
        program.declare("both", Known(depth=2, column=True))
        program.line("both = paired(first + half // 2, first + half + half // 2, BLOCK_C)")
        _write_met(values, pool, Place(at={**at, "k": Index(name="both")}))
        program.line("seen_0, seen_1 = parted(met, BLOCK_C)")
        program.line("best = tl.maximum(best, tl.maximum(seen_0, seen_1))")
        program.line("first = tl.where(seen_1 > seen_0, first + half, first)")
        program.line("half = half // 2")
    if levels > 1:
        program.declare("first", Known(depth=1, column=True))
        _write_met(values, pool, Place(at={**at, "k": Index(name="first")}))
        program.line("best = tl.maximum(best, met)")


def _write_met(values: Values, pool: Pool, place: Place) -> None:
    """``met``, the key of the largest value of all queries at each place; a NaN is absent, the largest of nothing 0."""
    program, factor = values.program, ""
    inner = values.stages.get(pool.value.table) if isinstance(pool.value, Load) else None
    if isinstance(inner, Score) and inner.scale is None and _is_whole(pool.value, inner):
        # The scale is positive, and is left for after the maximum.
        value, factor = product(values, inner, place, turned=True), f" * {scale(values, inner)}"
    else:
        value = values.at(pool.value, place)
    program.line(f"met = tl.max({program.atom(value, 'value')}, 0)[None, :]{factor}")
    program.line("met = sortable(tl.where(met == met, met, 0.0))")


def _is_whole(value: Expr, stage: Stage) -> bool:
    """Whether a stage is read along its own axes."""
    return isinstance(value, Load) and value.indices == tuple(map(index_of, stage.axes))


def _ends(
    values: Values,
    pool: Pool,
    at: Mapping[str, Expr],
    queries: tuple[Expr, Expr],
    most: int,
    sampled: tuple[int, int],
) -> tuple[Expr, Expr]:
    """Whether the condition may hold for any, and holds for all, of the tile's queries and keys.

    Candidates ascend, and those that exist come first.  Queries are those that are ``sampled``.
    """
    program = values.program
    for name in ("key_first", "key_last"):
        program.declare(name, NOTHING)
    program.line(f"key_first = column_first * {most}")
    program.line(f"key_last = tl.where(all_there, column_last * {most} + {most - 1}, n - 1)")
    program.line("all_there = all_there & (key_last < n)")
    ends = {"members": queries, "middle": (Index(name="key_first"), Index(name="key_last"))}
    known, place = intervals(values, ends), Place(at={**at, "k": Index(name="middle")})
    program.declare("middle", NOTHING)
    rest = build.conj(*(each for each in conjuncts(pool.only) if _sample(each) != sampled))
    may = tidy(known.may(opened(values, pool.only, place)))
    return may, tidy(known.must(opened(values, rest, place)))


def sampled(only: Expr) -> tuple[int, int]:
    """The step and the remainder of the queries that a condition leaves, whatever the key; 1 and 0 without such."""
    return next((found for each in conjuncts(only) if (found := _sample(each)) is not None), (1, 0))


def _sample(condition: Expr) -> tuple[int, int] | None:
    match condition:
        case Apply(
            op="eq",
            args=(Apply(op="mod", args=(Index(name="q"), Const(value=int() as step))), Const(value=int() as rest)),
        ) if step > 0 and 0 <= rest < step:
            return step, rest
        case _:
            return None
