"""The kernels of a pattern as text, for people to read and for compilation ahead of time."""

from __future__ import annotations

from torch import Tensor

from spdsl.analysis.few import few_keys, few_rows
from spdsl.analysis.plans import Problem
from spdsl.analysis.tiles import Shape
from spdsl.codegen.emit import emit
from spdsl.codegen.gluon import emit_gluon
from spdsl.codegen.lower import lower
from spdsl.pipeline import softmax_keys
from spdsl.planning import Chosen, choose, element
from spdsl.prepare import precision
from spdsl.semantics.nodes import BoundPattern


def sources(key: str, q: Tensor, k: Tensor, v: Tensor, target: str = "sm_90") -> dict[str, str]:
    """Generated sources by file name, for tensors like these; inputs get no gradients."""
    found = {}
    for plan in (part for each in softmax_keys(key) for part in plan_like(each, q, k, v, target).plan.parts):
        graph = lower(plan)
        found[f"{graph.name}.py"] = emit(graph).text
        found |= {f"{graph.name}_{kernel.name}.py": emit_gluon(graph, kernel).text for kernel in graph.gluon}
    return found


def plan_like(key: str, q: Tensor, k: Tensor, v: Tensor, target: str, *, q_start: int | None = None) -> Chosen:
    """The plan for tensors like these; the shape class follows from the lengths and the first query's position."""
    whole = q.shape[2] == k.shape[2] and not q_start
    shape: Shape = "square" if whole else "offset"

    def problem(pattern: BoundPattern) -> Problem:
        return Problem(
            pattern=pattern,
            dtype=precision(q.dtype),
            value_dim=v.shape[3],
            shape=shape,
            tables=tuple((table.name, element(table)) for table in pattern.tables),
            few=0 if target == "cpu" else few_rows(shape, q.shape[2], q.shape[1], k.shape[1]),
            few_keys=target != "cpu" and few_keys(shape, q.shape[2], k.shape[2], k.shape[1]),
        )

    return choose(key, (q.shape[1], k.shape[1], q.shape[3]), problem, target)
