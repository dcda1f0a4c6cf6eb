"""What the softmaxes of a pattern are computed from: tensors, tables, and selections as lists.

From: a stage that attends, and the arrays of a call.  To: its `Operands`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.tiling import KEPT
from spdsl.codegen.chains.columns import belongs_to_columns, is_without_queries
from spdsl.diagnostics import error
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.inputs import Inputs, arrays_of, graph_of
from spdsl.runtime.lines import Lines
from spdsl.runtime.memo import Memo
from spdsl.runtime.sets import lists, sets_of
from spdsl.semantics.graph import Attention, is_free
from spdsl.semantics.nodes import BoundPattern, Expr, Load, Table
from spdsl.semantics.rewrite import free_axes
from spdsl.semantics.softmaxes import MEMBER, POSITIONS, softmax_pattern

PATTERNS = 512
"""Softmaxes whose patterns are remembered."""

_patterns: dict[tuple[int, str], tuple[BoundPattern, BoundPattern]] = {}


def _pattern_of(pattern: BoundPattern, name: str) -> BoundPattern:
    """The pattern of a softmax."""
    # By identity: hashing a pattern takes longer than a launch.  The entry keeps it alive.
    key = id(pattern), name
    if key not in _patterns:
        if len(_patterns) >= PATTERNS:
            _patterns.clear()
        _patterns[key] = pattern, softmax_pattern(pattern, name)
    return _patterns[key][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """What a softmax is computed from: tensors, its tables by name, and where its first query stands.

    ``stages`` are those tables that stages have made, ``axes`` the axes of each table.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tables: dict[str, Tensor]
    q_start: int
    stages: frozenset[str]
    axes: dict[str, tuple[str, ...]]
    lines: Lines


def operands(pattern: BoundPattern, stage: Attention, call: Inputs) -> Operands:
    """The operands of a softmax that reads no other, as a call makes them."""
    return operands_of(pattern, stage, call, arrays_of(pattern, call, grad=False), arrays_of(pattern, call, grad=True))


def operands_of(pattern: BoundPattern, stage: Attention, call: Inputs, chosen: Arrays, values: Arrays) -> Operands:
    """The operands of a softmax: sets of ``chosen``, all else of ``values``, which may be differentiated."""
    q = _tensor(values, stage.query, "h", stage.rows, call.q)
    k, v = (
        _tensor(values, expr, "g", stage.columns, given) for expr, given in ((stage.key, call.k), (stage.value, call.v))
    )
    if q.shape[-1] != k.shape[-1]:
        raise error(
            "SP344",
            f"keys have {k.shape[-1]} features, but queries have {q.shape[-1]}",
            stage.span,
            help="project them to one size",
        )
    declared = _pattern_of(pattern, stage.name).tables
    chosen_sets = _sets(pattern, stage, chosen)
    tables = {table.name: _table(table, call, values, chosen_sets) for table in declared}
    start = call.q_start if stage.rows == "q" else 0
    made = frozenset(table.name for table in declared if table.name in values.stages)
    given = frozenset(tables) - made - {POSITIONS, MEMBER}
    axes = {name: values.stages[name].axes for name in made} | {name: values.lines.labels(name) for name in given}
    return Operands(q=q, k=k, v=v, tables=tables, q_start=start, stages=made, axes=axes, lines=values.lines)


def _sets(pattern: BoundPattern, stage: Attention, chosen: Arrays) -> dict[str, Tensor]:
    """The sets that a softmax reads, and whole numbers, by the names of their stages."""
    declared = _pattern_of(pattern, stage.name).tables
    wanted = [table for table in declared if table.name in chosen.stages and table.dtype != "float"]
    with torch.no_grad():
        return sets_of(chosen, stage.name, wanted)


def sets(pattern: BoundPattern, call: Inputs) -> dict[str, Tensor]:
    """All sets that the softmaxes of a pattern read: of pairs as `lists`, of one side alone as bools."""
    chosen, found = arrays_of(pattern, call, grad=False), dict[str, Tensor]()
    for stage in graph_of(pattern).attentions:
        found |= _sets(pattern, stage, chosen)
    return found


def of_member(given: Operands, axis: str, number: int) -> dict[str, Tensor]:
    """The tables for one member of a free axis: those along the axis lose it, and one holds the member's number."""
    found = {}
    for name, table in given.tables.items():
        axes = given.axes.get(name, ())
        if axis in axes:
            # Lists have their keys in place of the last axis.
            table = table.select(table.dim() - len(axes) + axes.index(axis), number).contiguous()
        found[name] = table.new_tensor([number]) if name == MEMBER else table
    return found


