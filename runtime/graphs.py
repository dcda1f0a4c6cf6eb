"""A call of a pattern with stages: selections as lists, softmaxes by the operators, and what follows them.

From: a bound pattern with a graph, and tensors whose sequences stand at the same places.  To: output, LSE and exports.
Selections are constants; pooled tensors, gates and merges are differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime import operator
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.checks import check_inputs
from spdsl.runtime.direct import Direct
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.exported import exports
from spdsl.runtime.in_turn import Part
from spdsl.runtime.inputs import Inputs, arrays_of, graph_of
from spdsl.runtime.invited import invited, mean_of_invited
from spdsl.runtime.joined import attend_jointly, joint
from spdsl.runtime.memo import Memo
from spdsl.runtime.sets import lists
from spdsl.runtime.shortened import shortened
from spdsl.runtime.softmax_operands import (
    PATTERNS,
    Operands,
    makers,
    of_member,
    operands,
    operands_of,
    selections,
)
from spdsl.runtime.stretches import attended, stretched
from spdsl.runtime.uneven_picks import attended_picks, uneven_picks
from spdsl.semantics.features import refuse_other_features
from spdsl.semantics.graph import Attention, Merge
from spdsl.semantics.nodes import BoundPattern, Expr, Table

__all__ = [
    "Inputs",
    "attend",
    "attend_anywhere",
    "exports",
    "lists",
    "makers",
    "noting_parts",
    "numbers",
    "of_member",
    "operands",
    "selections",
]


def attend(pattern: BoundPattern, call: Inputs, key_of: Callable[[str], str]) -> tuple[Tensor, Tensor | None]:
    """Output ``[batch, heads, nq, dv]``, and LSE ``[batch, heads, nq]`` unless arithmetic follows the softmax.

    ``key_of`` gives the key of the operators for a softmax of the pattern.
    """
    graph = graph_of(pattern)
    refuse_other_features(pattern, call.q.shape[3], call.v.shape[3])
    known = joint(graph)
    together = known.merges
    chosen = arrays_of(pattern, call, grad=False)
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v, *call.tables.values()))
    # What selections are made of is made once, where nothing is differentiated.
    values = arrays_of(pattern, call, grad=True) if trained or known.read else chosen
    values = replace(values, attended={}, placed=chosen.placed)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    alone = {stage.name for stage in graph.attentions} - {name for parts in together.values() for name in parts}
    # Where there is nothing to invite, members attend one by one.
    means = invited(graph) if call.q.numel() and call.k.numel() else {}
    alone -= {each.attention.name for each in means.values()}
    stretches = stretched(graph) if chosen.kernels else {}
    picks = uneven_picks(pattern) if chosen.kernels else {}

    def part(name: str) -> Part:
        stage = graph.stage(name)
        assert isinstance(stage, Attention)
        given = operands_of(pattern, stage, call, chosen, values)
        return _part(given, given.tables, key_of(name))

    for stage in graph.stages:
        match stage:
            case Attention(name=name) if name in alone:
                made = attended(stretches[name], chosen, call.q, call.k, call.v) if name in stretches else None
                made = attended_picks(picks[name], chosen, call.q, call.k, call.v) if name in picks else made
                found[name] = made if made is not None else _softmax(pattern, stage, call, chosen, values, key_of(name))
            case Merge(name=name) if name in together:
                found[name] = attend_jointly([part(each) for each in together[name]])
            case Merge(name=name) if name in means:
                out = mean_of_invited(means[name], chosen, call.q, call.k, call.v, call.q_start)
                found[name] = out, out.new_full(out.shape[:3], torch.nan, dtype=torch.float32)
            case Merge(parts=parts) if all(name in found for name in parts):
                found[stage.name] = _merged(stage, [found[name] for name in parts])
            case _:
                continue
        values.attended[stage.name] = found[stage.name][0]
    if graph.returned is not None:
        return found[graph.returned]
    if chosen.kernels:
        from spdsl.runtime.returned import by_kernel

        returned = by_kernel(values, graph.result, call.q.dtype)
        if returned is not None:
            return returned, None
    result = torch.as_tensor(values.evaluate(graph.result, ("h", "q", "d"), None, Memo()))
    shape = (call.q.shape[0], call.q.shape[1], call.q.shape[2], result.shape[-1])
    if call.q_start < 0:
        exist = torch.arange(call.q.shape[2], device=result.device) + call.q_start >= 0
        result = torch.where(exist[:, None], result, 0.0)
    return result.expand(shape).to(call.q.dtype), None


def numbers(pattern: BoundPattern, call: Inputs, value: Expr, axes: tuple[str, ...]) -> Tensor:
    """What an expression of a pattern is along some axes, behind one for the batch; whole numbers are doubles."""
    found = arrays_of(pattern, call, grad=False).full(value, axes, None, Memo())
    return found.float() if found.is_floating_point() else found.double()


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
    given = {table.name: with_batch(table, tables[table.name]) for table in pattern.tables}
    check_inputs(pattern.tables, given, q, k, v, q_start)
    found = []
    for batch, (first, start, length) in enumerate(places.tolist()):
        if start < 0 or length < 0 or start + length > k.shape[2]:
            raise error(
                "SP303",
                f"k_start={start} and k_len={length} of sequence {batch} reach outside the {k.shape[2]} rows of k",
                help="0 <= k_start and k_start + k_len <= number of keys must hold",
            )
        some = slice(batch, batch + 1)
        own = {
            table.name: _of_sequence(table, given[table.name], batch, k.shape[2], length) for table in pattern.tables
        }
        keys = slice(start, start + length)
        one = Inputs(q=q[some], k=k[some, :, keys], v=v[some, :, keys], tables=own, q_start=first, kernels=kernels)
        found.append(attend(pattern, one, key_of))
    outs, lses = zip(*found, strict=True)
    return torch.cat(outs), None if lses[0] is None else torch.cat(lses)


def _of_sequence(table: Table, given: Tensor, batch: int, rows: int, length: int) -> Tensor:
    """An input, which has an axis for the batch, as one sequence with ``length`` keys of ``rows`` rows has it."""
    own = given[batch : batch + 1] if given.shape[0] > 1 else given
    return shortened(table, own, rows, length)


def _softmax(
    pattern: BoundPattern, stage: Attention, call: Inputs, chosen: Arrays, values: Arrays, key: str
) -> tuple[Tensor, Tensor]:
    given = operands_of(pattern, stage, call, chosen, values)
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


@lru_cache(maxsize=PATTERNS)
def _direct(key: str) -> Direct:
    """The calls of a softmax."""
    return Direct(key, (), (), made=True)


def _part(given: Operands, made: Mapping[str, Tensor], key: str) -> Part:
    q, k, start = given.q, given.k, given.q_start
    shape = ("square" if q.shape[2] == k.shape[2] else "origin") if start == 0 else "offset"
    part = Part(q=q, k=k, v=given.v, tables=tuple(made.values()), key=key, shape=shape, q_start=start)
    noted = _parts.get()
    if noted is not None:
        noted.setdefault(key, part)
    return part


_parts: ContextVar[dict[str, Part] | None] = ContextVar("_parts", default=None)


@contextmanager
def noting_parts() -> Iterator[dict[str, Part]]:
    """While this lasts, note the softmaxes of calls by their keys; of those for each member of an axis the first."""
    found: dict[str, Part] = {}
    token = _parts.set(found)
    try:
        yield found
    finally:
        _parts.reset(token)


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
