"""Wrong values of input tables: unsorted, out of range, or read outside of their extents.

From: a call.  To: faults, each with a flag on the device of the call; nothing waits for the device here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spdsl.diagnostics import SpatError, error
from spdsl.runtime.calls import Call
from spdsl.runtime.distance import with_distances
from spdsl.runtime.evaluate import Tables, depends_on, evaluate
from spdsl.runtime.intervals import tile_bounds
from spdsl.runtime.looks import Looked
from spdsl.runtime.pairs import Pairs, pairs_of
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load, Table, TableAxis
from spdsl.semantics.rewrite import children, walk

_BLOCK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that may be wrong: ``flag`` says so once it is computed, ``error`` then tells what."""

    flag: Tensor
    error: Callable[[], SpatError]


def value_faults(call: Call, tables: Tables, *, narrow: bool = False) -> Iterator[Fault]:
    """All that may be wrong with the values of the inputs of a call; ``narrow`` where it is computed in 32 bits."""
    clauses = (call.plan.keep, call.plan.bias, call.plan.sink_logit)
    read = {node.table for clause in clauses if clause for node in walk(clause) if isinstance(node, Load)}
    for table in call.plan.problem.pattern.tables:
        given = call.tables[table.name]
        if table.made:
            continue
        if table.sorted:
            yield _unsorted(table, given)
        if table.bounds is not None:
            yield _out_of_range(table, given)
        if narrow and given.dtype == torch.int64 and table.name in read:
            yield _too_large(table, given)
    if call.places is None:
        tables_given = (table for table in call.plan.problem.pattern.tables if not (table.made or table.listed))
        declared = {table.name: table for table in tables_given}
        for load, when in _reads(call):
            if load.table in declared:
                yield from _outside(declared[load.table], load, when, pairs_of(call), tables)


# ---------------------------------------------------------------- promises about values


def _unsorted(table: Table, given: Tensor) -> Fault:
    falls = given[..., 1:] < given[..., :-1]

    def fault() -> SpatError:
        place = _first(falls)
        at = place[-1]
        after = (*place[:-1], at + 1)
        here, there = given[place].item(), given[after].item()
        where = f" of sequence {place[0]}" if given.dim() > 1 and given.shape[0] > 1 else ""
        return error(
            "SP350",
            f"`{table.name}` is declared sorted, but{where} falls from {here} at token {at} to {there}",
            table.span,
            help="sort the tokens by it, or leave out `sorted`",
        )

    return Fault(flag=falls.any(), error=fault)


def _out_of_range(table: Table, given: Tensor) -> Fault:
    assert table.bounds is not None
    low, high = table.bounds.low, table.bounds.high
    fine = torch.ones_like(given, dtype=torch.bool)
    if low is not None:
        fine &= given >= low
    if high is not None:
        fine &= given <= high
    shown = f"{'' if low is None else low}..{'' if high is None else high}"

    def fault() -> SpatError:
        place = _first(~fine)
        return error(
            "SP351",
            f"`{table.name}` is {given[place].item()} at {list(place)}, but must be in {shown}",
            table.span,
            help="change the values, or the range in its declaration",
        )

    return Fault(flag=~fine.all(), error=fault)


def _too_large(table: Table, given: Tensor) -> Fault:
    large = given != given.int()

    def fault() -> SpatError:
        place = _first(large)
        return error(
            "SP351",
            f"`{table.name}` is {given[place].item()} at {list(place)}, but kernels compute in ints of 32 bits",
            table.span,
            help="number the values, for example with `torch.unique(..., return_inverse=True)`, or clamp them",
        )

    return Fault(flag=large.any(), error=fault)


def _first(wrong: Tensor) -> tuple[int, ...]:
    places = wrong.nonzero()
    return tuple(places[0].tolist()) if len(places) else (0,) * wrong.dim()


# ---------------------------------------------------------------- reads


def _reads(call: Call) -> Iterator[tuple[Load, Expr]]:
    """Each load of the clauses, and the condition under which its value counts.

    Conditions are taken from left to right: in ``a and b`` the right side counts where the left one holds.
    """
    always: Expr = Const(value=True)
    yield from _guarded(call.plan.keep, always)
    for clause, when in ((call.plan.bias, call.plan.keep), (call.plan.sink_logit, always)):
        if clause is not None:
            yield from _guarded(clause, when)


