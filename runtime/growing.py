"""Calls of few queries whose keys grow from one to the next, as in generation: recorded once for all lengths.

From: a call that is about to be recorded.  To: the same call with the number of keys, the place of the first query and
the strides of keys and values open (`spdsl.runtime.traced`), if nothing but closed forms depends on them: no tables, no
lists, no descriptors.  Plans do not depend on these numbers but for the shape class and the power of two
above the length, which become conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from spdsl.analysis.plans import Plan
from spdsl.analysis.tiles import SlotWalk
from spdsl.codegen.frame import prefix_of
from spdsl.runtime.calls import Call, Open
from spdsl.runtime.tape import Tape

_TAPES = 8
"""Tapes that are kept for calls which differ in what is open."""


def opened(call: Call) -> Call:
    """The call with its numbers open, where its recorder traces them and its plan allows for it."""
    trace, length = call.recorder.trace, call.k.shape[2]
    if trace is None or call.open is not None or not all(_closed(plan) for plan in call.plan.parts):
        return call
    if not all(any(each is given for given in call.recorder.inputs) for each in (call.k, call.v)):
        return call  # copies have strides of their own
    keys, start = trace.number("keys", length), trace.number("start", call.q_start)
    strides = {
        name: trace.number(name, stride)
        for tensor, values in (("K", call.k), ("V", call.v))
        for name, stride in zip(_names(tensor), values.stride(), strict=False)
    }
    bucket = 1 << (length - 1).bit_length() if length else 0
    same = keys <= bucket and keys > bucket // 2 and keys >= call.q.shape[2]
    if call.places is None:
        same = same and start >= 0 and not (start == 0 and keys == call.q.shape[2])
    return replace(call, open=Open(keys=keys, strides=strides), q_start=start) if same else call


def _names(tensor: str) -> tuple[str, ...]:
    return tuple(f"{prefix_of(tensor)}_stride_{axis}" for axis in "bhn")


def _closed(plan: Plan) -> bool:
    """Whether the forward kernel needs nothing but numbers and the three tensors."""
    kernel, pattern = plan.forward, plan.problem.pattern
    return (
        kernel.few
        and isinstance(kernel.walk, SlotWalk)
        and not (kernel.cuts or kernel.marked or kernel.descriptors or kernel.persistent or kernel.picks)
        and not (plan.tables or plan.stages or plan.together or plan.problem.page or pattern.grids)
    )


class Growing:
    """The tapes of one kind of calls, by what is open in them."""

    def __init__(self) -> None:
        self._tapes: list[Tape] = []

    def keep(self, tape: Tape) -> None:
        """Remember a tape with open numbers; the one kept longest is forgotten where there are many."""
        self._tapes.insert(0, tape)
        del self._tapes[_TAPES:]

    def play(self, tensors: Sequence[Tensor], start: int) -> list[Tensor] | None:
        """The results for these tensors, if one of the tapes holds for them."""
        k, v = tensors[1], tensors[2]
        (kb, kh, kn, _), (vb, vh, vn, _) = k.stride(), v.stride()
        for tape in self._tapes:
            assert tape.numbers is not None
            numbers = tape.numbers(k.shape[2], start, kb, kh, kn, vb, vh, vn)
            if numbers is not None:
                return tape.play(tensors, numbers)
        return None
