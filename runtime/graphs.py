"""A call of a pattern with stages: selections as lists, softmaxes by the operators, and what follows them.

From: a bound pattern with a graph, and tensors whose sequences stand at the same places.  To: output, LSE and exports.
Selections are constants; pooled tensors, gates and merges are differentiated by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime import operator
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.checks import check_inputs
from spdsl.runtime.direct import Direct
from spdsl.runtime.joined import Part, attend_jointly, joint
from spdsl.runtime.lines import Lines
from spdsl.runtime.memo import Memo
from spdsl.runtime.narrowed import chosen_among
from spdsl.runtime.operator import with_batch
from spdsl.runtime.ranking import as_lists, joined
from spdsl.runtime.repeated import repeated
from spdsl.semantics.graph import (
    Attention,
    Export,
    Merge,
    Select,
    StageGraph,
    is_free,
    loads,
    on_side,
    side_of,
)
from spdsl.semantics.graph import parts as parts_of
from spdsl.semantics.nodes import BoundPattern, Const, Expr, Load, Table
from spdsl.semantics.rewrite import free_axes
from spdsl.semantics.softmaxes import MEMBER, POSITIONS, softmax_pattern

_BUDGET = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Numbers that a chunk of rows may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The tensors of a call and the position of the first query.

    ``kernels``: whether selections are made by generated kernels; by default they are on a GPU.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tables: Mapping[str, Tensor]
    q_start: int
    kernels: bool | None = None


def attend(pattern: BoundPattern, call: Inputs, key_of: Callable[[str], str]) -> tuple[Tensor, Tensor | None]:
    """Output ``[batch, heads, nq, dv]``, and LSE ``[batch, heads, nq]`` unless arithmetic follows the softmax.

    ``key_of`` gives the key of the operators for a softmax of the pattern.
    """
    graph = _graph(pattern)
    known = joint(graph)
    together = known.merges
    chosen = _arrays(pattern, call, grad=False)
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v, *call.tables.values()))
    # What selections are made of is made once, where nothing is differentiated.
    values = _arrays(pattern, call, grad=True) if trained or known.read else replace(chosen, attended={})
    found: dict[str, tuple[Tensor, Tensor]] = {}
    alone = {stage.name for stage in graph.attentions} - {name for parts in together.values() for name in parts}

    def part(name: str) -> Part:
        stage = graph.stage(name)
        assert isinstance(stage, Attention)
        given = _operands(pattern, stage, call, chosen, values)
        return _part(given, given.tables, key_of(name))

    for stage in graph.stages:
        match stage:
            case Attention(name=name) if name in alone:
                found[name] = _softmax(pattern, stage, call, chosen, values, key_of(name))
            case Merge(name=name) if name in together:
                found[name] = attend_jointly([part(each) for each in together[name]])
            case Merge(parts=parts) if all(name in found for name in parts):
                found[stage.name] = _merged(stage, [found[name] for name in parts])
            case _:
                continue
        values.attended[stage.name] = found[stage.name][0]
    if graph.returned is not None:
        return found[graph.returned]
    if chosen.kernels:
        from spdsl.runtime.returned import by_kernel

        made = by_kernel(values, graph.result, call.q.dtype)
        if made is not None:
            return made, None
    result = torch.as_tensor(values.evaluate(graph.result, ("h", "q", "d"), None, Memo()))
    shape = (call.q.shape[0], call.q.shape[1], call.q.shape[2], result.shape[-1])
    if call.q_start < 0:
        exist = torch.arange(call.q.shape[2], device=result.device) + call.q_start >= 0
        result = torch.where(exist[:, None], result, 0.0)
    return result.expand(shape).to(call.q.dtype), None


def attend_anywhere(
    pattern: BoundPattern,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    places: Tensor | None,
    q_start: int,
    key_of: Callable[[str], str],
    kernels: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `attend`; with ``places``, int32 ``[batch, 3]`` (q_start, k_start, k_len), sequence by sequence."""
    if places is None:
        return attend(pattern, Inputs(q=q, k=k, v=v, tables=tables, q_start=q_start, kernels=kernels), key_of)
    found = []
    for batch, (first, start, length) in enumerate(places.tolist()):
        if start < 0 or length < 0 or start + length > k.shape[2]:
            raise error(
                "SP303",
                f"k_start={start} and k_len={length} of sequence {batch} reach outside the {k.shape[2]} rows of k",
                help="0 <= k_start and k_start + k_len <= number of keys must hold",
            )
        some = slice(batch, batch + 1)
        own = {table.name: _of_sequence(table, tables[table.name], batch, length) for table in pattern.tables}
        keys = slice(start, start + length)
        one = Inputs(q=q[some], k=k[some, :, keys], v=v[some, :, keys], tables=own, q_start=first, kernels=kernels)
        found.append(attend(pattern, one, key_of))
    outs, lses = zip(*found, strict=True)
    return torch.cat(outs), None if lses[0] is None else torch.cat(lses)


