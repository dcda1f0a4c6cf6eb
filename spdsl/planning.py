"""From a key to the plan that is carried out: with parameters left open where that costs nothing.

The ladder has two rungs: kernels for all values of the free parameters, and where these have to give something up that
kernels for the given values have, those.  The operators' own, cached way down it is `spdsl.prepare`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spdsl.analysis.freedom import in_doubt, why_fixed
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.analysis.room import room_for_parameters
from spdsl.pipeline import bound, closed, free_names, opened, reasons, refuse_stages
from spdsl.semantics.nodes import BoundPattern, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A plan, the values of the parameters that it leaves open, and why the others are constants of its kernels."""

    plan: Plan
    values: dict[str, int]
    fixed: dict[str, str]

    @property
    def variables(self) -> dict[str, int]:
        """The values by the names of their variables, as a call takes them."""
        return {each.variable: self.values[each.name] for each in self.plan.problem.pattern.free}


def choose(
    key: str,
    sizes: tuple[int, int, int],
    problem: Callable[[BoundPattern], Problem],
    target: str,
) -> Chosen:
    """The plan for the pattern of ``key``, a key with all its values, at ``sizes`` (heads, groups, head dim).

    Raises:
        SpatError: as `plan` and `bound` do.
    """
    refuse_stages(key)
    open_key, values = opened(key)
    names = free_names(open_key)
    free = plan(problem(bound(open_key, *sizes)), target)
    fixed = reasons(key)
    if target != "cpu" and any(abs(value) > room_for_parameters(free) for value in values):
        known = plan(problem(bound(closed(open_key, values), *sizes)), target)
        return Chosen(plan=known, values={}, fixed=dict.fromkeys(names, "multiples of the value are too large") | fixed)
    if names and in_doubt(free):
        known = plan(problem(bound(closed(open_key, values), *sizes)), target)
        lost = why_fixed(free, known)
        if lost is not None:
            return Chosen(plan=known, values={}, fixed=dict.fromkeys(names, lost) | fixed)
    return Chosen(plan=free, values=dict(zip(names, values, strict=True)), fixed=fixed)


def element(table: Table) -> str:
    """The element type of a table that is not seen yet: lists hold ints."""
    return {"float": "float32", "int": "int32", "bool": "int32" if table.listed else "bool"}[table.dtype]