def selections(pattern: BoundPattern, call: Inputs) -> dict[str, Tensor]:
    """All sets of pairs that the softmaxes of a pattern read, as `lists`, by the names of their stages."""
    chosen = arrays_of(pattern, call, grad=False)
    with torch.no_grad():
        return {name: lists(chosen, name) for name in _read_as_lists(pattern)}


def _read_as_lists(pattern: BoundPattern) -> list[str]:
    """The stages that softmaxes read as lists; others that they read are given."""
    stages = {stage.name for stage in graph_of(pattern).stages}
    tables = (table for stage in graph_of(pattern).attentions for table in _pattern_of(pattern, stage.name).tables)
    return list(dict.fromkeys(table.name for table in tables if table.listed and table.name in stages))


def makers(pattern: BoundPattern, call: Inputs) -> dict[str, str]:
    """How the `selections` of a call are made, and what these are made of beforehand, in words."""
    chosen, graph = arrays_of(pattern, call, grad=False), graph_of(pattern)
    names = [stage.name for stage in graph.stages if is_without_queries(stage) or belongs_to_columns(stage)]
    names += _read_as_lists(pattern)
    if not chosen.kernels:
        return {name: _maker(chosen, name) for name in dict.fromkeys(names)}
    from spdsl.runtime.invited import invited
    from spdsl.runtime.stretches import stretched
    from spdsl.runtime.stripes import striped
    from spdsl.runtime.uneven_picks import uneven_picks

    stages, told = dict(chosen.stages), dict[str, str]()
    told |= {name: "by a kernel: best_at" for name in stages if striped(pattern, stages, stages[name]) is not None}
    for each in invited(graph).values():
        told |= {
            stage.name: "by products of torch, and kernels: in_order, choose" for stage in (each.queries, each.keys)
        }
    # What members attend to at once is no list.
    at_once = [each.attention for each in stretched(graph).values()]
    apart = {table.name for stage in at_once for table in _pattern_of(pattern, stage.name).tables}
    told |= {stage.name: "by a kernel for all members: attend" for stage in at_once}
    others = [name for name in dict.fromkeys(names) if name not in told and name not in apart]
    told |= {name: _maker(chosen, name) for name in others}
    few = f"by kernels of intervals, up to {KEPT} picks of a query: attend, join_members"
    return told | dict.fromkeys(uneven_picks(pattern), few)


def _maker(chosen: Arrays, name: str) -> str:
    by_torch = "by torch, some rows at a time"
    if not chosen.kernels:
        return by_torch
    from spdsl.runtime.chain_kernels import lowered
    from spdsl.runtime.diagonal_lists import is_of_diagonals
    from spdsl.runtime.union_lists import union_of

    if is_of_diagonals(chosen, name):
        return "by kernels: mark_blocks, choose"
    if union_of(chosen, name):
        return "by kernels: note_entries, choose"
    chain = lowered(chosen, name)
    if isinstance(chain, str):
        return f"{by_torch}, because of {chain}"
    last = ", choose" if chain.kernels[-1].role == "keys" else ""
    return f"by kernels: {', '.join(kernel.name for kernel in chain.kernels)}{last}"


def _tensor(values: Arrays, expr: Expr, heads: str, rows: str, given: Tensor) -> Tensor:
    """Queries, keys or values of a softmax, ``[batch, heads, rows, features]`` in the type of the call."""
    if isinstance(expr, Load) and expr.table in ("Q", "K", "V"):
        return values.tensors[expr.table]
    feature = next(axis for axis in sorted(free_axes(expr)) if is_free(axis))
    axes = (heads, rows, feature)
    if isinstance(expr, Load) and expr.table in values.stages and values.stages[expr.table].axes == axes:
        found = values.whole(expr.table) if values.reads_whole(expr) else values.full(expr, axes, None, Memo())
    else:
        found = values.full(expr, axes, None, Memo())
    return found.expand(given.shape[0], *found.shape[1:]).to(given.dtype).contiguous()


def _table(table: Table, call: Inputs, values: Arrays, sets: dict[str, Tensor]) -> Tensor:
    if table.name in (POSITIONS, MEMBER):
        number = call.k.shape[2] if table.name == POSITIONS else 0
        # Made on the device: a number of the host would be waited for.
        return torch.full((1,), number, dtype=torch.int32, device=call.q.device)
    if table.name not in values.stages:
        return call.tables[table.name]
    return sets[table.name] if table.name in sets else values.whole(table.name)
