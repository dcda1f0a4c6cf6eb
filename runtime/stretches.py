"""Softmaxes along an axis of members whose sets are intervals of keys, one for each query, by two launches in all.

From: a softmax for each place of an order whose set is an interval with ends that stages have found (`a - r <= k`), and
perhaps another, in common for all members, beside it (`q - k < w`).  To: output and LSE of all members at once.
Queries stand in the order of where their intervals begin (`spdsl.runtime.items`): neighbours read the same keys.
Keys in both intervals count once: the first leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.codegen.ends import Ends, emit_ends, ends
from spdsl.codegen.load import load
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.items import LARGEST, Stretches
from spdsl.runtime.member_stretches import attend_stretches, in_order, sorted_by
from spdsl.runtime.memo import Memo
from spdsl.runtime.plain import start_given
from spdsl.semantics import build
from spdsl.semantics.graph import Attention, Mark, StageGraph, index_of, loads
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load
from spdsl.semantics.rewrite import conjuncts, disjuncts, free_indices

_MOST = 512
"""Graphs that are remembered."""

_ROWS = 256
"""Queries of a program that finds ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Keys from the largest of ``low`` to the smallest of ``high``, of queries for which all ``conditions`` hold."""

    low: tuple[Expr, ...] = ()
    high: tuple[Expr, ...] = ()
    conditions: tuple[Expr, ...] = ()

    def and_(self, other: Interval) -> Interval:
        """The keys of both."""
        pairs = zip((self.low, self.high, self.conditions), (other.low, other.high, other.conditions), strict=True)
        low, high, conditions = (mine + theirs for mine, theirs in pairs)
        return Interval(low=low, high=high, conditions=conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretched:
    """A softmax for each member: over ``own`` keys, and those of ``near``, if there are any, in common."""

    attention: Attention
    own: Interval
    near: Interval | None


_stretched: dict[int, tuple[StageGraph, dict[str, Stretched]]] = {}


def stretched(graph: StageGraph) -> dict[str, Stretched]:
    """The softmaxes of a graph whose members have intervals, by name."""
    # By identity: hashing a graph takes longer than a launch.  The entry keeps it alive.
    key = id(graph)
    if key not in _stretched:
        if len(_stretched) >= _MOST:
            _stretched.clear()
        found = {stage.name: _stretched_by(graph, stage) for stage in graph.attentions if stage.member is not None}
        _stretched[key] = graph, {name: each for name, each in found.items() if each is not None}
    return _stretched[key][1]


def _stretched_by(graph: StageGraph, stage: Attention) -> Stretched | None:
    attend = stage.attend
    if not is_plain(stage) or stage.axes != ("h", stage.member, "q", "d"):
        return None
    stages = {each.name: each for each in graph.stages}

    def inlined(clauses: Sequence[Expr]) -> list[Expr]:
        found = list[Expr]()
        for clause in clauses:
            match clause:
                case Load(table=name, indices=at) if isinstance(mark := stages.get(name), Mark):
                    own = at == tuple(map(index_of, mark.axes))
                    found += inlined(conjuncts(mark.value)) if own else [clause]
                case _:
                    found.append(clause)
        return found

    common, parts = Interval(), list[list[Expr]]()
    for clause in inlined(conjuncts(attend.keep)):
        branches = [inlined(conjuncts(each)) for each in disjuncts(clause)]
        if len(branches) > 1 and not parts:
            parts = branches
        elif len(branches) == 1 and (bound := interval_of(clause)) is not None:
            common = common.and_(bound)
        else:
            return None
    made = [_all([interval_of(each) for each in branch]) for branch in parts]
    if not made:
        return Stretched(attention=stage, own=common, near=None)
    if len(made) != 2 or any(each is None for each in made):
        return None
    # What is near is the same for all members, and one comparison, so that what is left of the other is an interval.
    is_common = [not any(_is_of_stages(each, graph) for each in branch) and len(branch) == 1 for branch in parts]
    if True not in is_common:
        return None
    at = is_common.index(True)
    near, other, outside = made[at], made[1 - at], interval_of(_negated(parts[at][0]))
    if near is None or other is None or outside is None:
        return None
    return Stretched(attention=stage, own=other.and_(outside).and_(common), near=near.and_(common))


def is_plain(stage: Attention) -> bool:
    """Whether a softmax is one of queries, keys and values as they are, whose logits are nothing but products."""
    attend, own = stage.attend, [(stage.query, "Q"), (stage.key, "K"), (stage.value, "V")]
    plain = attend.bias is None and attend.softcap is None and attend.sink_logit is None
    plain = plain and (attend.scale is None or isinstance(attend.scale, Const))
    plain = plain and all(isinstance(expr, Load) and expr.table == name for expr, name in own)
    return plain and (stage.rows, stage.columns) == ("q", "k")


def _is_of_stages(expr: Expr, graph: StageGraph) -> bool:
    return bool(loads(expr) & {stage.name for stage in graph.stages})


def _all(parts: Sequence[Interval | None]) -> Interval | None:
    whole = Interval()
    for part in parts:
        if part is None:
            return None
        whole = whole.and_(part)
    return whole


_OPPOSITE = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le"}


def _negated(clause: Expr) -> Expr:
    """What holds where a clause does not: of comparisons of ints again one, so that it may be an interval."""
    if isinstance(clause, Apply) and clause.op in _OPPOSITE and clause.args[0].dtype == "int":
        return replace(clause, op=_OPPOSITE[clause.op])
    return build.apply("not", clause)


def interval_of(clause: Expr) -> Interval | None:
    """The interval of keys for which a clause holds; None if it is none."""
    if "k" not in free_indices(clause):
        return Interval(conditions=(clause,))
    match clause:
        case Apply(op="ge" | "gt" as op, args=(one, two)):
            return interval_of(build.apply("le" if op == "ge" else "lt", two, one))
        case Apply(op="le" | "lt" as op, args=(one, two)) if one.dtype == two.dtype == "int":
            pass
        case _:
            return None
    less, more = _linear(one), _linear(two)
    if less is None or more is None:
        return None
    # less + a k <= more + b k, or one less.
    factor, rest = less[0] - more[0], build.sub(more[1], less[1])
    rest = build.sub(rest, 1) if op == "lt" else rest
    match factor:
        case 1:
            return Interval(high=(rest,))
        case -1:
            return Interval(low=(build.sub(0, rest),))
        case _:
            return None


def _linear(expr: Expr) -> tuple[int, Expr] | None:
    """An int as a multiple of the key and what is left without it."""
    if "k" not in free_indices(expr):
        return 0, expr
    match expr:
        case Index(name="k"):
            return 1, Const(value=0)
        case Apply(op="add" | "sub" as op, args=(one, two)):
            left, right = _linear(one), _linear(two)
            if left is None or right is None:
                return None
            sign, join = (1, build.add) if op == "add" else (-1, build.sub)
            return left[0] + sign * right[0], join(left[1], right[1])
        case _:
            return None


def attended(given: Stretched, chosen: Arrays, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Output ``[batch, heads, members, nq, dv]``, and LSE, or None where members attend one by one."""
    stage = given.attention
    assert stage.member is not None
    members = chosen.lines.size(stage.member)
    fits = chosen.kernels and q.numel() > 0 and k.numel() > 0 and members > 0
    if not fits or max(q.shape[-1], v.shape[-1]) > LARGEST or q.shape[1] * members * q.shape[2] >= 2**31:
        return None
    scale = scale_of(stage, q)
    with torch.no_grad():
        own = stretches_of(chosen, given.own, ("h", stage.member, "q"), (*q.shape[:2], members, q.shape[2]))
        near = None
        if given.near is not None:
            near = stretches_of(chosen, given.near, ("h", "q"), (*q.shape[:2], 1, q.shape[2]))
    return attend_stretches(q, k, v, own, near, scale, chosen.lines.q_start)