def _of_sequence(table: Table, given: Tensor, batch: int, length: int) -> Tensor:
    """An input as one sequence has it; along ``token`` as many elements as there are keys."""
    batched = given.dim() > len(table.axes)
    if (batched or (table.axes and table.axes[0].kind == "b")) and given.shape[0] > 1:
        given = given[batch : batch + 1]
    for place, axis in enumerate(table.axes):
        if axis.kind == "token":
            given = given.narrow(place + int(batched), 0, length)
    return given


def exports(pattern: BoundPattern, call: Inputs, *, compact: bool = False) -> dict[str, Tensor]:
    """The exports by name, ``[batch, *axes]`` with floats in fp32; differentiable, and 0 where a value is absent.

    With ``compact`` sets of pairs are lists of keys.
    """
    values = _arrays(pattern, call, grad=True)
    chosen = _arrays(pattern, call, grad=False) if compact else values
    return {
        each.name: _listed(chosen, each) if compact and _is_of_pairs(each) else _exported(values, each)
        for each in _graph(pattern).exports
    }


def _is_of_pairs(exported: Export) -> bool:
    axes = exported.axes
    return exported.value.dtype == "bool" and on_side(axes, "q") is not None and side_of(axes[-1]) == "k"


def _listed(chosen: Arrays, exported: Export) -> Tensor:
    """A set of pairs as lists of keys, int32 ``[batch, …, rows, most]``."""
    match exported.value:
        case Load(table=name) if name in chosen.stages and exported.only == Const(value=True):
            found = lists(chosen, name)
        case _:
            axis = on_side(exported.axes, "q")
            assert axis is not None
            rows = torch.arange(chosen.lines.size(axis), device=chosen.lines.device)
            width = max(
                (chosen.row_width(chosen.stages[each]) for each in _stages_of(chosen, exported.value)), default=1
            )
            parts = []
            for some in rows.split(max(1, chosen.budget // max(1, width))):
                part = _export_rows(chosen, exported, some)
                parts.append(as_lists(part, max(1, int(part.sum(-1).max()) if part.numel() else 0)))
            found = joined(parts, 1 + exported.axes.index(axis))
    return found.expand(chosen.lines.batch, *found.shape[1:])


def _exported(values: Arrays, exported: Export) -> Tensor:
    axis = on_side(exported.axes, "q")
    if axis is None:
        return _export_rows(values, exported, None)
    rows = torch.arange(values.lines.size(axis), device=values.lines.device)
    width = max(
        (values.row_width(values.stages[name]) for name in _stages_of(values, exported.value)), default=values.lines.n
    )
    parts = [_export_rows(values, exported, some) for some in rows.split(max(1, values.budget // max(1, width)))]
    return torch.cat(parts, dim=1 + exported.axes.index(axis))


def _export_rows(values: Arrays, exported: Export, rows: Tensor | None) -> Tensor:
    memo = Memo()
    value = values.full(exported.value, exported.axes, rows, memo)
    only = values.filter(exported.only, exported.axes, rows, memo)
    nothing = torch.zeros((), dtype=value.dtype, device=value.device)
    batch = values.lines.batch
    return torch.where(only, value, nothing).expand(batch, *value.shape[1:])


def _stages_of(values: Arrays, expr: Expr) -> list[str]:
    return [name for name in loads(expr) if name in values.stages and on_side(values.stages[name].axes, "q")]


def _graph(pattern: BoundPattern) -> StageGraph:
    assert pattern.graph is not None
    return pattern.graph


def _arrays(pattern: BoundPattern, call: Inputs, *, grad: bool) -> Arrays:
    _refuse_lists(pattern)
    tables = {table.name: with_batch(table, call.tables[table.name]) for table in pattern.tables}
    check_inputs(pattern.tables, tables, call.q, call.k, call.v, call.q_start)
    tensors = {"Q": call.q, "K": call.k, "V": call.v, **tables}
    if not grad:
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    lines = Lines(
        pattern=pattern,
        tables=tables,
        batch=call.q.shape[0],
        nq=call.q.shape[2],
        n=call.k.shape[2],
        q_start=call.q_start,
        device=call.q.device,
    )
    stages = {stage.name: stage for stage in _graph(pattern).stages}
    kernels = call.q.device.type == "cuda" if call.kernels is None else call.kernels
    budget = _BUDGET.get(call.q.device.type, 1 << 22)
    return Arrays(lines=lines, stages=stages, tensors=tensors, budget=budget, kernels=kernels)


def _refuse_lists(pattern: BoundPattern) -> None:
    """Refuse inputs that are given as lists where they are more than a part of `keep`."""
    given = {table.name for table in pattern.tables if table.listed}
    for stage in _graph(pattern).stages if given else ():
        clauses = parts_of(stage)[3:4] if isinstance(stage, Attention) else ()
        for part in parts_of(stage):
            if loads(part) & given and part not in clauses:
                name = min(loads(part) & given)
                raise error(
                    "SP347",
                    f"`{name}` is given as lists, but stages compute with it",
                    stage.span,
                    help="pass bools, one for each pair",
                )


# ---------------------------------------------------------------- softmaxes


_MOST = 512
"""Softmaxes whose patterns are remembered."""

_patterns: dict[tuple[int, str], tuple[BoundPattern, BoundPattern]] = {}


def _pattern_of(pattern: BoundPattern, name: str) -> BoundPattern:
    """The pattern of a softmax."""
    # By identity: hashing a pattern takes longer than a launch.  The entry keeps it alive.
    key = id(pattern), name
    if key not in _patterns:
        if len(_patterns) >= _MOST:
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
    return _operands(pattern, stage, call, _arrays(pattern, call, grad=False), _arrays(pattern, call, grad=True))


def _operands(pattern: BoundPattern, stage: Attention, call: Inputs, chosen: Arrays, values: Arrays) -> Operands:
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
    tables = {table.name: _table(table, call, chosen, values) for table in declared}
    start = call.q_start if stage.rows == "q" else 0
    made = frozenset(table.name for table in declared if table.name in values.stages)
    given = frozenset(tables) - made - {POSITIONS, MEMBER}
    axes = {name: values.stages[name].axes for name in made} | {name: values.lines.labels(name) for name in given}
    return Operands(q=q, k=k, v=v, tables=tables, q_start=start, stages=made, axes=axes, lines=values.lines)


def selections(pattern: BoundPattern, call: Inputs) -> dict[str, Tensor]:
    """All sets of pairs that the softmaxes of a pattern read, as `lists`, by the names of their stages."""
    chosen = _arrays(pattern, call, grad=False)
    with torch.no_grad():
        return {name: lists(chosen, name) for name in _read_as_lists(pattern)}


def _read_as_lists(pattern: BoundPattern) -> list[str]:
    """The stages that softmaxes read as lists."""
    tables = (table for stage in _graph(pattern).attentions for table in _pattern_of(pattern, stage.name).tables)
    return list(dict.fromkeys(table.name for table in tables if table.listed))


def makers(pattern: BoundPattern, call: Inputs) -> dict[str, str]:
    """How the `selections` of a call are made, in words."""
    chosen = _arrays(pattern, call, grad=False)
    found = {}
    for name in _read_as_lists(pattern):
        found[name] = "by torch, some rows at a time"
        if chosen.kernels:
            from spdsl.runtime.chains import lowered

            chain = lowered(chosen, name)
            if isinstance(chain, str):
                found[name] += f", because of {chain}"
            else:
                found[name] = f"by kernels: {', '.join(kernel.name for kernel in chain.kernels)}, choose"
    return found


def _softmax(
    pattern: BoundPattern, stage: Attention, call: Inputs, chosen: Arrays, values: Arrays, key: str
) -> tuple[Tensor, Tensor]:
    given = _operands(pattern, stage, call, chosen, values)
    if stage.member is None:
        return _attended(given, given.tables, key)
    members = values.lines.size(stage.member)
    parts = [_attended(given, of_member(given, stage.member, number), key) for number in range(members)]
    outs, lses = zip(*parts, strict=True)
    # Heads come first, then the members.
    return torch.stack(outs, 2), torch.stack(lses, 2)


def _attended(given: Operands, made: Mapping[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    part = _part(given, made, key)
    q, k, v, tables = part.q, part.k, part.v, list(part.tables)
    operator.foresee_gradients(q, k, v, tables, key, part.shape, ())
    return _direct(key).attend(q, k, v, tables, None, part.shape, part.q_start)


@lru_cache(maxsize=_MOST)
def _direct(key: str) -> Direct:
    """The calls of a softmax."""
    return Direct(key, (), (), made=True)


def _part(given: Operands, made: Mapping[str, Tensor], key: str) -> Part:
    q, k, start = given.q, given.k, given.q_start
    shape = ("square" if q.shape[2] == k.shape[2] else "origin") if start == 0 else "offset"
    return Part(q=q, k=k, v=given.v, tables=tuple(made.values()), key=key, shape=shape, q_start=start)


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


def _table(table: Table, call: Inputs, chosen: Arrays, values: Arrays) -> Tensor:
    if table.name in (POSITIONS, MEMBER):
        number = call.k.shape[2] if table.name == POSITIONS else 0
        # Made on the device: a number of the host would be waited for.
        return torch.full((1,), number, dtype=torch.int32, device=call.q.device)
    if table.name not in values.stages:
        return call.tables[table.name]
    if table.listed:
        with torch.no_grad():
            return lists(chosen, table.name)
    if table.dtype == "float":
        return values.whole(table.name)
    with torch.no_grad():
        found = chosen.whole(table.name)
        return found if table.dtype == "bool" else found.int()


def lists(arrays: Arrays, name: str) -> Tensor:
    """The pairs of a set as lists of keys, int32 ``[batch or 1, …, rows, most]``: see `Table.listed`."""
    if name not in arrays.listed:
        make = partial(_lists, arrays, name)
        arrays.listed[name] = repeated(arrays, name, make) if arrays.kernels else make()
    return arrays.listed[name]


def _lists(arrays: Arrays, name: str) -> Tensor:
    found, width = None, _width(arrays, name)
    if arrays.kernels:
        from spdsl.runtime.chains import chosen_lists

        found = chosen_lists(arrays, name, width, lambda other: lists(arrays, other))
    found = chosen_among(arrays, name, lists) if found is None else found
    if found is not None:
        return found
    stage = arrays.stages[name]
    parts = []
    for rows in arrays.chunks(name):
        part = arrays.array(name, rows, Memo())
        most = width if width is not None else int(part.sum(-1).max()) if part.numel() else 0
        parts.append(as_lists(part, max(1, most)))
    axis = on_side(stage.axes, "q")
    assert axis is not None
    return joined(parts, 1 + stage.axes.index(axis))


_SMALL = 1 << 23
"""Entries of all pairs of a set up to which its lists have room for every key, so that the host need not wait for the
longest."""


def _width(arrays: Arrays, name: str) -> int | None:
    """The most elements of a row, where they are known without a look at the set, or room for all is little."""
    stage, lines = arrays.stages[name], arrays.lines
    match stage:
        case Select(by="count", amount=Const(value=count), over=over, also=()) if side_of(over) == "k":
            return max(0, min(int(count), lines.size(over)))
        case _:
            keys = on_side(stage.axes, "k")
            pairs = lines.batch * math.prod(lines.size(axis) for axis in stage.axes)
            return lines.size(keys) if keys is not None and arrays.kernels and pairs <= _SMALL else None


def _merged(stage: Merge, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One softmax over the keys of several, or the mean of those that keep something."""
    if stage.over is not None:
        parts = [pair for out, lse in parts for pair in zip(out.unbind(2), lse.unbind(2), strict=True)]
    lses = torch.stack([lse for _, lse in parts])
    if stage.by == "mean":
        kept = (lses > -torch.inf)[..., None]
        total = torch.where(kept, torch.stack([out.float() for out, _ in parts]), 0.0).sum(0)
        return (total / kept.sum(0).clamp(min=1)).to(parts[0][0].dtype), lses[0]
    largest = lses.amax(0).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    weights = torch.exp(lses - largest)
    weights = weights.detach() if stage.stopped else weights
    total = weights.sum(0)
    empty = total == 0
    divisor = torch.where(empty, 1.0, total)
    outs = torch.stack([out.float() for out, _ in parts])
    out = (outs * (weights / divisor)[..., None]).sum(0)
    return out.to(parts[0][0].dtype), torch.where(empty, -torch.inf, largest + torch.log(divisor))
