"""The calls of a union's parts: from a call of the first to those of all, each with what its own kernels need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from spdsl.runtime.calls import Call
from spdsl.runtime.divided import with_divided
from spdsl.runtime.lists import Kind, lists_for
from spdsl.runtime.marks import with_marks
from spdsl.runtime.stages import materialise

SPREAD = 8
"""Tiles that marked rows must lie in beyond those they fill, for a pass of their own to pay: a first estimate."""


def settled(call: Call) -> Call:
    """The call with the plan that suits the values of its inputs: a union set by set, or together where its marked rows
    stand side by side; and with the tables that are made of them for its parts."""
    call = with_divided(call)
    together = call.plan.together
    if together is None:
        return call
    marked = [plan for plan in call.plan.more if plan.forward.marked is not None]
    marks = [with_marks(materialise(replace(call, plan=plan, lists={}))).marks for plan in marked]
    call.recorder.hold(*(each.rows for each in marks if each is not None))
    if sum(each.spread for each in marks if each is not None) >= SPREAD:
        return call
    return materialise(replace(call, plan=together))


def parts_of(call: Call, kinds: Callable[[Call], Sequence[Kind]]) -> Iterator[Call]:
    """``call``, which has all it needs, then those of the other parts that have pairs; ``kinds`` are the kernels that
    will run."""
    yield call
    for plan in call.plan.more:
        part = materialise(replace(call, plan=plan, lists={}))
        wanted = kinds(part)
        # The host waits for the number of marked rows.
        gathers = not wanted or any(getattr(plan, kind).marked is not None for kind in wanted)
        part = lists_for(with_marks(part) if gathers else part, wanted)
        # Also where no row is marked: that is known of these values alone.
        part.hold()
        if part.marks is None or part.marks.rows.shape[-1]:
            yield part


def kinds_of(call: Call, wanted: frozenset[str]) -> Sequence[Kind]:
    """The kernels that compute the gradients that are wanted."""
    return ("fused",) if call.fuses(wanted) else ("dq", "dkdv")