_ends: dict[int, tuple[Interval, Ends | None, Any]] = {}
"""The kernels of intervals, by their identity."""


def _by_kernel(
    arrays: Arrays, interval: Interval, axes: tuple[str, ...], shape: tuple[int, int, int, int]
) -> Stretches | None:
    """As `stretches_of` of members, by kernels; None where they are left to torch."""
    key = id(interval)
    if key not in _ends:
        if len(_ends) >= _MOST:
            _ends.clear()
        made = ends(interval.low, interval.high, interval.conditions)
        module = None if made is None else load(emit_ends(made, arrays.lines.pattern.name))
        _ends[key] = interval, made, module
    _, given, module = _ends[key]
    if given is None:
        return None
    memo, n = Memo(), arrays.lines.n
    batch, heads, members, nq = shape
    tensors: list[object] = []
    for _, expr in given.reads:
        found = arrays.filter(expr, axes, None, memo)
        steps = (step if size > 1 else 0 for size, step in zip(found.shape, found.stride(), strict=True))
        tensors += [found, *steps]
    kind = torch.int32 if batch * heads * (n + 1) < 2**31 else torch.int64
    low, high = (torch.empty(shape, dtype=torch.int32, device=arrays.lines.device) for _ in range(2))
    keys = torch.empty(shape, dtype=kind, device=low.device)
    grid = -(-nq // _ROWS) * batch * heads * members, 1, 1
    arguments = (low, high, keys, *tensors, nq, n, members, heads)
    start_given(module.ends, grid, arguments, {"BLOCK": _ROWS}, ("low", "high", "keys"), options_of(4), low.device)
    return sorted_by(keys, low, high, n)


def scale_of(stage: Attention, q: Tensor) -> float:
    """What logits are multiplied with, which is a number."""
    match stage.attend.scale:
        case Const(value=value):
            return float(value)
        case _:
            return 1 / math.sqrt(q.shape[-1])


def stretches_of(
    arrays: Arrays,
    interval: Interval,
    axes: tuple[str, ...],
    shape: tuple[int, int, int, int],
    within: tuple[Tensor, Tensor] | None = None,
) -> Stretches:
    """The intervals of a call, and the order of their beginnings; those of no keys begin behind all.

    ``within``, which broadcast to the ``shape``, are those of other intervals, of which no more is left.
    """
    last, device = arrays.lines.n - 1, arrays.lines.device
    found = _by_kernel(arrays, interval, axes, shape) if len(axes) == 3 and within is None else None
    if found is not None:
        return found
    memo = Memo()

    def of(expr: Expr) -> Tensor:
        found = arrays.filter(expr, axes, None, memo)
        return found if len(axes) == 3 else found.unsqueeze(2)

    low = torch.zeros((), dtype=torch.int64, device=device)
    high = torch.full((), last, dtype=torch.int64, device=device)
    if within is not None:
        low, high = torch.maximum(low, within[0]), torch.minimum(high, within[1])
    for each in interval.low:
        low = torch.maximum(low, of(each))
    for each in interval.high:
        high = torch.minimum(high, of(each))
    for each in interval.conditions:
        high = torch.where(of(each), high, -1)
    low = torch.where(low <= high, low, last + 1)
    low, high = (each.int().expand(shape).contiguous() for each in (low, high))
    return in_order(low, high, last + 1)
