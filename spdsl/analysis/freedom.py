"""Whether kernels for all values of the free parameters are as good as those for one.

From the plan with free parameters and the plan with their values: why the second is taken, if it is.  A parameter that
keeps a closed form from being found, or full tiles from being told, is worth kernels of its own for each value.
"""

from __future__ import annotations

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import ListWalk


def in_doubt(plan: Plan) -> bool:
    """Whether a plan with free parameters gave something up, so that values might do better."""
    return any(_given_up(kernel) > (0, 0) for kernel in _kernels(plan))


def why_fixed(free: Plan, fixed: Plan) -> str | None:
    """What the plan with the values has that the one without lacks; None where that is nothing."""
    for one, other in zip(_kernels(free), _kernels(fixed), strict=True):
        if _given_up(other) < _given_up(one):
            lost = one.walk.reason if isinstance(one.walk, ListWalk) else one.notes[0]
            return f"with any value, in the {one.kind} kernel: {lost}"
    return None


def _kernels(plan: Plan) -> tuple[KernelPlan, ...]:
    return plan.forward, plan.dq, plan.dkdv


def _given_up(kernel: KernelPlan) -> tuple[int, int]:
    return int(isinstance(kernel.walk, ListWalk)), len(kernel.notes)
