"""One softmax over the keys of several: each computed by the operators, put together by their LSEs.

From: the operands of several softmaxes of the same queries.  To: output and LSE of all of them.  Nothing is
differentiated twice: with the output and the LSE of the whole, each operator's backward gives the gradients of its own
keys, and those of the queries are added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spdsl.runtime import operator
from spdsl.runtime.direct import plain
from spdsl.runtime.in_turn import Given, Part, gradients_in_turn, in_turn
from spdsl.runtime.recorder import Recorder
from spdsl.semantics.graph import Attention, Merge, StageGraph, expressions, loads
from spdsl.semantics.graph import parts as parts_of


def attend_jointly(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Output ``[batch, heads, nq, dv]`` and LSE ``[batch, heads, nq]`` (fp32) of one softmax over the keys of all.

    Raises:
        SpatError: as the operators; a table is read in a way whose gradient cannot be summed.
    """
    for part in parts:
        operator.foresee_gradients(part.q, part.k, part.v, part.tables, part.key, part.shape, ())
    found: tuple[Tensor, Tensor] = _Joined.apply(tuple(parts), *(x for part in parts for x in part.tensors))  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """The merges of a graph that are one softmax over the keys of several which nothing else reads, by name, and the
    names of these; and whether a selection or a reduction reads what a softmax returns."""

    merges: dict[str, tuple[str, ...]]
    read: bool


_MOST = 512
"""Graphs that are remembered."""

_joint: dict[int, tuple[StageGraph, Joint]] = {}


def joint(graph: StageGraph) -> Joint:
    """What is known of the softmaxes of a graph."""
    # By identity: hashing a graph takes longer than a launch.  The entry keeps it alive.
    key = id(graph)
    if key not in _joint:
        if len(_joint) >= _MOST:
            _joint.clear()
        _joint[key] = graph, _joint_of(graph)
    return _joint[key][1]


def _joint_of(graph: StageGraph) -> Joint:
    read = frozenset[str]().union(*map(loads, expressions(graph)))
    softmaxes = {stage.name: stage for stage in graph.attentions}
    found: dict[str, tuple[str, ...]] = {}
    inner = set[str]()
    for stage in graph.stages:
        match stage:
            case Merge(by="lse", over=None, stopped=False, parts=parts) if read.isdisjoint(parts):
                flat = tuple(name for part in parts for name in found.get(part, (part,)))
                if all(name in softmaxes and softmaxes[name].member is None for name in flat):
                    found[stage.name] = flat
                    inner |= set(parts)
            case _:
                pass
    outer = {merge: parts for merge, parts in found.items() if merge not in inner}
    # A softmax that several share is computed once, and has a gradient of its own.
    times = Counter(name for parts in outer.values() for name in parts)
    merges = {merge: parts for merge, parts in outer.items() if all(times[name] == 1 for name in parts)}
    returned = {stage.name for stage in graph.stages if isinstance(stage, Attention | Merge)}
    others = (part for stage in graph.stages if stage.name not in returned for part in parts_of(stage))
    return Joint(merges=merges, read=any(loads(part) & returned for part in others))


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: tuple[Part, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = _shared(parts, tensors)
        direct = plain(tensors)
        together = in_turn(given) if direct else None
        if together is not None:
            out, lse = together
        else:
            out, lse = _put_together([_forward(part, each, direct=direct) for part, each in given])
        ctx.parts, ctx.together = parts, together is not None
        ctx.save_for_backward(*tensors, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        needs, found = ctx.needs_input_grad[1:], list[Tensor | None]()
        if d_out is None and d_lse is None:
            return None, *[None] * len(needs)
        d_out = torch.zeros_like(out) if d_out is None else d_out
        # A graph of the gradients: the operator refuses to be differentiated again.
        direct = not torch.is_grad_enabled() and plain((*tensors, d_out))
        if direct and ctx.together:
            return None, *gradients_in_turn(_shared(ctx.parts, tensors), out, lse, d_out, d_lse, needs)
        for part, (q, k, v, tables) in _shared(ctx.parts, tensors):
            count = 3 + len(tables)
            wanted = [place for place, need in enumerate(needs[len(found) :][:count]) if need]
            settings = (part.key, part.shape, part.q_start, ())
            given = (q, k, v, tables, None, out, lse, d_out, d_lse, *settings, wanted)
            if not wanted:
                grads = []
            elif direct:
                grads = operator.backward(*given, Recorder())
            else:
                grads = operator.attend_backward(*given)
            by_place = dict(zip(wanted, grads, strict=True))
            found += [by_place.get(place) for place in range(count)]
        return None, *found


def _forward(part: Part, given: tuple[Tensor, Tensor, Tensor, list[Tensor]], *, direct: bool) -> tuple[Tensor, Tensor]:
    """A softmax by the operator, or ``direct`` without the dispatcher, which takes longer than the rest of the host."""
    q, k, v, tables = given
    if direct:
        return operator.forward(q, k, v, tables, None, part.key, part.shape, part.q_start, (), Recorder())
    found: tuple[Tensor, Tensor] = operator.attend(q, k, v, tables, None, part.key, part.shape, part.q_start, ())
    return found


def _shared(parts: Sequence[Part], tensors: Sequence[Tensor]) -> list[Given]:
    """The tensors of each part, out of those of all."""
    found, at = [], 0
    for part in parts:
        q, k, v, *tables = tensors[at : at + 3 + len(part.tables)]
        found.append((part, (q, k, v, tables)))
        at += 3 + len(part.tables)
    return found


def _put_together(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    outs, lses = zip(*pairs, strict=True)
    if outs[0].device.type == "cuda":
        from spdsl.runtime.join_kernels import put_together

        return put_together(outs, lses)
    all_lses = torch.stack(lses)
    largest = all_lses.amax(0)
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    weights = torch.exp(all_lses - largest)
    total = weights.sum(0)
    empty = total == 0
    divisor = torch.where(empty, 1.0, total)
    out = sum(each.float() * (weight / divisor)[..., None] for each, weight in zip(outs, weights, strict=True))
    assert isinstance(out, Tensor)
    return out.to(outs[0].dtype), torch.where(empty, -torch.inf, largest + torch.log(divisor))