def _guarded(expr: Expr, when: Expr) -> Iterator[tuple[Load, Expr]]:
    match expr:
        case Apply(op="and", args=(left, right)):
            yield from _guarded(left, when)
            yield from _guarded(right, _both(when, left))
        case Apply(op="or", args=(left, right)):
            yield from _guarded(left, when)
            yield from _guarded(right, _both(when, _negated(left)))
        case Apply(op="where", args=(condition, yes, no)):
            yield from _guarded(condition, when)
            yield from _guarded(yes, _both(when, condition))
            yield from _guarded(no, _both(when, _negated(condition)))
        case _:
            if isinstance(expr, Load):
                yield expr, when
            for part in children(expr):
                yield from _guarded(part, when)


def _both(a: Expr, b: Expr) -> Expr:
    return b if a == Const(value=True) else Apply(op="and", args=(a, b), dtype="bool")


def _negated(a: Expr) -> Expr:
    return Apply(op="not", args=(a,), dtype="bool")


def _outside(table: Table, load: Load, when: Expr, pairs: Pairs, tables: Tables) -> Iterator[Fault]:
    """Faults for indices that leave their axis where the value counts; what follows from the shapes is left out."""
    shape = tables.values[load.table].shape[-len(load.indices) :] if load.indices else torch.Size()
    for axis, index, size in zip(table.axes, load.indices, shape, strict=True):
        if axis.kind == "q":
            index = Apply(op="sub", args=(index, Extent(name="q_start")), dtype="int")
        if _follows_from_shapes(axis, index):
            continue
        beyond: Expr = Apply(op="ge", args=(index, Const(value=size)), dtype="bool")
        below: Expr = Apply(op="lt", args=(index, Const(value=0)), dtype="bool")
        outside: Expr = Apply(op="or", args=(below, beyond), dtype="bool")
        if when != Const(value=True) and _never_on_one_side(outside, pairs, tables):
            continue
        flag = _anywhere(_both(when, outside), pairs, tables)
        if flag is not None:
            yield Fault(flag=flag, error=partial(_read_error, load, axis.label, size))


def _follows_from_shapes(axis: TableAxis, index: Expr) -> bool:
    """Whether the index is the variable of its axis, which the checks of shapes cover."""
    return isinstance(index, Index) and (axis.kind == index.name or (axis.kind == "token" and index.name == "k"))


def _read_error(load: Load, label: str, size: int) -> SpatError:
    return error(
        "SP320",
        f"`{load.table}` is read outside of its axis `{label}`, which has {size} elements",
        load.span,
        help="limit the index with `clamp`, or put a condition in front with `and`",
    )


def _never_on_one_side(outside: Expr, pairs: Pairs, tables: Tables) -> bool:
    """Whether an index of one side stays inside, whatever its guard says: then nobody looks at pairs.

    Asked on the CPU alone, because the answer waits for the device.
    """
    if pairs.device.type != "cpu" or len(_sides(with_distances(outside), tables)) > 1:
        return False
    flag = _anywhere(outside, pairs, tables)
    return flag is not None and not bool(flag)


def _sides(expr: Expr, tables: Tables) -> frozenset[str]:
    return depends_on(expr, tables) & {"q", "k", "d"}


def _anywhere(wrong: Expr, pairs: Pairs, tables: Tables) -> Tensor | None:
    """Whether a condition holds for any existing pair.

    Conditions of one side or of the distance take O(N).  Others are bounded tile by tile, which on a GPU would wait
    for the device: there they are left to the clamp.
    """
    if not pairs.queries or not pairs.keys:
        return None
    wrong = with_distances(wrong)
    env = pairs.extents() | pairs.outer(1)
    if len(_sides(wrong, tables)) <= 1:
        first = max(pairs.q_start, 0)
        last = pairs.q_start + pairs.queries
        env["q"] = torch.arange(first, max(last, first), device=pairs.device)
        env["k"] = torch.arange(pairs.keys, device=pairs.device)
        env["d"] = torch.arange(first - pairs.keys + 1, max(last, first), device=pairs.device)
        return evaluate(wrong, env, tables).any()
    if pairs.device.type != "cpu":
        return None
    tiles = Looked(bounds=tile_bounds(wrong, pairs, tables, block_q=_BLOCK, block_k=_BLOCK), exact=True)
    every = slice(0, tiles.columns)
    step = max(1, (1 << 20) // max(1, tiles.columns))
    rows = (slice(start, min(start + step, tiles.rows)) for start in range(0, tiles.rows, step))
    return torch.stack([tiles.of(part, every).may.any() for part in rows]).any()
