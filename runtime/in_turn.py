"""One softmax over the keys of several, by kernels of which each goes on from what those before have left.

From: the parts of the softmax and their tensors.  To: output and LSE, and gradients.  Nothing is put together
afterwards, and what is known of rows, and the gradient of the queries, is written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from spdsl.runtime import operator
from spdsl.runtime.recorder import Recorder
from spdsl.runtime.requests import Prepared, request


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A softmax: its tensors, and what the operators are given besides."""

    q: Tensor
    k: Tensor
    v: Tensor
    tables: tuple[Tensor, ...]
    key: str
    shape: str
    q_start: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the operators."""
        return self.q, self.k, self.v, *self.tables


Given: TypeAlias = "tuple[Part, tuple[Tensor, Tensor, Tensor, list[Tensor]]]"
"""A part, and its tensors as they are now."""


def in_turn(given: Sequence[Given]) -> tuple[Tensor, Tensor] | None:
    """Output and LSE; None where the parts are no kernels, have queries of their own, or a later one has a sink."""
    parts = [part for part, _ in given]
    prepared = [_prepared(each, None, later=number > 0) for number, each in enumerate(given)]
    by_kernels = all(each.backend == "triton" for each in prepared)
    sinks = any(each.plan.sink_logit is not None for each in prepared[1:])
    if not by_kernels or sinks or any(part.q is not parts[0].q for part in parts):
        return None
    from spdsl.runtime.triton_engine import TritonEngine

    recorder, calls = Recorder(), []
    for ready, (part, (q, k, v, tables)) in zip(prepared, given, strict=True):
        calls.append(operator.ready(ready, q, k, v, tables, None, part.q_start, (), recorder))
    with operator.no_autocast(parts[0].q.device.type):
        return TritonEngine().forward_together(calls)


def gradients_in_turn(
    given: Sequence[Given],
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of all tensors that need one, in their order: those of the queries with the last part."""
    from spdsl.runtime.triton_engine import TritonEngine

    recorder, calls, wanted = Recorder(), [], []
    at = 0
    for number, (part, (q, k, v, tables)) in enumerate(given):
        own = needs[at : at + 3 + len(tables)]
        at += len(own)
        gradients = tuple(place for place, need in enumerate(own[3:]) if need)
        ready = _prepared((part, (q, k, v, tables)), gradients, later=number > 0)
        names = ("q", "k", "v", *ready.inputs)
        wanted.append(frozenset(name for name, need in zip(names, own, strict=True) if need))
        calls.append(operator.ready_backward(ready, q, k, v, tables, None, part.q_start, (), wanted[-1], recorder))
    with operator.no_autocast(out.device.type):
        every = TritonEngine().backward_together(calls, out, lse, d_out, d_lse, wanted)
    found: list[Tensor | None] = []
    for number, (call, asked, (_, (q, k, v, tables))) in enumerate(zip(calls, wanted, given, strict=True)):
        tensors = {"q": q, "k": k, "v": v}
        tensors |= {table.name: x for table, x in zip(call.plan.problem.pattern.tables, tables, strict=True)}
        here = asked if number == len(calls) - 1 else asked - {"q"}
        found += [operator.gradient_of(every[number], name, x) if name in here else None for name, x in tensors.items()]
    return found


def _prepared(given: Given, gradients: tuple[int, ...] | None, *, later: bool) -> Prepared:
    part, (q, k, v, tables) = given
    return request(q, k, v, tables, part.key, part.shape, (), gradients, later)
