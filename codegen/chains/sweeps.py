"""Searches inside of nested blocks by a sweep over all keys: tiles of the matrix unit, not vectors read one by one.

From: the last of selections by searches, each inside of the blocks that the one before has chosen.  To: the lines of a
kernel that scores every key for the queries of some rows and of all heads of a group at once, and leaves for each of
the smallest blocks what a search inside of it meets.  Which half a search enters depends on scores alone, not on what
was chosen before, so that larger blocks follow from smaller ones, two at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from spdsl.codegen.chains.affine import sum_of, tidy
from spdsl.codegen.chains.descents import Descent, descent_of, sampled
from spdsl.codegen.chains.parts import Terms
from spdsl.codegen.chains.places import Place, Places, UncoveredError
from spdsl.codegen.chains.presence import opened
from spdsl.codegen.chains.products import product, scale, wrapped
from spdsl.codegen.chains.program import NOTHING, Known, Program
from spdsl.codegen.chains.touched import intervals
from spdsl.codegen.chains.values import Values
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Score, Select, Stage, index_of, on_side, side_of
from spdsl.semantics.nodes import Apply, BoundPattern, Const, Expr, Extent, Index, Load
from spdsl.semantics.rewrite import conjuncts, free_axes, walk

SMALLEST, LARGEST = 2, 16
"""Keys of the smallest blocks: what is left of half a block stays in registers until the other half is known."""

MOST_OF = 64
"""The most blocks that the next larger one has: a tile has so many."""

MOST = 32
"""The most queries of a row, of which a tile has four at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The ``stages`` that are searched, first the one with the largest blocks, and the ``sizes`` of these.

    A row has ``queries`` that are looked at, one in each ``step`` of its ``members`` from ``offset`` on; ``share``
    heads meet the same keys.  No query meets a key less than ``reach`` before it; None where that is not known.
    """

    stages: tuple[str, ...]
    sizes: tuple[int, ...]
    members: int
    queries: int
    step: int
    offset: int
    share: int
    reach: int | None

    @property
    def places(self) -> int:
        """How many places of a tile the queries of a row take."""
        return max(2, 1 << (self.queries - 1).bit_length())

    @property
    def levels(self) -> int:
        """How many times the smallest blocks are put together to the next larger ones; 0 where there are none."""
        return (self.sizes[-2] // self.sizes[-1]).bit_length() - 1 if len(self.sizes) > 1 else 0


def sweep_of(
    pattern: BoundPattern, stages: Mapping[str, Stage], stage: Stage, terms: Mapping[str, Terms]
) -> Sweep | None:
    """How a selection, and those above it, are one sweep, where they are."""
    found = _nested(stages, stage)
    if not found:
        return None
    pool = found[0].pool
    inner = stages.get(pool.value.table) if isinstance(pool.value, Load) else None
    if not isinstance(inner, Score) or inner.scale is not None or not _is_plain(pool, inner, terms):
        return None
    places = Places(pattern=pattern)
    try:
        assert pool.per is not None
        row = places.members("q", pool.per, Index(name="row"), None)
        blocks = [places.members("k", each.search.per, Index(name="block"), None) for each in found]
    except UncoveredError:
        return None
    sizes = tuple(each.most for each in reversed(blocks))
    even = all(
        each.last is None and tidy(each.first) == tidy(build.mul(Index(name="block"), each.most)) for each in blocks
    )
    even = even and row.last is None and tidy(row.first) == tidy(build.mul(Index(name="row"), row.most))
    halves = all(not each & (each - 1) for each in sizes) and sizes == tuple(sorted(set(sizes), reverse=True))
    step, offset = sampled(pool.only)
    step, offset = (step, offset) if row.most % step == 0 else (1, 0)
    fits = SMALLEST <= sizes[-1] <= LARGEST and all(one <= MOST_OF * two for one, two in pairwise(sizes))
    if not even or not halves or not fits or row.most // step > MOST:
        return None
    names = tuple(each.name for each in reversed(list(_chosen(stages, stage))))
    return Sweep(
        stages=names,
        sizes=sizes,
        members=row.most,
        queries=row.most // step,
        step=step,
        offset=offset,
        share=pattern.heads // pattern.groups,
        reach=_reach(pool.only),
    )


def _chosen(stages: Mapping[str, Stage], stage: Stage) -> list[Stage]:
    """A selection and those above it, by searches that compare the same values for the same rows and heads."""
    made: list[Stage] = [stage]
    while (found := descent_of(stages, made[-1])) is not None and found.outer is not None:
        above = stages[found.outer]
        assert isinstance(above, Select)
        made.append(above)
    return made


def _nested(stages: Mapping[str, Stage], stage: Stage) -> list[Descent]:
    """The searches of a selection and of those above it; none where they are not of the same values."""
    found: list[Descent] = []
    for each in _chosen(stages, stage):
        descent = descent_of(stages, each)
        axes = (on_side(each.axes, "q"), *(axis for axis in each.axes if side_of(axis) is None))
        if descent is None or axes != (descent.pool.per, "h") or (found and descent.pool != found[0].pool):
            return []
        found.append(descent)
    return found


def _is_plain(pool: Pool, inner: Score, terms: Mapping[str, Terms]) -> bool:
    """Whether values are products of the vectors of queries and keys as they are, and conditions are on positions."""
    query, key = inner.left, inner.right
    if on_side(free_axes(query), "k") is not None:
        query, key = key, query
    heads = [{axis for axis in free_axes(each) if side_of(axis) is None} - {inner.over, "b"} for each in (query, key)]
    nodes = (Const, Index, Extent, Apply)
    return (
        isinstance(pool.value, Load)
        and pool.value.indices == tuple(map(index_of, inner.axes))
        and terms.get(inner.name) == Terms(queries=1, keys=1)
        and wrapped(query)[0] == query
        and heads == [{"h"}, {"g"}]
        and free_axes(pool.only) <= {"q", "k"}
        and all(isinstance(node, nodes) for node in walk(pool.only))
    )


def _reach(only: Expr) -> int | None:
    """The largest distance below which a condition holds for no key."""
    found = []
    for each in conjuncts(only):
        match each:
            case Apply(op="ge" | "gt" | "le" | "lt" as op, args=(left, right)) if left.dtype == "int":
                sign = 1 if op in ("ge", "gt") else -1
                whole = sum_of(tidy(build.sub(left, right)))
                terms = {term: factor * sign for term, factor in whole.terms}
                if terms == {Index(name="q"): 1, Index(name="k"): -1}:
                    found.append(-whole.constant * sign + (op in ("gt", "lt")))
            case _:
                pass
    return max(found, default=None)


# ---------------------------------------------------------------- lines


def write_sweep(values: Values, sweep: Sweep, pool: Pool) -> None:
    """Write the lines that leave what is best inside of all blocks, and what is known of the next larger ones."""
    program, levels = values.program, sweep.sizes[-1].bit_length() - 1
    for name in ("b", "group", "row_first", "row_last"):
        program.declare(name, NOTHING)
    for name in ("row", "head", "query_at", "members"):
        program.declare(name, Known(row=True))
    program.declare("blocks", Known(column=True))
    first = build.add(build.mul(Index(name="row"), sweep.members), sweep.offset)
    low = build.add(build.mul(Index(name="row_first"), sweep.members), sweep.offset)
    beyond = sweep.offset + (sweep.queries - 1) * sweep.step
    high = build.add(build.mul(Index(name="row_last"), sweep.members), beyond)
    program.line("# Past the last query the tile has this one again, which changes no maximum.")
    program.line(f"members = {program.text(first)} + tl.minimum(query_at, {sweep.queries - 1}) * {sweep.step}")
    program.line("exist = (members >= tl.maximum(q_start, 0)) & (members < q_start + nq)")
    exist = f"({program.text(low)} >= tl.maximum(q_start, 0)) & ({program.text(high)} < q_start + nq)"
    program.line(f"all_exist = {exist}")
    exist = f"({program.text(high)} >= q_start) & ({program.text(low)} < q_start + nq)"
    program.line(f"any_exist = {exist}")
    at = {"q": Index(name="members"), "h": Index(name="head"), "g": Index(name="group")}
    ends = {"members": (low, high), "middle": (Index(name="key_first"), Index(name="key_last"))}
    program.declare("middle", Known(depth=1, column=True))
    for name in ("key_first", "key_last"):
        program.declare(name, Known(depth=1))
    place, known = Place(at={**at, "k": Index(name="middle")}), intervals(values, ends)
    names = [name for level in range(1, levels) for name in (f"best_{level}", f"middle_{level}")]
    for name in ("front", "even", *names, *(f"half_{level}" for level in range(3, levels + 1))):
        program.line(f"{name} = nothing")
    rest = build.conj(*(each for each in conjuncts(pool.only) if sampled(each) != (sweep.step, sweep.offset)))
    may, must = tidy(known.may(opened(values, pool.only, place))), tidy(known.must(opened(values, rest, place)))
    _write_ends(program, may, must)
    program.line("# Spans of which every key is met by all queries, where no condition is looked at.")
    with program.loop("for step in range(full_begin * SIZE, full_end * SIZE):", 0, "step"):
        program.line("turn, span = step % SIZE, step // SIZE")
        program.line("middle = span * SPAN + blocks * SIZE + turn")
        found, factor = _products(values, pool, place)
        program.line(f"met = largest_of({found}, {factor}, PARTS, PLACES)")
        _write_tree(program, sweep)
    steps = "tl.range(begin * SIZE, (finish - (full_end - full_begin)) * SIZE, num_stages=1)"
    with program.loop(f"for step in {steps}:", 0, "step"):
        program.line("turn, span = step % SIZE, step // SIZE")
        program.line("span = tl.where(span < full_begin, span, span + full_end - full_begin)")
        program.line("wanted = span * SPAN + blocks * SIZE + turn")
        program.line("middle = tl.minimum(wanted, n - 1)")
        found, factor = _products(values, pool, place)
        there = f"exist & (wanted < n) & ({program.text(values.at(pool.only, place))})"
        program.line(f"met = largest_met({found}, {factor}, {there}, PARTS, PLACES)")
        _write_tree(program, sweep)


def _write_ends(program: Program, may: Expr, must: Expr) -> None:
    """``begin`` and ``finish``, between which a part's spans may be met, of others nothing is left; and the ends of the
    first run of spans that are met whole."""
    program.line("begin, finish = part_end, part_begin")
    program.line("full_begin, full_end = part_begin, part_begin")
    with program.loop("for span in range(part_begin, part_end):", 0, "span"):
        program.line("key_first = span * SPAN")
        program.line("key_last = tl.minimum(key_first + SPAN, n) - 1")
        program.line(f"touched = any_exist & (key_first < n) & ({program.text(may)})")
        program.line("begin = tl.where(touched, tl.minimum(begin, span), begin)")
        program.line("finish = tl.where(touched, span + 1, finish)")
        program.line(f"whole = all_exist & (key_first + SPAN <= n) & ({program.text(must)})")
        program.line("starts = whole & (full_end == full_begin)")
        program.line("full_end = tl.where(starts | (whole & (full_end == span)), span + 1, full_end)")
        program.line("full_begin = tl.where(starts, span, full_begin)")
        with program.loop("if not touched:", 1):
            program.line(_left("nothing", "nothing", "nothing"))
    program.line("finish = tl.maximum(begin, finish)")
    program.line("full_begin = tl.where(full_end == full_begin, begin, full_begin)")
    program.line("full_end = tl.maximum(full_begin, full_end)")


def _left(*values: str) -> str:
    """The line that stores what is known of the blocks of a span."""
    into = "swept_best, raised_best, raised_first, raised_middle, places, raised_places"
    return f"leave_swept({into}, span, column_count, raised_count, there_is, {', '.join(values)})"


def _products(values: Values, pool: Pool, place: Place) -> tuple[str, str]:
    """The name of the products of a tile, and that of the factor of scores."""
    inner = values.stages[pool.value.table] if isinstance(pool.value, Load) else None
    assert isinstance(inner, Score)
    return values.program.atom(product(values, inner, place, turned=True)), scale(values, inner)


def _write_tree(program: Program, sweep: Sweep) -> None:
    """Put together what two halves of a block have met, as soon as the second one is known.

    Of a block are known the best that is met inside, its first key, and its middle one, which is the first key of its
    second half.  A search meets the middles of both halves and enters the one whose is larger, at equality the first.
    """
    levels = sweep.sizes[-1].bit_length() - 1
    program.line("best, half = tl.maximum(even, met), met")
    for level in range(2, levels + 1):
        before = f"best_{level - 1}", f"middle_{level - 1}"
        program.line(f"inside = tl.where(half > {before[1]}, best, {before[0]})")
        program.line(f"above = tl.maximum(tl.maximum({before[1]}, half), inside)")
        done = f"turn % {1 << level} == {(1 << (level - 1)) - 1}"
        program.line(f"{before[0]} = tl.where({done}, best, {before[0]})")
        program.line(f"{before[1]} = tl.where({done}, half, {before[1]})")
        program.line(f"best, half = above, {'even' if level == 2 else f'half_{level}'}")
    with program.loop("if turn == SIZE - 1:", 1):
        program.line(_left("best", "front", "half"))
    program.line("front = tl.where(turn == 0, met, front)")
    for level in range(3, levels + 1):
        program.line(f"half_{level} = tl.where(turn % {1 << level} == {1 << (level - 1)}, met, half_{level})")
    program.line("even = tl.where(turn % 2 == 0, met, even)")
