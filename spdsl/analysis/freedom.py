"""Whether kernels for all values of the free parameters are as good as those for one.

From the plan with free parameters and the plan with their values: why the second is taken, if it is.  A parameter that
keeps a closed form from being found, or full tiles from being told, is worth kernels of its own for each value.
"""

from __future__ import annotations

from typing_extensions import assert_never

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import BoxWalk, DistanceWalk, ListWalk, PickWalk, SlotWalk, Turned
from spdsl.semantics.nodes import FreeParam
from spdsl.semantics.rewrite import walk


def in_doubt(plan: Plan) -> bool:
    """Whether a plan with free parameters gave something up, so that values might do better."""
    return any(_given_up(kernel) > _NOTHING and not _is_listed_anyway(kernel) for kernel in _kernels(plan))


def why_fixed(free: Plan, fixed: Plan) -> str | None:
    """What the plan with the values has that the one without lacks; None where that is nothing."""
    for one, other in zip(_kernels(free), _kernels(fixed), strict=False):
        if _given_up(other) < _given_up(one):
            return f"a kernel for all values would do worse: in `{one.kind}`, {_lost(one, other)}"
    return None


def _kernels(plan: Plan) -> tuple[KernelPlan, ...]:
    return tuple(kernel for part in plan.parts for kernel in part.kernels)


_NOTHING = (0, 0, 0)


def _given_up(kernel: KernelPlan) -> tuple[int, int, int]:
    """A closed form, full tiles, and loops over neighbouring tiles: less is better, the first counts most."""
    match kernel.walk:
        case SlotWalk(slots=slots):
            return 0, len(kernel.notes), sum(slot.step > 1 or slot.filter is not None for slot in slots)
        case BoxWalk() | PickWalk() | ListWalk(turned=Turned()):
            return 0, len(kernel.notes), 0
        case DistanceWalk(culprit=culprit):
            # A part that is no closed form by itself is no fault of a parameter.
            return int(culprit is None), len(kernel.notes), 0
        case ListWalk():
            return 2, len(kernel.notes), 0
        case _:
            assert_never(kernel.walk)


def _is_listed_anyway(kernel: KernelPlan) -> bool:
    """Whether a part of the set without free parameters asks for lists, such as a table read at every position."""
    match kernel.walk:
        case ListWalk(culprit=culprit) if culprit is not None:
            return not any(isinstance(node, FreeParam) for node in walk(culprit))
        case _:
            return False


def _lost(one: KernelPlan, other: KernelPlan) -> str:
    match one.walk:
        case ListWalk(reason=reason) | DistanceWalk(reason=reason) if type(one.walk) is not type(other.walk):
            return reason
        case _ if len(one.notes) > len(other.notes):
            return one.notes[0]
        case _:
            return "it would walk tiles that are not neighbours"
